//! Workloads that use what lies above pages: mixes of objects, and the scull devices.
//!
//! As those of `kinds`, the functions here are what call traces and the list of vmalloc areas name as callers.

use core::sync::atomic::Ordering::AcqRel;

use pagevisor_shared::command::OpError;
use pagevisor_shared::command::workload::{Count, Kind, Phase};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::random::{SplitMix64, mix};
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::{CpuId, NodeId, Order, PAGE_SIZE, Pfn, VirtAddr};

use super::lane::Lane;
use super::shared::SharedPages;
use crate::Mm;
use crate::command::Services;
use crate::page_alloc::allocated_order;
use crate::percpu::PerCpuPtr;
use crate::platform::Platform;
use crate::raw::Owned;
use crate::scull::{Device, Media, QUANTUM};
use crate::slab::Cache;
use crate::sync::Plain;
use crate::vmalloc::VmallocRequest;

/// Objects that a lane holds at most, unless it is told.
const HOLD: u64 = 1024;
const MAX_HOLD: u64 = 1 << 19;
/// Places where lanes exchange objects.
const EXCHANGE: u64 = 256;
/// Once in so many steps something is given back that is only kept for later.
const TIDY: u64 = 2048;
/// KiB of a scull device, unless it is told, and the most that is written or read at a time.
const DEVICE: u64 = 64;
const CHUNK: usize = 512;

/// Caches that a run has for itself, until it is dropped.
#[derive(Debug)]
pub(super) struct Caches<'a, P: Platform> {
    mm: &'a Mm<P>,
    caches: [Option<Cache>; 2],
}

impl<'a, P: Platform> Caches<'a, P> {
    /// Those that a workload needs.
    ///
    /// # Errors
    /// [`OpError::NoMemory`].
    pub(super) fn new(mm: &'a Mm<P>, kind: Kind) -> Result<Self, OpError> {
        let wanted: &[(&str, usize)] = match kind {
            Kind::SlabMix | Kind::MemoryMix => &[("workload-200", 200), ("workload-1400", 1400)],
            Kind::Scullc => &[("scullc", QUANTUM as usize)],
            _ => &[],
        };
        let mut caches = Self { mm, caches: [None; 2] };
        for (slot, (name, size)) in caches.caches.iter_mut().zip(wanted) {
            let made = mm.kmem_cache_create(name, *size, 0, SlabFlags::HWCACHE_ALIGN, None);
            *slot = Some(made.map_err(OpError::from)?);
        }
        Ok(caches)
    }
}

impl<P: Platform> Drop for Caches<'_, P> {
    fn drop(&mut self) {
        self.caches.iter().flatten().for_each(|cache| self.mm.kmem_cache_destroy(*cache));
    }
}

/// Where an object came from: the low bits of the word that stands for it, the others of which are its address.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Source {
    Kmalloc = 0,
    Small = 1,
    Large = 2,
    Vmalloc = 3,
    Pages = 4,
    Percpu = 5,
}

const TAG: u64 = 7;

impl Source {
    /// The next one of a mix.
    fn next(kind: Kind, random: &mut SplitMix64) -> Self {
        match (kind, random.below(16)) {
            (Kind::VmallocMix, _) | (Kind::MemoryMix, 13 | 14) => Self::Vmalloc,
            (Kind::MemoryMix, 11 | 12) => Self::Pages,
            (Kind::MemoryMix, 15) => Self::Percpu,
            (_, 7 | 8 | 11) => Self::Small,
            (_, 9 | 10 | 12) => Self::Large,
            _ => Self::Kmalloc,
        }
    }

    fn of(word: u64) -> Self {
        [Self::Kmalloc, Self::Small, Self::Large, Self::Vmalloc, Self::Pages, Self::Percpu]
            .into_iter()
            .find(|source| *source as u64 == word & TAG)
            .unwrap_or(Self::Kmalloc)
    }
}

/// As many bytes from `kmalloc` as `random` says: all classes as often, and some beyond them.
fn kmalloc_size(random: &mut SplitMix64) -> u64 {
    let most = if random.below(256) == 0 { 17 } else { 3 + random.below(11) };
    1 + random.below(1 << most)
}

/// The bytes of a device from `offset` on.
fn content(seed: u64, offset: u64, to: &mut [u8]) {
    for (byte, at) in to.iter_mut().zip(offset..) {
        *byte = mix(seed.wrapping_add(at >> 3)).to_le_bytes()[(at & 7) as usize];
    }
}

