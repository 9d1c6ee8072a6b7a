//! What a handler finds on the stack, and how the program goes on behind it (`arch/x86/kernel/signal.c`).
//!
//! ```text
//! rsp   return address          8    (rt_sigframe)
//!       flags, link            16    (ucontext)
//!       stack for handlers     24
//!       registers             256    (sigcontext)
//!       blocked signals         8
//!       siginfo               128
//!       ...
//!       floating-point state         at a multiple of 64
//! ```

use alloc::vec;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::errno::Errno;
use pagevisor_shared::layout::TASK_SIZE_MAX;

use super::{Action, Info, SIGCHLD};
use crate::arch::gdt::{USER_CODE, USER_DATA};
use crate::arch::traps::TrapFrame;
use crate::arch::{fpu, uaccess};
use crate::task::{self, Task};

/// Words of a frame: return address, flags, link, stack for handlers, registers, mask, siginfo.
const WORDS: usize = 1 + 2 + 3 + REGISTERS + 1 + INFO;
/// Words of registers (`struct sigcontext`).
const REGISTERS: usize = 32;
/// Words of the siginfo.
const INFO: usize = 16;
/// Where in the frame the registers, the mask and the siginfo begin, in words.
const AT_CONTEXT: usize = 1;
const AT_STACK: usize = 3;
const AT_REGISTERS: usize = 6;
const AT_MASK: usize = AT_REGISTERS + REGISTERS;
const AT_INFO: usize = AT_MASK + 1;
/// What lies below the stack pointer belongs to the program (the ABI's red zone).
const RED_ZONE: u64 = 128;

/// Flags of a context: its floating-point state says itself what it is, SS is in it, and is taken from it.
const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;

/// The stack for handlers is not there.
pub const SS_DISABLE: u64 = 2;
/// A handler is on it.
pub const SS_ONSTACK: u64 = 1;
/// It is taken away while a handler runs.
pub const SS_AUTODISARM: u64 = 1 << 31;

/// Flags that programs may set (`FIX_EFLAGS`).
const USER_FLAGS: u64 = 0x0005_0dd5;

fn stack_of(task: &Task) -> [u64; 3] {
    [0, 1, 2].map(|index| task.signals.stack[index].load(Relaxed))
}

/// Whether `sp` is on the stack for handlers; never on one that is taken away while a handler runs (`on_sig_stack`).
pub fn is_on_stack(task: &Task, sp: u64) -> bool {
    let [start, flags, size] = stack_of(task);
    flags & SS_AUTODISARM == 0 && sp > start && sp - start <= size
}

/// The registers, in the order of `struct sigcontext`.
fn registers(frame: &TrapFrame) -> [u64; 18] {
    let [r15, r14, r13, r12, r11, r10, r9, r8] = frame.r15_to_r8;
    let f = frame;
    [r8, r9, r10, r11, r12, r13, r14, r15, f.rdi, f.rsi, f.rbp, f.rbx, f.rdx, f.rax, f.rcx, f.rsp, f.rip, f.rflags]
}

/// The siginfo, as programs get it.
pub fn siginfo(info: &Info) -> [u64; INFO] {
    let mut words = [0; INFO];
    words[0] = u64::from(info.number);
    words[1] = u64::from(info.code.cast_unsigned());
    words[2..5].copy_from_slice(&info.words);
    if info.number == SIGCHLD {
        words[3] &= 0xffff_ffff;
    }
    words
}

