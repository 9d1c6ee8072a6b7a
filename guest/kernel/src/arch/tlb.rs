//! Which address space a CPU translates by, what it remembers of it, and making it forget (`arch/x86/mm/tlb.c`).
//!
//! A CPU keeps the tables of the last program while it runs threads of the kernel or idles (lazily): it is in the space's
//! `cpu_bitmap` still, but is not interrupted to forget translations. It compares the space's `tlb_gen` when it comes back to
//! it. When tables go, it is interrupted all the same, and leaves them.

use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::fence;

use pagevisor_shared::mm_types::MmStruct;
use pagevisor_shared::units::{CpuId, CpuMask, PAGE_SHIFT, PAGE_SIZE};

use super::this_cpu::percpu;
use super::{cpu, paging, percpu};
use crate::smp;

/// A range of more pages is forgotten with everything else (`tlb_single_page_flush_ceiling`).
const SINGLE_PAGE_FLUSH_CEILING: u64 = 33;

percpu! {
    /// Address of the record of the space whose tables the CPU uses (`cpu_tlbstate.loaded_mm`); 0 for the kernel's own.
    LOADED: u64 = 0;
    /// The space's `tlb_gen` up to which the CPU has forgotten what it had to.
    LOADED_GEN: u64 = 0;
    /// 1 while it only keeps them (`cpu_tlbstate_shared.is_lazy`).
    LAZY: u32 = 0;
}

fn addr(space: &MmStruct) -> u64 {
    core::ptr::from_ref(space).expose_provenance() as u64
}

/// The space whose tables this CPU uses; `None` for the kernel's own. Interrupts are off.
pub fn loaded() -> Option<&'static MmStruct> {
    let space: *const MmStruct = core::ptr::with_exposed_provenance(LOADED.read() as usize);
    // SAFETY: whoever loads a space keeps its record until the CPU has left it, and records are type-stable.
    unsafe { space.as_ref() }
}

/// Makes this CPU translate by `next` (`switch_mm_irqs_off`). Interrupts are off.
pub fn switch_to(next: &MmStruct) {
    let me = 1 << percpu::cpu_number();
    if LOADED.read() == addr(next) {
        if LAZY.read() != 0 {
            LAZY.write(0);
            // Who changes the tables sees that this CPU is back, or it sees here that they have changed.
            fence(SeqCst);
            let changed = next.tlb_gen.load(SeqCst);
            if changed != LOADED_GEN.read() {
                LOADED_GEN.write(changed);
                load(next.pgd.load(Relaxed));
            }
        }
        return;
    }
    if let Some(last) = loaded() {
        last.cpu_bitmap.fetch_and(!me, SeqCst);
    }
    // In this order: a change of the tables that comes later finds this CPU, one that came earlier is seen below.
    next.cpu_bitmap.fetch_or(me, SeqCst);
    LAZY.write(0);
    LOADED.write(addr(next));
    LOADED_GEN.write(next.tlb_gen.load(SeqCst));
    load(next.pgd.load(Relaxed));
}

/// Lets this CPU keep the tables it uses, for nobody who runs (`enter_lazy_tlb`). Interrupts are off.
pub fn enter_lazy() {
    LAZY.write(1);
}

/// Makes this CPU use the kernel's own tables (`leave_mm`). Interrupts are off.
pub fn leave() {
    if let Some(last) = loaded() {
        load(paging::root().raw());
        LOADED.write(0);
        LAZY.write(0);
        last.cpu_bitmap.fetch_and(!(1 << percpu::cpu_number()), SeqCst);
    }
}

fn load(pgd: u64) {
    // SAFETY: the upper half of every space's top table is the kernel's; the kernel uses nothing in the lower half but as
    // a program's.
    unsafe { cpu::set_cr3(pgd) };
}

/// A range of addresses to forget.
struct Range {
    start: u64,
    end: u64,
    /// Of this space; 0 for the kernel.
    space: u64,
    /// The change after which it is to be forgotten.
    number: u64,
}

impl Range {
    fn is_long(&self) -> bool {
        (self.end - self.start) >> PAGE_SHIFT > SINGLE_PAGE_FLUSH_CEILING
    }

    fn forget_pages(&self) {
        let mut virt = self.start;
        while virt < self.end {
            cpu::invlpg(virt);
            virt += PAGE_SIZE;
        }
    }

    /// This CPU forgets it, of the kernel.
    fn flush(&self) {
        if self.is_long() { cpu::flush_tlb_all() } else { self.forget_pages() }
    }

    /// This CPU forgets it, of the space that it has loaded (`flush_tlb_func`). Interrupts are off.
    fn flush_user(&self) {
        let Some(space) = loaded().filter(|space| addr(space) == self.space) else { return };
        if LAZY.read() != 0 {
            return leave();
        }
        let known = LOADED_GEN.read();
        if known >= self.number {
            return;
        }
        if known + 1 == self.number && !self.is_long() {
            self.forget_pages();
            LOADED_GEN.write(self.number);
        } else {
            // With everything that has changed up to now.
            LOADED_GEN.write(space.tlb_gen.load(SeqCst));
            load(space.pgd.load(Relaxed));
        }
    }
}

/// Makes all CPUs forget the addresses from `start` up to `end`, and waits until they have (`flush_tlb_kernel_range`).
pub fn flush_kernel_range(start: u64, end: u64) {
    let range = Range { start, end, space: 0, number: 0 };
    range.flush();
    smp::call_function(smp::online(), flush_called, core::ptr::from_ref(&range).expose_provenance());
}

/// Makes the CPUs that use `space` forget its addresses from `start` up to `end`, whose entries have changed, and those that
/// keep it lazily too if `tables` have gone; returns when they have (`flush_tlb_mm_range`).
pub fn flush_user_range(space: &MmStruct, start: u64, end: u64, tables: bool) {
    let number = space.tlb_gen.fetch_add(1, SeqCst) + 1;
    let range = Range { start, end, space: addr(space), number };
    let flags = cpu::irq_save();
    range.flush_user();
    cpu::irq_restore(flags);
    let others = CpuMask(space.cpu_bitmap.load(SeqCst) & !(1 << percpu::cpu_number()));
    let is_concerned = |cpu: &CpuId| tables || LAZY.of(*cpu).is_some_and(|lazy| lazy.load(SeqCst) == 0);
    let concerned = others.iter().filter(is_concerned).fold(CpuMask(0), CpuMask::with);
    if concerned.0 != 0 {
        smp::call_function(concerned, flush_called, core::ptr::from_ref(&range).expose_provenance());
    }
}

/// What the other CPUs run.
fn flush_called(range: usize) {
    // SAFETY: the caller keeps its range until all CPUs have run this.
    let range = unsafe { &*core::ptr::with_exposed_provenance::<Range>(range) };
    if range.space == 0 { range.flush() } else { range.flush_user() }
}
