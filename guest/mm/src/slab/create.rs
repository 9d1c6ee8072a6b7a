//! Caches come and go (`kmem_cache_create`, `kmem_cache_destroy`, `kmem_cache_shrink`).

use core::fmt;
use core::sync::atomic::Ordering::{Relaxed, Release};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::zone::ListHead;
use pagevisor_shared::slab::{NAME_BYTES, SlabFlags, cache_size};
use pagevisor_shared::units::{PAGE_SHIFT, VirtAddr};

use super::layout::{Layout, Request, SLAB_MAX_ORDER_HI, default_tunables};
use super::{Cache, CacheError, KMALLOC_MAX_SIZE};
use crate::Mm;
use crate::platform::{Level, Platform};
use crate::raw::constructor;
use crate::sync::{self, Plain};

/// Words of a name.
const NAME_WORDS: usize = NAME_BYTES / 8;

/// A name as words, as far as there is room for it.
pub(super) fn name_words(name: &str) -> [u64; NAME_WORDS] {
    let mut words = [0; NAME_WORDS];
    let mut end = name.len().min(NAME_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    for (word, bytes) in words.iter_mut().zip(name.as_bytes()[..end].chunks(8)) {
        *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    words
}

/// A cache's name, to be printed.
#[derive(Clone, Copy, Debug)]
pub struct CacheName([u64; NAME_WORDS]);

impl fmt::Display for CacheName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; NAME_BYTES];
        for (chunk, word) in bytes.as_chunks_mut().0.iter_mut().zip(self.0) {
            *chunk = word.to_le_bytes();
        }
        let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES);
        f.write_str(core::str::from_utf8(&bytes[..len]).unwrap_or("?"))
    }
}

impl Cache {
    /// Its name.
    pub fn name(self) -> CacheName {
        let mut words = [0; NAME_WORDS];
        words.iter_mut().zip(&self.record().name).for_each(|(word, held)| *word = held.get());
        CacheName(words)
    }
}

impl<P: Platform> Mm<P> {
    /// Makes a cache of objects of `size` bytes at multiples of `align` (a power of two; 0 for a word), on which `ctor`
    /// is called when their slab is made (`kmem_cache_create`). Not from interrupts.
    ///
    /// # Errors
    /// [`CacheError`].
    ///
    /// # Panics
    /// Instead of an error, with [`SlabFlags::PANIC`].
    pub fn kmem_cache_create(
        &self,
        name: &str,
        size: usize,
        align: usize,
        flags: SlabFlags,
        ctor: Option<fn(VirtAddr)>,
    ) -> Result<Cache, CacheError> {
        let bad = name.is_empty() || size == 0 || size > KMALLOC_MAX_SIZE || align > KMALLOC_MAX_SIZE;
        let made = if bad || align != 0 && !align.is_power_of_two() {
            Err(CacheError::Invalid)
        } else {
            let flags = SlabFlags::from_bits(flags.bits() & SlabFlags::CREATE.bits()).unwrap_or_default();
            self.create_cache(name, size as u32, align as u32, flags, ctor)
        };
        if let Err(error) = made {
            let errno = error.errno();
            if flags.contains(SlabFlags::PANIC) {
                panic!("kmem_cache_create_usercopy: Failed to create slab '{name}'. Error {errno}");
            }
            let line = format_args!("kmem_cache_create_usercopy({name}) failed with error {errno}");
            self.platform.log(Level::Warning, line);
            self.platform.dump_stack();
        }
        made
    }

    /// `create_cache`, `__kmem_cache_create`.
    pub(super) fn create_cache(
        &self,
        name: &str,
        object_size: u32,
        align: u32,
        flags: SlabFlags,
        ctor: Option<fn(VirtAddr)>,
    ) -> Result<Cache, CacheError> {
        let request = Request {
            object_size,
            align,
            flags,
            keeps_content: ctor.is_some() || flags.intersects(SlabFlags::POISON.with(SlabFlags::TYPE_STABLE)),
            max_order: self.slab_max_order(),
        };
        let layout = self.layout_of(&request)?;
        let addr = self.kmem_cache_alloc(self.slab.caches.any(), Gfp::KERNEL).ok_or(CacheError::Memory)?;
        let cache = Cache::at(self.slab_memory(), addr.raw()).ok_or(CacheError::Memory)?;
        self.fill_record(cache, name, object_size, &layout, constructor(ctor));
        sync::lock(&self.slab.lock, || self.platform.relax());
        let id = (1..self.slab.table.len()).find(|id| self.slab.table[*id].get() == 0);
        if let Some(id) = id {
            // Under the lock: what comes on meanwhile, or goes off, finds the cache or is found here.
            self.shut_gates(cache);
            self.publish_cache(cache, id);
        }
        sync::unlock(&self.slab.lock);
        if id.is_none() {
            self.free_descriptor(cache);
        }
        id.map(|_| cache).ok_or(CacheError::Memory)
    }

