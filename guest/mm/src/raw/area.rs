//! Records of vmalloc areas, and the links between them.
//!
//! What it rests on: a record is made of memory that was allocated to be one ([`AreaCache::alloc`]) and
//! goes back only when nothing links to it any more; the words that link records are written here only, from references to
//! such records. So following a link arrives at a record. References are used under the lock that guards the trees, or by
//! whoever has taken the record out.

use core::marker::PhantomData;
use core::mem::{align_of, size_of};
use core::ops::Deref;
use core::ptr::{from_ref, with_exposed_provenance};
use core::sync::atomic::AtomicU64;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::{PAGE_SHIFT, PhysAddr, VirtAddr};
use pagevisor_shared::vmalloc::{RB_BLACK, VmFlags, VmStruct, VmapArea, VmapTree};

use super::{CacheSlot, DirectMap};
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;
use crate::tree::TreeNode;
use crate::vmalloc::AreaTree;

/// Bytes of an area's record, and of what it is used for behind it; multiples of it are their alignment.
pub(crate) const AREA_BYTES: usize = size_of::<VmapArea>() + size_of::<VmStruct>();
const _: () = assert!(align_of::<VmStruct>() <= size_of::<VmapArea>() && align_of::<VmapArea>() <= AREA_BYTES);

/// A word that is 0 or the address of a record of areas: a root, the start of a list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AreaWord(&'static AtomicU64);

impl AreaWord {
    /// The word `word`.
    ///
    /// # Safety
    /// It is 0 at first, and nobody writes to it in other ways.
    #[cfg(test)]
    pub(crate) const unsafe fn new(word: &'static AtomicU64) -> Self {
        Self(word)
    }

    /// The root of `tree`, one of the region's, and the start of its list. Sound since these words of the region are 0 at
    /// first, and used in this way only.
    #[inline(always)]
    pub(crate) const fn of(tree: &'static VmapTree) -> [Self; 2] {
        [Self(&tree.root), Self(&tree.first)]
    }

    /// The record.
    #[inline(always)]
    pub(crate) fn get(self) -> Option<AreaRef> {
        follow(self.0.get())
    }

    /// Sets the record.
    #[inline(always)]
    pub(crate) fn set(self, area: Option<AreaRef>) {
        self.0.set(AreaRef::word(area));
    }
}

/// The record that a link leads to.
#[inline(always)]
fn follow(word: u64) -> Option<AreaRef> {
    let area: *const VmapArea = with_exposed_provenance(word as usize);
    // SAFETY: 0, or written by this file from a reference to a record; records stay as long as something leads to them
    // (this file's promise), and are made of atomics.
    unsafe { area.as_ref() }.map(AreaRef)
}

/// A record of an area.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AreaRef(&'static VmapArea);

impl PartialEq for AreaRef {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        core::ptr::eq(self.0, other.0)
    }
}

impl Deref for AreaRef {
    type Target = VmapArea;

    #[inline(always)]
    fn deref(&self) -> &VmapArea {
        self.0
    }
}

macro_rules! links {
    ($($(#[$doc:meta])* $get:ident, $set:ident, $field:ident;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $get(self) -> Option<Self> {
            follow(self.0.$field.get())
        }

        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $set(self, to: Option<Self>) {
            self.0.$field.set(Self::word(to));
        }
    )*};
}

impl AreaRef {
    /// The record in memory at `addr`. Its links are not read before it is in a tree, and whoever puts it there writes
    /// them all.
    ///
    /// # Safety
    /// The memory is the caller's: it has the size and alignment of [`AREA_BYTES`], is RAM in the direct map (or, hosted,
    /// of the process), and is used as this record only until the caller, knowing that no link and no reference leads to it
    /// any more, gives it back.
    #[inline(always)]
    pub(crate) unsafe fn adopt(addr: VirtAddr) -> Self {
        let area: *const VmapArea = with_exposed_provenance(addr.raw() as usize);
        // SAFETY: the caller's promise; atomics are valid with any content.
        Self(unsafe { &*area })
    }

    /// What the area is used for, if it is: every record has one of these behind it.
    #[inline(always)]
    pub(crate) fn own_vm(self) -> VmRef {
        let vm: *const VmStruct = with_exposed_provenance(self.addr().raw() as usize + size_of::<VmapArea>());
        // SAFETY: `adopt` was promised room for both; atomics are valid with any content.
        VmRef(unsafe { &*vm })
    }

