//! The machine as `mm` sees it.

use core::fmt;
use core::ptr::{NonNull, without_provenance_mut};
use core::sync::atomic::AtomicU32;

use pagevisor_mm::platform::{IrqFlags, Level, Platform, Running};
use pagevisor_mm::{CpuLocal, Mm};
use pagevisor_shared::layout::{PAGE_OFFSET, VMEMMAP_START};
use pagevisor_shared::mm_types::MmStruct;
use pagevisor_shared::page::Page;
use pagevisor_shared::units::{PhysAddr, VirtAddr};

use crate::arch::{cpu, paging, percpu, tlb};
use crate::sync::Once;

use crate::{clock, log, oops, task};

/// Ring 0 of this machine.
#[derive(Debug)]
pub struct Kernel;

/// The machine.
pub static KERNEL: Kernel = Kernel;

static MM: Once<Mm<Kernel>> = Once::new();

/// The memory stack, once it runs.
#[inline(always)]
pub fn mm() -> Option<&'static Mm<Kernel>> {
    MM.get()
}

/// Makes `mm` the memory stack.
pub fn set_mm(mm: Mm<Kernel>) -> &'static Mm<Kernel> {
    MM.set(mm)
}

// SAFETY: the direct map covers all RAM (`direct_map`, at the latest by the page-fault handler), the window of page
// metadata is used for nothing else and holds what `mm` had mapped; neither is ever taken back. The root is part of the
// image, and the kernel itself maps nothing in the vmalloc space. GS points to the record of the CPU that executes, and
// tasks don't change CPUs.
unsafe impl Platform for Kernel {
    #[inline(always)]
    fn direct_map(&self) -> NonNull<u8> {
        // SAFETY: not zero.
        unsafe { NonNull::new_unchecked(without_provenance_mut(PAGE_OFFSET as usize)) }
    }

    #[inline(always)]
    fn vmemmap(&self) -> NonNull<Page> {
        // SAFETY: not zero.
        unsafe { NonNull::new_unchecked(without_provenance_mut(VMEMMAP_START as usize)) }
    }

    #[inline(always)]
    fn this_cpu(&self) -> &'static CpuLocal {
        // SAFETY: set for every CPU before `mm` is used on it, and never changed.
        unsafe { &*percpu::local() }
    }

    #[inline(always)]
    fn slab_array(&self) -> usize {
        percpu::slab_array()
    }

    #[inline(always)]
    fn irq_save(&self) -> IrqFlags {
        IrqFlags(cpu::irq_save())
    }

    #[inline(always)]
    fn irq_restore(&self, flags: IrqFlags) {
        cpu::irq_restore(flags.0);
    }

    #[inline(always)]
    fn relax(&self) {
        core::hint::spin_loop();
    }

    fn now(&self) -> u64 {
        clock::nanos()
    }

    fn log(&self, level: Level, line: fmt::Arguments<'_>) {
        log::write(level, line);
    }

    fn backtrace(&self, trace: &mut [u64]) -> usize {
        oops::backtrace(trace)
    }

    fn tsc(&self) -> u64 {
        cpu::rdtsc()
    }

    fn caller(&self) -> u64 {
        oops::caller_of(&paging::mm_text())
    }

    #[inline(always)]
    fn kernel_root(&self) -> PhysAddr {
        paging::root()
    }

    fn flush_kernel_range(&self, start: VirtAddr, end: VirtAddr) {
        tlb::flush_kernel_range(start.raw(), end.raw());
    }

    #[inline(always)]
    fn in_interrupt(&self) -> bool {
        // Handlers run with interrupts off, and who has turned them off must not wait for others either.
        !cpu::irqs_enabled()
    }

    fn current(&self) -> Running {
        match task::try_current() {
            Some(task) => Running { pid: task.pid(), comm: task.name() },
            None => Running::idle(self.this_cpu().cpu),
        }
    }

    fn dump_stack(&self) {
        oops::dump_stack();
    }

    fn wait_on(&self, word: &AtomicU32, value: u32) {
        task::wait_on(word, value);
    }

    fn wake_all(&self, word: &AtomicU32) {
        task::wake_all(word);
    }

    fn flush_user(&self, space: &MmStruct, start: VirtAddr, end: VirtAddr, tables: bool) {
        tlb::flush_user_range(space, start.raw(), end.raw(), tables);
    }
}
