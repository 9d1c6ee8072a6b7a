//! Slab caches: lists against counters against slabs against arrays.

use core::sync::atomic::AtomicU64;

use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::region::zone::ListHead;
use pagevisor_shared::slab::{ArrayCache, SlabWord};
use pagevisor_shared::units::VirtAddr;
use pagevisor_shared::vmstat::NodeStat;
use pagevisor_shared::zone::{MAX_NR_ZONES, ZoneIndex};

use super::{Sink, Violation};
use crate::Mm;
use crate::list;
use crate::platform::Platform;
use crate::slab::Cache;
use crate::sync::Plain;

/// Checks a cache on a node, and passes what it finds on.
struct CacheChecker<'a, P: Platform> {
    mm: &'a Mm<P>,
    cache: Cache,
    node: usize,
    sink: Sink<'a>,
}

/// What the slabs of a list must be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    Partial,
    Full,
    Free,
}

/// Recounts all caches.
pub(super) fn verify<P: Platform>(mm: &Mm<P>, sink: Sink<'_>) {
    for cache in mm.kmem_caches() {
        for node in 0..mm.nodes.len() {
            let mut checker = CacheChecker { mm, cache, node, sink: &mut *sink };
            checker.lists();
            checker.shared_and_alien();
        }
        for cpu in 0..mm.cpus.len() {
            let array = cache.array_of(mm.slab_shape(), cpu);
            let node = SlabWord(array.home.get()).node() as usize;
            CacheChecker { mm, cache, node, sink: &mut *sink }.array(array, node);
        }
    }
    for node in 0..mm.nodes.len() {
        counters(mm, node, sink);
    }
}

/// A node's counters of slab pages count at least its slabs; what else they count are large blocks of kmalloc.
fn counters<P: Platform>(mm: &Mm<P>, node: usize, sink: Sink<'_>) {
    for item in [NodeStat::NrSlabReclaimable, NodeStat::NrSlabUnreclaimable] {
        let pages = mm.kmem_caches().filter(|cache| cache.vmstat() == item).fold(0, |sum, cache| {
            let slabs = cache.node(mm.slab_shape(), node).total_slabs.get();
            sum + (slabs << cache.record().gfporder.get())
        });
        let held = mm.node_cpus.iter().skip(node).step_by(mm.nodes.len().max(1));
        let held: i64 = held.map(|cpu| cpu.vm_node_stat_diff[item.index()].get() as i64).sum();
        let counted = (mm.nodes[node].vm_stat[item.index()].get() + held).max(0) as u64;
        if counted < pages {
            let zone = ZoneIndex((node * MAX_NR_ZONES) as u16);
            sink(Violation { what: "slab pages of a node", zone, pfn: 0, found: counted, expected: pages });
        }
    }
}

