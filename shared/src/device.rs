//! The devices through which host and guest meet, and the words of the command line about them.

/// The 16550 console.
pub const SERIAL_PORT: u16 = 0x3f8;

/// The shutdown port. One 32-bit write ends the machine: `SHUTDOWN_MAGIC | code`, where code is a
/// [`shutdown`] code. A write without the magic is ignored.
pub const SHUTDOWN_PORT: u16 = 0x604;
/// Upper half of a word written to [`SHUTDOWN_PORT`]. (QEMU's ACPI sleep register on `pc` lives at the same port
/// and wants `0x2000` in 16 bits; the guest tries both.)
pub const SHUTDOWN_MAGIC: u32 = 0x5047_0000;

/// Vector of the interrupt by which the host makes a CPU look whether it is to stay at a safe point
/// ([`crate::region::Header::park_request`]); CPUs send it to each other to make them look at their run queues.
pub const PARK_VECTOR: u8 = 0xfd;

/// Codes for [`SHUTDOWN_PORT`].
pub mod shutdown {
    /// The guest ended as it meant to.
    pub const OK: u16 = 0;
    /// The guest panicked; the state region's panic record says how.
    pub const PANIC: u16 = 1;
    /// The program that the guest was started for has ended; its exit status, as a shell would give it, is in the low
    /// byte.
    pub const INIT_EXIT: u16 = 0x100;
    /// The kernel was given a program that it cannot start.
    pub const NO_INIT: u16 = 2;
}

/// The monitor device: virtio-mmio.
pub mod monitor {
    /// Virtio device id. Ids up to 63 are being assigned by the standard; this one is far above.
    pub const DEVICE_ID: u32 = 0x5047;
    /// Virtio vendor id, `PGVR`.
    pub const VENDOR_ID: u32 = 0x5256_4750;
    /// Bytes of the register window.
    pub const MMIO_SIZE: u64 = 0x1000;
    /// Queue 0: commands, host to guest (the guest gives buffers to be written).
    pub const QUEUE_COMMAND: u32 = 0;
    /// Queue 1: replies, guest to host.
    pub const QUEUE_REPLY: u32 = 1;
    /// Queue 2: what programs write to the console, guest to host, as bytes.
    pub const QUEUE_CONSOLE: u32 = 2;
    /// Queue 3: what programs read from the console, host to guest, as bytes. Each buffer that the guest gives is a
    /// question, which is answered when there is something to read; an answer without bytes is an end of file.
    pub const QUEUE_INPUT: u32 = 3;
    /// Largest queue size offered.
    pub const QUEUE_MAX: u16 = 256;
    /// Shared-memory region id of the state region.
    pub const SHM_STATE: u32 = 0;
    /// Config space, u32 at 0: ABI version of the host ([`crate::ABI_VERSION`]).
    pub const CONFIG_ABI: u32 = 0;
    /// Config space, u32 at 4, written by the guest: it has reached [`crate::region::GuestState`] with this
    /// number. The write is what wakes the host; the region says the rest.
    pub const CONFIG_STATE: u32 = 4;
    /// Config space, u64 at 8: size of the state region in bytes.
    pub const CONFIG_REGION_SIZE: u32 = 8;
    /// Config space, u64 at 16, written by the guest: address of the device's MSI message (virtio-mmio has no
    /// message-signalled interrupts of its own).
    pub const CONFIG_MSI_ADDR: u32 = 16;
    /// Config space, u32 at 24, written by the guest: data of the device's MSI message; 0 until written.
    pub const CONFIG_MSI_DATA: u32 = 24;
    /// Bytes of the config space.
    pub const CONFIG_SIZE: u32 = 32;
}

/// Words the VMM puts on the kernel command line.
pub mod cmdline {
    /// `virtio_mmio.device=<size>@<base>:<irq>`, Linux's syntax: where the monitor device is. The device interrupts
    /// by MSI through the vector the guest writes to [`super::monitor`]'s config space, so `<irq>` is 0.
    pub const VIRTIO_MMIO: &str = "virtio_mmio.device";
    /// `pagevisor.zeroed`: all RAM outside what the VMM itself loaded is zero, so `__GFP_ZERO` need not clear it.
    pub const ZEROED: &str = "pagevisor.zeroed";
    /// `pagevisor.exit`: power off once the machine is ready instead of idling.
    pub const EXIT: &str = "pagevisor.exit";
    /// `pagevisor.idle_clear=PAGES`: how many pages of free memory a CPU that has nothing to do clears before it halts.
    pub const IDLE_CLEAR: &str = "pagevisor.idle_clear";

    /// `pagevisor.emulated`: the host has no hardware virtualization, ring 0 is emulated.
    pub const EMULATED: &str = "pagevisor.emulated";
    /// `rdinit=PATH`, Linux's: the program in the initrd to start once the machine is ready.
    pub const RDINIT: &str = "rdinit";
    /// `dump=a,b`: without a monitor device, print these tables on the serial console and power off.
    pub const DUMP: &str = "dump";
    /// `bench=a,b`: run these instruction-count benchmarks, print them on the serial console and power off.
    pub const BENCH: &str = "bench";
    /// `loglevel=N`: messages below this level go to the serial console too.
    pub const LOGLEVEL: &str = "loglevel";
}

/// Names in the initrd that mean something to the kernel.
pub mod initrd {
    /// The arguments of the program that `rdinit=` names, its own name first, each ended by a zero byte. Without this file
    /// the words behind `--` on the command line are its arguments, as Linux has it.
    pub const ARGUMENTS: &str = ".pagevisor/arguments";
}
