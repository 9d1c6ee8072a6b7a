//! Records of the user side: address spaces, areas, and what pages belong to.
//!
//! The promise it rests on: a record is an object of a cache of its own that never gives memory back and never lets
//! anything else use it ([`SlabFlags::TYPE_STABLE`]), zero at first, which only [`RecordCache`] allocates from and frees
//! to. So an address that once was a record's is one for the life of the program, free or in use, and a reference to it is
//! always sound; what it says is another matter. Words that link records are written in this room only, from [`Handle`]s.

use core::fmt;
use core::marker::PhantomData;
use core::mem::{align_of, size_of};
use core::ops::Deref;
use core::ptr::{from_ref, with_exposed_provenance};
use core::sync::atomic::AtomicU32;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::mm_types::{AddressSpace, AnonVma, AnonVmaChain, MappedFile, MmStruct, PageNode, VmArea};
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::VirtAddr;

use super::CacheSlot;
use crate::Mm;
use crate::command::Reserve;
use crate::platform::Platform;
use crate::sync;

/// What can be a record.
///
/// # Safety
/// It is made of atomics only, and all of them may be zero.
pub unsafe trait Record: Sync + 'static {
    /// Name of its slab cache.
    const NAME: &'static str;
}

macro_rules! records {
    ($($record:ty, $name:literal;)*) => {$(
        // SAFETY: a structure of atomics.
        unsafe impl Record for $record {
            const NAME: &'static str = $name;
        }
    )*};
}

records! {
    MmStruct, "mm_struct";
    VmArea, "vm_area_struct";
    AnonVma, "anon_vma";
    AnonVmaChain, "anon_vma_chain";
    AddressSpace, "inode_cache";
    MappedFile, "filp";
    PageNode, "radix_tree_node";
    Reserve, "shrinker";
}

/// A record, or what is left of it when it was freed.
pub struct Handle<T: 'static>(&'static T);

impl<T> Clone for Handle<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Handle<T> {}

impl<T> PartialEq for Handle<T> {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        core::ptr::eq(self.0, other.0)
    }
}

impl<T> Eq for Handle<T> {}

impl<T> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:p}", self.0)
    }
}

impl<T> Deref for Handle<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        self.0
    }
}

impl<T> Handle<T> {
    /// Its address.
    #[inline(always)]
    pub fn addr(self) -> VirtAddr {
        VirtAddr::new(from_ref(self.0).expose_provenance() as u64)
    }

    /// The record itself.
    #[inline(always)]
    pub fn record(self) -> &'static T {
        self.0
    }

    /// What a link to it says; 0 for none.
    #[inline(always)]
    pub(super) fn word(of: Option<Self>) -> u64 {
        of.map_or(0, |handle| handle.addr().raw())
    }
}

impl<T: Record> Handle<T> {
    /// The record that a link leads to.
    ///
    /// # Safety
    /// `word` is 0 or what [`Self::word`] gave.
    #[inline(always)]
    pub(super) unsafe fn follow(word: u64) -> Option<Self> {
        let record: *const T = with_exposed_provenance(word as usize);
        // SAFETY: 0, or the address of a record (the caller's promise), which stays one (this file's).
        unsafe { record.as_ref() }.map(Handle)
    }
}

impl<T: Record> Handle<T> {
    /// The record that a word elsewhere names, as a task's record does its space; 0 for none.
    ///
    /// # Safety
    /// `word` is 0 or what [`Self::addr`] gave.
    #[inline(always)]
    pub unsafe fn at(word: u64) -> Option<Self> {
        // SAFETY: the caller's promise.
        unsafe { Self::follow(word) }
    }
}

/// The cache of records of a kind. It is made when the first of them is wanted.
#[derive(Debug)]
pub(crate) struct RecordCache<T> {
    slot: CacheSlot,
    making: AtomicU32,
    kind: PhantomData<fn() -> T>,
}

impl<T: Record> RecordCache<T> {
    pub(crate) const fn new() -> Self {
        Self { slot: CacheSlot::new(), making: AtomicU32::new(0), kind: PhantomData }
    }

    /// A record as the last owner left it; zero if there was none. Not from interrupts.
    #[inline]
    pub(crate) fn alloc<P: Platform>(&self, mm: &Mm<P>, gfp: Gfp) -> Option<Handle<T>> {
        let addr = match mm.kmem_cache_alloc(self.slot.any(), gfp) {
            Some(addr) => addr,
            None => self.alloc_first(mm, gfp)?,
        };
        let record: *const T = with_exposed_provenance(addr.raw() as usize);
        // SAFETY: an object of a cache of this kind's size and alignment, which stays one for ever (this file's promise).
        unsafe { record.as_ref() }.map(Handle)
    }

    /// Makes the cache, if that was not done yet, and allocates.
    #[cold]
    fn alloc_first<P: Platform>(&self, mm: &Mm<P>, gfp: Gfp) -> Option<VirtAddr> {
        if self.slot.get().is_some() {
            return None;
        }
        sync::lock(&self.making, || mm.platform().relax());
        if self.slot.get().is_none()
            && let Ok(cache) =
                mm.kmem_cache_create(T::NAME, size_of::<T>(), align_of::<T>(), SlabFlags::TYPE_STABLE, None)
        {
            self.slot.set(cache);
        }
        sync::unlock(&self.making);
        mm.kmem_cache_alloc(self.slot.get()?, gfp)
    }

    /// Frees a record. Nobody uses it any more; who still holds its address finds a record all the same.
    #[inline]
    pub(crate) fn free<P: Platform>(&self, mm: &Mm<P>, record: Handle<T>) {
        mm.kmem_cache_free(self.slot.any(), record.addr());
    }
}