impl<P: Platform> CacheChecker<'_, P> {
    fn equal(&mut self, what: &'static str, pfn: u32, found: u64, expected: u64) {
        if found != expected {
            let zone = ZoneIndex((self.node * MAX_NR_ZONES) as u16);
            (self.sink)(Violation { what, zone, pfn: pfn as u64, found, expected });
        }
    }

    /// Every slab is on the list that its free objects say, and the counters are those of the lists.
    fn lists(&mut self) {
        let state = self.cache.node(self.mm.slab_shape(), self.node);
        self.equal("lock of slab lists at rest", 0, state.list_lock.get() as u64, 0);
        self.equal("sequence counter of slab lists at rest", 0, (state.seq.get() & 1) as u64, 0);
        let (partial, partial_free) = self.list(&state.slabs_partial, Fill::Partial);
        let (full, _) = self.list(&state.slabs_full, Fill::Full);
        let (free, free_free) = self.list(&state.slabs_free, Fill::Free);
        self.equal("slabs on all lists", 0, state.total_slabs.get(), partial + full + free);
        self.equal("free slabs", 0, state.free_slabs.get(), free);
        self.equal("objects left in slabs", 0, state.free_objects.get(), partial_free + free_free);
    }

    /// Slabs on a list, and their free objects.
    fn list(&mut self, head: &ListHead, fill: Fill) -> (u64, u64) {
        let most = self.cache.node(self.mm.slab_shape(), self.node).total_slabs.get();
        let (mut pfn, mut before, mut slabs, mut objects) = (head.first.get(), 0, 0, 0);
        while pfn != 0 && slabs <= most {
            let page = self.mm.memmap().page(pfn);
            self.equal("backward link of a slab", pfn, list::prev(pfn, page) as u64, before as u64);
            objects += self.slab(pfn, fill);
            slabs += 1;
            (before, pfn) = (pfn, list::next(pfn, page));
        }
        self.equal("last slab of a list", 0, head.last.get() as u64, before as u64);
        (slabs, objects)
    }

    /// A slab; gives its free objects.
    fn slab(&mut self, pfn: u32, fill: Fill) -> u64 {
        let page = self.mm.memmap().page(pfn);
        let (record, word) = (self.cache.record(), SlabWord(page.mapping.get()));
        self.equal(
            "flag of a slab",
            pfn,
            (page.flags.get() & PageFlag::Slab.mask()) as u64,
            PageFlag::Slab.mask() as u64,
        );
        self.equal("cache of a slab", pfn, word.cache() as u64, record.id.get() as u64);
        self.equal("node of a slab", pfn, word.node() as u64, self.node as u64);
        for tail in 1..1 << record.gfporder.get() {
            let page = self.mm.memmap().page(pfn + tail);
            let tail_word = SlabWord(page.mapping.get());
            let right = tail_word.is_tail() && tail_word.of_any_page() == word.0;
            self.equal("page of a slab", pfn + tail, right as u64, 1);
            self.equal("distance to a slab's first page", pfn + tail, page.index.get() as u64, tail as u64);
        }
        let slab = self.mm.slab_page(self.cache, pfn);
        let (active, num) = (slab.active(), record.num.get());
        let right = match fill {
            Fill::Full => active == num,
            Fill::Free => active == 0,
            Fill::Partial => active != 0 && active < num,
        };
        self.equal("list of a slab", pfn, right as u64, 1);
        let mut seen = [0u64; 8];
        let mut count = 0;
        for number in slab.free_numbers() {
            let (word, bit) = (number as usize / 64 % 8, 1 << (number % 64));
            self.equal("number of a free object", pfn, (number < num && seen[word] & bit == 0) as u64, 1);
            seen[word] |= bit;
            count += 1;
        }
        self.equal("free objects of a slab", pfn, count, (num - active.min(num)) as u64);
        (num - active.min(num)) as u64
    }

    fn shared_and_alien(&mut self) {
        let state = self.cache.node(self.mm.slab_shape(), self.node);
        self.array(&state.shared, self.node);
        for (home, alien) in self.mm.alien_arrays(state).iter().enumerate() {
            self.array(alien, home);
        }
    }

    /// An array holds objects that are out of their slabs, of the right node, each once.
    fn array(&mut self, array: &ArrayCache, home: usize) {
        let (avail, limit) = (array.avail.get(), array.limit.get());
        let shut = array.hot.get() & 1;
        self.equal("lock of an array at rest", 0, array.lock.get() as u64, shut as u64);
        self.equal("objects beyond an array's limit", 0, avail.saturating_sub(limit) as u64, 0);
        if avail == 0 || avail > limit {
            return;
        }
        let entries: &[AtomicU64] = self.mm.array_entries(array);
        for (at, entry) in entries.iter().enumerate() {
            let addr = entry.get();
            let Some((pfn, word)) = self.mm.virt_to_slab(VirtAddr::new(addr)) else {
                self.equal("object in an array", 0, addr, 0);
                continue;
            };
            self.equal("cache of an object in an array", pfn, word.cache() as u64, self.cache.record().id.get() as u64);
            self.equal("node of an object in an array", pfn, word.node() as u64, home as u64);
            let slab = self.mm.slab_page(self.cache, pfn);
            match slab.number(addr) {
                Some(number) => {
                    let twice = slab.free_numbers().any(|free| free == number);
                    self.equal("object in an array and in its slab", pfn, twice as u64, 0);
                }
                None => self.equal("start of an object in an array", pfn, addr, 0),
            }
            let again = entries[..at].iter().any(|other| other.get() == addr);
            self.equal("object twice in an array", pfn, again as u64, 0);
        }
    }
}
