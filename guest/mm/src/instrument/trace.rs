//! Events: what the allocator did, in this CPU's ring of the state region, where the host follows it.
//!
//! Each event is written where Linux 6.1 has the tracepoint of that name. Kinds that the short ways would have to write
//! switch them off, as all instrumentation of them does; elsewhere a kind that is off costs a look at the mask. A ring
//! has one writer, its CPU, which writes with interrupts off.

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::region::event::{Event, EventKind};
use pagevisor_shared::region::zone::hot;
use pagevisor_shared::units::{Order, Pfn};
use pagevisor_shared::zone::{MAX_NR_ZONES, ZoneIndex};

use crate::Mm;
use crate::buddy::{Block, LockedZone};
use crate::pcp::pcp_allowed_order;
use crate::platform::Platform;

/// Kinds that the short ways do not write: while one is on, everything goes the general way.
const HOT: u64 = EventKind::MmPageAlloc.bit() | EventKind::MmPageFree.bit();
/// The same of objects.
const HOT_OBJECTS: u64 = EventKind::Kmalloc.bit()
    | EventKind::Kfree.bit()
    | EventKind::KmemCacheAlloc.bit()
    | EventKind::KmemCacheFree.bit();
/// All kinds there are.
const KNOWN: u64 = (1 << EventKind::ALL.len()) - 1;

impl<P: Platform> Mm<P> {
    /// Records the kinds of events in `mask` from now on, and no others; gives what it was before. Kinds that do not
    /// exist are left out. Not from interrupts.
    pub fn set_events(&self, mask: u64) -> u64 {
        let mask = mask & KNOWN;
        let before = self.region.header().event_mask.swap(mask, Relaxed);
        // Until they agree: another CPU may set the mask at the same time.
        loop {
            let mask = self.region.header().event_mask.load(Relaxed);
            let wanted = if mask & HOT != 0 { hot::EVENTS } else { 0 }
                | if mask & HOT_OBJECTS != 0 { hot::SLAB_EVENTS } else { 0 };
            let differ = self.instrumented() & (hot::EVENTS | hot::SLAB_EVENTS) ^ wanted;
            if differ == 0 {
                return before;
            }
            self.set_instrumented(differ & wanted, true);
            self.set_instrumented(differ & !wanted, false);
        }
    }

    /// Records what the command line asks for. Once the platform knows the CPUs.
    pub(crate) fn start_events(&self) {
        if self.instrument.events != 0 {
            self.set_events(self.instrument.events);
        }
    }

    /// Whether events of `kind` are recorded.
    #[inline(always)]
    pub(crate) fn traces(&self, kind: EventKind) -> bool {
        !cfg!(feature = "bare") && self.region.header().event_mask.load(Relaxed) & kind.bit() != 0
    }

    /// Whether events of `kind` are recorded, for who has more to do then than to call [`Self::trace`].
    #[inline(always)]
    pub fn is_traced(&self, kind: EventKind) -> bool {
        self.traces(kind)
    }

    /// Records an event if its kind is on. Time, CPU and caller, where it has none yet, are filled in.
    #[inline]
    pub fn trace(&self, event: Event) {
        if self.traces(event.kind) {
            self.write_event(event);
        }
    }

    #[cold]
    #[inline(never)]
    fn write_event(&self, event: Event) {
        let caller = if event.caller == 0 { self.platform.caller() } else { event.caller };
        let flags = self.platform.irq_save();
        let cpu = self.platform.this_cpu().cpu;
        if let Some(ring) = self.region.events(cpu) {
            // With interrupts off, so that a ring's records are in order of time.
            let tsc = self.platform.tsc();
            ring.write(&Event { tsc, cpu: cpu.index() as u8, caller, ..event });
        }
        self.platform.irq_restore(flags);
    }

    /// An event about a zone.
    const fn of_zone(kind: EventKind, index: ZoneIndex) -> Event {
        let (node, zone) = (index.index() / MAX_NR_ZONES, index.index() % MAX_NR_ZONES);
        Event { node: node as u8, zone: zone as u8, ..Event::new(kind) }
    }

    /// An event about a frame.
    fn of_frame(&self, kind: EventKind, pfn: Pfn) -> Event {
        let event = self.page_zone(pfn).map_or(Event::new(kind), |index| Self::of_zone(kind, index));
        Event { pfn: pfn.raw(), ..event }
    }

