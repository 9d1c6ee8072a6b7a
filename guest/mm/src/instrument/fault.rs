//! Allocations that are made to fail (`fail_page_alloc`, `failslab`, `lib/fault-inject.c`).
//!
//! Two ways, at the same time if need be: by chance and interval, as Linux's attributes of that name say
//! ([`FaultAttr`]); and exactly the N-th from now ([`FailNth`], Linux's `/proc/self/fail-nth`, here for the machine or
//! a CPU, since there are no tasks). What is set and how far it has come is in the region
//! ([`FaultState`](pagevisor_shared::region::records::FaultState)).

use core::fmt;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::command::Faulty;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::random::{GOLDEN, mix};
use pagevisor_shared::region::records::FaultState;
use pagevisor_shared::region::zone::hot;
use pagevisor_shared::units::{CpuId, MAX_ORDER, Order};

use crate::Mm;
use crate::platform::{Level, Platform};
use crate::sync::Plain;

/// Which allocations fail by chance. The defaults are Linux's, but for [`Self::probability`] they never fail any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultAttr {
    /// Percentage of the allocations looked at that fail; 0 for none.
    pub probability: u32,
    /// Only every so many allocations are looked at; 0 and 1 for all.
    pub interval: u32,
    /// At most so many fail; -1 for no limit.
    pub times: i32,
    /// So many pages, or bytes of objects, are allocated first before any allocation fails.
    pub space: i32,
    /// Orders below it never fail. Means nothing to objects.
    pub min_order: u32,
    /// Allocations that may reclaim never fail (`ignore-gfp-wait`).
    pub ignore_gfp_reclaim: bool,
    /// Allocations with `__GFP_HIGHMEM` never fail. Means nothing to objects.
    pub ignore_gfp_highmem: bool,
    /// Only objects of caches that are told to fail ([`Mm::kmem_cache_failslab`]). Means nothing to pages.
    pub cache_filter: bool,
    /// Only allocations with all of these flags fail. Not in Linux.
    pub gfp: Gfp,
    /// Start of the random numbers: the same start gives the same failures. Not in Linux.
    pub seed: u64,
}

impl FaultAttr {
    /// Linux's `fail_page_alloc`, and `failslab`, before anybody set it up.
    pub const fn new() -> Self {
        Self {
            probability: 0,
            interval: 1,
            times: 1,
            space: 0,
            min_order: 1,
            ignore_gfp_reclaim: true,
            ignore_gfp_highmem: true,
            cache_filter: false,
            gfp: Gfp::NONE,
            seed: 0,
        }
    }

    /// Linux's boot parameter, `<interval>,<probability>,<space>,<times>` (`setup_fault_attr`).
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split(',');
        let mut next = || fields.next();
        let (interval, probability) = (next()?.parse().ok()?, next()?.parse().ok()?);
        let (space, times) = (next()?.parse().ok()?, next()?.parse().ok()?);
        Some(Self { interval, probability, space, times, ..Self::new() })
    }
}

impl Default for FaultAttr {
    fn default() -> Self {
        Self::new()
    }
}

/// The one allocation that fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FailNth {
    /// Which of those that count, from 1; 0 for none.
    pub nth: u64,
    /// Only allocations of this CPU count; of all when absent.
    pub cpu: Option<CpuId>,
    /// Orders below it do not count.
    pub min_order: u32,
    /// Only allocations with all of these flags count.
    pub gfp: Gfp,
}

impl FailNth {
    /// The `nth` allocation from now, of the whole machine and of any kind. `__GFP_NOFAIL` ones do not count.
    pub const fn of_machine(nth: u64) -> Self {
        Self { nth, cpu: None, min_order: 0, gfp: Gfp::NONE }
    }
}

/// A value that fault injection does not accept. What was set is as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadFault {
    /// An order the allocator does not have.
    Order(u32),
    /// A number of failures below -1.
    Times(i32),
    /// A CPU the machine does not have.
    Cpu(CpuId),
}

