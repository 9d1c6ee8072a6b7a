//! The machine under the memory stack, as one small trait: ring 0 implements it, and so does a hosted test.

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU32;

use pagevisor_shared::mm_types::MmStruct;
use pagevisor_shared::page::Page;
use pagevisor_shared::sched::Comm;
use pagevisor_shared::units::{CpuId, PhysAddr, VirtAddr};

pub use crate::cpu::CpuLocal;

/// Interrupt state to give back to [`Platform::irq_restore`].
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct IrqFlags(pub u64);

/// Severity of a message, with the kernel's numbers (`KERN_EMERG` 0 to `KERN_DEBUG` 7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Level {
    /// The system is unusable.
    Emerg = 0,
    /// Action must be taken at once.
    Alert = 1,
    /// Critical condition.
    Crit = 2,
    /// Error.
    Err = 3,
    /// Warning.
    Warning = 4,
    /// Normal but significant.
    Notice = 5,
    /// Informational.
    Info = 6,
    /// Debugging.
    Debug = 7,
}

/// A task, as reports name it.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub comm: Comm,
}

impl Running {
    /// The idle task of `cpu` (`swapper`).
    pub fn idle(cpu: CpuId) -> Self {
        let mut comm = Comm::default();
        // A name that is too long is cut.
        let _ = fmt::Write::write_fmt(&mut comm, format_args!("swapper/{}", cpu.index()));
        Self { pid: 0, comm }
    }
}

/// The machine.
///
/// # Safety
/// An implementor promises: [`Self::direct_map`] gives the address of physical address 0 in a mapping where every
/// frame the stack was told of as RAM is readable and writable (at the latest when first touched), and
/// [`Self::vmemmap`] the start of a window of 2^32 metadata records (128 GiB of addresses) that holds nothing else:
/// the sections the stack asked to map are backed, zero at first; the rest is backed likewise or faults. Both stay
/// for the life of the program. [`Self::kernel_root`] is a page-table root for ever, reached through the direct map too,
/// whose entries for the vmalloc space are clear at first and nobody else's. [`Self::this_cpu`] is the record of the CPU that executes, and stays so while the
/// caller does not sleep; [`Self::slab_array`] is what that record says.
#[allow(unsafe_code, reason = "implementing it is a promise about addresses")]
pub unsafe trait Platform: Sync + 'static {
    /// Virtual address of physical address 0.
    fn direct_map(&self) -> NonNull<u8>;

    /// Virtual address of the metadata of frame 0.
    fn vmemmap(&self) -> NonNull<Page>;

    /// The record of the current CPU, made by [`crate::Mm::cpu_local`]. Not called before [`crate::Mm::boot`] has
    /// returned.
    fn this_cpu(&self) -> &'static CpuLocal;

    /// [`CpuLocal::slab_array`] of [`Self::this_cpu`], and nothing else: for platforms that have a shorter way to it.
    #[inline(always)]
    fn slab_array(&self) -> usize {
        self.this_cpu().slab_array()
    }

    /// Turns interrupts off on this CPU.
    fn irq_save(&self) -> IrqFlags;

    /// Restores what [`Self::irq_save`] found.
    fn irq_restore(&self, flags: IrqFlags);

    /// A pause inside a spin loop.
    fn relax(&self);

    /// Nanoseconds since boot.
    fn now(&self) -> u64;

    /// Writes a line to the kernel log.
    fn log(&self, level: Level, line: fmt::Arguments<'_>);

    /// Fills `trace` with the return addresses of the calls that led here, innermost first; gives how many there are.
    fn backtrace(&self, trace: &mut [u64]) -> usize;

    /// The time stamp counter.
    fn tsc(&self) -> u64;

    /// The return address of the call that led into the memory stack; 0 when it is not known.
    fn caller(&self) -> u64;

    /// Physical address of the kernel's top page table (`init_mm.pgd`).
    fn kernel_root(&self) -> PhysAddr;

    /// Makes all CPUs forget what they know of translations from `start` up to `end`, and of the tables that were on the way
    /// there, and returns when they have (`flush_tlb_kernel_range`). Not from interrupts.
    fn flush_kernel_range(&self, start: VirtAddr, end: VirtAddr);

    /// Whether the caller must not wait for other CPUs: interrupts are off, or one is being handled (`in_interrupt`).
    fn in_interrupt(&self) -> bool;

    /// Who runs: what reports name. An idle CPU's task where there are no tasks.
    fn current(&self) -> Running;

    /// Writes the call trace of the current CPU to the kernel log, as `dump_stack` does.
    fn dump_stack(&self);

    /// Sleeps as long as `word` is `value`, until somebody calls [`Self::wake_all`] for it; may return before. Where
    /// there is no task that could sleep it is a pause in a loop. Not from interrupts.
    fn wait_on(&self, word: &AtomicU32, value: u32);

    /// Wakes all who sleep on `word`, which has been changed before.
    fn wake_all(&self, word: &AtomicU32);

    /// Makes the CPUs that may remember translations of `space` forget those from `start` up to `end`, and, with
    /// `tables`, what they know of the tables on the way there; returns when they have (`flush_tlb_mm_range`). Not from
    /// interrupts.
    fn flush_user(&self, space: &MmStruct, start: VirtAddr, end: VirtAddr, tables: bool);
}
