//! The driver of the monitor device: virtio-mmio, version 2 registers, virtio 1.2 section 4.2.
//!
//! The device is named on the command line. It gives the memory of the state region and four queues (commands,
//! replies, what programs print and what they read). The driver sets the queues up; what goes through them is
//! [`crate::command`]'s and [`crate::console`]'s. Virtio-mmio knows no message-signalled interrupts, so the message is told
//! to the device through its own configuration space.

use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use pagevisor_mm::Mm;
use pagevisor_mm::memblock::{MEMBLOCK_ALLOC_ACCESSIBLE, Memblock};
use pagevisor_shared::ABI_VERSION;
use pagevisor_shared::command::NR_BUFFERS;
use pagevisor_shared::device::monitor::{
    CONFIG_ABI, CONFIG_MSI_ADDR, CONFIG_MSI_DATA, CONFIG_STATE, DEVICE_ID, MMIO_SIZE, QUEUE_COMMAND, QUEUE_CONSOLE,
    QUEUE_INPUT, QUEUE_REPLY, SHM_STATE,
};
use pagevisor_shared::region::GuestState;
use pagevisor_shared::units::{PAGE_SIZE, PhysAddr};

use crate::arch::irq::Irq;
use crate::arch::{paging, percpu};
use crate::log::{pr_err, pr_info};
use crate::memory::LOWEST;
use crate::platform::Kernel;
use crate::sync::Once;
use crate::{command, console, direct_map};

/// Registers, by offset (virtio 1.2, 4.2.2).
mod register {
    pub const MAGIC: u32 = 0x000;
    pub const VERSION: u32 = 0x004;
    pub const DEVICE_ID: u32 = 0x008;
    pub const DEVICE_FEATURES: u32 = 0x010;
    pub const DEVICE_FEATURES_SEL: u32 = 0x014;
    pub const DRIVER_FEATURES: u32 = 0x020;
    pub const DRIVER_FEATURES_SEL: u32 = 0x024;
    pub const QUEUE_SEL: u32 = 0x030;
    pub const QUEUE_NUM_MAX: u32 = 0x034;
    pub const QUEUE_NUM: u32 = 0x038;
    pub const QUEUE_READY: u32 = 0x044;
    pub const QUEUE_NOTIFY: u32 = 0x050;
    pub const STATUS: u32 = 0x070;
    pub const QUEUE_DESC: u32 = 0x080;
    pub const QUEUE_DRIVER: u32 = 0x090;
    pub const QUEUE_DEVICE: u32 = 0x0a0;
    pub const SHM_SEL: u32 = 0x0ac;
    pub const SHM_LEN: u32 = 0x0b0;
    pub const SHM_BASE: u32 = 0x0b8;
    pub const CONFIG: u32 = 0x100;
}

/// Device status bits.
mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const FAILED: u32 = 128;
}

/// `virt`.
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// `VIRTIO_F_VERSION_1`, bit 0 of the upper word of the features: this device follows the standard.
const FEATURE_VERSION_1: u32 = 1;
/// `VIRTIO_F_EVENT_IDX`, bit 29: each side says of which buffer it wants to be told.
const FEATURE_EVENT_IDX: u32 = 1 << 29;
/// Length of a shared-memory region that does not exist.
const NO_SHM: u64 = u64::MAX;
/// Address of message-signalled interrupts; the APIC id goes to bits 12 to 19.
const MSI_ADDRESS: u64 = 0xfee0_0000;

/// Descriptors per queue, if the device has that many.
pub const QUEUE_SIZE: u32 = 32;
/// Where a queue's parts lie in its half of the page: descriptors, what the driver offers, what the device used.
const DESC_OFFSET: u64 = 0;
/// See [`DESC_OFFSET`].
pub const DRIVER_OFFSET: u64 = 16 * QUEUE_SIZE as u64;
/// See [`DRIVER_OFFSET`].
pub const DEVICE_OFFSET: u64 = (DRIVER_OFFSET + 6 + 2 * QUEUE_SIZE as u64).next_multiple_of(64);
/// Bytes of a queue's parts.
pub const QUEUE_BYTES: u64 = 1024;
const _: () = assert!(4 * QUEUE_BYTES <= PAGE_SIZE);
const _: () = assert!(DEVICE_OFFSET + 6 + 8 * QUEUE_SIZE as u64 <= QUEUE_BYTES);

