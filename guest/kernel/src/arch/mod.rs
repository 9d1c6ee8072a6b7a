//! The processor: everything that only x86-64 has.

pub mod apic;
pub mod cpu;
pub mod entry;
pub mod fault;
pub mod fpu;
pub mod gdt;
pub mod irq;
pub mod mem;
pub mod paging;
pub mod percpu;
pub mod port;
pub mod stacks;
pub mod switch;
pub mod this_cpu;
pub mod tlb;
pub mod traps;
pub mod uaccess;
