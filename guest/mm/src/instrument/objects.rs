//! Events about objects, per-CPU memory and shrinkers (`include/trace/events/{kmem,percpu,vmscan}.h`).

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::event::{Event, EventKind, NO_NODE};
use pagevisor_shared::units::{NodeId, VirtAddr};

use crate::Mm;
use crate::platform::Platform;
use crate::slab::Cache;
use crate::sync::Plain;

/// What per-CPU memory was asked for.
pub(crate) struct PercpuAsked {
    pub(crate) size: u64,
    pub(crate) align: u64,
    pub(crate) reserved: bool,
    pub(crate) atomic: bool,
    pub(crate) gfp: Gfp,
}

/// A shrinker at work.
#[derive(Clone, Copy)]
pub(crate) struct Shrinking {
    pub(crate) function: u64,
    pub(crate) number: u64,
    pub(crate) node: NodeId,
}

impl<P: Platform> Mm<P> {
    /// `kmalloc` and its relatives: `bytes` were asked for and `room` there are at `addr`, 0 for failure.
    #[cold]
    pub(crate) fn trace_kmalloc(&self, addr: u64, bytes: u64, room: u64, gfp: Gfp, node: Option<NodeId>) {
        self.trace_object(EventKind::Kmalloc, [addr, bytes, room], gfp, node);
    }

    /// `kmem_cache_alloc` and its relatives.
    #[cold]
    pub(crate) fn trace_cache_alloc(&self, cache: Cache, addr: u64, gfp: Gfp, node: Option<NodeId>) {
        let record = cache.record();
        let args = [addr, record.object_size.get().into(), record.size.get().into()];
        self.trace_object(EventKind::KmemCacheAlloc, args, gfp, node);
    }

    fn trace_object(&self, kind: EventKind, args: [u64; 3], gfp: Gfp, node: Option<NodeId>) {
        let node = node.map_or(NO_NODE, |node| node.index() as u8);
        self.trace(Event { node, gfp, args, ..Event::new(kind) });
    }

    /// `kfree`.
    #[cold]
    pub(crate) fn trace_kfree(&self, addr: VirtAddr) {
        self.trace(Event { args: [addr.raw(), 0, 0], ..Event::new(EventKind::Kfree) });
    }

    /// `kmem_cache_free`.
    #[cold]
    pub(crate) fn trace_cache_free(&self, cache: Cache, addr: VirtAddr) {
        let [first, second, third, _] = &cache.record().name;
        let event = Event { args: [addr.raw(), 0, 0], ..Event::new(EventKind::KmemCacheFree) };
        self.trace(event.with_text([first.get(), second.get(), third.get()]));
    }

    /// `pcpu_alloc`: `offset` bytes from `base` in its chunk there is what `ptr` points to.
    #[cold]
    pub(crate) fn trace_percpu_alloc(&self, asked: &PercpuAsked, base: u64, offset: u64, ptr: u64) {
        // `pcpu_obj_full_size`.
        let all = asked.size * self.cpus.len() as u64;
        self.trace(Event {
            zone: u8::from(asked.reserved) | u8::from(asked.atomic) << 1,
            order: asked.align.trailing_zeros() as u8,
            gfp: asked.gfp,
            pfn: base,
            args: [ptr, asked.size | offset << 32, all],
            ..Event::new(EventKind::PercpuAllocPercpu)
        });
    }

    /// `free_percpu`: what `ptr` points to is free.
    #[cold]
    pub(crate) fn trace_percpu_free(&self, base: u64, offset: u64, ptr: u64) {
        self.trace(Event { pfn: base, args: [ptr, offset, 0], ..Event::new(EventKind::PercpuFreePercpu) });
    }

    /// `do_shrink_slab` begins: the shrinker left `deferred` objects for later, could free `freeable`, and is to look at
    /// `total`, of which `delta` are the share of this call.
    #[cold]
    pub(crate) fn trace_shrink_start(&self, who: Shrinking, gfp: Gfp, priority: u32, counts: [i64; 4]) {
        let [deferred, freeable, delta, total] = counts.map(i64::cast_unsigned);
        let event = Self::of_shrinker(EventKind::MmShrinkSlabStart, who);
        let args = [freeable, delta, total];
        self.trace(Event { gfp, order: priority as u8, pfn: deferred, args, ..event });
    }

    /// `do_shrink_slab` ends: the shrinker freed `freed` objects, did not look at `total`, and leaves `left` for later
    /// where there were `deferred`.
    #[cold]
    pub(crate) fn trace_shrink_end(&self, who: Shrinking, freed: u64, counts: [i64; 3]) {
        let [deferred, left, total] = counts.map(i64::cast_unsigned);
        let event = Self::of_shrinker(EventKind::MmShrinkSlabEnd, who);
        self.trace(Event { pfn: deferred, args: [left, total, freed], ..event });
    }

    const fn of_shrinker(kind: EventKind, who: Shrinking) -> Event {
        let Shrinking { function, number, node } = who;
        Event { caller: function, migratetype: number as u8, node: node.index() as u8, ..Event::new(kind) }
    }
}