impl fmt::Display for BadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order(order) => write!(f, "there is no order {order}"),
            Self::Times(times) => write!(f, "{times} is no number of failures"),
            Self::Cpu(cpu) => write!(f, "there is no CPU {}", cpu.index()),
        }
    }
}

impl core::error::Error for BadFault {}

/// An order below which nothing fails or counts; one above all orders excludes every allocation.
const fn checked_order(order: u32) -> Result<u32, BadFault> {
    if order <= MAX_ORDER as u32 { Ok(order) } else { Err(BadFault::Order(order)) }
}

/// Takes one off a count that is not 0; gives what is left.
fn count_down(word: &AtomicU32) {
    // Nothing is ordered by it; a count that was 0 stays so.
    let _ = word.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
}

impl<P: Platform> Mm<P> {
    /// Sets which allocations of pages fail by chance, from now on; counts start anew. A probability of 0 ends it.
    ///
    /// # Errors
    /// [`BadFault`] for an impossible order or number of failures.
    pub fn set_fail_page_alloc(&self, attr: FaultAttr) -> Result<(), BadFault> {
        self.set_fault(Faulty::Pages, &attr)
    }

    pub(super) fn set_fault(&self, of: Faulty, attr: &FaultAttr) -> Result<(), BadFault> {
        checked_order(attr.min_order)?;
        if attr.times < -1 {
            return Err(BadFault::Times(attr.times));
        }
        self.write_fault(of, attr);
        self.switch_faults(of);
        Ok(())
    }

    /// Linux's attributes before anybody sets others.
    pub(super) fn init_faults(&self) {
        for of in [Faulty::Pages, Faulty::Objects] {
            self.write_fault(of, &FaultAttr::new());
            self.fault(of).nth_cpu.set(u32::MAX);
        }
    }

    fn write_fault(&self, of: Faulty, attr: &FaultAttr) {
        let state = self.fault(of);
        // Nothing fails while the rest changes.
        state.probability.set(0);
        state.interval.set(attr.interval);
        state.times.set(attr.times as u32);
        state.space.set(attr.space);
        state.min_order.set(attr.min_order);
        state.ignore_gfp_reclaim.set(attr.ignore_gfp_reclaim.into());
        state.ignore_gfp_highmem.set(attr.ignore_gfp_highmem.into());
        state.cache_filter.set(attr.cache_filter.into());
        state.gfp.set(attr.gfp.bits());
        state.random.set(attr.seed);
        state.count.set(0);
        state.probability.set(attr.probability);
    }

    /// Makes one allocation of pages fail, counted from now on. Replaces what was set before.
    ///
    /// # Errors
    /// [`BadFault`] for an impossible order or CPU.
    pub fn set_fail_nth(&self, fail: FailNth) -> Result<(), BadFault> {
        self.set_nth(Faulty::Pages, fail)
    }

    pub(super) fn set_nth(&self, of: Faulty, fail: FailNth) -> Result<(), BadFault> {
        let min_order = checked_order(fail.min_order)?;
        if let Some(cpu) = fail.cpu.filter(|cpu| cpu.index() >= self.cpus.len()) {
            return Err(BadFault::Cpu(cpu));
        }
        let state = self.fault(of);
        state.nth.set(0);
        state.nth_cpu.set(fail.cpu.map_or(u32::MAX, |cpu| cpu.index() as u32));
        state.nth_min_order.set(min_order);
        state.nth_gfp.set(fail.gfp.bits());
        state.nth.set(fail.nth);
        self.switch_faults(of);
        Ok(())
    }

