//! The program of the workload `fault`, which the kernel brings along: it touches memory from user mode so that faults of a
//! wanted kind come, and none but these: it uses no stack, unless that is what it is to touch.

use core::arch::global_asm;
use core::mem::size_of;
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use alloc::sync::Arc;
use pagevisor_mm::mmap::MmapRequest;
use pagevisor_shared::command::workload::Touch;
use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::uapi::{
    MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, PROT_EXEC, PROT_READ, PROT_WRITE,
};
use pagevisor_shared::sched::TaskState;
use pagevisor_shared::units::{CpuMask, PAGE_SIZE, VirtAddr};

use super::{MIN_GAP, NewSpace, STACK_FIRST, STACK_TOP, frame_of};
use crate::arch::entry::FLAG_INTERRUPTS;
use crate::arch::gdt::{self, USER_CODE, USER_DATA};
use crate::arch::percpu;
use crate::arch::traps::TrapFrame;
use crate::platform;
use crate::signal::Actions;
use crate::syscall;
use crate::task::{self, Kind, Process};

// It begins with RDI a `Touch` and RSI bytes; ends with status 0, or with 1 if a call failed. It can be anywhere.
global_asm!(
    r#"
    .section .rodata
    .macro touch access
    movq %rbx, %rax
1:  \access
    addq $4096, %rax
    cmpq %r14, %rax
    jne 1b
    .endm
    .macro protect rights
    movl $10, %eax
    movq %rbx, %rdi
    movq %r13, %rsi
    movl $\rights, %edx
    syscall
    testq %rax, %rax
    jnz 9f
    .endm

    .globl toucher
toucher:
    movl %edi, %r12d
    movq %rsi, %r13
    cmpl ${stack}, %r12d
    je 5f
    movl $9, %eax
    xorl %edi, %edi
    movl ${prot}, %edx
    movl ${private}, %r10d
    movl ${shared}, %ecx
    cmpl ${file}, %r12d
    cmovel %ecx, %r10d
    movq $-1, %r8
    xorl %r9d, %r9d
    syscall
    cmpq $-4096, %rax
    ja 9f
    movq %rax, %rbx
    leaq (%rbx, %r13), %r14
    cmpl ${zero}, %r12d
    je 4f
    touch "movb $1, (%rax)"
    cmpl ${mprotect}, %r12d
    je 6f
    cmpl ${cow}, %r12d
    je 2f
    cmpl ${cow_reuse}, %r12d
    jne 8f
2:  movl $57, %eax
    syscall
    testq %rax, %rax
    js 9f
    jz 3f
    movl $61, %eax
    movq $-1, %rdi
    xorl %esi, %esi
    xorl %edx, %edx
    xorl %r10d, %r10d
    syscall
    testq %rax, %rax
    js 9f
    cmpl ${cow_reuse}, %r12d
    jne 8f
    touch "movb $2, (%rax)"
    jmp 8f
3:  cmpl ${cow}, %r12d
    jne 8f
    touch "movb $3, (%rax)"
    jmp 8f
4:  touch "cmpb $0, (%rax)"
    jmp 8f
5:  movq %rsp, %rax
    movq %rsp, %r14
    subq %r13, %r14
7:  movb $1, -1(%rax)
    subq $4096, %rax
    cmpq %r14, %rax
    ja 7b
    jmp 8f
6:  protect {prot_read}
    protect {prot}
    touch "movb $4, (%rax)"
8:  xorl %edi, %edi
    jmp 7f
9:  movl $1, %edi
7:  movl $231, %eax
    syscall
    .globl toucher_end
toucher_end:
    .text
    "#,
    stack = const Touch::Stack as u32,
    file = const Touch::File as u32,
    zero = const Touch::Zero as u32,
    mprotect = const Touch::Mprotect as u32,
    cow = const Touch::Cow as u32,
    cow_reuse = const Touch::CowReuse as u32,
    prot = const PROT_READ | PROT_WRITE,
    prot_read = const PROT_READ,
    private = const MAP_PRIVATE | MAP_ANONYMOUS,
    shared = const MAP_SHARED | MAP_ANONYMOUS,
    options(att_syntax)
);

