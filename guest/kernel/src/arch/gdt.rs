//! Segments. Long mode hardly has any; what is left is privilege and the task state with its stacks.

use core::arch::asm;

use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::{PrivilegeLevel, VirtAddr};

use super::percpu::PerCpu;

/// A CPU's descriptor table.
pub type Gdt = GlobalDescriptorTable<8>;

/// Selector of kernel code.
pub const KERNEL_CODE: u64 = 0x08;
/// Selector of the data of programs. `sysretq` wants it right before their code.
pub const USER_DATA: u64 = 0x18 | 3;
/// Selector of the code of programs.
pub const USER_CODE: u64 = 0x20 | 3;

/// Kernel data, in the early table and in every CPU's own (as is kernel code, the first entry).
const KERNEL_DATA: SegmentSelector = SegmentSelector::new(2, PrivilegeLevel::Ring0);

/// Where the processor's stack is to begin when something brings this CPU from user mode into the kernel. Interrupts are
/// off.
pub fn set_kernel_stack(top: u64) {
    let tables = super::percpu::this().tables.get();
    // SAFETY: only the CPU itself changes this after its start, and the processor reads it only in user mode.
    unsafe { (&raw mut (*tables).tss.privilege_stack_table[0]).write_unaligned(VirtAddr::new_truncate(top)) };
}

/// Loads the segments and the task state of `record` into this CPU, which it belongs to.
pub fn load(record: &'static PerCpu) {
    let tables = record.tables.get();
    // SAFETY: the record is this CPU's own and not loaded yet, so nobody reads the tables; they live for ever. The
    // selectors loaded name descriptors just written. CS keeps its selector, which means the same in every table.
    unsafe {
        let gdt = &mut (*tables).gdt;
        // A unit begins as a copy of what the boot processor had.
        *gdt = Gdt::new();
        gdt.append(Descriptor::kernel_code_segment());
        gdt.append(Descriptor::kernel_data_segment());
        gdt.append(Descriptor::user_data_segment());
        gdt.append(Descriptor::user_code_segment());
        let task = gdt.append(Descriptor::tss_segment_unchecked(&raw const (*tables).tss));
        (*tables).gdt.load_unsafe();
        asm!("mov ss, {0:e}", "mov ds, {0:e}", "mov es, {0:e}", in(reg) KERNEL_DATA.0 as u32,
            options(nostack, preserves_flags));
        load_tss(task);
    }
}