    /// Its address.
    #[inline(always)]
    pub(crate) fn addr(self) -> VirtAddr {
        VirtAddr::new(from_ref(self.0).expose_provenance() as u64)
    }

    #[inline(always)]
    fn word(area: Option<Self>) -> u64 {
        area.map_or(0, |area| area.addr().raw())
    }

    links! {
        /// The left child.
        left, set_left, left;
        /// The right child.
        right, set_right, right;
        /// The next one up.
        next, set_next, next;
        /// The next one down.
        prev, set_prev, prev;
    }

    /// The parent in the tree.
    #[inline(always)]
    pub(crate) fn parent(self) -> Option<Self> {
        follow(self.0.parent.get() & !RB_BLACK)
    }

    /// Whether it is red.
    #[inline(always)]
    pub(crate) fn is_red(self) -> bool {
        self.0.parent.get() & RB_BLACK == 0
    }

    /// Sets the parent and leaves the colour.
    #[inline(always)]
    pub(crate) fn set_parent(self, parent: Option<Self>) {
        self.0.parent.set(Self::word(parent) | self.0.parent.get() & RB_BLACK);
    }

    /// Makes it red or black.
    #[inline(always)]
    pub(crate) fn set_red(self, red: bool) {
        self.0.parent.set(self.0.parent.get() & !RB_BLACK | if red { 0 } else { RB_BLACK });
    }

    /// Sets parent and colour.
    #[inline(always)]
    pub(crate) fn set_parent_red(self, parent: Option<Self>) {
        self.0.parent.set(Self::word(parent));
    }

    /// What the area is used for, in the tree of those in use.
    #[inline(always)]
    pub(crate) fn vm(self) -> Option<VmRef> {
        let vm: *const VmStruct = with_exposed_provenance(self.0.max_or_vm.get() as usize);
        // SAFETY: areas in use have 0 there or what `set_vm` wrote, which leads to a record (this file's promise).
        unsafe { vm.as_ref() }.map(VmRef)
    }

    /// Sets what the area is used for.
    #[inline(always)]
    pub(crate) fn set_vm(self, vm: Option<VmRef>) {
        self.0.max_or_vm.set(vm.map_or(0, |vm| vm.addr().raw()));
    }

    /// The largest free area at or below it, in the free tree.
    #[inline(always)]
    pub(crate) fn max(self) -> u64 {
        self.0.max_or_vm.get()
    }

    /// Sets the largest free area at or below it. For areas that are not in use.
    #[inline(always)]
    pub(crate) fn set_max(self, max: u64) {
        self.0.max_or_vm.set(max);
    }

    /// First byte.
    #[inline(always)]
    pub(crate) fn start(self) -> u64 {
        self.0.va_start.get()
    }

    /// First byte behind.
    #[inline(always)]
    pub(crate) fn end(self) -> u64 {
        self.0.va_end.get()
    }

    /// Bytes.
    #[inline(always)]
    pub(crate) fn size(self) -> u64 {
        self.end() - self.start()
    }
}

macro_rules! tree_node {
    ($($get:ident, $set:ident;)*) => {
        $(
            #[inline(always)]
            fn $get(self) -> Option<Self> {
                Self::$get(self)
            }

            #[inline(always)]
            fn $set(self, to: Option<Self>) {
                Self::$set(self, to);
            }
        )*
    };
}

impl TreeNode for AreaRef {
    type Word = AreaWord;
    const ROOM_IS_BELOW: bool = false;

    #[inline(always)]
    fn follow(word: AreaWord) -> Option<Self> {
        word.get()
    }

    #[inline(always)]
    fn lead(word: AreaWord, to: Option<Self>) {
        word.set(to);
    }

    #[inline(always)]
    fn start(self) -> u64 {
        Self::start(self)
    }

    #[inline(always)]
    fn end(self) -> u64 {
        Self::end(self)
    }

    #[inline(always)]
    fn room(self) -> u64 {
        self.size()
    }

    #[inline(always)]
    fn max(self) -> u64 {
        Self::max(self)
    }

    #[inline(always)]
    fn set_max(self, max: u64) {
        Self::set_max(self, max);
    }