static DEVICE: Once<Monitor> = Once::new();

/// The device.
#[derive(Debug)]
pub struct Monitor {
    /// Where its registers are.
    base: PhysAddr,
    /// Where they are mapped: in a window of boot's at first, then by `ioremap`.
    window: AtomicUsize,
    shm: (PhysAddr, u64),
}

impl Monitor {
    fn register(&self, offset: u32) -> *mut u32 {
        with_exposed_provenance_mut(self.window.load(Relaxed) + offset as usize)
    }

    fn read(&self, offset: u32) -> u32 {
        // SAFETY: the window is the device's page, mapped uncached; `offset` is one of the constants above.
        unsafe { self.register(offset).read_volatile() }
    }

    fn write(&self, offset: u32, value: u32) {
        // SAFETY: as in `read`. What the device may write to by this are queues, which are reserved for it.
        unsafe { self.register(offset).write_volatile(value) };
    }

    /// A 64-bit number in two registers, the lower half first.
    fn read_pair(&self, offset: u32) -> u64 {
        self.read(offset) as u64 | (self.read(offset + 4) as u64) << 32
    }

    fn write_pair(&self, offset: u32, value: u64) {
        self.write(offset, value as u32);
        self.write(offset + 4, (value >> 32) as u32);
    }

    fn add_status(&self, bits: u32) {
        self.write(register::STATUS, self.read(register::STATUS) | bits);
    }

    /// The memory that it offers for the state region.
    pub const fn shm(&self) -> (PhysAddr, u64) {
        self.shm
    }

    /// From reset to agreed features; the reason when that fails.
    fn negotiate(&mut self) -> Result<(), &'static str> {
        if self.read(register::MAGIC) != MAGIC || self.read(register::VERSION) != VERSION {
            return Err("there is no virtio-mmio device of version 2");
        }
        if self.read(register::DEVICE_ID) != DEVICE_ID {
            return Err("the device there is another one");
        }
        self.write(register::STATUS, 0);
        self.write(register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        self.write(register::DEVICE_FEATURES_SEL, 0);
        if self.read(register::DEVICE_FEATURES) & FEATURE_EVENT_IDX == 0 {
            return Err("it does not offer VIRTIO_F_EVENT_IDX");
        }
        self.write(register::DEVICE_FEATURES_SEL, 1);
        if self.read(register::DEVICE_FEATURES) & FEATURE_VERSION_1 == 0 {
            return Err("it does not offer VIRTIO_F_VERSION_1");
        }
        self.write(register::DRIVER_FEATURES_SEL, 0);
        self.write(register::DRIVER_FEATURES, FEATURE_EVENT_IDX);
        self.write(register::DRIVER_FEATURES_SEL, 1);
        self.write(register::DRIVER_FEATURES, FEATURE_VERSION_1);
        self.write(register::STATUS, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        if self.read(register::STATUS) & status::FEATURES_OK == 0 {
            return Err("it does not accept the features");
        }
        if self.read(register::CONFIG + CONFIG_ABI) != ABI_VERSION {
            return Err("the host speaks another version of the contract");
        }
        self.write(register::SHM_SEL, SHM_STATE);
        let len = self.read_pair(register::SHM_LEN);
        if len == NO_SHM || len == 0 {
            return Err("it has no memory for the state region");
        }
        self.shm = (PhysAddr::new(self.read_pair(register::SHM_BASE)), len);
        Ok(())
    }

    /// Tells the device that there is something in a queue.
    pub fn notify(&self, queue: u32) {
        self.write(register::QUEUE_NOTIFY, queue);
    }

    /// Hands the device a queue at `phys`; gives its size.
    fn set_up_queue(&self, index: u32, phys: u64) -> Result<u32, &'static str> {
        self.write(register::QUEUE_SEL, index);
        let max = self.read(register::QUEUE_NUM_MAX);
        if max == 0 || self.read(register::QUEUE_READY) != 0 {
            return Err("it has no such queue");
        }
        // Sizes are powers of two, and so is the device's largest.
        let size = QUEUE_SIZE.min(max);
        if (size as usize) < NR_BUFFERS {
            return Err("its queues are too short");
        }
        self.write(register::QUEUE_NUM, size);
        self.write_pair(register::QUEUE_DESC, phys + DESC_OFFSET);
        self.write_pair(register::QUEUE_DRIVER, phys + DRIVER_OFFSET);
        self.write_pair(register::QUEUE_DEVICE, phys + DEVICE_OFFSET);
        self.write(register::QUEUE_READY, 1);
        Ok(size)
    }
}

