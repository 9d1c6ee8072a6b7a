//! The short ways: this CPU's array has an object, or room for one.
//!
//! As those of the page allocator, both do nothing before they know that they can finish, and while something watches
//! allocations and frees, or the cache is debugged, neither gets the array's lock.

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::slab::{ArrayCache, SlabWord};
use pagevisor_shared::units::VirtAddr;

use super::Cache;
use crate::Mm;
use crate::platform::Platform;
use crate::sync::{self, Plain};

/// An address, of which 0 stands for none.
#[inline(always)]
pub(super) const fn object(raw: u64) -> Option<VirtAddr> {
    if raw == 0 { None } else { Some(VirtAddr::new(raw)) }
}

/// What an allocation asks for: flags, and above them the bytes that `kmalloc` was asked for, or 0 for an object of a
/// cache. In one word, so that the short way, which needs neither, has nothing more to pass on.
#[derive(Clone, Copy)]
pub(super) struct Wish(u64);

impl Wish {
    /// An object of a cache.
    #[inline(always)]
    pub(super) const fn object(gfp: Gfp) -> Self {
        Self(gfp.bits() as u64)
    }

    /// An object with room for `size` bytes, which are not more than [`super::KMALLOC_MAX_CACHE_SIZE`].
    #[inline(always)]
    pub(super) const fn bytes(gfp: Gfp, size: usize) -> Self {
        Self(gfp.bits() as u64 | (size as u64) << 32)
    }

    /// The flags.
    #[inline(always)]
    pub(super) const fn gfp(self) -> Gfp {
        match Gfp::from_bits(self.0 as u32) {
            Some(gfp) => gfp,
            None => Gfp::NONE,
        }
    }

    /// The bytes that `kmalloc` was asked for.
    pub(super) const fn size(self) -> Option<u64> {
        if self.0 >> 32 == 0 { None } else { Some(self.0 >> 32) }
    }
}

impl<P: Platform> Mm<P> {
    /// Allocates an object, from this CPU's node if possible (`kmem_cache_alloc`).
    #[inline(always)]
    pub fn kmem_cache_alloc(&self, cache: Cache, gfp: Gfp) -> Option<VirtAddr> {
        object(self.slab_alloc(cache, gfp, Wish::object(gfp)))
    }

    /// An object; 0 for none. `gfp` are the flags of `wish`.
    #[inline(always)]
    pub(super) fn slab_alloc(&self, cache: Cache, gfp: Gfp, wish: Wish) -> u64 {
        // Most callers' flags are known when they are compiled.
        if gfp.contains(Gfp::ZERO) { self.slab_alloc_general(cache, wish) } else { self.slab_alloc_plain(cache, wish) }
    }

    /// Allocates an object of zeros (`kmem_cache_zalloc`).
    #[inline(always)]
    pub fn kmem_cache_zalloc(&self, cache: Cache, gfp: Gfp) -> Option<VirtAddr> {
        self.kmem_cache_alloc(cache, gfp | Gfp::ZERO)
    }

    /// An object that need not be cleared; 0 for none.
    #[inline(never)]
    fn slab_alloc_plain(&self, cache: Cache, wish: Wish) -> u64 {
        let array = cache.array(self.platform);
        if !sync::try_lock(&array.lock) {
            return self.slab_alloc_general(cache, wish);
        }
        let avail = array.avail.get();
        if avail == 0 {
            return self.slab_alloc_refill(cache, wish, array);
        }
        self.pop_object(array, avail)
    }

    /// An object from this CPU's array, if there is one and nobody watches.
    #[inline(always)]
    pub(crate) fn take_object(&self, cache: Cache) -> Option<u64> {
        let array = cache.array(self.platform);
        if !sync::try_lock(&array.lock) {
            return None;
        }
        let avail = array.avail.get();
        if avail == 0 {
            sync::unlock(&array.lock);
            return None;
        }
        Some(self.pop_object(array, avail))
    }

    /// The last of the `avail` objects of an array, at least one, whose lock is held and then given back.
    #[inline(always)]
    fn pop_object(&self, array: &ArrayCache, avail: u32) -> u64 {
        let object = self.slab_memory().last_entry(array, avail).get();
        array.avail.drop_by(1);
        sync::unlock(&array.lock);
        object
    }

    /// Frees an object of `cache` (`kmem_cache_free`).
    #[inline(never)]
    pub fn kmem_cache_free(&self, cache: Cache, addr: VirtAddr) {
        if !self.give_object(cache, addr) {
            self.slab_free_general(cache, addr);
        }
    }

    /// Frees an object to this CPU's array, if it is right there and nobody watches; tells whether it did.
    #[inline(always)]
    pub(crate) fn give_object(&self, cache: Cache, addr: VirtAddr) -> bool {
        self.slab_word(addr).is_some_and(|word| self.put_object(cache, word, addr))
    }

    /// Frees what [`Self::kmalloc`] or a relative gave (`kfree`). Nothing happens for a null address and
    /// [`super::ZERO_SIZE_PTR`]; for an address that cannot be right there is a warning.
    #[inline(never)]
    pub fn kfree(&self, addr: VirtAddr) {
        // Whatever the page is: what is not a slab's is not right for any array either.
        let freed = self
            .slab_word(addr)
            .is_some_and(|word| self.cache_by_id(word.cache()).is_some_and(|cache| self.put_object(cache, word, addr)));
        if !freed {
            self.kfree_general(addr);
        }
    }

    /// Puts an object, whose page says `word`, into this CPU's array, if it belongs there; tells whether it did.
    #[inline(always)]
    fn put_object(&self, cache: Cache, word: SlabWord, addr: VirtAddr) -> bool {
        let array = cache.array(self.platform);
        if !sync::try_lock(&array.lock) {
            return false;
        }
        let avail = array.avail.get();
        // Where it is not at home the cache or the node is wrong, or the page is in no slab at all.
        if word.of_any_page() != self.slab_memory().home(array) {
            sync::unlock(&array.lock);
            return false;
        }
        if avail >= self.slab_memory().limit(array) {
            if avail == 0 {
                // It is no array yet, and at home nowhere.
                sync::unlock(&array.lock);
                return false;
            }
            self.slab_free_full(addr, cache, array);
            return true;
        }
        self.slab_memory().entry(array, avail).set(addr.raw());
        array.avail.bump(1);
        sync::unlock(&array.lock);
        true
    }
}
