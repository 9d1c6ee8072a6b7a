//! Tasks: threads of the kernel and of programs, who runs next, sleeping and waking, time.
//!
//! # For the rest of the kernel
//!
//! | to | use |
//! |---|---|
//! | know who runs | [`current`] (before there are tasks: [`try_current`]); [`find`] and [`for_each`] for others |
//! | have a thread of the kernel | [`kthread_run`]; it ends by returning |
//! | sleep until a condition holds | [`WaitQueue::wait_for`], with a [`Sleep`]: [`Sleep::DEEP`], [`Sleep::LIGHT`] (a signal ends it: EINTR), [`Sleep::at_most`] and [`Sleep::until`] (ETIMEDOUT) |
//! | wake those | [`WaitQueue::wake`], [`WaitQueue::wake_all`], after the change |
//! | sleep on a word, a futex's for instance | [`wait`] with a [`Key`] and a check that is made once the task is entered; [`wake`] |
//! | sleep for a time | [`sleep`], [`sleep_until`], by [`crate::clock::nanos`] |
//! | have something done at a time | [`timer::Timer`] |
//! | make a child | [`clone`], with [`clone_flags`]; its registers are a copy of the caller's, with 0 in RAX |
//! | end | [`exit`] (the thread), [`exit_group`]; statuses by [`exited_with`] and [`killed_by`]; SIGCHLD by [`set_notice`] |
//! | ask for a child's end | [`wait4`] |
//! | end a process from outside | [`Process::end`]; its threads find out by [`Task::ends_with`] on their way to user mode, when [`todo::SIGNAL`] is set, and call [`exit`] with that |
//! | run another program | [`Process::be_alone`], then [`exec_space`], [`renew`] |
//! | keep files, directories, signal actions with tasks | [`Task::resources`], by [`Kind`] |
//! | count time in user mode | [`leave_kernel`] and [`enter_kernel`] at the border |
//! | exchange floating-point state with memory | [`with_saved_fpu`], [`replace_fpu`] |
//! | change FS and GS base | [`set_bases`] |
//! | let others run in a long loop | [`cond_resched`] |
//! | wake a task for a signal | set [`todo::SIGNAL`] in [`Task::todo`], then [`wake_state`] with `TaskState::Interruptible` |
//! | go back to user mode | with interrupts off, while [`Task::todo`] is not 0: for [`todo::RESCHED`] call [`preempt`], for [`todo::SIGNAL`] take the signal, for [`todo::RSEQ`] call [`crate::rseq::resume`] |
//! | become a program | from a thread of the kernel: [`exec_space`], [`renew`], then put a `TrapFrame` at the end of the kernel stack ([`stack::frame`]), note its address in the record's `user_regs`, and return from the thread's function |
//!
//! A task leaves its CPU only where it sleeps, yields or goes back to user mode; so spin locks and per-CPU data need no
//! protection from other tasks. Nobody sleeps who holds a spin lock or has interrupts off.
//!
//! # Parts
//!
//! [`object`] the task itself; [`table`] all of them; [`stack`] kernel stacks; [`queue`] run queues, with [`heap`] and
//! [`fair`]; [`sched`] switching and waking; [`affinity`]; [`timer`]; [`mod@wait`] sleeping; [`kthread`]; [`user`] and
//! [`space`] what is switched for programs; [`process`], [`resources`], [`fork`], [`exit`]; [`time`].
//!
//! Locks by rank: the table of tasks; a bucket of [`mod@wait`]; timers; a task's `wake_lock`; run queues.

mod affinity;
pub mod clone_flags;
mod exit;
mod fair;
mod fork;
mod heap;
mod kthread;
mod list;
mod object;
mod pid;
mod process;
mod queue;
mod resources;
mod robust;
mod sched;
mod space;
pub mod stack;
mod table;
mod time;
mod timer;
mod user;
mod wait;

use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::NR_CPUS;
use pagevisor_shared::sched::TaskStruct;
use pagevisor_shared::units::{CpuId, CpuMask};

pub use affinity::{nice, set_affinity, set_nice};
pub use exit::{Ended, Wait, Which, exit, exit_group, exited_with, killed_by, set_notice, wait4};
pub use fork::{CloneArgs, clone};
pub use kthread::{begin, kthread_run};
pub use object::{Entry, Restart, Task, TaskRef, current, signal_pending, todo, try_current};
pub use process::{NO_LIMIT, Process, Usage};
pub use resources::{Kind, Resource, address_of};
pub use sched::{
    cond_resched, kick_process, need_resched, preempt, reschedule_interrupt, schedule, set_state, wake_state, yield_now,
};
pub use space::exec_space;
pub use table::{count, find, for_each};
pub use time::{CpuTime, begin_idle, end_idle, enter_kernel, leave_kernel};
pub use timer::interrupt as timer_interrupt;
pub use user::{let_go, renew, replace_fpu, set_bases, with_saved_fpu};
pub use wait::{ALL_BITS, Key, Sleep, WaitQueue, requeue, sleep, sleep_until, wait, wait_on, wake, wake_all};

use crate::arch::percpu;

/// Gives every CPU its idle task: what it executes from its start on, or, on this one, what it executes already
/// (`init_idle`).
pub fn init() {
    object::init();
    for cpu in (0..NR_CPUS).filter_map(CpuId::new).filter(|cpu| percpu::of(*cpu).is_some()) {
        let mask = CpuMask::default().with(cpu);
        let Some(idle) = Task::alloc(format_args!("swapper/{}", cpu.index()), mask) else {
            panic!("no memory for the idle task of CPU {}", cpu.index())
        };
        idle.record.flags.store(TaskStruct::KTHREAD, Relaxed);
        idle.record.cpu.store(cpu.index() as u32, Relaxed);
        idle.record.on_cpu.store(1, Relaxed);
        sched::adopt_idle(cpu, &idle);
        if let Some(word) = object::CURRENT.of(cpu) {
            // It stays for ever, and so does this reference.
            word.store(idle.into_addr(), Relaxed);
        }
    }
}

/// Makes the first two tasks: `init`, which goes on with booting by calling `function`, and `kthreadd`. They run when the
/// caller idles (`rest_init`).
pub fn start(function: Entry) {
    let here = CpuId::new(percpu::cpu_number() as usize).unwrap_or_default();
    let made = kthread_run(format_args!("init"), CpuMask::default().with(here), function, 0).and_then(|init| {
        // It is to become a program.
        let process = Process::new(None, 0);
        init.set_process(Arc::clone(&process));
        process.set_init(&init);
        kthread_run(format_args!("kthreadd"), CpuMask(u64::MAX), kthread::kthreadd, 0)
    });
    if made.is_none() {
        panic!("no memory for the first tasks");
    }
}