/// Looks for the device at `base` and agrees with it on features. A device that cannot be used is reported and left
/// alone: the kernel runs without it.
pub fn probe(base: PhysAddr) -> Option<&'static Monitor> {
    let window = paging::map_device(paging::DeviceSlot::Monitor, base);
    let mut device = Monitor { base, window: AtomicUsize::new(window), shm: (PhysAddr::new(0), 0) };
    match device.negotiate() {
        Ok(()) => Some(DEVICE.set(device)),
        Err(reason) => {
            device.add_status(status::FAILED);
            pr_err!("monitor: not usable at {base}: {reason}");
            None
        }
    }
}

/// Sets up queues and interrupts, with memory from `memblock`: from here on the device is live.
pub fn start(memblock: &mut Memblock) {
    let Some(device) = DEVICE.get() else { return };
    let page = direct_map::new_table(memblock).raw();
    let places = (0..).map(|index| page + index * QUEUE_BYTES);
    let mut queues = [QUEUE_COMMAND, QUEUE_REPLY, QUEUE_CONSOLE, QUEUE_INPUT].into_iter().zip(places);
    let size = match queues.try_fold(QUEUE_SIZE, |_, (queue, place)| device.set_up_queue(queue, place)) {
        Ok(size) => size,
        Err(reason) => {
            device.add_status(status::FAILED);
            pr_err!("monitor: {reason}");
            return;
        }
    };
    // Neither cleared nor touched: the host has no memory for it until there are messages.
    match memblock.alloc_try_nid_raw(command::BUFFERS_BYTES, PAGE_SIZE, LOWEST, MEMBLOCK_ALLOC_ACCESSIBLE, None) {
        Ok(buffers) => command::init(device, size as u16, page, buffers.raw()),
        Err(error) => pr_err!("monitor: no memory for commands: {error}"),
    }
    console::init(device, size as u16, page + 2 * QUEUE_BYTES, page + 3 * QUEUE_BYTES);
    let address = MSI_ADDRESS | (percpu::this().apic_id() as u64) << 12;
    device.write_pair(register::CONFIG + CONFIG_MSI_ADDR, address);
    device.write(register::CONFIG + CONFIG_MSI_DATA, Irq::Monitor.vector() as u32);
    device.add_status(status::DRIVER_OK);
    pr_info!("monitor: 4 queues of {QUEUE_SIZE}, state region at {} ({} KiB)", device.shm.0, device.shm.1 >> 10);
}

/// Maps the registers anew, by `ioremap`, which was not there when the device was found, and gives the window of boot's
/// back. No other CPU runs yet. If that fails, the window stays.
pub fn remap(mm: &Mm<Kernel>) {
    let Some(device) = DEVICE.get() else { return };
    match mm.ioremap_uc(device.base, MMIO_SIZE) {
        Some(window) => {
            device.window.store(window.raw() as usize, Relaxed);
            paging::unmap_device(paging::DeviceSlot::Monitor);
        }
        None => pr_err!("monitor: no memory to map it"),
    }
}

/// Wakes the host: the guest has reached `state`.
pub fn announce(state: GuestState) {
    if let Some(device) = DEVICE.get() {
        device.write(register::CONFIG + CONFIG_STATE, state as u32);
    }
}

/// The device, if there is one.
pub fn get() -> Option<&'static Monitor> {
    DEVICE.get()
}