/// Makes the thread go on in the handler of `action` with signal `info`; behind it `mask` is to be blocked.
pub fn push(task: &Task, frame: &mut TrapFrame, info: &Info, action: &Action, mask: u64) -> Result<(), Errno> {
    let [stack, stack_flags, stack_size] = stack_of(task);
    let mut sp = frame.rsp.wrapping_sub(RED_ZONE);
    let mut on_stack = is_on_stack(task, frame.rsp);
    if action.wants_stack() && stack_size != 0 && !on_stack {
        (sp, on_stack) = (stack + stack_size, true);
    }
    let fpu_at = sp.wrapping_sub(fpu::frame_bytes() as u64) & !63;
    // Aligned as behind a call.
    let at = (fpu_at.wrapping_sub(8 * WORDS as u64) & !15).wrapping_sub(8);
    // What does not fit on the stack for handlers is not put below it.
    if at >= TASK_SIZE_MAX || on_stack && !(stack < at && at - stack <= stack_size) {
        return Err(Errno::EFAULT);
    }
    let mut words = [0; WORDS];
    words[0] = action.way_back().ok_or(Errno::EFAULT)?;
    words[AT_CONTEXT] = UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS | if fpu::frames_extend() { UC_FP_XSTATE } else { 0 };
    words[AT_STACK] = stack;
    words[AT_STACK + 1] = if stack_size == 0 { SS_DISABLE } else { stack_flags };
    words[AT_STACK + 2] = stack_size;
    words[AT_REGISTERS..AT_REGISTERS + 18].copy_from_slice(&registers(frame));
    let [trap, error, address] = [0, 1, 2].map(|index| task.signals.trap[index].load(Relaxed));
    let rest = [USER_CODE | USER_DATA << 48, error, trap, mask, address, fpu_at];
    words[AT_REGISTERS + 18..AT_REGISTERS + 24].copy_from_slice(&rest);
    words[AT_MASK] = mask;
    words[AT_INFO..].copy_from_slice(&siginfo(info));
    uaccess::write_words(at, &words)?;
    task::with_saved_fpu(|state| uaccess::write(fpu_at, state))?;
    if stack_flags & SS_AUTODISARM != 0 {
        // It is back when the handler returns.
        task.signals.stack.iter().for_each(|word| word.store(0, Relaxed));
    }
    frame.rdi = u64::from(info.number);
    frame.rsi = at + 8 * AT_INFO as u64;
    frame.rdx = at + 8 * AT_CONTEXT as u64;
    frame.rax = 0;
    frame.rip = action.handler;
    frame.rsp = at;
    // Direction, trap and resume.
    frame.rflags &= !(1 << 10 | 1 << 8 | 1 << 16);
    Ok(())
}

/// A handler returns: the thread goes on with what is on its stack (`rt_sigreturn`). If that is not there, it is ended.
pub fn sigreturn(frame: &mut TrapFrame) {
    let task = task::current();
    // The return address has been taken.
    if restore(&task, frame).is_err() {
        super::force_sigsegv(&task, 0);
    }
    // With all its registers.
    frame.vector = 0;
}

fn restore(task: &Task, frame: &mut TrapFrame) -> Result<(), Errno> {
    let at = frame.rsp.wrapping_sub(8);
    let words: [u64; WORDS - INFO] = uaccess::read_words(at)?;
    let [r8, r9, r10, r11, r12, r13, r14, r15] = core::array::from_fn(|index| words[AT_REGISTERS + index]);
    let [rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, rflags] =
        core::array::from_fn(|index| words[AT_REGISTERS + 8 + index]);
    if rip >= TASK_SIZE_MAX {
        return Err(Errno::EFAULT);
    }
    let fpu_at = words[AT_REGISTERS + 23];
    if fpu_at != 0 {
        let mut state = vec![0; fpu::frame_bytes()];
        uaccess::read(&mut state, fpu_at)?;
        task::replace_fpu(&state);
    }
    frame.r15_to_r8 = [r15, r14, r13, r12, r11, r10, r9, r8];
    (frame.rdi, frame.rsi, frame.rbp, frame.rbx, frame.rdx) = (rdi, rsi, rbp, rbx, rdx);
    (frame.rax, frame.rcx, frame.rsp, frame.rip) = (rax, rcx, rsp, rip);
    frame.rflags = frame.rflags & !USER_FLAGS | rflags & USER_FLAGS;
    for (word, value) in task.signals.stack.iter().zip(&words[AT_STACK..AT_STACK + 3]) {
        word.store(*value, Relaxed);
    }
    super::set_blocked(words[AT_MASK]);
    Ok(())
}
