//! The report of a failed allocation (`warn_alloc`), and how often reports are made.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::report::{MemInfo, mem_info};
use pagevisor_shared::units::{NodeMask, Order};

use crate::Mm;
use crate::platform::{Level, Platform};
use crate::sync::Plain;

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;
/// `nopage_rs`: one report in ten seconds.
const NOPAGE_INTERVAL: u64 = 10 * SECOND;
/// Bad pages reported before there is a pause.
const BAD_PAGE_BURST: u64 = 60;
/// The pause.
const BAD_PAGE_INTERVAL: u64 = 60 * SECOND;

/// When reports were made. Races between CPUs cost at most a report too many.
#[derive(Debug)]
pub(crate) struct Reports {
    /// When the next failure may be reported.
    nopage_after: AtomicU64,
    bad_shown: AtomicU64,
    bad_unshown: AtomicU64,
    bad_resume: AtomicU64,
}

impl Reports {
    /// No report so far.
    pub(crate) const fn new() -> Self {
        Self {
            nopage_after: AtomicU64::new(0),
            bad_shown: AtomicU64::new(0),
            bad_unshown: AtomicU64::new(0),
            bad_resume: AtomicU64::new(0),
        }
    }

    /// Whether a failed allocation may be reported at time `now` (`__ratelimit(&nopage_rs)`).
    fn allow_nopage(&self, now: u64) -> bool {
        let after = self.nopage_after.load(Relaxed);
        now >= after && self.nopage_after.compare_exchange(after, now + NOPAGE_INTERVAL, Relaxed, Relaxed).is_ok()
    }

    /// Whether a bad page may be reported: a burst of 60, then none until the minute is over. Gives the number of
    /// reports left out since the last.
    pub(super) fn allow_bad_page(&self, now: u64) -> Option<u64> {
        let mut suppressed = 0;
        if self.bad_shown.load(Relaxed) >= BAD_PAGE_BURST {
            if now < self.bad_resume.load(Relaxed) {
                self.bad_unshown.fetch_add(1, Relaxed);
                return None;
            }
            suppressed = self.bad_unshown.swap(0, Relaxed);
            self.bad_shown.store(0, Relaxed);
        }
        if self.bad_shown.fetch_add(1, Relaxed) == 0 {
            self.bad_resume.store(now + BAD_PAGE_INTERVAL, Relaxed);
        }
        Some(suppressed)
    }
}

/// Linux's `%*pbl` of a node mask that may be absent.
struct Mask(Option<NodeMask>);

impl core::fmt::Display for Mask {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0 {
            Some(mask) => write!(f, "{mask}"),
            None => f.write_str("(null)"),
        }
    }
}

impl<P: Platform> Mm<P> {
    /// Reports that an allocation failed (`warn_alloc`), unless it asked not to, or one was reported a moment ago, or
    /// it wanted ZONE_DMA on a machine without one.
    #[cold]
    #[inline(never)]
    pub(super) fn warn_alloc(&self, gfp: Gfp, order: Order, nodemask: Option<NodeMask>) {
        self.warn_alloc_of(gfp, nodemask, format_args!("page allocation failure: order:{}", order.raw()));
    }

    /// As [`Self::warn_alloc`], about `what`.
    #[cold]
    #[inline(never)]
    pub(crate) fn warn_alloc_of(&self, gfp: Gfp, nodemask: Option<NodeMask>, what: core::fmt::Arguments<'_>) {
        let no_dma = gfp.contains(Gfp::DMA)
            && !self.zones.iter().any(|zone| zone.zone_type.get() == 0 && zone.managed_pages.get() != 0);
        if gfp.contains(Gfp::NOWARN) || no_dma || !self.reports.allow_nopage(self.platform.now()) {
            return;
        }
        self.platform.log(
            Level::Warning,
            format_args!(
                "{}: {what}, mode:{:#x}({gfp}), nodemask={},cpuset=/,mems_allowed={}",
                self.platform.current().comm,
                gfp.bits(),
                Mask(nodemask),
                self.online_nodes,
            ),
        );
        self.platform.dump_stack();
        let what = MemInfo { local_cpu: self.platform.this_cpu().cpu, nodes: nodemask, max_zone: gfp.zone() };
        mem_info(&self.region, &what, &mut |line| self.platform.log(Level::Warning, line));
    }
}
