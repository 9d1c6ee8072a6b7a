//! Stacks that CPUs have from their start, on which they boot and idle: where they are, and what is below them. Those of
//! tasks are in [`crate::task::stack`].
//!
//! The boot processor's are part of the image. An application processor's are pages of its own node, mapped in a
//! window of addresses with holes between them, so that an overflow ends in a double fault instead of damage:
//!
//! ```text
//! STACKS + cpu * STACK_SLOT    guard | kernel stack 16 KiB | guard | double fault 8 KiB | guard | NMI | guard | MCE
//! page                         0       1  2  3  4            5       6  7                 8       9     10      11
//! ```

use core::arch::global_asm;
use core::ptr::with_exposed_provenance;

use pagevisor_shared::NR_CPUS;
use pagevisor_shared::units::{CpuId, PAGE_SIZE};

use super::paging::{self, STACK_SLOT, STACKS};
use super::percpu::IST_STACKS;
use crate::task::stack;

global_asm!(
    r#"
    .section .bss.pages, "aw", @nobits
    .balign 4096
    .globl boot_stack_guard
boot_stack_guard:
    .skip 0x1000
    .globl boot_stack
boot_stack:
    .skip 0x8000
    .globl boot_stack_top
boot_stack_top:
    .skip 0x2000
    .globl boot_double_fault_top
boot_double_fault_top:
    .skip 0x1000
    .globl boot_nmi_top
boot_nmi_top:
    .skip 0x1000
    .globl boot_machine_check_top
boot_machine_check_top:
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    static boot_stack_guard: u8;
    static boot_stack: u8;
    static boot_double_fault_top: u8;
    static boot_nmi_top: u8;
    static boot_machine_check_top: u8;
}

/// Pages of memory that an application processor's stacks take.
pub const STACK_PAGES: u64 = 8;

/// Pages of a slot that have memory behind them.
const MAPPED: [u64; STACK_PAGES as usize] = [1, 2, 3, 4, 6, 7, 9, 11];
/// Pages of a slot at which stacks end: the kernel stack, then the emergency stacks.
const TOPS: [u64; 1 + IST_STACKS] = [5, 8, 10, 12];

/// Tops of the boot processor's emergency stacks.
pub fn boot_ist() -> [u64; IST_STACKS] {
    [&raw const boot_double_fault_top, &raw const boot_nmi_top, &raw const boot_machine_check_top]
        .map(|top| top.addr() as u64)
}

/// Maps the stacks of `cpu` onto [`STACK_PAGES`] pages of memory at `phys`; gives the tops of the kernel stack and
/// of the emergency stacks.
pub fn map(cpu: CpuId, phys: u64) -> (u64, [u64; IST_STACKS]) {
    let slot = STACKS + cpu.index() as u64 * STACK_SLOT;
    for (index, page) in MAPPED.into_iter().enumerate() {
        paging::map_stack_page(slot + page * PAGE_SIZE, phys + index as u64 * PAGE_SIZE);
    }
    let [top, ist @ ..] = TOPS.map(|page| slot + page * PAGE_SIZE);
    (top, ist)
}

/// The page of its slot that holds `address`, for addresses in the window of stacks.
fn page_in_slot(address: u64) -> Option<u64> {
    let offset = address.checked_sub(STACKS)?;
    (offset < NR_CPUS as u64 * STACK_SLOT).then_some(offset % STACK_SLOT / PAGE_SIZE)
}

/// Whether `address` lies in the page below a stack.
pub fn is_guard(address: u64) -> bool {
    let guard = (&raw const boot_stack_guard).addr() as u64;
    stack::is_guard(address)
        || address.wrapping_sub(guard) < PAGE_SIZE
        || page_in_slot(address).is_some_and(|page| !MAPPED.contains(&page))
}

/// Whether 16 bytes at `address` lie on a stack, mostly that of the current task.
#[inline(always)]
fn on_stack(address: u64) -> bool {
    address.is_multiple_of(8) && (stack::holds(address, address.wrapping_add(15)) || on_other_stack(address))
}

/// Whether 16 bytes at `address` lie on a stack that is no task's.
#[cold]
#[inline(never)]
fn on_other_stack(address: u64) -> bool {
    let start = (&raw const boot_stack).addr() as u64;
    let end = (&raw const boot_machine_check_top).addr() as u64;
    let last = address.wrapping_add(15);
    let boot = address >= start && last < end;
    boot || [address, last].iter().all(|&at| page_in_slot(at).is_some_and(|page| MAPPED.contains(&page)))
}

/// What is at a frame pointer: the caller's frame pointer and the return address; `None` off the stacks. Inlined, since
/// every area of address space is noted with its caller.
#[inline(always)]
pub fn read_frame(rbp: u64) -> Option<[u64; 2]> {
    // SAFETY: 16 aligned bytes on a stack, which is mapped (the slot of a CPU that never came up is not, but no
    // frame pointer leads there). Volatile: another CPU's stack may be in use.
    on_stack(rbp).then(|| unsafe { with_exposed_provenance::<[u64; 2]>(rbp as usize).read_volatile() })
}
