//! The task itself: the record that others may read, the kernel's own part behind it, and references to both.

use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;
use core::mem::offset_of;
use core::ops::Deref;
use core::ptr::{NonNull, with_exposed_provenance_mut};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64};

use pagevisor_mm::slab::Cache;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::sched::{Comm, TaskState, TaskStruct};
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::{CpuMask, VirtAddr};

use super::fair::NICE_0_WEIGHT;
use super::heap::Links;
use super::list::Node;
use super::process::Process;
use super::resources::{self, Resources};
use super::stack;
use super::timer::Timer;
use super::user::UserState;
use crate::arch::this_cpu::percpu;
use crate::platform;
use crate::sync::{Once, SpinLock};

percpu! {
    /// The task that the CPU executes (`current_task`).
    pub CURRENT: u64 = 0;
}

/// What a task is to do before it goes on in user mode, and how it takes signals (`TIF_*`): bits of [`Task::todo`].
pub mod todo {
    /// Its time is over, or somebody more urgent has woken (`TIF_NEED_RESCHED`).
    pub const RESCHED: u32 = 1 << 0;
    /// A signal is there to be taken (`TIF_SIGPENDING`).
    pub const SIGNAL: u32 = 1 << 1;
    /// What it has registered with `rseq` is to be brought up to date (`TIF_NOTIFY_RESUME`).
    pub const RSEQ: u32 = 1 << 2;
    /// It wanted memory when there was none, and ends for it (`TIF_MEMDIE`).
    pub const MEMDIE: u32 = 1 << 3;
}

/// The function of a kernel thread.
pub type Entry = fn(usize) -> i32;

/// A task.
///
/// Everything is made of words that any CPU may read; who may write them is said at each.
#[repr(C, align(64))]
pub struct Task {
    /// What others may read.
    pub record: TaskStruct,
    /// [`todo`]; set by anybody.
    pub todo: AtomicU32,
    /// References, that of the list of tasks included.
    usage: AtomicU32,
    /// Whether it is in a run queue, or runs: 0, [`super::queue::QUEUED`] or [`super::queue::MIGRATING`]. Written under the
    /// lock of the run queue of its CPU.
    pub(super) on_rq: AtomicU32,
    /// Serializes those who wake it (`pi_lock`); interrupts are off.
    pub(super) wake_lock: AtomicU32,
    /// What it has registered with `rseq`.
    pub rseq: crate::rseq::State,
    /// Its place in the run queue; the key is the virtual run time.
    pub(super) run: Links,
    /// When it was last charged for running. Like all of these, its run queue's lock guards it.
    pub(super) exec_start: AtomicU64,
    /// Nanoseconds it has run.
    pub(super) sum_exec: AtomicU64,
    /// What [`Self::sum_exec`] was when its slice began.
    pub(super) slice_start: AtomicU64,
    /// [`super::fair::weight_of`] its nice value.
    pub(super) weight: AtomicU32,
    /// The nice value.
    pub(super) nice: AtomicI32,
    /// Ticks in user mode. Written by the task itself.
    pub(super) user_ticks: AtomicU64,
    /// The node that its stack is counted for.
    pub(super) stack_node: AtomicU32,
    /// Open files and so on.
    pub resources: Resources,
    /// The [`Process`], a counted reference; null for threads of the kernel.
    process: AtomicPtr<Process>,
    /// Its place among its parent's children, if it leads a process.
    pub(super) sibling: Node,
    /// Its place among its process's threads.
    pub(super) thread: Node,
    /// Where in its memory a word is to be cleared, and its waiters woken, when it gives the memory up; 0 for nowhere.
    pub clear_child_tid: AtomicU64,
    /// The list of mutexes that it holds, in its memory; 0 for none.
    pub robust_list: AtomicU64,
    /// How to go on with the call that was interrupted, if no handler runs.
    pub restart: Restart,
    /// 1 while its parent waits for it to give up the memory they share.
    pub(super) vfork: AtomicU32,
    /// 1 when it is to end because another thread wants the process for itself.
    pub(super) kill: AtomicU32,
    /// Held by who changes the task's address space, or takes a use of another's.
    pub(super) space_lock: SpinLock<()>,
    /// What it has of user mode beside its registers.
    pub user: UserState,
    /// What else there is to signals than the record has.
    pub signals: crate::signal::State,
    /// The next task in its chain of the table.
    pub(super) chain: AtomicU64,
    /// Ends its sleep.
    pub(super) alarm: Timer,
    /// Kernel threads: what they execute, an [`Entry`]; 0 once it runs.
    pub(super) entry: AtomicU64,
    /// The argument.
    pub(super) argument: AtomicU64,
}

