//! Asking those who keep objects for memory back (`shrink_slab` of `mm/vmscan.c`).
//!
//! Whoever keeps objects that it could do without registers a [`Shrinker`]. When memory runs short, and when somebody
//! writes to `vm.drop_caches`, every shrinker is asked how many objects it could free, and then to look at a share of
//! them: the larger the more urgent it is (`reclaim`), and the smaller the more an object costs to make anew.
//!
//! What is too little to be worth a call is remembered for the next time, so that many small requests come to as much as
//! a large one.

mod old;
mod reclaim;

use core::fmt;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicI64, AtomicU64};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::event::EventKind;
use pagevisor_shared::units::NodeId;
use pagevisor_shared::vmstat::VmEvent;

pub use old::OldShrinker;

use crate::instrument::Shrinking;
use crate::platform::Platform;
use crate::raw::{MmVec, RwSem};
use crate::{Mm, NoMemory};

/// What an object costs that has to be read from disk again (`DEFAULT_SEEKS`).
pub const DEFAULT_SEEKS: u32 = 2;
/// How many objects a shrinker looks at in a call, unless it says otherwise (`SHRINK_BATCH`).
pub const SHRINK_BATCH: u64 = 128;

/// What a shrinker is asked (`struct shrink_control`).
#[derive(Clone, Copy, Debug)]
pub struct ShrinkControl {
    /// What the allocation that needs memory may do. A shrinker must not enter what it could have come from.
    pub gfp: Gfp,
    /// The node that needs memory.
    pub node: NodeId,
    /// Objects to look at.
    pub nr_to_scan: u64,
    /// Objects looked at. A shrinker that looks at another number than it was asked for says so.
    pub nr_scanned: u64,
}

/// Keeps objects that it can do without (`struct shrinker`).
pub trait Shrinker<P: Platform>: Sync {
    /// How many objects could be freed; 0 also when that cannot be said now (`count_objects`).
    fn count_objects(&self, mm: &Mm<P>, control: &ShrinkControl) -> u64;

    /// Looks at `nr_to_scan` objects and frees those it can do without; gives how many it freed. `None` if it cannot
    /// free any now: it is not asked again for the time being (`scan_objects`, `SHRINK_STOP`).
    fn scan_objects(&self, mm: &Mm<P>, control: &mut ShrinkControl) -> Option<u64>;

    /// What an object costs to make anew: the less, the more are freed. 0 for nothing.
    fn seeks(&self) -> u32 {
        DEFAULT_SEEKS
    }

    /// Objects to look at in a call; 0 for [`SHRINK_BATCH`].
    fn batch(&self) -> u64 {
        0
    }

    /// The address of what frees its objects, for events to name. Not for others to write.
    fn function(&self) -> u64 {
        Self::scan_objects as fn(&Self, &Mm<P>, &mut ShrinkControl) -> Option<u64> as usize as u64
    }

    /// Whether it keeps track of which node objects are on (`SHRINKER_NUMA_AWARE`).
    fn numa_aware(&self) -> bool {
        false
    }
}

/// Names a registered shrinker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShrinkerId(u64);

impl ShrinkerId {
    /// Its number, never 0.
    pub(crate) fn raw(self) -> u64 {
        self.0
    }

    /// The shrinker of that number; there need not be one.
    pub(crate) fn from_raw(raw: u64) -> Self {
        Self(raw)
    }
}

/// A registered shrinker.
struct Registered<P: Platform> {
    id: u64,
    name: &'static str,
    shrinker: &'static dyn Shrinker<P>,
    /// Objects it should have looked at and has not, of each node or of all (`nr_deferred`).
    nr_deferred: MmVec<AtomicI64>,
}

/// All shrinkers (`shrinker_list`), in the order in which they came.
pub(crate) struct Shrinkers<P: Platform> {
    /// `shrinker_rwsem`. The outermost lock of all: held while shrinkers work, by as many as like.
    list: RwSem<MmVec<Registered<P>>>,
    last_id: AtomicU64,
    /// CPUs that are reclaiming, a bit each: what they allocate for that must not reclaim (`PF_MEMALLOC`).
    reclaiming: AtomicU64,
}

impl<P: Platform> Shrinkers<P> {
    pub(crate) const fn new() -> Self {
        Self { list: RwSem::new(MmVec::new()), last_id: AtomicU64::new(0), reclaiming: AtomicU64::new(0) }
    }
}

impl<P: Platform> fmt::Debug for Shrinkers<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shrinkers").field("last_id", &self.last_id).finish_non_exhaustive()
    }
}

impl<P: Platform> Registered<P> {
    /// What is left over for `node`.
    fn deferred(&self, node: NodeId) -> Option<&AtomicI64> {
        self.nr_deferred.get(if self.shrinker.numa_aware() { node.index() } else { 0 })
    }
}

impl<P: Platform> Mm<P> {
    /// Has a shrinker asked from now on (`register_shrinker`). Not from interrupts, nor from a shrinker.
    ///
    /// # Errors
    /// [`NoMemory`] to keep track of it.
    pub fn register_shrinker(
        &self,
        name: &'static str,
        shrinker: &'static dyn Shrinker<P>,
    ) -> Result<ShrinkerId, NoMemory> {
        let mut nr_deferred = MmVec::new();
        let places = if shrinker.numa_aware() { self.nodes.len() } else { 1 };
        let id = self.shrinkers.last_id.fetch_add(1, Relaxed) + 1;
        let mut registered = Ok(());
        for _ in 0..places {
            registered = registered.and_then(|()| nr_deferred.push(self, AtomicI64::new(0), Gfp::KERNEL));
        }
        let mut entry = Registered { id, name, shrinker, nr_deferred };
        let mut list = self.shrinkers.list.write(|| self.platform.relax());
        match registered.and_then(|()| list.reserve(self, Gfp::KERNEL)) {
            Ok(()) => list.push_within_capacity(entry),
            Err(error) => {
                entry.nr_deferred.release(self);
                return Err(error);
            }
        }
        Ok(ShrinkerId(id))
    }

