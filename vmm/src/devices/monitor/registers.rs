//! The monitor's register file: virtio 1.2, section 4.2 (virtio over MMIO, version 2), as a state machine without
//! side effects. What an access asks of the rest of the device it gives back as an [`Effect`]; what breaks the rules
//! for drivers it gives back as a [`Violation`], and changes nothing.

use pagevisor_shared::device::monitor;
use pagevisor_shared::region::GuestState;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::config::ConfigSpace;
use super::queue::{QueueSetup, QueueSetupError};
use crate::topology::AddrRange;

/// `virt`, what [`reg::VIRTIO_MMIO_MAGIC_VALUE`] reads.
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// Register layout of virtio 1.x.
const VERSION: u32 = 2;
/// Where the configuration space starts.
const CONFIG: u64 = reg::VIRTIO_MMIO_CONFIG as u64;
/// Number of queues.
pub const QUEUES: usize = 4;
/// What the driver must take, by bit.
const REQUIRED: u64 = 1 << VIRTIO_F_VERSION_1;
/// What the device can do, by bit.
const FEATURES: u64 = REQUIRED | EVENT_IDX;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// Bits of the interrupt status that exist.
const INTERRUPTS: u32 = reg::VIRTIO_MMIO_INT_VRING | reg::VIRTIO_MMIO_INT_CONFIG;
/// Length of a shared-memory region that does not exist.
const NO_REGION: u64 = u64::MAX;

/// What a register access asks of the rest of the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Nothing.
    None,
    /// The device was reset.
    Reset,
    /// The queue was set up, or taken down.
    QueueChanged(usize),
    /// The driver has put buffers into the queue.
    Notify(usize),
    /// The guest has come so far.
    State(GuestState),
    /// The device's interrupt is this message.
    Msi {
        /// Its address.
        address: u64,
        /// Its data.
        data: u32,
    },
    /// The driver did not get the features it asked for; nothing is wrong, it may ask again.
    FeaturesRefused(u64),
    /// The driver has given up on the device.
    Failed,
}

/// How a driver broke the rules. The text completes "the driver ...".
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// Not an aligned 32-bit access.
    #[error("accessed register {0:#x} with {1} bytes; registers are 4 bytes wide")]
    Width(u64, usize),
    /// A register that cannot be written.
    #[error("wrote {1:#x} to {0:#x}, which is no register for writing")]
    NotWritable(u64, u32),
    /// A status it may not set now.
    #[error("set status {to:#x} after {from:#x}")]
    Status {
        /// What was.
        from: u32,
        /// What it wrote.
        to: u32,
    },
    /// Features after they were agreed, or before it said that it is a driver.
    #[error("wrote features in status {0:#x}")]
    FeaturesNow(u32),
    /// Features that were not offered.
    #[error("took features {0:#x}, which were not offered")]
    FeaturesUnoffered(u64),
    /// A queue that does not exist.
    #[error("used queue {0}; there are {QUEUES}")]
    NoQueue(u32),
    /// A queue is changed although it is in use, or before features were agreed.
    #[error("configured queue {0} in status {1:#x}")]
    QueueNow(usize, u32),
    /// A queue is changed after it was made ready.
    #[error("changed queue {0} while it was ready")]
    QueueReady(usize),
    /// A queue that cannot work.
    #[error("made queue {0} ready although {1}")]
    Queue(usize, QueueSetupError),
    /// A notification for a queue that is not ready, or before [`DRIVER_OK`].
    #[error("notified queue {0}, which is not in use")]
    NotifyNow(usize),
    /// An interrupt acknowledged that does not exist.
    #[error("acknowledged interrupts {0:#x}")]
    Acknowledge(u32),
    /// Configuration read or written in a wrong way or at a wrong time.
    #[error("accessed {1} bytes of configuration at {0:#x}")]
    Config(u64, usize),
    /// A state of the guest that does not exist.
    #[error("reported state {0}, which does not exist")]
    State(u32),
    /// What it put into a queue cannot be.
    #[error("put something into queue {0} that is no valid buffer")]
    Buffer(usize),
}

/// The registers.
#[derive(Debug)]
pub struct Registers {
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    setup: [QueueSetup; QUEUES],
    queues: [Option<Queue>; QUEUES],
    interrupt_status: u32,
    shm_sel: u32,
    shm: AddrRange,
    config: ConfigSpace,
}

impl Registers {
    /// Registers after reset, of a device whose shared-memory region is at `shm`.
    pub fn new(shm: AddrRange) -> Self {
        Self {
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            setup: [QueueSetup::default(); QUEUES],
            queues: [const { None }; QUEUES],
            interrupt_status: 0,
            shm_sel: 0,
            shm,
            config: ConfigSpace::new(shm.size),
        }
    }

