//! The ways into the kernel and back: exceptions and interrupts, from the kernel and from programs, and system calls.
//!
//! Whoever comes from user mode is on the kernel stack of the current task, with all registers in a
//! [`TrapFrame`](super::traps::TrapFrame) at its top, and with GS exchanged for the kernel's. All ways back lead through
//! `trap_return`; for user mode that is [`exit_to_user`] and then `sysretq` or `iretq`.
//!
//! # System calls
//! On hardware `syscall` enters ring 0 at `syscall_entry`. Where ring 0 is emulated it goes on there in ring 3, which must
//! not execute the kernel's pages: that page fault is the system call ([`is_system_call`]), and has the registers as
//! `syscall` has left them, RCX being the return address and R11 the flags.

use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::Ordering::Acquire;

use super::cpu::{self, msr};
use super::percpu::{PerCpu, Tables};
use super::traps::{self, TrapFrame, vector};
use super::{gdt, percpu};
use crate::task::{self, Task, todo};
use crate::{command, rseq, signal, syscall};

// A stub of 16 bytes for every vector: it makes the frame the same whether the processor pushed an error code or not.
global_asm!(
    r#"
    .text
    .balign 16
    .globl trap_stubs
    .type trap_stubs, @function
trap_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if vector != 8 && vector != 10 && vector != 11 && vector != 12 && vector != 13 && vector != 14 && vector != 17 && vector != 21 && vector != 29 && vector != 30
    pushq $0
    .endif
    pushq $vector
    jmp trap_common
    .set vector, vector + 1
    .endr

    .macro save_registers
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, %rdi
    .endm

    .macro restore_registers
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rbp
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rbx
    popq %rax
    .endm

trap_common:
    testb $3, 24(%rsp)
    jz 1f
    swapgs
1:  save_registers
    cld
    call handle_trap
    .globl trap_return
trap_return:
    cli
    testb $3, {cs}(%rsp)
    jz 2f
    movq %rsp, %rdi
    call exit_to_user
    // By sysretq if that gives all registers what they are to have, and cannot fault.
return_to_user:
    cmpq ${system_call}, {vector}(%rsp)
    jne 1f
    movq {rip}(%rsp), %rax
    cmpq %rax, {rcx}(%rsp)
    jne 1f
    shrq $47, %rax
    jnz 1f
    movq {rflags}(%rsp), %rax
    cmpq %rax, {r11}(%rsp)
    jne 1f
    testq ${trap_or_resume}, %rax
    jnz 1f
    restore_registers
    movq 40(%rsp), %rsp
    swapgs
    sysretq
1:  swapgs
2:  restore_registers
    addq $16, %rsp
    iretq

    .balign 16
    .globl syscall_entry
    .type syscall_entry, @function
syscall_entry:
    swapgs
    movq %rsp, %gs:{record}+{user_sp}
    movq %gs:{record}+{kernel_sp}, %rsp
    pushq ${user_data}
    pushq %gs:{record}+{user_sp}
    pushq %r11
    pushq ${user_code}
    pushq %rcx
    pushq %rax
    pushq ${system_call}
    save_registers
    call enter_system_call
    jmp return_to_user
    "#,
    cs = const offset_of!(TrapFrame, cs),
    vector = const offset_of!(TrapFrame, vector),
    rip = const offset_of!(TrapFrame, rip),
    rcx = const offset_of!(TrapFrame, rcx),
    rflags = const offset_of!(TrapFrame, rflags),
    r11 = const offset_of!(TrapFrame, r15_to_r8) + 4 * 8,
    system_call = const vector::SYSTEM_CALL,
    trap_or_resume = const FLAG_TRAP | FLAG_RESUME,
    record = sym percpu::RECORD,
    user_sp = const STACKS_IN_RECORD + 2 * 8,
    kernel_sp = const STACKS_IN_RECORD,
    user_data = const gdt::USER_DATA,
    user_code = const gdt::USER_CODE,
    options(att_syntax)
);

/// Where a CPU's record has the stacks of its task state: of ring 0 the first, which [`gdt::set_kernel_stack`] sets; the
/// third is nobody's and keeps the program's stack pointer for a moment, as in Linux (`TSS_sp2`).
const STACKS_IN_RECORD: usize = offset_of!(PerCpu, tables) + offset_of!(Tables, tss) + 4;