    /// Highest order of slabs if a lower one would do.
    pub(super) fn slab_max_order(&self) -> u32 {
        let bytes = self.region.header().pages_total.get() << PAGE_SHIFT;
        if bytes > 32 << 20 { SLAB_MAX_ORDER_HI } else { 0 }
    }

    /// The layout that is asked for, with the caches of kmalloc there are.
    pub(super) fn layout_of(&self, request: &Request) -> Result<Layout, CacheError> {
        request.layout(&|bytes| {
            let cache = self.kmalloc_slab(bytes as usize, Gfp::NONE);
            (cache.record().num.get() != 0)
                .then_some((cache.record().size.get(), cache.flags().contains(SlabFlags::OFF_SLAB)))
        })
    }

    /// Fills in a descriptor, all zero so far, but for its number.
    pub(super) fn fill_record(&self, cache: Cache, name: &str, object_size: u32, layout: &Layout, ctor: u64) {
        let record = cache.record();
        let mut gfp = Gfp::COMP;
        for (flag, zone) in [
            (SlabFlags::CACHE_DMA, Gfp::DMA),
            (SlabFlags::CACHE_DMA32, Gfp::DMA32),
            (SlabFlags::RECLAIM_ACCOUNT, Gfp::RECLAIMABLE),
        ] {
            if layout.flags.contains(flag) {
                gfp = gfp | zone;
            }
        }
        record.flags.set(layout.flags.bits());
        record.size.set(layout.size);
        record.object_size.set(object_size);
        record.reciprocal_size.set(((1u64 << 32).div_ceil(layout.size as u64)) as u32);
        record.num.set(layout.num);
        record.gfporder.set(layout.order);
        record.allocflags.set(gfp.bits());
        record.align.set(layout.align);
        record.obj_offset.set(layout.obj_offset);
        record.freelist_size.set(layout.freelist_size);
        record.colour.set(layout.colour);
        record.colour_off.set(layout.colour_off);
        record.ctor.set(ctor);
        record.name.iter().zip(name_words(name)).for_each(|(slot, word)| slot.set(word));
        if layout.flags.contains(SlabFlags::OFF_SLAB) {
            let lists = self.kmalloc_slab(layout.freelist_size as usize, Gfp::NONE);
            record.freelist_cache.set(lists.record().id.get());
        }
        let (limit, batchcount, shared) = default_tunables(layout.size, self.slab.shape.nr_cpus);
        self.set_tunables(cache, limit, batchcount, shared);
    }

    /// Gives a cache its number, by which all find it.
    pub(super) fn publish_cache(&self, cache: Cache, id: usize) {
        let record = cache.record();
        record.id.set(id as u32);
        record.serial.set(self.slab.serial.fetch_add(1, Relaxed) + 1);
        // Release: who finds the descriptor finds it filled in.
        self.slab.table[id].store(cache.addr().raw(), Release);
    }

    /// Gives a descriptor back, cleared.
    fn free_descriptor(&self, cache: Cache) {
        let bytes = cache_size(self.slab.shape.nr_cpus, self.slab.shape.nr_nodes);
        self.slab_memory().fill(cache.addr(), bytes, 0);
        self.kmem_cache_free(self.slab.caches.any(), cache.addr());
    }

    /// Whether a cache has a number: it has been made, and not been given up meanwhile. `Slab::lock` is held.
    fn is_published(&self, cache: Cache) -> bool {
        let id = cache.record().id.get() as usize;
        id != 0 && self.slab.table.get(id).is_some_and(|word| word.get() == cache.addr().raw())
    }

    /// Gives a cache up (`kmem_cache_destroy`). If objects of it are still in use that is reported, and the cache stays
    /// as it is. Nobody allocates from it meanwhile. Not from interrupts.
    pub fn kmem_cache_destroy(&self, cache: Cache) {
        let id = cache.record().id.get() as usize;
        sync::lock(&self.slab.lock, || self.platform.relax());
        let known = self.is_published(cache);
        let empty = known && !self.shrink_cache(cache);
        if empty {
            self.slab.table[id].set(0);
        }
        sync::unlock(&self.slab.lock);
        if empty {
            self.free_descriptor(cache);
        } else if known {
            self.slab_error(cache, "kmem_cache_destroy", format_args!("Can't free all objects"));
        }
    }