    /// Whether the driver runs the device: it is past `DRIVER_OK` and has broken nothing.
    pub fn is_live(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK
    }

    /// The queue, if the driver has set it up.
    pub fn queue(&mut self, index: usize) -> Option<&mut Queue> {
        self.queues.get_mut(index)?.as_mut()
    }

    /// Puts the device out of service until the driver resets it. Says whether it has to be told by an interrupt.
    pub fn need_reset(&mut self) -> bool {
        self.status |= NEEDS_RESET;
        let tell = self.status & DRIVER_OK != 0;
        if tell {
            self.interrupt_status |= reg::VIRTIO_MMIO_INT_CONFIG;
        }
        tell
    }

    /// Whether the device waits for a reset.
    pub fn needs_reset(&self) -> bool {
        self.status & NEEDS_RESET != 0
    }

    /// Notes that buffers were used, for the interrupt that follows.
    pub fn buffers_used(&mut self) {
        self.interrupt_status |= reg::VIRTIO_MMIO_INT_VRING;
    }

    /// A read at `offset`. On a violation `data` is as it was.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Violation> {
        if let Some(at) = offset.checked_sub(CONFIG) {
            return self.config.read(at, data).ok_or(Violation::Config(at, data.len()));
        }
        let len = data.len();
        let word: &mut [u8; 4] = data.try_into().map_err(|_| Violation::Width(offset, len))?;
        if !offset.is_multiple_of(4) {
            return Err(Violation::Width(offset, len));
        }
        *word = self.register(offset as u32).to_le_bytes();
        Ok(())
    }

    /// What a register reads; 0 for one that only takes writes, and where there is none.
    fn register(&self, register: u32) -> u32 {
        let shm =
            if self.shm_sel == monitor::SHM_STATE { (self.shm.start, self.shm.size) } else { (NO_REGION, NO_REGION) };
        match register {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => monitor::DEVICE_ID,
            reg::VIRTIO_MMIO_VENDOR_ID => monitor::VENDOR_ID,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => half(FEATURES, self.device_features_sel),
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX if (self.queue_sel as usize) < QUEUES => monitor::QUEUE_MAX.into(),
            reg::VIRTIO_MMIO_QUEUE_READY => match self.queues.get(self.queue_sel as usize) {
                Some(Some(_)) => 1,
                _ => 0,
            },
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt_status,
            reg::VIRTIO_MMIO_STATUS => self.status,
            reg::VIRTIO_MMIO_SHM_BASE_LOW => half(shm.0, 0),
            reg::VIRTIO_MMIO_SHM_BASE_HIGH => half(shm.0, 1),
            reg::VIRTIO_MMIO_SHM_LEN_LOW => half(shm.1, 0),
            reg::VIRTIO_MMIO_SHM_LEN_HIGH => half(shm.1, 1),
            // The device never changes its configuration by itself.
            reg::VIRTIO_MMIO_CONFIG_GENERATION => 0,
            _ => 0,
        }
    }

    /// A write at `offset`. `ram` is where queues may lie.
    pub fn write(&mut self, offset: u64, data: &[u8], ram: &GuestMemoryMmap) -> Result<Effect, Violation> {
        if let Some(at) = offset.checked_sub(CONFIG) {
            return self.write_config(at, data);
        }
        let word: [u8; 4] = data.try_into().map_err(|_| Violation::Width(offset, data.len()))?;
        if !offset.is_multiple_of(4) {
            return Err(Violation::Width(offset, data.len()));
        }
        let value = u32::from_le_bytes(word);
        let register = offset as u32;
        if self.needs_reset() && register != reg::VIRTIO_MMIO_STATUS {
            // Out of service: one complaint was enough.
            return Ok(Effect::None);
        }
        match register {
            reg::VIRTIO_MMIO_STATUS => return self.write_status(value),
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => self.write_features(value)?,
            reg::VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            reg::VIRTIO_MMIO_QUEUE_READY => return self.write_queue_ready(value, ram),
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => return self.notify(value),
            reg::VIRTIO_MMIO_INTERRUPT_ACK if value & !INTERRUPTS != 0 => return Err(Violation::Acknowledge(value)),
            reg::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt_status &= !value,
            reg::VIRTIO_MMIO_SHM_SEL => self.shm_sel = value,
            reg::VIRTIO_MMIO_QUEUE_NUM => self.selected()?.size = value,
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => set_half(&mut self.selected()?.descriptors, 0, value),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_half(&mut self.selected()?.descriptors, 1, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_half(&mut self.selected()?.available, 0, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_half(&mut self.selected()?.available, 1, value),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => set_half(&mut self.selected()?.used, 0, value),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => set_half(&mut self.selected()?.used, 1, value),
            _ => return Err(Violation::NotWritable(offset, value)),
        }
        Ok(Effect::None)
    }

    /// The status state machine (section 2.1): bits are only ever added, in order, until a write of 0 resets.
    fn write_status(&mut self, to: u32) -> Result<Effect, Violation> {
        if to == 0 {
            *self = Self::new(self.shm);
            return Ok(Effect::Reset);
        }
        let from = self.status;
        if self.needs_reset() {
            return Ok(Effect::None);
        }
        let added = to & !from;
        let requires = |bit, needs| added & bit == 0 || to & needs == needs;
        let known = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
        // DRIVER_OK needs a FEATURES_OK from before: the driver must read back whether the device took it.
        let in_order = requires(DRIVER, ACKNOWLEDGE)
            && requires(FEATURES_OK, ACKNOWLEDGE | DRIVER)
            && (added & DRIVER_OK == 0 || from & FEATURES_OK != 0);
        if to & !known != 0 || from & !to != 0 || !in_order {
            return Err(Violation::Status { from, to });
        }
        if added & FEATURES_OK != 0 {
            let unoffered = self.driver_features & !FEATURES;
            if unoffered != 0 {
                return Err(Violation::FeaturesUnoffered(unoffered));
            }
            if self.driver_features & REQUIRED != REQUIRED {
                self.status = to & !FEATURES_OK;
                return Ok(Effect::FeaturesRefused(self.driver_features));
            }
        }
        self.status = to;
        Ok(if added & FAILED != 0 { Effect::Failed } else { Effect::None })
    }

    fn write_features(&mut self, value: u32) -> Result<(), Violation> {
        if self.status & DRIVER == 0 || self.status & FEATURES_OK != 0 {
            return Err(Violation::FeaturesNow(self.status));
        }
        match self.driver_features_sel {
            sel @ (0 | 1) => set_half(&mut self.driver_features, sel, value),
            _ if value == 0 => {}
            _ => return Err(Violation::FeaturesUnoffered(value.into())),
        }
        Ok(())
    }

    /// Index of the selected queue, if it may be configured now.
    fn selected_index(&self) -> Result<usize, Violation> {
        let index = self.queue_sel as usize;
        if index >= QUEUES {
            return Err(Violation::NoQueue(self.queue_sel));
        }
        let agreed = self.status & (FEATURES_OK | DRIVER_OK | FAILED) == FEATURES_OK;
        if agreed { Ok(index) } else { Err(Violation::QueueNow(index, self.status)) }
    }

    /// What the driver says of the selected queue, if it may say it now.
    fn selected(&mut self) -> Result<&mut QueueSetup, Violation> {
        let index = self.selected_index()?;
        if self.queues[index].is_some() { Err(Violation::QueueReady(index)) } else { Ok(&mut self.setup[index]) }
    }

    fn write_queue_ready(&mut self, value: u32, ram: &GuestMemoryMmap) -> Result<Effect, Violation> {
        if value & 1 == 0 {
            // A driver may stop a queue whenever it likes; stopping one that does not run is nothing.
            let index = self.queue_sel as usize;
            let queue = self.queues.get_mut(index).ok_or(Violation::NoQueue(self.queue_sel))?;
            return Ok(if queue.take().is_some() { Effect::QueueChanged(index) } else { Effect::None });
        }
        let index = self.selected_index()?;
        let mut queue = self.selected()?.build(ram).map_err(|error| Violation::Queue(index, error))?;
        queue.set_event_idx(self.driver_features & EVENT_IDX != 0);
        self.queues[index] = Some(queue);
        Ok(Effect::QueueChanged(index))
    }

    /// A notification, by register or by doorbell.
    pub fn notify(&self, queue: u32) -> Result<Effect, Violation> {
        match self.queues.get(queue as usize) {
            None => Err(Violation::NoQueue(queue)),
            Some(Some(_)) if self.status & DRIVER_OK != 0 => Ok(Effect::Notify(queue as usize)),
            Some(_) => Err(Violation::NotifyNow(queue as usize)),
        }
    }

    fn write_config(&mut self, at: u64, data: &[u8]) -> Result<Effect, Violation> {
        if self.needs_reset() {
            return Ok(Effect::None);
        }
        // Section 3.1.1: the configuration may be written once the features are agreed.
        if self.status & FEATURES_OK == 0 {
            return Err(Violation::Config(at, data.len()));
        }
        self.config.write(at, data)
    }
}

/// The low (0) or high (1) half of a word; what lies beyond is 0.
fn half(word: u64, which: u32) -> u32 {
    word.checked_shr(which.saturating_mul(32)).unwrap_or(0) as u32
}

/// Replaces the low (0) or the high half of a word.
fn set_half(word: &mut u64, which: u32, value: u32) {
    let shift = if which == 0 { 0 } else { 32 };
    *word = *word & !(0xffff_ffff << shift) | u64::from(value) << shift;
}