// SAFETY: all fields are atomics, or guarded as they say.
unsafe impl Sync for Task {}

static CACHE: Once<Cache> = Once::new();

/// Makes the cache of tasks.
pub(super) fn init() {
    if let Some(mm) = platform::mm() {
        let flags = SlabFlags::HWCACHE_ALIGN.with(SlabFlags::PANIC);
        if let Ok(cache) = mm.kmem_cache_create("task_struct", size_of::<Task>(), align_of::<Task>(), flags, None) {
            CACHE.set(cache);
        }
    }
}

impl Task {
    /// Offset of the stack pointer of a task that does not run, for the switch.
    pub const SP_OFFSET: usize = offset_of!(Self, record) + offset_of!(TaskStruct, sp);

    /// A task of nobody's, which is to run on `cpus` and does nothing yet; `None` without memory.
    pub(super) fn alloc(name: fmt::Arguments<'_>, cpus: CpuMask) -> Option<TaskRef> {
        let object = platform::mm()?.kmem_cache_zalloc(*CACHE.get()?, Gfp::KERNEL)?;
        let task: *mut Self = with_exposed_provenance_mut(object.raw() as usize);
        // SAFETY: memory of a task's size and alignment that nobody else has; zero is a value of every other field, and is
        // what those that are not set below begin with.
        let task = unsafe {
            (&raw mut (*task).resources).write(Resources::new());
            (&raw mut (*task).signals).write(crate::signal::State::default());
            &*task
        };
        task.usage.store(1, Relaxed);
        task.weight.store(NICE_0_WEIGHT, Relaxed);
        task.record.cpus_mask.store(cpus.0, Relaxed);
        task.record.start_time.store(crate::clock::nanos(), Relaxed);
        task.set_name(name);
        Some(TaskRef(NonNull::from(task)))
    }

    /// Its address, which names it in lists and heaps.
    #[inline(always)]
    pub fn addr(&self) -> u64 {
        core::ptr::from_ref(self).expose_provenance() as u64
    }

    /// The task at `addr`.
    ///
    /// # Safety
    /// It is a task's address, and somebody keeps the task for as long as the caller uses this.
    #[inline(always)]
    pub unsafe fn at<'a>(addr: u64) -> &'a Self {
        // SAFETY: the caller's promise.
        unsafe { &*core::ptr::with_exposed_provenance(addr as usize) }
    }

    /// Another reference to it (`get_task_struct`).
    pub fn get(&self) -> TaskRef {
        self.usage.fetch_add(1, Relaxed);
        TaskRef(NonNull::from(self))
    }

    /// Number of the thread.
    #[inline]
    pub fn pid(&self) -> u32 {
        self.record.pid.load(Relaxed)
    }

    /// Number of the process.
    #[inline]
    pub fn tgid(&self) -> u32 {
        self.record.tgid.load(Relaxed)
    }

    /// The CPU that it runs or last ran on.
    #[inline]
    pub fn cpu(&self) -> usize {
        self.record.cpu.load(Relaxed) as usize
    }

    /// CPUs that it may run on.
    #[inline]
    pub fn cpus(&self) -> CpuMask {
        CpuMask(self.record.cpus_mask.load(Relaxed))
    }

    /// Whether one of `flags` is set (`PF_*`).
    #[inline]
    pub fn has(&self, flags: u32) -> bool {
        self.record.flags.load(Relaxed) & flags != 0
    }

    /// The process that it is a thread of; `None` for threads of the kernel.
    #[inline]
    pub fn process(&self) -> Option<&Process> {
        // SAFETY: null, or what `set_process` got out of a counted reference that goes with the task.
        unsafe { self.process.load(Acquire).as_ref() }
    }

    /// [`Self::process`], counted.
    pub fn get_process(&self) -> Option<Arc<Process>> {
        let process: *const Process = core::ptr::from_ref(self.process()?);
        // SAFETY: the pointer is that of a counted reference, which stays while one more is made of it.
        unsafe {
            Arc::increment_strong_count(process);
            Some(Arc::from_raw(process))
        }
    }

    /// Makes it a thread of `process`. It has none yet, and nobody else looks.
    pub(super) fn set_process(&self, process: Arc<Process>) {
        self.record.signal.store(resources::address_of(&process.record), Relaxed);
        self.process.store(Arc::into_raw(process).cast_mut(), Release);
    }

    /// Whether the task is to end because its process does, or because another thread wants that for itself: with what
    /// code. For the way back to user mode, when [`todo::SIGNAL`] is set.
    pub fn ends_with(&self) -> Option<u32> {
        if self.kill.load(Acquire) != 0 {
            return Some(0);
        }
        self.process()?.ends_with()
    }

