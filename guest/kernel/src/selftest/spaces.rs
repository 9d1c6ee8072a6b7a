//! Address spaces of tasks on several CPUs: what one CPU unmaps no other finds any more, whether it is at work in the space,
//! sleeps, or does something else meanwhile; and nothing is left when the tasks have ended.

use core::ptr::with_exposed_provenance;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::SeqCst;

use pagevisor_mm::mmap::{Limits, Space};
use pagevisor_shared::units::{CpuMask, PAGE_SIZE, VirtAddr};

use crate::log::{pr_err, pr_info};
use crate::platform;
use crate::task::{self, WaitQueue};
use crate::{clock, smp};

/// Where the memory is.
const TOP: u64 = 0x7fff_f000_0000;
const PAGES: u64 = 64;
const WORD: u64 = TOP - 8 * PAGE_SIZE;
/// Times that the page is exchanged for another.
const ROUNDS: u32 = 60;

/// The round whose page is there, and the rounds that the other has seen.
static ROUND: AtomicU32 = AtomicU32::new(0);
static SEEN: AtomicU32 = AtomicU32::new(0);
/// Reads of a page that was not there any more.
static STALE: AtomicU32 = AtomicU32::new(0);
static NEWS: WaitQueue = WaitQueue::new();
static ENDED: AtomicU32 = AtomicU32::new(0);
static DONE: WaitQueue = WaitQueue::new();

#[inline(never)]
pub(super) fn run() {
    match exchange() {
        Ok(()) => pr_info!("selftest: spaces ok"),
        Err(why) => pr_err!("selftest: spaces failed: {why}"),
    }
}

fn exchange() -> Result<(), &'static str> {
    let mm = platform::mm().ok_or("no memory stack")?;
    let space = mm.mm_alloc().ok_or("no memory for a space")?;
    let limits = Limits { as_: u64::MAX, data: u64::MAX, data_max: u64::MAX, stack: u64::MAX, memlock: u64::MAX };
    mm.insert_stack(space, VirtAddr::new(TOP), PAGES * PAGE_SIZE, &limits).map_err(|_| "no memory for an area")?;
    let mut cpus = smp::online().iter();
    let first = cpus.next().unwrap_or_default();
    let second = cpus.next().unwrap_or(first);
    for (cpu, function) in [(first, writer as task::Entry), (second, reader)] {
        mm.mmget(space);
        let mask = CpuMask::default().with(cpu);
        let argument = space.addr().raw() as usize;
        task::kthread_run(format_args!("spaces/{}", cpu.index()), mask, function, argument).ok_or("no memory")?;
    }
    mm.mmput(space);
    DONE.wait_until(|| ENDED.load(SeqCst) == 2);
    if STALE.load(SeqCst) != 0 {
        return Err("a page was read that was not there any more");
    }
    // The CPUs that kept it let it go when they idle.
    let begin = clock::nanos();
    while mm.region().header().roots.mms.load(SeqCst) != 0 {
        if clock::nanos() - begin > 5_000_000_000 {
            return Err("the space is still there");
        }
        let _ = task::sleep(1_000_000, false);
    }
    Ok(())
}

fn enter(space: usize) -> Option<Space> {
    // SAFETY: the address of a space of which the caller has given a use.
    let space = unsafe { Space::at(space as u64) }?;
    task::exec_space(space);
    Some(space)
}

fn end() {
    ENDED.fetch_add(1, SeqCst);
    DONE.wake_all();
}

/// The word in the memory of the space that this CPU uses.
fn word() -> u32 {
    // SAFETY: the page is there whenever this is called, and the area's for as long as the task has the space.
    unsafe { with_exposed_provenance::<u32>(WORD as usize).read_volatile() }
}

/// Exchanges the page, and waits until the other has seen it.
fn writer(space: usize) -> i32 {
    let (Some(mm), Some(space)) = (platform::mm(), enter(space)) else { return 1 };
    for round in 1..=ROUNDS {
        if let Some(vma) = space.first_vma() {
            let _held = mm.mmap_write_lock(space);
            mm.zap_page_range(vma, WORD & !(PAGE_SIZE - 1), WORD + PAGE_SIZE);
        }
        let others = mm.write_remote_vm(space, VirtAddr::new(WORD), &round.to_le_bytes());
        if others != 4 || word() != round {
            STALE.fetch_add(1, SeqCst);
        }
        ROUND.store(round, SeqCst);
        NEWS.wake_all();
        while SEEN.load(SeqCst) != round {
            task::yield_now();
            core::hint::spin_loop();
        }
    }
    end();
    0
}

/// Looks at every page: having waited in the space, having slept, or having let the CPU idle, by turns.
fn reader(space: usize) -> i32 {
    if enter(space).is_none() {
        return 1;
    }
    for round in 1..=ROUNDS {
        match round % 3 {
            0 => NEWS.wait_until(|| ROUND.load(SeqCst) == round),
            1 => {
                let _ = task::sleep(300_000, false);
                NEWS.wait_until(|| ROUND.load(SeqCst) == round);
            }
            _ => {
                while ROUND.load(SeqCst) != round {
                    task::yield_now();
                    core::hint::spin_loop();
                }
            }
        }
        if word() != round {
            STALE.fetch_add(1, SeqCst);
        }
        SEEN.store(round, SeqCst);
    }
    end();
    0
}