    tree_node! {
        left, set_left;
        right, set_right;
        next, set_next;
        prev, set_prev;
        parent, set_parent;
    }

    #[inline(always)]
    fn set_parent_red(self, parent: Option<Self>) {
        Self::set_parent_red(self, parent);
    }

    #[inline(always)]
    fn is_red(self) -> bool {
        Self::is_red(self)
    }

    #[inline(always)]
    fn set_red(self, red: bool) {
        Self::set_red(self, red);
    }
}

/// A record of what an area is used for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VmRef(&'static VmStruct);

impl Deref for VmRef {
    type Target = VmStruct;

    #[inline(always)]
    fn deref(&self) -> &VmStruct {
        self.0
    }
}

impl VmRef {
    /// Its address.
    #[inline(always)]
    pub(crate) fn addr(self) -> VirtAddr {
        VirtAddr::new(from_ref(self.0).expose_provenance() as u64)
    }
}

/// The slab cache that records of areas come from.
#[derive(Debug)]
pub(crate) struct AreaCache(CacheSlot);

impl AreaCache {
    pub(crate) const fn new() -> Self {
        Self(CacheSlot::new())
    }

    /// Makes the cache, if there is none. False when there is no memory for it. By one CPU at a time.
    pub(crate) fn init<P: Platform>(&self, mm: &Mm<P>) -> bool {
        if self.0.get().is_none() {
            match mm.kmem_cache_create("vmap_area", AREA_BYTES, AREA_BYTES, SlabFlags::NONE, None) {
                Ok(cache) => self.0.set(cache),
                Err(_) => return false,
            }
        }
        true
    }

    /// A record, in no tree.
    #[inline(always)]
    pub(crate) fn alloc<P: Platform>(&self, mm: &Mm<P>, gfp: Gfp) -> Option<AreaRef> {
        let addr = mm.kmem_cache_alloc(self.0.get()?, gfp)?;
        // SAFETY: an object of that size and alignment, nobody else's until `free`.
        Some(unsafe { AreaRef::adopt(addr) })
    }

    /// Gives back a record that nothing links to.
    #[inline(always)]
    pub(crate) fn free<P: Platform>(&self, mm: &Mm<P>, area: AreaRef) {
        if let Some(cache) = self.0.get() {
            mm.kmem_cache_free(cache, area.addr());
        }
    }
}

/// Bytes of an area of memory, inside one page: what its owner has written there, and nothing of the kernel's own. They
/// stay while the tree of areas in use is held.
#[derive(Debug)]
pub(crate) struct AreaBytes<'a> {
    map: DirectMap,
    phys: PhysAddr,
    len: usize,
    held: PhantomData<&'a AreaTree<false>>,
}

impl<'a> AreaBytes<'a> {
    /// Up to `most` bytes at `virt`, if they are in an area of memory that is complete. `busy` is the tree of areas in use,
    /// which is held.
    pub(crate) fn find<P: Platform>(mm: &Mm<P>, busy: &'a AreaTree<false>, virt: u64, most: u64) -> Option<Self> {
        let vm = busy.find(virt)?.vm()?;
        let flags = VmFlags(vm.flags.get());
        let inside = flags.contains(VmFlags::ALLOC)
            && !flags.contains(VmFlags::UNINITIALIZED)
            && virt - vm.addr.get() < u64::from(vm.nr_pages.get()) << PAGE_SHIFT;
        let mapping = if inside { mm.walk_kernel(VirtAddr::new(virt))? } else { return None };
        Some(Self { map: mm.direct_map(), phys: mapping.phys, len: most.min(mapping.rest) as usize, held: PhantomData })
    }

    /// How many there are.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Copies them to `to`, as many as it has room for.
    pub(crate) fn read(&self, to: &mut [u8]) {
        let len = self.len.min(to.len());
        // SAFETY: pages of an area that is not freed meanwhile (`find`). Who else uses them is the owner's business;
        // bytes are valid with any content.
        unsafe { self.map.copy_to(self.phys, &mut to[..len]) };
    }

    /// Copies `from` there, as much as there is room for.
    pub(crate) fn write(&self, from: &[u8]) {
        // SAFETY: as in `read`. Pages of these areas hold nothing but what their owner writes.
        unsafe { self.map.copy_in(self.phys, &from[..self.len.min(from.len())]) };
    }
}