    /// Whether it is a CPU's idle task.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.pid() == 0
    }

    /// The state, as a number.
    #[inline]
    pub(super) fn state(&self) -> u32 {
        self.record.state.load(Relaxed)
    }

    /// Names it (`set_task_comm`); what is too long is cut.
    pub fn set_name(&self, name: fmt::Arguments<'_>) {
        let mut text = Comm::default();
        // What does not fit is left out.
        let _ = fmt::Write::write_fmt(&mut text, name);
        text.store(&self.record);
    }

    /// Its name.
    pub fn name(&self) -> Comm {
        Comm::of(&self.record)
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.pid())
    }
}

/// What a call needs to know that goes on after it was interrupted (`struct restart_block`).
#[derive(Debug, Default)]
pub struct Restart {
    /// Which call it is: a number of the calls' own, 0 for none.
    pub call: AtomicU32,
    /// When its time is over.
    pub until: AtomicU64,
    /// Of one that sleeps: where to note the rest. Of one that waits for a word: the word.
    pub at: AtomicU64,
    /// The value that the word has.
    pub value: AtomicU32,
    /// Wakers to wait for.
    pub bits: AtomicU32,
}

/// A counted reference to a task: its memory stays, whatever the task does.
pub struct TaskRef(NonNull<Task>);

// SAFETY: a task may be used by any CPU, and counts its references atomically.
unsafe impl Send for TaskRef {}
// SAFETY: whoever shares a reference can only look at atomics and locks of the task.
unsafe impl Sync for TaskRef {}

impl TaskRef {
    /// Gives the count to whoever keeps the address.
    pub(super) fn into_addr(self) -> u64 {
        let addr = self.addr();
        core::mem::forget(self);
        addr
    }

    /// Takes the count over from who kept the address.
    ///
    /// # Safety
    /// [`Self::into_addr`] gave it, and this is its only use.
    pub(super) unsafe fn from_addr(addr: u64) -> Self {
        // SAFETY: the caller's promise.
        Self(NonNull::from(unsafe { Task::at(addr) }))
    }
}

impl Deref for TaskRef {
    type Target = Task;

    #[inline(always)]
    fn deref(&self) -> &Task {
        // SAFETY: the count keeps it.
        unsafe { self.0.as_ref() }
    }
}

impl Clone for TaskRef {
    fn clone(&self) -> Self {
        self.get()
    }
}

impl fmt::Debug for TaskRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl Drop for TaskRef {
    fn drop(&mut self) {
        if self.usage.fetch_sub(1, AcqRel) == 1 {
            free(self);
        }
    }
}

/// The last reference to a task has gone (`__put_task_struct`).
fn free(task: &Task) {
    stack::free(task);
    task.user.free();
    resources::exit(task);
    task.pending().clear();
    let process = task.process.swap(core::ptr::null_mut(), Relaxed);
    if !process.is_null() {
        // SAFETY: the reference that `set_process` took.
        drop(unsafe { Arc::from_raw(process) });
    }
    if let (Some(mm), Some(cache)) = (platform::mm(), CACHE.get()) {
        mm.kmem_cache_free(*cache, VirtAddr::new(task.addr()));
    }
}

/// The task that executes the caller. It stays with it: a task is there for as long as it executes anything.
#[derive(Clone, Copy)]
pub struct Current {
    task: NonNull<Task>,
    here: PhantomData<*const ()>,
}

impl Deref for Current {
    type Target = Task;

    #[inline(always)]
    fn deref(&self) -> &Task {
        // SAFETY: this does not leave the task's own execution (it is not `Send`), which keeps the task.
        unsafe { self.task.as_ref() }
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// The current task (`current`).
///
/// # Panics
/// Before there are tasks.
#[inline(always)]
pub fn current() -> Current {
    match try_current() {
        Some(task) => task,
        None => panic!("there are no tasks yet"),
    }
}

/// The current task, once there are tasks.
#[inline(always)]
pub fn try_current() -> Option<Current> {
    let task = NonNull::new(with_exposed_provenance_mut(CURRENT.read() as usize))?;
    Some(Current { task, here: PhantomData })
}

/// Whether a task in state `state` sleeps so that a signal ends it.
pub(super) const fn is_interruptible(state: u32) -> bool {
    state & TaskState::Interruptible as u32 != 0
}

/// Whether a signal is there for `task` to take (`signal_pending`).
#[inline]
pub fn signal_pending(task: &Task) -> bool {
    task.todo.load(Acquire) & todo::SIGNAL != 0
}