unsafe extern "C" {
    static toucher: u8;
    static toucher_end: u8;
}

/// Where the program is.
const CODE: u64 = 0x40_0000;

/// What it is to do.
struct Job {
    touch: Touch,
    pages: u64,
}

/// Runs the program on this CPU, as a process of its own, and waits for its end by calling `relax`; gives how many page
/// faults it and its children had. `None` if it could not be run, or came to a bad end.
pub fn run(touch: Touch, pages: u64, relax: impl Fn()) -> Option<u64> {
    let job = Job { touch, pages };
    let here = CpuMask(1 << percpu::cpu_number());
    // The job stays until the task has ended.
    let at = core::ptr::from_ref(&job).expose_provenance();
    let task = task::kthread_run(format_args!("fault-{}", touch.name()), here, begin, at)?;
    let ended = || {
        let state = TaskState::new(task.record.state.load(Acquire));
        matches!(state, Some(TaskState::Zombie | TaskState::Dead))
    };
    while !ended() {
        relax();
    }
    let children = task
        .process()
        .map_or(0, |process| process.children.min_flt.load(Relaxed) + process.children.maj_flt.load(Relaxed));
    let own = task.record.min_flt.load(Relaxed) + task.record.maj_flt.load(Relaxed);
    (task.record.exit_code.load(Relaxed) == 0).then_some(own + children)
}

/// The thread's first steps, which make a program of it.
fn begin(job: usize) -> i32 {
    // SAFETY: `run` gave the address of one of these, and waits.
    let job = unsafe { &*core::ptr::with_exposed_provenance::<Job>(job) };
    i32::from(become_toucher(job).is_err())
}

fn become_toucher(job: &Job) -> Result<(), Errno> {
    let mm = platform::mm().ok_or(Errno::ENOMEM)?;
    let task = task::current();
    Process::found();
    task.resources.set(Kind::Signals, Some(Arc::new(Actions::default())));
    let limits = syscall::limits(&task);
    let mut space = NewSpace(Some(mm.mm_alloc().ok_or(Errno::ENOMEM)?));
    let Some(new) = space.0 else { return Err(Errno::ENOMEM) };
    new.record().mmap_base.store(STACK_TOP - MIN_GAP, Relaxed);
    mm.insert_stack(new, VirtAddr::new(STACK_TOP), STACK_FIRST, &limits)?;
    // SAFETY: the assembler put the program between these.
    let code = unsafe {
        let start = &raw const toucher;
        core::slice::from_raw_parts(start, (&raw const toucher_end).addr() - start.addr())
    };
    let addr = VirtAddr::new(CODE);
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    let request = MmapRequest { addr, len: PAGE_SIZE, prot: PROT_READ | PROT_WRITE, flags, file: None, pgoff: 0 };
    mm.do_mmap(new, &request, &limits)?;
    if mm.write_remote_vm(new, addr, code) != code.len() {
        return Err(Errno::ENOMEM);
    }
    mm.do_mprotect(new, addr, PAGE_SIZE, PROT_READ | PROT_EXEC, &limits)?;
    space.0 = None;
    task::exec_space(new);
    if !task::renew() {
        return Err(Errno::ENOMEM);
    }
    // SAFETY: the thread has not left the kernel yet, so nobody uses the end of its stack.
    let frame = unsafe { frame_of(&task) };
    *frame = TrapFrame {
        r15_to_r8: [0; 8],
        rbp: 0,
        rdi: job.touch as u64,
        rsi: job.pages * PAGE_SIZE,
        rdx: 0,
        rcx: 0,
        rbx: 0,
        rax: 0,
        vector: 0,
        error_code: 0,
        rip: CODE,
        cs: USER_CODE,
        rflags: FLAG_INTERRUPTS | 1 << 1,
        rsp: STACK_TOP,
        ss: USER_DATA,
    };
    let at = core::ptr::from_mut(frame).expose_provenance() as u64;
    task.record.user_regs.store(at, Relaxed);
    gdt::set_kernel_stack(at + size_of::<TrapFrame>() as u64);
    Ok(())
}