impl<P: Platform, S: Services> Lane<'_, '_, P, S> {
    /// Allocates and frees objects at random.
    #[inline(never)]
    pub(super) fn object_steps(&mut self) {
        let hold = match self.run.params.hold {
            0 => HOLD,
            hold => u64::from(hold).min(MAX_HOLD),
        };
        let Ok(table) = SharedPages::of_words(self.run.mm, hold) else { return self.run.add(Count::Failed, 1) };
        let mut held = 0;
        for step in 0..self.run.share(self.run.params.ops, self.number) {
            self.run.services.safe_point();
            if held == 0 || held < hold && self.random.next() >> 63 == 0 {
                if let Some(word) = self.take_object() {
                    table.word(held).set(word);
                    held += 1;
                }
            } else {
                let which = self.random.below(held);
                held -= 1;
                let word = table.word(which).get();
                table.word(which).set(table.word(held).get());
                self.hand_on(word);
            }
            if step % TIDY == TIDY - 1 {
                self.tidy();
            }
        }
        self.phase(Phase::Release, |lane| {
            for at in 0..held {
                lane.run.services.safe_point();
                lane.give_object(table.word(at).get());
            }
            // Who ends last finds what nobody puts anything to any more.
            for place in lane.run.shared.page(0).iter().take(EXCHANGE as usize) {
                lane.run.services.safe_point();
                lane.give_object(place.swap(0, AcqRel));
            }
        });
    }

    /// Frees an object, or has another lane do it, and frees one of another lane's.
    fn hand_on(&mut self, word: u64) {
        let at = self.random.below(EXCHANGE);
        match self.run.shared.page(0).get(at as usize).filter(|_| at & 1 != 0) {
            // Acquire and release: what was done with an object comes before what is done with it here.
            Some(place) => self.give_object(place.swap(word, AcqRel)),
            None => self.give_object(word),
        }
    }

    /// Gives back what is only kept for later.
    fn tidy(&mut self) {
        let (mm, caches) = (self.run.mm, &self.run.caches.caches);
        match self.random.below(4) {
            0 => _ = mm.purge_vmap_areas(),
            1 => mm.drain_local_pages(),
            which => {
                if let Some(cache) = caches[which as usize & 1] {
                    mm.kmem_cache_shrink(cache);
                }
            }
        }
    }

    /// Allocates an object and marks it; gives the word that stands for it.
    fn take_object(&mut self) -> Option<u64> {
        let (mm, params) = (self.run.mm, self.run.params);
        let source = Source::next(params.kind, &mut self.random);
        let gfp = if self.random.below(16) == 0 { Gfp::NOWAIT | Gfp::NOWARN } else { params.gfp };
        let elsewhere = self.random.below(4) == 0;
        let node = NodeId::new(self.random.below(mm.nodes.len() as u64) as usize)
            .filter(|node| elsewhere && mm.online_nodes.contains(*node));
        let cache = |number: usize| self.run.caches.caches[number];
        let addr = match source {
            Source::Kmalloc => mm.kmalloc_node(kmalloc_size(&mut self.random) as usize, gfp, node),
            Source::Small => mm.kmem_cache_alloc_node(cache(0)?, gfp, node),
            Source::Large => mm.kmem_cache_alloc_node(cache(1)?, gfp, node),
            Source::Vmalloc => {
                let size = 1 + self.random.below(12 * PAGE_SIZE);
                mm.vmalloc_range(&VmallocRequest { gfp: params.gfp, node, ..VmallocRequest::new(size) })
            }
            Source::Pages => {
                let order = Order::new(self.random.below(4) as u32).unwrap_or_default();
                mm.alloc_pages_node(node, gfp, order).map(|first| mm.virt(first.addr()))
            }
            Source::Percpu => {
                mm.alloc_percpu_gfp(8 + self.random.below(56), 8, gfp).map(|ptr| VirtAddr::new(ptr.raw()))
            }
        };
        let Some(addr) = addr else {
            self.run.add(Count::Failed, 1);
            return None;
        };
        self.run.add(Count::Allocs, 1);
        let word = addr.raw() | source as u64;
        for (memory, at) in self.marks(word) {
            memory.set_word(mm, at, mix(word ^ at));
        }
        Some(word)
    }

