//! Threads of the kernel (`kernel/kthread.c`). They are all made by `kthreadd`, the task of number 2, on behalf of
//! whoever asks; but for the first ones, which boot makes itself.

use core::fmt;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_shared::sched::TaskStruct;
use pagevisor_shared::units::{CpuId, CpuMask};

use super::list::{List, Node, Nodes};
use super::object::{Entry, Task, TaskRef, current};
use super::wait::{Sleep, WaitQueue};
use super::{sched, stack, table};
use crate::arch::{self, gdt, percpu, switch};
use crate::sync::IrqSpinLock;

/// Number of the task that makes kernel threads.
const KTHREADD: u32 = 2;

/// Makes a kernel thread that executes `function` with `argument` on `cpus`, and lets it run (`kthread_run`). It ends when
/// the function returns. `None` without memory or numbers.
pub fn kthread_run(name: fmt::Arguments<'_>, cpus: CpuMask, function: Entry, argument: usize) -> Option<TaskRef> {
    let task = Task::alloc(name, cpus)?;
    task.entry.store(function as usize as u64, Relaxed);
    task.argument.store(argument as u64, Relaxed);
    let asker = current();
    if asker.is_idle() || asker.pid() == KTHREADD {
        return start(&task).then_some(task);
    }
    let request = Request { links: Node::new(), task: task.addr(), state: AtomicU32::new(Request::OPEN) };
    REQUESTS.lock().push(core::ptr::from_ref(&request).expose_provenance() as u64);
    WORK.wake(1);
    let mut made = false;
    DONE.wait_until(|| {
        let state = request.state.load(Acquire);
        made = state == Request::MADE;
        state != Request::OPEN
    });
    made.then_some(task)
}

/// Gives `task` what it lacks to run, and lets it.
fn start(task: &TaskRef) -> bool {
    let here = percpu::cpu_number() as usize;
    let first = task.cpus().iter().map(CpuId::index).min_by_key(|cpu| *cpu != here);
    let cpu = first.unwrap_or(here);
    task.record.cpu.store(cpu as u32, Relaxed);
    if !stack::alloc(task, cpu) {
        return false;
    }
    let mut table = table::lock();
    let Some(pid) = table.alloc_pid() else { return false };
    task.record.pid.store(pid, Relaxed);
    task.record.tgid.store(pid, Relaxed);
    task.record.ppid.store(if pid > KTHREADD { KTHREADD } else { 0 }, Relaxed);
    task.record.flags.store(TaskStruct::KTHREAD, Relaxed);
    table.insert(task.clone());
    drop(table);
    // SAFETY: the stack is the task's alone, and it has not run. The end is left for the registers of user mode: the thread
    // may become a program.
    let sp = unsafe { switch::begin(stack::frame(task)) };
    task.record.sp.store(sp, Relaxed);
    // The reference that it has to itself; `finish_switch` drops it.
    let _addr = task.clone().into_addr();
    sched::wake_new(task);
    true
}

/// A new task's first steps, on its own stack, interrupts being off: `left` is the task that the CPU has just left. Gives
/// the address of the registers of user mode to go on with.
pub extern "C" fn begin(left: &Task) -> u64 {
    // SAFETY: a switch has just come here, once.
    unsafe { sched::finish_switch(left) };
    arch::cpu::irq_enable();
    let task = current();
    let entry = task.entry.swap(0, Relaxed);
    if entry != 0 {
        // SAFETY: `kthread_run` stored a function of this type.
        let function: Entry = unsafe { core::mem::transmute(entry as usize) };
        let code = function(task.argument.load(Relaxed) as usize);
        if task.record.user_regs.load(Relaxed) == 0 {
            super::exit::exit_thread(code);
        }
        // It has become a program, which its CPU was not told when it switched to it.
        arch::cpu::irq_disable();
        gdt::set_kernel_stack(stack::top(&task));
    }
    task.record.user_regs.load(Relaxed)
}

/// Somebody wants a thread. It lies on that task's stack, and is on the list until it is no longer open.
struct Request {
    links: Node,
    task: u64,
    state: AtomicU32,
}

impl Request {
    const OPEN: u32 = 0;
    const MADE: u32 = 1;
    const FAILED: u32 = 2;
}

/// Requests, as entries of a list.
#[derive(Debug)]
struct Requests;

fn request_at<'a>(entry: u64) -> &'a Request {
    // SAFETY: entries are requests that are open, whose askers wait.
    unsafe { &*core::ptr::with_exposed_provenance(entry as usize) }
}

impl Nodes for Requests {
    fn links(&self, entry: u64) -> (&AtomicU64, &AtomicU64) {
        request_at(entry).links.words()
    }
}

static REQUESTS: IrqSpinLock<List<Requests>> = IrqSpinLock::new(List::new(Requests));
/// `kthreadd` waits for requests.
static WORK: WaitQueue = WaitQueue::new();
/// Askers wait for it.
static DONE: WaitQueue = WaitQueue::new();

/// What `kthreadd` does.
pub(super) fn kthreadd(_: usize) -> i32 {
    loop {
        let Ok(entry) = WORK.wait_for(Sleep::IDLE, || REQUESTS.lock().pop()) else { continue };
        let request = request_at(entry);
        // SAFETY: the asker has a reference to it, and waits.
        let task = unsafe { Task::at(request.task) }.get();
        let made = start(&task);
        request.state.store(if made { Request::MADE } else { Request::FAILED }, Release);
        DONE.wake_all();
    }
}