    /// The end of `__alloc_pages`.
    #[cold]
    pub(super) fn trace_alloc(&self, pfn: Option<u32>, gfp: Gfp, order: Order) {
        if self.traces(EventKind::MmPageAlloc) {
            let event = match pfn {
                Some(pfn) => self.of_frame(EventKind::MmPageAlloc, Pfn::new(pfn as u64)),
                None => Event::new(EventKind::MmPageAlloc),
            };
            let migratetype = gfp.migratetype().index() as u8;
            self.write_event(Event { order: order.raw() as u8, migratetype, gfp, ..event });
        }
    }

    /// An allocation was told to fail.
    #[cold]
    pub(super) fn trace_failure(&self, gfp: Gfp, order: Order) {
        self.trace(Event { order: order.raw() as u8, gfp, ..Event::new(EventKind::FailPageAlloc) });
    }

    /// `free_pages_prepare`.
    #[cold]
    pub(super) fn trace_free(&self, pfn: u32, order: u32) {
        if self.traces(EventKind::MmPageFree) {
            let event = self.of_frame(EventKind::MmPageFree, Pfn::new(pfn as u64));
            self.write_event(Event { order: order as u8, ..event });
        }
    }

    /// `free_unref_page_list`, which has looked whether this is recorded.
    #[cold]
    pub(crate) fn trace_free_batched(&self, pfn: Pfn) {
        self.write_event(self.of_frame(EventKind::MmPageFreeBatched, pfn));
    }

    /// `wakeup_kswapd`.
    pub(crate) fn trace_wakeup(&self, index: ZoneIndex, gfp: Gfp, order: Order, highest: usize) {
        let kind = EventKind::MmVmscanWakeupKswapd;
        if self.traces(kind) {
            let event = Self::of_zone(kind, index);
            self.write_event(Event { zone: highest as u8, order: order.raw() as u8, gfp, ..event });
        }
    }

    /// `test_pages_isolated`: frames `[start, end)` were looked at up to `stop`.
    pub(crate) fn trace_isolated(&self, start: u64, end: u64, stop: u64) {
        self.trace(Event { args: [start, end, stop], ..Event::new(EventKind::TestPagesIsolated) });
    }

    /// `cma_alloc` and `cma_release`. `args` are pages, alignment as an order, and the area's number.
    pub(crate) fn trace_cma(&self, kind: EventKind, first: Option<Pfn>, args: [u64; 3]) {
        if self.traces(kind) {
            let event = first.map_or(Event::new(kind), |pfn| self.of_frame(kind, pfn));
            self.write_event(Event { args, ..event });
        }
    }
}

impl<P: Platform> LockedZone<'_, P> {
    /// `count` blocks side by side were taken off the free lists (`__rmqueue_smallest`).
    #[inline]
    pub(crate) fn trace_zone_locked(&self, first: Block, count: u32) {
        let kind = EventKind::MmPageAllocZoneLocked;
        if self.mm.traces(kind) {
            let refill = pcp_allowed_order(first.order) && first.migratetype.index() < 3;
            for block in 0..count {
                let pfn = first.pfn + (block << first.order);
                self.trace_page(kind, pfn, first.order, first.migratetype.index() as u32, refill.into());
            }
        }
    }

    /// An event about a block of this zone.
    #[cold]
    pub(crate) fn trace_page(&self, kind: EventKind, pfn: u32, order: u32, migratetype: u32, extra: u64) {
        let event = Mm::<P>::of_zone(kind, self.index);
        let (order, migratetype) = (order as u8, migratetype as u8);
        self.mm.write_event(Event { pfn: pfn as u64, order, migratetype, args: [extra, 0, 0], ..event });
    }

    /// The end of `__rmqueue_fallback`: a block of order `orders[1]` was found for one of `orders[0]`, on the lists of
    /// `types[1]` for one of `types[0]`.
    pub(crate) fn trace_extfrag(&self, pfn: u32, orders: [u32; 2], types: [MigrateType; 2]) {
        let kind = EventKind::MmPageAllocExtfrag;
        if self.mm.traces(kind) {
            let changed = self.mm.frames.migratetype(pfn as u64) == types[0];
            let event = Event { pfn: pfn as u64, order: orders[0] as u8, ..Mm::<P>::of_zone(kind, self.index) };
            let args = [orders[1] as u64, types[1].index() as u64, changed.into()];
            self.mm.write_event(Event { migratetype: types[0].index() as u8, args, ..event });
        }
    }
}