    /// The words of an object that tell whose it is: its first and, where that is known, its last.
    fn marks(&self, word: u64) -> [(Owned, u64); 2] {
        let (mm, addr) = (self.run.mm, VirtAddr::new(word & !TAG));
        let (addr, len) = match Source::of(word) {
            Source::Kmalloc | Source::Small | Source::Large => (addr, mm.ksize(addr) as u64),
            Source::Vmalloc => (addr, PAGE_SIZE),
            Source::Pages => (addr, PAGE_SIZE << self.order_at(addr).1.raw()),
            Source::Percpu => (mm.per_cpu_ptr(PerCpuPtr::new(addr.raw()), CpuId::default()), 8),
        };
        let memory = Owned::new(addr, len);
        [(memory, 0), (memory, len.saturating_sub(8) & !7)]
    }

    /// The block of pages at `addr`.
    fn order_at(&self, addr: VirtAddr) -> (Pfn, Order) {
        let first = Pfn::containing(self.run.mm.phys(addr).unwrap_or_default());
        let flags = self.run.mm.memmap().page(first.raw() as u32).flags.get();
        (first, Order::new(allocated_order(flags)).unwrap_or_default())
    }

    /// Frees the object that a word stands for, if it stands for one.
    fn give_object(&mut self, word: u64) {
        if word == 0 {
            return;
        }
        let (mm, addr) = (self.run.mm, VirtAddr::new(word & !TAG));
        if self.marks(word).into_iter().any(|(memory, at)| memory.word(mm, at) != mix(word ^ at)) {
            self.run.add(Count::Mismatches, 1);
        }
        let caches = &self.run.caches.caches;
        match (Source::of(word), caches) {
            (Source::Small, [Some(cache), _]) | (Source::Large, [_, Some(cache)]) => mm.kmem_cache_free(*cache, addr),
            (Source::Vmalloc, _) => mm.vfree(addr),
            (Source::Pages, _) => {
                let (first, order) = self.order_at(addr);
                mm.free_pages(first, order);
            }
            (Source::Percpu, _) => mm.free_percpu(PerCpuPtr::new(addr.raw())),
            _ => mm.kfree(addr),
        }
        self.run.add(Count::Freed, 1);
    }

    /// Writes to a scull device, reads parts of it back, trims it.
    #[inline(never)]
    pub(super) fn scull(&mut self) {
        let (mm, params) = (self.run.mm, self.run.params);
        let media = match (params.kind, self.run.caches.caches[0]) {
            (Kind::Scullc, Some(cache)) => Media::Cache(cache),
            (Kind::Scullp, _) => Media::Pages(params.order),
            (Kind::Scullv, _) => Media::Vmalloc(params.order),
            _ => Media::Kmalloc,
        };
        let seed = params.seed ^ mix(self.number as u64);
        let mut device = Device::open(mm, media, params.gfp);
        let bytes = 1024 * if params.hold == 0 { DEVICE } else { params.hold.into() };
        self.phase(Phase::Fill, |lane| {
            let mut chunk = [0; CHUNK];
            while device.size() < bytes {
                lane.run.services.safe_point();
                let at = device.size();
                let wanted = (1 + lane.random.below(CHUNK as u64)).min(bytes - at) as usize;
                content(seed, at, &mut chunk[..wanted]);
                if device.write(at, &chunk[..wanted]).is_none() {
                    return lane.run.add(Count::Failed, 1);
                }
            }
        });
        let steps = self.run.share(params.ops, self.number);
        self.phase(Phase::Probe, |lane| (0..steps).for_each(|_| lane.read_back(&mut device, seed)));
        self.phase(Phase::Release, |_| device.trim());
        self.run.add(Count::Allocs, device.got);
        self.run.add(Count::Freed, device.put);
    }

    /// Reads a part of a device and compares it with what was written.
    fn read_back(&mut self, device: &mut Device<'_, P>, seed: u64) {
        if device.size() == 0 {
            return;
        }
        self.run.services.safe_point();
        let (mut found, mut wanted) = ([0; CHUNK], [0; CHUNK]);
        let at = self.random.below(device.size());
        let asked = 1 + self.random.below(CHUNK as u64) as usize;
        let got = device.read(at, &mut found[..asked]);
        content(seed, at, &mut wanted[..got]);
        self.run.add(Count::Tries, 1);
        let right = got != 0 && found[..got] == wanted[..got];
        self.run.add(if right { Count::Hits } else { Count::Mismatches }, 1);
    }
}
