//! All tasks, in the order in which they were made, and by number. The list starts in the state region's roots, where the
//! host finds it.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Relaxed, Release};

use super::list::{List, Nodes};
use super::object::{Task, TaskRef};
use super::pid::{PID_MAX, PidMap};
use super::process::Process;
use pagevisor_shared::sched::THREAD_SIZE;
use pagevisor_shared::units::PAGE_SIZE;

use crate::region;
use crate::sync::{IrqSpinGuard, IrqSpinLock};

/// Chains of the table of numbers.
const CHAINS: usize = 256;

/// Tasks, as entries of the list of all.
#[derive(Debug)]
struct All;

impl Nodes for All {
    fn links(&self, entry: u64) -> (&AtomicU64, &AtomicU64) {
        // SAFETY: whoever is on the list is kept by it.
        let record = unsafe { &Task::at(entry).record };
        (&record.next, &record.prev)
    }
}

/// What the lock of the tasks guards (`tasklist_lock`): who there is, their numbers, and who belongs to whom.
#[derive(Debug)]
pub(super) struct Table {
    all: List<All>,
    pids: PidMap,
    /// First task of each chain, linked by [`Task::chain`].
    chains: [u64; CHAINS],
    count: u64,
}

static TABLE: IrqSpinLock<Table> =
    IrqSpinLock::new(Table { all: List::new(All), pids: PidMap::new(), chains: [0; CHAINS], count: 0 });

/// Locks the table of tasks.
pub(super) fn lock() -> IrqSpinGuard<'static, Table> {
    TABLE.lock()
}

/// The task with number `pid` (`find_get_task_by_vpid`).
pub fn find(pid: u32) -> Option<TaskRef> {
    lock().find(pid).map(Task::get)
}

/// Calls `look` with every task, in the order in which they were made, the table being locked.
pub fn for_each(mut look: impl FnMut(&Task)) {
    let table = lock();
    let mut entry = table.all.first();
    while entry != 0 {
        // SAFETY: the list keeps it, and its lock is held.
        look(unsafe { Task::at(entry) });
        entry = table.all.next(entry);
    }
}

/// How many threads there may be, by memory: their stacks take an eighth of it at most (`set_max_threads`).
pub fn max_threads() -> u64 {
    let pages = region::get().map_or(0, |region| region.header().pages_total.load(Relaxed));
    (pages * PAGE_SIZE / (8 * THREAD_SIZE)).clamp(20, PID_MAX.into())
}

/// How many tasks there are.
pub fn count() -> u64 {
    lock().count
}

impl Table {
    /// Takes a number for a task.
    pub fn alloc_pid(&mut self) -> Option<u32> {
        self.pids.alloc()
    }

    /// Enters `task`, which has its number, for good: the table keeps it until [`Self::remove`].
    pub fn insert(&mut self, task: TaskRef) {
        let chain = &mut self.chains[task.pid() as usize % CHAINS];
        task.chain.store(*chain, Relaxed);
        let entry = task.into_addr();
        *chain = entry;
        self.all.push(entry);
        self.count += 1;
        self.publish();
    }

    /// Takes `task` out, and its number; gives the reference that the table had.
    pub fn remove(&mut self, task: &Task) -> TaskRef {
        let entry = task.addr();
        let chain = &mut self.chains[task.pid() as usize % CHAINS];
        if *chain == entry {
            *chain = task.chain.load(Relaxed);
        } else {
            let mut at = *chain;
            while at != 0 {
                // SAFETY: what is in a chain is kept by the table.
                let before = unsafe { Task::at(at) };
                at = before.chain.load(Relaxed);
                if at == entry {
                    before.chain.store(task.chain.load(Relaxed), Relaxed);
                    break;
                }
            }
        }
        self.all.remove(entry);
        self.count -= 1;
        self.pids.free(task.pid());
        self.publish();
        // SAFETY: `insert` kept the count, and the task is on no list any more.
        unsafe { TaskRef::from_addr(entry) }
    }

    /// Makes `task`, whose process `process` is and has ended but for it, the leader: it takes the place and the number of the
    /// one before, of which nothing is left (`de_thread`).
    pub fn replace_leader(&mut self, task: &Task, process: &Process) {
        let (old, pid) = (process.family.lock().threads.first(), task.tgid());
        if old == 0 || old == task.addr() {
            return;
        }
        // SAFETY: who is in a family is in the table.
        let leader = unsafe { Task::at(old) };
        {
            let mut family = process.family.lock();
            family.threads.remove(old);
            family.threads.remove(task.addr());
            family.threads.push(task.addr());
        }
        if let Some(parent) = process.parent_locked() {
            let mut family = parent.family.lock();
            family.children.remove(old);
            family.children.push(task.addr());
        }
        process.gone.add_task(leader);
        drop(self.remove(leader));
        let held = self.remove(task);
        // Nobody has taken it since: the table is locked.
        self.pids.take(pid);
        task.record.pid.store(pid, Relaxed);
        self.insert(held);
    }

    /// The task with number `pid`.
    pub fn find(&self, pid: u32) -> Option<&Task> {
        let mut at = self.chains[pid as usize % CHAINS];
        while at != 0 {
            // SAFETY: what is in a chain is kept by the table, which is borrowed.
            let task = unsafe { Task::at(at) };
            if task.pid() == pid {
                return Some(task);
            }
            at = task.chain.load(Relaxed);
        }
        None
    }

    /// Tells the host.
    fn publish(&self) {
        if let Some(region) = region::get() {
            let roots = &region.header().roots;
            roots.tasks.store(self.all.first(), Release);
            roots.nr_tasks.store(self.count, Relaxed);
        }
    }
}
