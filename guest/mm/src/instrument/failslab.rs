//! Allocations of objects that are made to fail (`mm/failslab.c`).
//!
//! Every way to an object comes by here while it is on: the gates of all caches' arrays are shut then. What the slab
//! allocator allocates for itself, arrays and lists of free objects, may fail as well; descriptors of caches may not.
//! Linux looks at a bulk allocation once, this at each of its objects.

use pagevisor_shared::command::Faulty;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::event::{Event, EventKind};
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::Order;

use super::{BadFault, FailNth, FaultAttr};
use crate::Mm;
use crate::platform::Platform;
use crate::slab::Cache;
use crate::sync::Plain;

impl<P: Platform> Mm<P> {
    /// Sets which allocations of objects fail by chance, from now on; counts start anew. A probability of 0 ends it. Not
    /// from interrupts.
    ///
    /// # Errors
    /// [`BadFault`] for an impossible number of failures.
    pub fn set_failslab(&self, attr: FaultAttr) -> Result<(), BadFault> {
        self.set_fault(Faulty::Objects, &attr)
    }

    /// Makes one allocation of an object fail, counted from now on. Replaces what was set before. Not from interrupts.
    ///
    /// # Errors
    /// [`BadFault`] for an impossible CPU.
    pub fn set_failslab_nth(&self, fail: FailNth) -> Result<(), BadFault> {
        self.set_nth(Faulty::Objects, FailNth { min_order: 0, ..fail })
    }

    /// Whether an allocation from `cache` is to fail (`__should_failslab`).
    #[cold]
    #[inline(never)]
    pub(crate) fn should_failslab(&self, cache: Cache, gfp: Gfp) -> bool {
        let state = self.fault(Faulty::Objects);
        if self.is_cache_of_caches(cache)
            || gfp.contains(Gfp::NOFAIL)
            || state.cache_filter.get() != 0 && !cache.flags().contains(SlabFlags::FAILSLAB)
        {
            return false;
        }
        let size = cache.record().object_size.get();
        let by_chance = || Self::fails_by_chance(state, gfp, size as i32);
        let fails = self.should_fail(Faulty::Objects, gfp, Order::ZERO, by_chance);
        if fails {
            self.trace(Event { gfp, args: [size.into(), 0, 0], ..Event::new(EventKind::Failslab) });
        }
        fails
    }
}
