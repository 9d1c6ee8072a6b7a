//! Control registers, model-specific registers and the few instructions that have no name in Rust.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};
use core::ptr::with_exposed_provenance;

use pagevisor_shared::pgtable;

/// CR0 from boot on: protected mode, numeric errors by #MF, write protection also for ring 0, paging.
pub const CR0_BOOT: u32 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
/// CR4 from boot on: PAE, global pages, fxsave and SSE exceptions for user code.
pub const CR4_BOOT: u32 = 1 << 5 | 1 << 7 | 1 << 9 | 1 << 10;
/// EFER bits from boot on: long mode, no-execute pages.
pub const EFER_BOOT: u32 = 1 << 8 | 1 << 11;

/// Ring 0 must not execute pages of ring 3.
pub const CR4_SMEP: u64 = 1 << 20;

/// Model-specific registers.
pub mod msr {
    /// Local APIC: base address and mode.
    pub const APIC_BASE: u32 = 0x1b;
    /// Memory types by the bits of page-table entries (`MSR_IA32_CR_PAT`).
    pub const PAT: u32 = 0x277;
    /// First register of the x2APIC.
    pub const X2APIC: u32 = 0x800;
    /// Extended features.
    pub const EFER: u32 = 0xc000_0080;
    /// Segments of `syscall` and `sysret`.
    pub const STAR: u32 = 0xc000_0081;
    /// Where `syscall` goes to.
    pub const LSTAR: u32 = 0xc000_0082;
    /// Flags that `syscall` clears.
    pub const SYSCALL_MASK: u32 = 0xc000_0084;
    /// FS base.
    pub const FS_BASE: u32 = 0xc000_0100;
    /// GS base.
    pub const GS_BASE: u32 = 0xc000_0101;
    /// What `swapgs` exchanges the GS base for.
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
}

/// Time stamp counter. Not ordered against other instructions.
#[inline(always)]
pub fn rdtsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Reads a model-specific register.
#[inline(always)]
pub fn rdmsr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading has no effect on memory; a register that does not exist is a #GP and so a report.
    unsafe { asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack)) };
    (high as u64) << 32 | low as u64
}

/// Writes a model-specific register.
///
/// # Safety
/// The register decides how the processor runs: the value must suit the kernel.
#[inline(always)]
pub unsafe fn wrmsr(register: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
    }
}

/// A leaf of CPUID, zeros when the processor has no such leaf. Used for numbers and modes only: which instructions
/// the kernel uses never depends on it (see the platform's rules in the crate's documentation).
pub fn cpuid(leaf: u32, sub: u32) -> CpuidResult {
    let base = leaf & 0xffff_0000;
    if leaf != base && __cpuid(base).eax < leaf {
        return CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    }
    __cpuid_count(leaf, sub)
}

/// CR2: the address of the last page fault.
#[inline(always)]
pub fn cr2() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// CR0, CR3 and CR4, for reports.
pub fn control_registers() -> [u64; 3] {
    let (cr0, cr3, cr4);
    // SAFETY: reads registers.
    unsafe {
        asm!("mov {}, cr0", "mov {}, cr3", "mov {}, cr4", out(reg) cr0, out(reg) cr3, out(reg) cr4,
            options(nomem, nostack, preserves_flags));
    }
    [cr0, cr3, cr4]
}

/// Switches to the page tables at `pml4`.
///
/// # Safety
/// They must map everything in use where it is in use.
#[inline]
pub unsafe fn set_cr3(pml4: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("mov cr3, {}", in(reg) pml4, options(nostack, preserves_flags)) };
}

/// Forgets the translation of one page, and all that this CPU knows of tables on the way to others.
#[inline]
pub fn invlpg(virt: u64) {
    // SAFETY: a translation that is forgotten is looked up again.
    unsafe { asm!("invlpg [{}]", in(reg) virt, options(nostack, preserves_flags)) };
}