    /// Gives back what a cache does not need: the objects in arrays, the arrays, and all free slabs
    /// (`kmem_cache_shrink`); tells whether it still has slabs. Not from interrupts.
    pub fn kmem_cache_shrink(&self, cache: Cache) -> bool {
        sync::lock(&self.slab.lock, || self.platform.relax());
        let left = self.is_published(cache) && self.shrink_cache(cache);
        sync::unlock(&self.slab.lock);
        left
    }

    /// Whether slabs of a cache are never given back.
    pub(super) fn keeps_slabs(&self, cache: Cache) -> bool {
        // Of the cache of caches all descriptors stay.
        self.is_cache_of_caches(cache) || cache.flags().contains(SlabFlags::TYPE_STABLE)
    }

    /// `__kmem_cache_shrink`.
    fn shrink_cache(&self, cache: Cache) -> bool {
        self.drain_cpu_caches(cache);
        let keep = self.keeps_slabs(cache);
        let mut left = false;
        for number in 0..self.slab.shape.nr_nodes {
            let doomed = ListHead::new();
            let lists = self.lock_slab_node(cache, number);
            // `drain_freelist`.
            if !keep {
                lists.doom(u64::MAX, &doomed);
            }
            left |= lists.state.total_slabs.get() != 0;
            drop(lists);
            self.slabs_destroy(cache, number, &doomed);
        }
        left
    }

    /// Shrinks all caches, those last from which arrays of the others came. Not from interrupts.
    pub fn kmem_cache_shrink_all(&self) {
        // What an array of the first round gives back may be in an array of the second.
        for _ in 0..2 {
            for cache in self.kmem_caches() {
                self.kmem_cache_shrink(cache);
            }
        }
    }

    /// Bytes of an object that its owner may use (`kmem_cache_size`).
    pub fn kmem_cache_size(&self, cache: Cache) -> usize {
        cache.record().object_size.get() as usize
    }

    /// Reports an error of a cache, in Linux's words (`slab_error`).
    #[cold]
    pub(super) fn slab_error(&self, cache: Cache, function: &str, what: fmt::Arguments<'_>) {
        cache.record().errors.fetch_add(1, Relaxed);
        let line = format_args!("slab error in {function}(): cache `{}': {what}", cache.name());
        self.platform.log(Level::Err, line);
        self.platform.dump_stack();
    }

    /// Tells whether allocations from a cache fail also under a [`FaultAttr`](crate::instrument::FaultAttr) with a cache
    /// filter (`failslab_store`); false for a cache that is gone. Not from interrupts.
    pub fn kmem_cache_failslab(&self, cache: Cache, on: bool) -> bool {
        sync::lock(&self.slab.lock, || self.platform.relax());
        let known = self.is_published(cache);
        if known {
            let flags = cache.flags();
            let flags = if on { flags.with(SlabFlags::FAILSLAB) } else { flags.without(SlabFlags::FAILSLAB) };
            cache.record().flags.set(flags.bits());
        }
        sync::unlock(&self.slab.lock);
        known
    }

    /// Sets a cache's tunables, as a line `name limit batchcount shared` written to slabinfo does
    /// (`do_tune_cpucache`): arrays hold at most `limit` objects and exchange `batchcount` at a time; a node's shared
    /// array has room for `shared * batchcount`. False, and nothing changes, for a limit or batch of 0, for a batch
    /// above the limit, and for a cache that is gone. Not from interrupts.
    pub fn kmem_cache_tune(&self, cache: Cache, limit: u32, batchcount: u32, shared: u32) -> bool {
        let room = u64::from(shared) * u64::from(batchcount) * 8;
        if limit < 1 || batchcount < 1 || batchcount > limit || room.max(8 * u64::from(limit)) > KMALLOC_MAX_SIZE as u64
        {
            return false;
        }
        sync::lock(&self.slab.lock, || self.platform.relax());
        let known = self.is_published(cache);
        if known {
            self.set_tunables(cache, limit, batchcount, shared);
            self.drain_cpu_caches(cache);
        }
        sync::unlock(&self.slab.lock);
        known
    }
}
