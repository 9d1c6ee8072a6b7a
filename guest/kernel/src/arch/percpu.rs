//! What belongs to one CPU, found through GS.
//!
//! The GS base of each CPU points to its [`PerCpu`], so that "which CPU am I" and "my record" are one load each.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::{MaybeUninit, offset_of};
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use pagevisor_mm::CpuLocal;
use pagevisor_shared::NR_CPUS;
use pagevisor_shared::units::CpuId;
use x86_64::VirtAddr;
use x86_64::structures::tss::TaskStateSegment;

use super::cpu::{self, msr};
use super::gdt::Gdt;

/// Stacks of a CPU that the processor switches to by itself, by index into the TSS's table; gates name them by it.
#[derive(Clone, Copy, Debug)]
#[repr(u16)]
pub enum Ist {
    /// Double faults: the kernel stack may be what is broken.
    DoubleFault = 0,
    /// Non-maskable interrupts.
    Nmi = 1,
    /// Machine checks.
    MachineCheck = 2,
}

/// Number of [`Ist`] stacks.
pub const IST_STACKS: usize = 3;

/// A CPU's record.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct PerCpu {
    /// What `mm` wants to know about the CPU; null until `mm` runs.
    local: AtomicPtr<CpuLocal>,
    /// This record's own address.
    this: AtomicPtr<PerCpu>,
    number: AtomicU32,
    apic_id: AtomicU32,
    /// Interrupts taken, by [`super::irq::Irq`].
    pub interrupts: [AtomicU64; super::irq::IRQS],
    /// What `local` points to, once it does.
    local_memory: UnsafeCell<MaybeUninit<CpuLocal>>,
    /// Segments and stacks; written before the CPU uses them, then left to the processor.
    pub tables: UnsafeCell<Tables>,
}

/// What the processor itself reads.
#[derive(Debug)]
pub struct Tables {
    /// The descriptor table.
    pub gdt: Gdt,
    /// The task state: stacks.
    pub tss: TaskStateSegment,
}

// SAFETY: everything else is atomic; `tables` is written by one CPU while it alone knows the record (`gdt::load`), and
// only the processor reads it afterwards; `local_memory` is written once by the boot processor (`set_local`) before
// its address is given to anybody, and only read afterwards.
unsafe impl Sync for PerCpu {}

impl PerCpu {
    /// A record of nobody.
    pub const fn new() -> Self {
        Self {
            local: AtomicPtr::new(null_mut()),
            this: AtomicPtr::new(null_mut()),
            number: AtomicU32::new(0),
            apic_id: AtomicU32::new(0),
            interrupts: [const { AtomicU64::new(0) }; super::irq::IRQS],
            local_memory: UnsafeCell::new(MaybeUninit::uninit()),
            tables: UnsafeCell::new(Tables { gdt: Gdt::new(), tss: TaskStateSegment::new() }),
        }
    }

    /// Makes the record that of CPU `number`, whose emergency stacks end at `ist`, and enters it in the table of CPUs.
    pub fn assign(&'static self, number: CpuId, apic_id: u32, ist: [u64; IST_STACKS]) {
        self.this.store(core::ptr::from_ref(self).cast_mut(), Ordering::Relaxed);
        self.number.store(number.index() as u32, Ordering::Relaxed);
        self.apic_id.store(apic_id, Ordering::Relaxed);
        // SAFETY: the CPU has not loaded these tables yet, and nobody else writes them.
        let tables = unsafe { &mut *self.tables.get() };
        // As a whole: the structure is packed, so its field has no reference.
        let mut stacks = [VirtAddr::zero(); 7];
        for (slot, top) in stacks.iter_mut().zip(ist) {
            *slot = VirtAddr::new_truncate(top);
        }
        tables.tss.interrupt_stack_table = stacks;
        // Release pairs with the acquire in `of`.
        CPUS[number.index()].store(core::ptr::from_ref(self).cast_mut(), Ordering::Release);
    }

    /// Makes this CPU find the record through GS.
    pub fn install(&'static self) {
        // SAFETY: the record lives for ever and is the one this CPU was given.
        unsafe { cpu::wrmsr(msr::GS_BASE, core::ptr::from_ref(self).addr() as u64) };
    }

    /// Gives the CPU what `mm` wants to know about it, once, from the boot processor.
    pub fn set_local(&self, local: CpuLocal) {
        assert!(self.local.load(Ordering::Relaxed).is_null(), "a CPU is told twice who it is");
        // SAFETY: nobody knows the address yet, and only the boot processor comes here.
        let local = unsafe { (*self.local_memory.get()).write(local) };
        // Release: who finds the address finds what is there.
        self.local.store(local, Ordering::Release);
    }

    /// Its local APIC's id.
    pub fn apic_id(&self) -> u32 {
        self.apic_id.load(Ordering::Relaxed)
    }
}

static CPUS: [AtomicPtr<PerCpu>; NR_CPUS] = [const { AtomicPtr::new(null_mut()) }; NR_CPUS];

/// The boot processor's record.
pub static BOOT: PerCpu = PerCpu::new();

/// The record of `cpu`, once it has one.
pub fn of(cpu: CpuId) -> Option<&'static PerCpu> {
    // SAFETY: only `assign` stores here, addresses of records that live for ever.
    NonNull::new(CPUS[cpu.index()].load(Ordering::Acquire)).map(|record| unsafe { record.as_ref() })
}

/// The current CPU's record. GS must have been set, which is the first thing every CPU does.
#[inline(always)]
pub fn this() -> &'static PerCpu {
    let this: *const PerCpu;
    // SAFETY: GS points to this CPU's record, whose field holds its own address; it lives for ever.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) this, const offset_of!(PerCpu, this),
            options(nostack, readonly, preserves_flags, pure));
        &*this
    }
}

/// What `mm` wants to know about the current CPU; null until `mm` runs.
#[inline(always)]
pub fn local() -> *const CpuLocal {
    let local;
    // SAFETY: GS points to this CPU's record.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) local, const offset_of!(PerCpu, local),
            options(nostack, readonly, preserves_flags, pure));
    }
    local
}

/// Number of the current CPU.
#[inline(always)]
pub fn cpu_number() -> u32 {
    let number: u32;
    // SAFETY: GS points to this CPU's record.
    unsafe {
        asm!("mov {:e}, gs:[{}]", out(reg) number, const offset_of!(PerCpu, number),
            options(nostack, readonly, preserves_flags, pure));
    }
    number
}

/// The records of all CPUs but the current one.
pub fn others() -> impl Iterator<Item = &'static PerCpu> {
    let me = this();
    (0..NR_CPUS).filter_map(CpuId::new).filter_map(of).filter(move |record| !core::ptr::eq(*record, me))
}