    /// What is set and how far it has come.
    pub(super) fn fault(&self, of: Faulty) -> &'static FaultState {
        let settings = self.region.sysctl();
        match of {
            Faulty::Pages => &settings.fail_page_alloc,
            Faulty::Objects => &settings.failslab,
        }
    }

    fn switch_faults(&self, of: Faulty) {
        let state = self.fault(of);
        let on = state.probability.get() != 0 || state.nth.get() != 0;
        let bit = match of {
            Faulty::Pages => hot::FAIL_PAGE_ALLOC,
            Faulty::Objects => hot::FAILSLAB,
        };
        self.set_instrumented(bit, on);
    }

    /// Whether an allocation is to fail (`should_fail_alloc_page`).
    pub(super) fn should_fail_alloc_page(&self, gfp: Gfp, order: Order) -> bool {
        if gfp.contains(Gfp::NOFAIL) {
            return false;
        }
        let state = self.fault(Faulty::Pages);
        let by_chance = || {
            order.raw() >= state.min_order.get()
                && (state.ignore_gfp_highmem.get() == 0 || !gfp.contains(Gfp::HIGHMEM))
                && Self::fails_by_chance(state, gfp, order.pages() as i32)
        };
        self.should_fail(Faulty::Pages, gfp, order, by_chance)
    }

    /// Whether an allocation is to fail, as the only one that is to or `by_chance`.
    pub(super) fn should_fail(&self, of: Faulty, gfp: Gfp, order: Order, by_chance: impl FnOnce() -> bool) -> bool {
        let state = self.fault(of);
        state.looked_at.fetch_add(1, Relaxed);
        let fails = self.is_nth(state, gfp, order) || by_chance();
        if fails {
            state.failed.fetch_add(1, Relaxed);
            if !gfp.contains(Gfp::NOWARN) {
                self.fail_dump(of, state);
            }
            if state.times.get() != u32::MAX {
                count_down(&state.times);
            }
        }
        fails
    }

    /// Counts the allocation; tells whether it is the one that is to fail.
    fn is_nth(&self, state: &FaultState, gfp: Gfp, order: Order) -> bool {
        if state.nth.get() == 0
            || order.raw() < state.nth_min_order.get()
            || state.nth_gfp.get() & !gfp.bits() != 0
            || ![u32::MAX, self.platform.this_cpu().cpu.index() as u32].contains(&state.nth_cpu.get())
        {
            return false;
        }
        // Exactly one of those that count at the same time takes it from 1 to 0.
        state.nth.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)) == Ok(1)
    }

    /// What `__should_fail_alloc_page` and `__should_failslab` have in common, and `should_fail_ex`.
    pub(super) fn fails_by_chance(state: &FaultState, gfp: Gfp, size: i32) -> bool {
        let probability = state.probability.get();
        if probability == 0
            || state.ignore_gfp_reclaim.get() != 0 && gfp.contains(Gfp::DIRECT_RECLAIM)
            || state.gfp.get() & !gfp.bits() != 0
            || state.times.get() == 0
        {
            return false;
        }
        if state.space.get() > size {
            state.space.fetch_sub(size, Relaxed);
            return false;
        }
        let interval = state.interval.get() as u64;
        if interval > 1 && !(state.count.fetch_add(1, Relaxed) + 1).is_multiple_of(interval) {
            return false;
        }
        let random = mix(state.random.fetch_add(GOLDEN, Relaxed).wrapping_add(GOLDEN));
        (random % 100) < probability as u64
    }

    /// Says that an allocation was made to fail (`fail_dump`).
    #[cold]
    fn fail_dump(&self, of: Faulty, state: &FaultState) {
        let name = match of {
            Faulty::Pages => "fail_page_alloc",
            Faulty::Objects => "failslab",
        };
        self.platform.log(Level::Notice, format_args!("FAULT_INJECTION: forcing a failure."));
        self.platform.log(
            Level::Notice,
            format_args!(
                "name {name}, interval {}, probability {}, space {}, times {}",
                state.interval.get(),
                state.probability.get(),
                state.space.get(),
                state.times.get() as i32,
            ),
        );
        self.platform.dump_stack();
    }
}
