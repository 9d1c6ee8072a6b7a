//! Address spaces and their areas: the links between them.
//!
//! What it rests on is said in [`super::record`].

use core::sync::atomic::AtomicU64;

use pagevisor_shared::mm_types::{AddressSpace, AnonVma, MappedFile, MmStruct, VmArea, VmaFlags};
use pagevisor_shared::region::Roots;
use pagevisor_shared::units::PAGE_SHIFT;
use pagevisor_shared::vmalloc::RB_BLACK;

use super::record::Handle;
use crate::sync::Plain;
use crate::tree::TreeNode;

/// An address space (`struct mm_struct *`). Whoever has one counts as a user or holds a reference.
pub type Space = Handle<MmStruct>;

/// An area of an address space (`struct vm_area_struct *`).
pub type Vma = Handle<VmArea>;

/// Bytes below a stack that nobody else gets (`stack_guard_gap`): 256 pages.
pub const STACK_GUARD_GAP: u64 = 256 << PAGE_SHIFT;

/// A word that is 0 or leads to an area.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VmaWord(&'static AtomicU64);

macro_rules! links {
    ($($(#[$doc:meta])* $get:ident, $set:ident, $field:ident: $of:ty;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $get(self) -> Option<Handle<$of>> {
            // SAFETY: written here only, from a handle.
            unsafe { Handle::follow(self.record().$field.get()) }
        }

        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $set(self, to: Option<Handle<$of>>) {
            self.record().$field.set(Handle::word(to));
        }
    )*};
}

/// The word that leads to the first of all address spaces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpaceList<'a>(&'a AtomicU64);

impl SpaceList<'_> {
    /// The first.
    pub(crate) fn get(self) -> Option<Space> {
        // SAFETY: 0 at first, and written below only, from a handle.
        unsafe { Handle::follow(self.0.get()) }
    }

    /// Makes `space` the first.
    pub(crate) fn set(self, space: Option<Space>) {
        self.0.set(Handle::word(space));
    }
}

impl Space {
    /// The list of all.
    pub(crate) fn list(roots: &Roots) -> SpaceList<'_> {
        SpaceList(&roots.mms)
    }

    /// The root of the tree of areas and the start of their list.
    #[inline(always)]
    pub(crate) fn roots(self) -> [VmaWord; 2] {
        [VmaWord(&self.record().mm_rb), VmaWord(&self.record().mmap)]
    }

    /// The lowest area.
    #[inline(always)]
    pub fn first_vma(self) -> Option<Vma> {
        <Vma as TreeNode>::follow(self.roots()[1])
    }

    links! {
        /// The next of all address spaces.
        next_mm, set_next_mm, next: MmStruct;
        /// The one before.
        prev_mm, set_prev_mm, prev: MmStruct;
        /// The file of the program.
        exe_file, set_exe_file, exe_file: MappedFile;
    }
}

impl Handle<MappedFile> {
    /// The file's pages.
    #[inline(always)]
    pub fn mapping(self) -> Option<Handle<AddressSpace>> {
        // SAFETY: 0, or written from a handle by who makes the file.
        unsafe { Handle::follow(self.record().mapping.get()) }
    }

    /// Sets the file's pages.
    pub(crate) fn set_mapping(self, mapping: Option<Handle<AddressSpace>>) {
        self.record().mapping.set(Handle::word(mapping));
    }
}

impl Handle<AddressSpace> {
    links! {
        /// The first of the areas that map it.
        first_area, set_first_area, i_mmap: VmArea;
    }
}

impl Vma {
    /// Makes it a new area, which is nobody's yet, without a file.
    #[inline]
    pub(crate) fn init(self, start: u64, end: u64, flags: VmaFlags, pgoff: u64) {
        let record = self.record();
        record.vm_start.set(start);
        record.vm_end.set(end);
        record.vm_flags.set(flags.0);
        record.vm_pgoff.set(pgoff);
        record.anon_vma_chain.set(0);
        // Who finds it by its file before it is in a space must not take it for one of its last owner's.
        self.set_mm(None);
        self.set_anon_vma(None);
        self.set_file(None);
    }

    links! {
        /// The address space.
        mm, set_mm, vm_mm: MmStruct;
        /// The family that new anonymous pages belong to.
        anon_vma, set_anon_vma, anon_vma: AnonVma;
        /// The file.
        file, set_file, vm_file: MappedFile;
        /// The next area that maps the same file.
        shared_next, set_shared_next, shared_next: VmArea;
        /// The one before.
        shared_prev, set_shared_prev, shared_prev: VmArea;
    }