    /// Has a shrinker not asked any more; when this returns it is not working either (`unregister_shrinker`). Not from
    /// interrupts, nor from a shrinker. Nothing happens the second time.
    pub fn unregister_shrinker(&self, id: ShrinkerId) {
        let mut list = self.shrinkers.list.write(|| self.platform.relax());
        let found = list.iter().position(|entry| entry.id == id.0);
        let gone = found.and_then(|index| list.remove(self, index));
        drop(list);
        if let Some(mut entry) = gone {
            entry.nr_deferred.release(self);
        }
    }

    /// Calls `show` with the name of each shrinker, what it could free of `node` and what it still has to look at there
    /// (`/sys/kernel/debug/shrinker`). Not from interrupts; false if shrinkers come or go just now.
    pub fn for_each_shrinker(&self, node: NodeId, mut show: impl FnMut(&'static str, u64, u64)) -> bool {
        let Some(list) = self.shrinkers.list.try_read() else { return false };
        let control = ShrinkControl { gfp: Gfp::KERNEL, node, nr_to_scan: 0, nr_scanned: 0 };
        for entry in list.iter() {
            let deferred = entry.deferred(node).map_or(0, |word| word.load(Relaxed).max(0) as u64);
            show(entry.name, entry.shrinker.count_objects(self, &control), deferred);
        }
        true
    }

    /// Asks one shrinker for the share that `priority` makes due (`do_shrink_slab`); gives how many objects it freed.
    fn do_shrink_slab(&self, entry: &Registered<P>, gfp: Gfp, node: NodeId, priority: u32) -> u64 {
        let mut control = ShrinkControl { gfp, node, nr_to_scan: 0, nr_scanned: 0 };
        let shrinker = entry.shrinker;
        // No cache has that many objects; so that nothing below overflows.
        let freeable = shrinker.count_objects(self, &control).min(1 << 60) as i64;
        if freeable == 0 {
            return 0;
        }
        let batch = if shrinker.batch() == 0 { SHRINK_BATCH } else { shrinker.batch() }.min(1 << 60) as i64;
        // Others who shrink at the same time start from nothing.
        let deferred = entry.deferred(node).map_or(0, |word| word.swap(0, Relaxed));
        let delta = match i64::from(shrinker.seeks()) {
            // Not worth keeping: half of it goes, whatever the priority.
            0 => freeable / 2,
            seeks => ((freeable >> priority) * 4) / seeks,
        };
        let mut total = ((deferred >> priority) + delta).min(2 * freeable);
        let who = Shrinking { function: shrinker.function(), number: entry.id, node };
        if self.traces(EventKind::MmShrinkSlabStart) {
            self.trace_shrink_start(who, gfp, priority, [deferred, freeable, delta, total]);
        }
        let (mut scanned, mut freed) = (0_i64, 0_u64);
        // Less than a batch only if that is all there is.
        while total >= batch || total >= freeable {
            control.nr_to_scan = batch.min(total) as u64;
            control.nr_scanned = control.nr_to_scan;
            let Some(gone) = shrinker.scan_objects(self, &mut control) else { break };
            freed = freed.saturating_add(gone);
            self.count_vm_events(VmEvent::SlabsScanned, control.nr_scanned);
            let looked_at = control.nr_scanned.min(1 << 60) as i64;
            if looked_at == 0 {
                // It would go on for ever.
                break;
            }
            total -= looked_at;
            scanned = scanned.saturating_add(looked_at);
        }
        let left = (deferred + delta).saturating_sub(scanned).clamp(0, 2 * freeable);
        let before = entry.deferred(node).map_or(0, |word| word.fetch_add(left, Relaxed));
        if self.traces(EventKind::MmShrinkSlabEnd) {
            self.trace_shrink_end(who, freed, [deferred, before + left, total]);
        }
        freed
    }

    /// Asks all shrinkers for what `priority` makes due of `node`: 0 for everything, and half as much with each step up
    /// (`shrink_slab`). Gives how many objects they freed; nothing while shrinkers come or go.
    pub fn shrink_slab(&self, gfp: Gfp, node: NodeId, priority: u32) -> u64 {
        let Some(list) = self.shrinkers.list.try_read() else { return 0 };
        let mut freed = 0_u64;
        for entry in list.iter() {
            freed = freed.saturating_add(self.do_shrink_slab(entry, gfp, node, priority));
            if self.shrinkers.list.is_contended() {
                // Whoever comes or goes should not wait for all of them.
                return freed.max(1);
            }
        }
        freed
    }

    /// Has everything freed that shrinkers can do without (`drop_slab`): once more as long as that gives much, and each
    /// time it must be twice as much.
    pub fn drop_slab(&self) {
        for shift in 0..u64::BITS {
            let nodes = self.online_nodes.iter();
            let freed: u64 = nodes.fold(0, |freed, node| freed.saturating_add(self.shrink_slab(Gfp::KERNEL, node, 0)));
            if freed >> shift <= 1 {
                break;
            }
        }
    }
}
