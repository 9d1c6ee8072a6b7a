//! From the loader's 32-bit protected mode to Rust in the higher half.
//!
//! The PVH protocol enters at [`pvh_start32`] with flat segments, paging off and the start info's address in EBX.
//! The early page tables are static data, so entering long mode is a handful of instructions: they map the first
//! 4 GiB with 2 MiB pages at their own addresses (firmware tables are read there, and the application processors'
//! trampoline runs there), and the first GiB once more at -2 GiB, where the kernel is linked. The kernel leaves them
//! for tables with proper rights as soon as it knows the memory map ([`crate::arch::paging`]).

use core::arch::global_asm;

use crate::arch::cpu::{CR0_BOOT, CR4_BOOT, EFER_BOOT};
use pagevisor_shared::layout::START_KERNEL_MAP;

// The ELF note by which loaders find the entry: name "Xen", type 18 (XEN_ELFNOTE_PHYS32_ENTRY).
global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18
    .asciz "Xen"
    .long pvh_start32 - {kmap}
    "#,
    kmap = const START_KERNEL_MAP,
    options(att_syntax)
);

// Early page tables: flags 3 is present and writable, 0x83 adds the large-page bit.
global_asm!(
    r#"
    .section .data.tables, "aw"
    .balign 4096
    .globl early_pml4
early_pml4:
    .quad early_pdpt - {kmap} + 3
    .fill 510, 8, 0
    .quad early_pdpt - {kmap} + 3
early_pdpt:
    .set n, 0
    .rept 4
    .quad early_pd - {kmap} + n * 4096 + 3
    .set n, n + 1
    .endr
    .fill 506, 8, 0
    .quad early_pd - {kmap} + 3
    .quad 0
early_pd:
    .set n, 0
    .rept 2048
    .quad n * 0x200000 + 0x83
    .set n, n + 1
    .endr

    # 64-bit code, data, 32-bit code.
    .balign 8
early_gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cf9b000000ffff
    .globl early_gdt_ptr
early_gdt_ptr:
    .word . - early_gdt - 1
    .long early_gdt - {kmap}

    "#,
    kmap = const START_KERNEL_MAP,
    options(att_syntax)
);

/// Assembly that takes a CPU from 32-bit code without paging, at its physical address, to 64-bit code in the kernel's
/// half, with the early page tables. `$low` and `$high` are labels of its own: where 64-bit code begins, still down
/// there, and where it is up. It wants the operands `kmap`, `cr4`, `efer` and `cr0`, and changes EAX, ECX and EDX.
macro_rules! long_mode {
    ($low:literal, $high:literal) => {
        concat!(
            "movl ${cr4}, %eax\n",
            "movl %eax, %cr4\n",
            "movl $early_pml4 - {kmap}, %eax\n",
            "movl %eax, %cr3\n",
            "movl $0xc0000080, %ecx\n",
            "rdmsr\n",
            "orl ${efer}, %eax\n",
            "wrmsr\n",
            "movl ${cr0}, %eax\n",
            "movl %eax, %cr0\n",
            concat!("ljmpl $0x08, $", $low, " - {kmap}\n"),
            ".code64\n",
            concat!(".type ", $low, ", @function\n", $low, ":\n"),
            concat!("movabsq $", $high, ", %rax\n"),
            "jmpq *%rax\n",
            concat!($high, ":\n"),
        )
    };
}
pub(crate) use long_mode;

// ESI and EDI keep the time stamp of the first instruction, EBX the start info; RDMSR and WRMSR use the others.
global_asm!(
    r#"
    .section .boot.text, "ax"
    .code32
    .globl pvh_start32
    .type pvh_start32, @function
pvh_start32:
    cld
    rdtsc
    movl %eax, %esi
    movl %edx, %edi
    lgdtl early_gdt_ptr - {kmap}
    "#,
    long_mode!("start64_low", "start64_high"),
    r#"
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movq $boot_stack_top, %rsp
    shlq $32, %rdi
    orq %rsi, %rdi
    movl %ebx, %esi
    xorl %ebp, %ebp
    call kernel_main
    ud2
    "#,
    kmap = const START_KERNEL_MAP,
    cr4 = const CR4_BOOT,
    efer = const EFER_BOOT,
    cr0 = const CR0_BOOT,
    options(att_syntax)
);