    /// The next area up.
    #[inline(always)]
    pub fn next(self) -> Option<Self> {
        <Self as TreeNode>::next(self)
    }

    /// The next area down.
    #[inline(always)]
    pub fn prev(self) -> Option<Self> {
        <Self as TreeNode>::prev(self)
    }

    /// First byte.
    #[inline(always)]
    pub fn start(self) -> u64 {
        self.record().vm_start.get()
    }

    /// First byte behind.
    #[inline(always)]
    pub fn end(self) -> u64 {
        self.record().vm_end.get()
    }

    /// Pages.
    #[inline(always)]
    pub fn pages(self) -> u64 {
        (self.end() - self.start()) >> PAGE_SHIFT
    }

    /// What may be done with it, and what it is.
    #[inline(always)]
    pub fn flags(self) -> VmaFlags {
        VmaFlags(self.record().vm_flags.get())
    }

    /// Sets the flags.
    #[inline(always)]
    pub(crate) fn set_flags(self, flags: VmaFlags) {
        self.record().vm_flags.set(flags.0);
    }

    /// Offset of its first page.
    #[inline(always)]
    pub fn pgoff(self) -> u64 {
        self.record().vm_pgoff.get()
    }

    /// The offset of the page at `addr`, which is in the area (`linear_page_index`).
    #[inline(always)]
    pub fn index_of(self, addr: u64) -> u64 {
        self.pgoff().wrapping_add(addr.wrapping_sub(self.start()) >> PAGE_SHIFT)
    }

    /// Whether it has no pages of a file, neither of a mapped one nor of shared memory (`vma_is_anonymous`).
    #[inline(always)]
    pub fn is_anonymous(self) -> bool {
        self.file().is_none_or(|file| file.record().mode.get() & MappedFile::ANON != 0)
    }

    /// Where the room below it ends: a stack keeps some for itself (`vm_start_gap`).
    #[inline(always)]
    pub fn start_gap(self) -> u64 {
        let start = self.start();
        if self.flags().contains(VmaFlags::GROWSDOWN) { start.saturating_sub(STACK_GUARD_GAP) } else { start }
    }

    /// The free room right below it.
    #[inline(always)]
    pub(crate) fn gap(self) -> u64 {
        self.start_gap().saturating_sub(self.prev().map_or(0, Self::end))
    }
}

macro_rules! forward {
    ($($get:ident, $set:ident;)*) => {$(
        #[inline(always)]
        fn $get(self) -> Option<Self> {
            // SAFETY: written here only, from a handle.
            unsafe { Handle::follow(self.record().$get.get()) }
        }

        #[inline(always)]
        fn $set(self, to: Option<Self>) {
            self.record().$get.set(Handle::word(to));
        }
    )*};
}

impl TreeNode for Vma {
    type Word = VmaWord;
    const ROOM_IS_BELOW: bool = true;

    #[inline(always)]
    fn follow(word: VmaWord) -> Option<Self> {
        // SAFETY: written here only, from a handle.
        unsafe { Handle::follow(word.0.get()) }
    }

    #[inline(always)]
    fn lead(word: VmaWord, to: Option<Self>) {
        word.0.set(Handle::word(to));
    }

    #[inline(always)]
    fn start(self) -> u64 {
        self.record().vm_start.get()
    }

    #[inline(always)]
    fn end(self) -> u64 {
        self.record().vm_end.get()
    }

    #[inline(always)]
    fn room(self) -> u64 {
        self.gap()
    }

    #[inline(always)]
    fn max(self) -> u64 {
        self.record().subtree_gap.get()
    }

    #[inline(always)]
    fn set_max(self, max: u64) {
        self.record().subtree_gap.set(max);
    }

    forward! {
        left, set_left;
        right, set_right;
        next, set_next;
        prev, set_prev;
    }

    #[inline(always)]
    fn parent(self) -> Option<Self> {
        // SAFETY: written below only, from a handle, apart from the colour.
        unsafe { Handle::follow(self.record().parent.get() & !RB_BLACK) }
    }

    #[inline(always)]
    fn set_parent(self, parent: Option<Self>) {
        let word = &self.record().parent;
        word.set(Handle::word(parent) | word.get() & RB_BLACK);
    }

    #[inline(always)]
    fn set_parent_red(self, parent: Option<Self>) {
        self.record().parent.set(Handle::word(parent));
    }

    #[inline(always)]
    fn is_red(self) -> bool {
        self.record().parent.get() & RB_BLACK == 0
    }

    #[inline(always)]
    fn set_red(self, red: bool) {
        let word = &self.record().parent;
        word.set(word.get() & !RB_BLACK | if red { 0 } else { RB_BLACK });
    }
}
