//! Areas of the kernel's virtual address space (`mm/vmalloc.c`, `linux/vmalloc.h`) as they lie in guest memory.
//!
//! A [`VmapArea`] is a range of addresses in `VMALLOC_START..=VMALLOC_END`. Those in use are the nodes of one red-black tree
//! ordered by address, those that are free of another, which also knows the largest free area below each of its nodes.
//! Areas that were freed while processors may still remember their translations are in a third. The nodes of each tree
//! are on a list too, in order of address. An area in use that is more than a reservation has a [`VmStruct`].
//!
//! Links are the guest's virtual addresses, in the direct map; 0 ends a list and stands for no child. The roots are in
//! [`VmallocState`], in the region's header: they are the allocator's own.

use core::mem::size_of;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// In [`VmapArea::parent`]: the node is black (`RB_BLACK`). The rest of the word is the parent's address.
pub const RB_BLACK: u64 = 1;

/// A range of addresses (`struct vmap_area`).
///
/// Invariants, when nobody holds a tree's lock: each tree is a red-black tree; areas of the free tree do not touch each
/// other; and when nothing is on its way from one tree to another, either (no area is being allocated or freed, and
/// [`VmallocState::purge_lock`] is free), areas of all three trees together cover the vmalloc space without overlap.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct VmapArea {
    /// First byte.
    pub va_start: AtomicU64,
    /// First byte behind.
    pub va_end: AtomicU64,
    /// Parent in the tree, and [`RB_BLACK`].
    pub parent: AtomicU64,
    /// Left child: lower addresses.
    pub left: AtomicU64,
    /// Right child.
    pub right: AtomicU64,
    /// The next area up in the same tree.
    pub next: AtomicU64,
    /// The next area down in the same tree.
    pub prev: AtomicU64,
    /// In the free tree: bytes of the largest area at or below this node (`subtree_max_size`). In the tree of those in
    /// use: the [`VmStruct`], 0 for none. In the third tree nothing.
    pub max_or_vm: AtomicU64,
}

/// What an area is for (`struct vm_struct`). Written before the area is in the tree, but for
/// [`Self::nr_pages`] and [`VmFlags::UNINITIALIZED`].
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct VmStruct {
    /// The next one whose freeing is put off.
    pub next: AtomicU64,
    /// First byte.
    pub addr: AtomicU64,
    /// Bytes, the guard page behind included.
    pub size: AtomicU64,
    /// [`VmFlags`].
    pub flags: AtomicU32,
    /// Pages that are mapped, from the first on; its own if it is of [`VmFlags::ALLOC`].
    pub nr_pages: AtomicU32,
    /// Physical address behind, for [`VmFlags::IOREMAP`].
    pub phys_addr: AtomicU64,
    /// Return address of the call that made it.
    pub caller: AtomicU64,
    /// Bytes that were asked for.
    pub requested_size: AtomicU64,
    /// Of an area with [`VmFlags::PERCPU`], the virtual address of the [`crate::percpu::PcpuChunk`] that has the units of a
    /// group of CPUs here; 0 while it has none yet, or none any more. Of any other it means nothing.
    pub chunk: AtomicU64,
}

const _: () = assert!(size_of::<VmapArea>() == 64 && size_of::<VmStruct>() == 64);

/// A tree of areas.
#[repr(C)]
#[derive(Debug, Default)]
pub struct VmapTree {
    /// Held, with interrupts off, by who changes the tree or an area in it.
    pub lock: AtomicU32,
    /// Odd while they are being changed.
    pub seq: AtomicU32,
    /// The root.
    pub root: AtomicU64,
    /// The lowest area.
    pub first: AtomicU64,
}

/// The trees, each with its own lock, and what is counted.
#[repr(C)]
#[derive(Debug, Default)]
pub struct VmallocState {
    /// Areas in use (`vmap_area_lock`, `vmap_area_root`, `vmap_area_list`).
    pub busy: VmapTree,
    /// Free areas (`free_vmap_area_lock`, `free_vmap_area_root`, `free_vmap_area_list`).
    pub free: VmapTree,
    /// Areas that are free but for processors that may remember them (`purge_vmap_area_lock`, `purge_vmap_area_root`,
    /// `purge_vmap_area_list`).
    pub purge: VmapTree,
    /// Held by who purges (`vmap_purge_lock`).
    pub purge_lock: AtomicU32,
    /// Padding.
    pub reserved: AtomicU32,
    /// Pages of address space that are in the third tree or on their way there (`vmap_lazy_nr`).
    pub lazy_nr: AtomicU64,
    /// Times that all processors were made to forget areas (`__purge_vmap_area_lazy`).
    pub purges: AtomicU64,
}

/// `VM_*` of areas, with Linux's numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct VmFlags(pub u32);

crate::flag_set!(VmFlags);

impl VmFlags {
    /// `VM_IOREMAP`: device memory.
    pub const IOREMAP: Self = Self(0x1);
    /// `VM_ALLOC`: pages of its own.
    pub const ALLOC: Self = Self(0x2);
    /// `VM_MAP`: somebody's pages.
    pub const MAP: Self = Self(0x4);
    /// `VM_USERMAP`: may be mapped to user space; zeroed, and each page can be held by itself.
    pub const USERMAP: Self = Self(0x8);
    /// `VM_UNINITIALIZED`: being filled, not to be shown.
    pub const UNINITIALIZED: Self = Self(0x20);
    /// `VM_NO_GUARD`: no page without memory behind it.
    pub const NO_GUARD: Self = Self(0x40);
    /// `VM_ALLOW_HUGE_VMAP`: by pages of 2 MiB where they fit.
    pub const ALLOW_HUGE_VMAP: Self = Self(0x400);
    /// Own flag: it was freed where that cannot be done at once, and is waiting.
    pub const DEFERRED: Self = Self(0x1_0000);
    /// Own flag: units of per-CPU memory, which comes and goes with its chunk only (`pcpu_get_vm_areas`).
    pub const PERCPU: Self = Self(0x2_0000);
}