/// Flags: single step.
const FLAG_TRAP: u64 = 1 << 8;
/// Flags: interrupts.
pub const FLAG_INTERRUPTS: u64 = 1 << 9;
/// Flags: direction of string instructions.
const FLAG_DIRECTION: u64 = 1 << 10;
/// Flags: privilege of I/O.
const FLAG_IOPL: u64 = 3 << 12;
/// Flags: nested task.
const FLAG_NESTED: u64 = 1 << 14;
/// Flags: an execution breakpoint is not taken again.
const FLAG_RESUME: u64 = 1 << 16;
/// Flags: alignment is checked.
const FLAG_ALIGNMENT: u64 = 1 << 18;

/// Flags that `syscall` clears.
const SYSCALL_MASK: u64 =
    FLAG_TRAP | FLAG_INTERRUPTS | FLAG_DIRECTION | FLAG_IOPL | FLAG_NESTED | FLAG_RESUME | FLAG_ALIGNMENT;

/// EFER: `syscall` and `sysret`.
const EFER_SYSCALL: u64 = 1;

/// The error code of the page fault that `syscall` makes where ring 0 is emulated: fetched in user mode from a page that
/// is there.
const SYSCALL_FAULT: u64 = traps::FAULT_PRESENT | traps::FAULT_USER | traps::FAULT_FETCH;

unsafe extern "C" {
    fn syscall_entry();
}

/// The address that `syscall` goes to.
fn entry_address() -> u64 {
    syscall_entry as *const () as u64
}

/// Lets programs make system calls on this CPU (`syscall_init`).
pub fn init() {
    // The selectors that `syscall` loads; and those that `sysretq` counts from: SS is 8 further on, CS 16.
    const STAR: u64 = (gdt::USER_DATA - 8) << 48 | gdt::KERNEL_CODE << 32;
    // SAFETY: the entry is ready for `syscall`, and the descriptors are as it and `sysretq` want them.
    unsafe {
        cpu::wrmsr(msr::STAR, STAR);
        cpu::wrmsr(msr::LSTAR, entry_address());
        cpu::wrmsr(msr::SYSCALL_MASK, SYSCALL_MASK);
        cpu::wrmsr(msr::EFER, cpu::rdmsr(msr::EFER) | EFER_SYSCALL);
    }
}

/// Whether the page fault at `address` in user mode is how `syscall` shows where ring 0 is emulated.
pub fn is_system_call(frame: &TrapFrame, address: u64) -> bool {
    frame.error_code == SYSCALL_FAULT && frame.rip == address && address == entry_address()
}

/// Makes of the page fault that [`is_system_call`] the frame of a system call.
pub fn system_call_by_fault(frame: &mut TrapFrame) {
    frame.vector = vector::SYSTEM_CALL;
    frame.error_code = frame.rax;
    frame.rip = frame.rcx;
    frame.rflags = frame.r15_to_r8[3 + 1];
    cpu::irq_enable();
    syscall::call(&task::current(), frame);
}

/// A program calls by `syscall` itself, which has cleared the flag of direction; interrupts are off, and are off when this
/// returns, for the program to go on.
#[unsafe(no_mangle)]
extern "C" fn enter_system_call(frame: &mut TrapFrame) {
    let task = task::current();
    task::enter_kernel(&task);
    cpu::irq_enable();
    syscall::call(&task, frame);
    cpu::irq_disable();
    exit(&task, frame);
}

/// What is to be done before a program goes on with `frame`. Interrupts are off, and are off when this returns.
#[unsafe(no_mangle)]
extern "C" fn exit_to_user(frame: &mut TrapFrame) {
    exit(&task::current(), frame);
}

#[inline(always)]
fn exit(task: &Task, frame: &mut TrapFrame) {
    if task.todo.load(Acquire) != 0 {
        work(task, frame);
    }
    task::leave_kernel();
}

/// Does what the current task has to do before it goes on with `frame` (`exit_to_user_mode_loop`).
#[cold]
#[inline(never)]
fn work(task: &Task, frame: &mut TrapFrame) {
    loop {
        let work = task.todo.load(Acquire);
        if work == 0 {
            return;
        }
        cpu::irq_enable();
        if work & todo::RESCHED != 0 {
            task::preempt();
            command::stay();
        }
        if work & todo::MEMDIE != 0 {
            signal::oom::kill(task);
        }
        if work & todo::SIGNAL != 0 {
            signal::take(frame);
        }
        if work & todo::RSEQ != 0 {
            rseq::resume(task, frame);
        }
        cpu::irq_disable();
    }
}