/// Forgets all translations, those that survive address-space switches included (`__flush_tlb_all`).
pub fn flush_tlb_all() {
    const GLOBAL_PAGES: u64 = 1 << 7;
    let flags = irq_save();
    let [_, _, cr4] = control_registers();
    // SAFETY: turning global pages off and on again makes the processor forget; nothing else depends on them.
    unsafe {
        asm!("mov cr4, {}", "mov cr4, {}", in(reg) cr4 & !GLOBAL_PAGES, in(reg) cr4, options(nostack, preserves_flags));
    }
    irq_restore(flags);
}

/// Lets the processor enforce what it can: SMEP.
pub fn harden() {
    if cpuid(7, 0).ebx & 1 << 7 != 0 {
        let [_, _, cr4] = control_registers();
        // SAFETY: no user page is ever meant to be executed by ring 0.
        unsafe { asm!("mov cr4, {}", in(reg) cr4 | CR4_SMEP, options(nostack, preserves_flags)) };
    }
}

/// Gives the bits of page-table entries the memory types that Linux gives them (`pat_init`). On each CPU, before anything is
/// mapped as write-combining: what entries mean that were made before does not change.
pub fn init_pat() {
    // SAFETY: the types that are in use, write-back and uncached, keep their places.
    unsafe { wrmsr(msr::PAT, pgtable::PAT) };
}

/// The frame pointer of the calling function.
#[inline(always)]
pub fn frame_pointer() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Turns interrupts off; gives the flags to restore.
#[inline(always)]
pub fn irq_save() -> u64 {
    let flags;
    // SAFETY: uses the stack as any push does. Not `nomem`: memory accesses stay on their side of it.
    unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags, options(preserves_flags)) };
    flags
}

/// Restores what [`irq_save`] found.
#[inline(always)]
pub fn irq_restore(flags: u64) {
    if flags & 1 << 9 != 0 {
        irq_enable();
    }
}

/// Whether interrupts are on.
#[inline(always)]
pub fn irqs_enabled() -> bool {
    let flags: u64;
    // SAFETY: reads a register by way of the stack.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(preserves_flags)) };
    flags & 1 << 9 != 0
}

/// Turns interrupts on.
#[inline(always)]
pub fn irq_enable() {
    // SAFETY: every vector has a gate once the kernel calls this.
    unsafe { asm!("sti", options(nostack, preserves_flags)) };
}

/// Turns interrupts off.
#[inline(always)]
pub fn irq_disable() {
    // SAFETY: delays handlers, no more.
    unsafe { asm!("cli", options(nostack, preserves_flags)) };
}

/// Turns interrupts on and waits for one. None that comes between the two is missed: see [`after_interrupt`].
#[inline(always)]
pub fn halt_with_irqs() {
    // SAFETY: the handlers of interrupts work on every CPU that gets here.
    unsafe { asm!("sti", "hlt", options(nostack)) };
}

/// Where a CPU goes on that an interrupt found at `rip` in the kernel: behind the halt if it was about to halt.
///
/// By the architecture no interrupt comes between `sti` and the instruction behind it. Where KVM runs on an emulated
/// processor that forgets this when something else interrupts it just there, one does (seen in KVM's trace on QEMU 7.2:
/// an exit at the `hlt`, the window to inject, the interrupt), and the halt would sleep through what it was to wait for.
#[inline]
pub fn after_interrupt(rip: u64) -> u64 {
    const HLT: u8 = 0xf4;
    // SAFETY: the CPU was about to execute what is there, so it is mapped; the kernel's text can be read.
    let next = unsafe { *with_exposed_provenance::<u8>(rip as usize) };
    rip + u64::from(next == HLT)
}

/// Stops this processor for good.
pub fn stop() -> ! {
    loop {
        // SAFETY: nothing runs here again.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Raises #UD, for good.
pub fn invalid_instruction() -> ! {
    // SAFETY: control goes to the gate of #UD and does not come back.
    unsafe { asm!("ud2", options(nomem, nostack, noreturn)) };
}

/// Resets the machine the hard way: an exception without gates.
pub fn triple_fault() -> ! {
    let empty = [0u16; 5];
    // SAFETY: nothing survives this, which is its purpose.
    unsafe { asm!("lidt [{}]", in(reg) &raw const empty, options(nostack)) };
    invalid_instruction()
}
