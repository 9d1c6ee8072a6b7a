//! The program of the workload `fault`, which the kernel brings along: it touches memory from user mode so that faults of a
//! wanted kind come, and none but these: it uses no stack, unless that is what it is to touch.

use core::arch::global_asm;
use core::mem::{offset_of, size_of};
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use alloc::sync::Arc;
use pagevisor_mm::mmap::MmapRequest;
use pagevisor_shared::command::workload::Touch;
use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::uapi::{
    MADV_DONTNEED, MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, PROT_EXEC, PROT_READ, PROT_WRITE,
};
use pagevisor_shared::sched::TaskState;
use pagevisor_shared::units::{CpuId, CpuMask, PAGE_SIZE, VirtAddr};

use super::{MIN_GAP, NewSpace, STACK_FIRST, STACK_TOP, frame_of};
use crate::arch::entry::FLAG_INTERRUPTS;
use crate::arch::gdt::{self, USER_CODE, USER_DATA};
use crate::arch::percpu;
use crate::arch::traps::TrapFrame;
use crate::fs::table::Files;
use crate::signal::Actions;
use crate::task::{self, Kind, Process};
use crate::{platform, region, smp, syscall};

// It begins with RDI a `Touch`, RSI bytes, RDX a `Data`, RBX where to map and R8 flags of `mmap`; ends with status 0, or with 1 if a call failed. It can be anywhere.
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
    movq %rdx, %rbp
    movl %r8d, %r15d
    cmpl ${stack}, %r12d
    je 5f
    movq $-1, %r8
    testl ${anonymous}, %r15d
    jnz 22f
    movl $319, %eax
    leaq {name}(%rbp), %rdi
    xorl %esi, %esi
    syscall
    testq %rax, %rax
    js 9f
    movq %rax, %r8
    movq %r13, %r9
21: movl $1, %eax
    movq %r8, %rdi
    leaq toucher(%rip), %rsi
    movl $4096, %edx
    syscall
    cmpq $4096, %rax
    jne 9f
    subq $4096, %r9
    jnz 21b
22: movl $9, %eax
    movq %rbx, %rdi
    movq %r13, %rsi
    movl ${prot}, %edx
    movl %r15d, %r10d
    xorl %r9d, %r9d
    syscall
    cmpq $-4096, %rax
    ja 9f
    movq %rax, %rbx
    leaq (%rbx, %r13), %r14
    cmpl ${zero}, %r12d
    je 4f
    cmpl ${file_read}, %r12d
    je 4f
    cmpl ${private_read}, %r12d
    je 4f
    touch "movb $1, (%rax)"
    cmpl ${node_local}, %r12d
    je 23f
    cmpl ${node_remote}, %r12d
    je 23f
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
23: movl $203, %eax
    xorl %edi, %edi
    movl $8, %esi
    leaq {cpus}(%rbp), %rdx
    syscall
    testq %rax, %rax
    jnz 9f
    movl $28, %eax
    movq %rbx, %rdi
    movq %r13, %rsi
    movl ${dontneed}, %edx
    syscall
    testq %rax, %rax
    jnz 9f
    touch "movb $5, (%rax)"
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
    file_read = const Touch::FileRead as u32,
    private_read = const Touch::PrivateRead as u32,
    node_local = const Touch::NodeLocal as u32,
    node_remote = const Touch::NodeRemote as u32,
    zero = const Touch::Zero as u32,
    mprotect = const Touch::Mprotect as u32,
    cow = const Touch::Cow as u32,
    cow_reuse = const Touch::CowReuse as u32,
    prot = const PROT_READ | PROT_WRITE,
    prot_read = const PROT_READ,
    anonymous = const MAP_ANONYMOUS,
    dontneed = const MADV_DONTNEED,
    cpus = const offset_of!(Data, cpus),
    name = const offset_of!(Data, name),
    options(att_syntax)
);

unsafe extern "C" {
    static toucher: u8;
    static toucher_end: u8;
}

/// Where the program is.
const CODE: u64 = 0x40_0000;

/// Where it maps memory if it can, so that what is brought in around a fault depends on nothing else.
const AREA: u64 = 0x1000_0000;

/// What it finds behind its code.
#[repr(C)]
struct Data {
    /// CPUs that it goes to.
    cpus: u64,
    /// The name of its file.
    name: [u8; 8],
}

/// Where that is, from the beginning of the code.
const DATA: u64 = 2048;

/// What it is to do.
struct Job {
    touch: Touch,
    pages: u64,
    cpus: CpuMask,
}

/// The CPUs that a program goes to that has begun on the CPU `here`. `None` if there are none.
fn destination(touch: Touch, here: CpuId) -> Option<CpuMask> {
    let node = |cpu: CpuId| Some(region::get()?.cpus().get(cpu.index())?.node.load(Relaxed));
    let others = smp::online().iter().filter(|cpu| node(*cpu) != node(here));
    let cpus = match touch {
        Touch::NodeRemote => others.fold(CpuMask::default(), CpuMask::with),
        _ => CpuMask::default().with(here),
    };
    (cpus.0 != 0).then_some(cpus)
}

/// Runs the program on this CPU, as a process of its own, and waits for its end by calling `relax`; gives how many page
/// faults it and its children had. `None` if it could not be run, or came to a bad end.
pub fn run(touch: Touch, pages: u64, relax: impl Fn()) -> Option<u64> {
    let here = CpuId::new(percpu::cpu_number() as usize)?;
    let job = Job { touch, pages, cpus: destination(touch, here)? };
    let here = CpuMask::default().with(here);
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
    task.set_resource(Kind::Files, Some(Arc::new(Files::default())));
    task.set_resource(Kind::Signals, Some(Arc::new(Actions::default())));
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
    let words = [job.cpus.0, u64::from_le_bytes(*b"toucher\0")].map(u64::to_le_bytes);
    let data = words.as_flattened();
    let written = mm.write_remote_vm(new, addr, code) + mm.write_remote_vm(new, VirtAddr::new(CODE + DATA), data);
    if code.len() as u64 > DATA || written != code.len() + data.len() {
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
    let sharing = if job.touch.is_shared() { MAP_SHARED } else { MAP_PRIVATE };
    let flags = if job.touch.has_file() { sharing } else { sharing | MAP_ANONYMOUS };
    *frame = TrapFrame {
        r15_to_r8: [0, 0, 0, 0, 0, 0, 0, flags.into()],
        rbp: 0,
        rdi: job.touch as u64,
        rsi: job.pages * PAGE_SIZE,
        rdx: CODE + DATA,
        rcx: 0,
        rbx: AREA,
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
