//! Switching from one task's kernel stack to another's (`__switch_to_asm`).
//!
//! What a task needs to go on is on its stack: the registers that a call must preserve, and where to return to. Its
//! stack pointer is in its record.

use core::arch::naked_asm;

use crate::task::Task;

/// What [`switch`] leaves on a stack, from the stack pointer on.
#[repr(C)]
#[derive(Debug)]
struct Frame {
    /// R15, R14, R13, R12, RBX, RBP.
    registers: [u64; 6],
    /// Where the task goes on.
    rip: u64,
}

/// Leaves the task `prev`, which is the current one, and goes on with `next`, where that left; there it gives the task
/// that was left for it.
///
/// # Safety
/// Interrupts are off. `prev` is the current task, `next` a task that no CPU executes and that [`switch`] or [`begin`] has
/// left. Both stay until the switch is over.
#[unsafe(naked)]
pub unsafe extern "C" fn switch(prev: *const Task, next: *const Task) -> *const Task {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi + {sp}], rsp",
        "mov rsp, [rsi + {sp}]",
        "mov rax, rdi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        sp = const Task::SP_OFFSET,
    )
}

/// Where a new task begins (`ret_from_fork`): in [`crate::task::begin`], which gives the registers of user mode to go on
/// with.
#[unsafe(naked)]
extern "C" fn first() {
    naked_asm!(
        "mov rdi, rax",
        "xor ebp, ebp",
        "call {begin}",
        "mov rsp, rax",
        "jmp trap_return",
        begin = sym crate::task::begin,
    )
}

/// Prepares a stack that ends below `top`, which is a multiple of 16, for a task that has not run yet; gives its stack
/// pointer.
///
/// # Safety
/// The memory below `top` is that task's stack, and nobody uses it.
pub unsafe fn begin(top: u64) -> u64 {
    // After the switch's return the stack pointer is at the top: aligned as before a call.
    let sp = top - size_of::<Frame>() as u64;
    let frame = Frame { registers: [0; 6], rip: first as *const () as u64 };
    // SAFETY: the caller's promise; the address is a multiple of 8.
    unsafe { core::ptr::with_exposed_provenance_mut::<Frame>(sp as usize).write(frame) };
    sp
}
