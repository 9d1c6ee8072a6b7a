//! Areas of an address space.

use core::fmt;
use core::mem::size_of;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// A range of addresses with one meaning (`struct vm_area_struct`).
///
/// Invariants, when nobody holds the address space's [`super::MmStruct::mmap_lock`] for writing: areas do not overlap; the tree is a
/// red-black tree by `vm_start`, the list is in the same order; [`Self::subtree_gap`] is the largest gap below an area of
/// the subtree; no two neighbours could be one (`vma_merge`).
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct VmArea {
    /// First byte.
    pub vm_start: AtomicU64,
    /// First byte behind.
    pub vm_end: AtomicU64,
    /// [`VmaFlags`].
    pub vm_flags: AtomicU64,
    /// Offset of the first page in the file, in pages; for private anonymous memory, `vm_start` in pages when it was made.
    pub vm_pgoff: AtomicU64,
    /// Parent in the tree, and [`crate::vmalloc::RB_BLACK`].
    pub parent: AtomicU64,
    /// Left child: lower addresses.
    pub left: AtomicU64,
    /// Right child.
    pub right: AtomicU64,
    /// Largest free range right below an area of this subtree, in bytes (`rb_subtree_gap`); stack guard gaps are not free.
    pub subtree_gap: AtomicU64,
    /// The next area up.
    pub next: AtomicU64,
    /// The next area down.
    pub prev: AtomicU64,
    /// The [`super::MmStruct`].
    pub vm_mm: AtomicU64,
    /// The [`super::AnonVma`] that new anonymous pages belong to; 0 as long as there are none.
    pub anon_vma: AtomicU64,
    /// The [`super::MappedFile`]; 0 for anonymous memory.
    pub vm_file: AtomicU64,
    /// Faults that work on the area; the top bit is set while somebody who is going to change it waits for them
    /// (`vm_lock`). Outlives the area: who looked it up too late may count itself in and out again.
    pub vm_lock: AtomicU32,
    /// [`super::MmStruct::mm_lock_seq`] when it was last locked to be changed: as long as the two are equal it is
    /// (`vm_lock_seq`).
    pub vm_lock_seq: AtomicU32,
    /// The next area that maps the same file ([`super::AddressSpace::i_mmap`]).
    pub shared_next: AtomicU64,
    /// The one before.
    pub shared_prev: AtomicU64,
    /// First of its [`super::AnonVmaChain`]s.
    pub anon_vma_chain: AtomicU64,
    /// Padding.
    pub padding: [AtomicU64; 7],
}

const _: () = assert!(size_of::<VmArea>() == 192);

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bits:literal, $smaps:literal;)*) => {
        crate::flag_set!(VmaFlags);

impl VmaFlags {
            $($(#[$doc])* pub const $name: Self = Self($bits);)*
            /// All of them, with the letters that `smaps` shows (`show_smap_vma_flags`); none where it shows nothing.
            pub const NAMED: &[(Self, &'static str)] = &[$((Self::$name, $smaps)),*];
        }
    };
}

/// `VM_*` of areas, with Linux's numbers (`linux/mm.h`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct VmaFlags(pub u64);

flags! {
    /// `VM_READ`.
    READ = 0x1, "rd";
    /// `VM_WRITE`.
    WRITE = 0x2, "wr";
    /// `VM_EXEC`.
    EXEC = 0x4, "ex";
    /// `VM_SHARED`: changes are seen by others.
    SHARED = 0x8, "sh";
    /// `VM_MAYREAD`: `mprotect` may allow reading.
    MAYREAD = 0x10, "mr";
    /// `VM_MAYWRITE`.
    MAYWRITE = 0x20, "mw";
    /// `VM_MAYEXEC`.
    MAYEXEC = 0x40, "me";
    /// `VM_MAYSHARE`.
    MAYSHARE = 0x80, "ms";
    /// `VM_GROWSDOWN`: a stack.
    GROWSDOWN = 0x100, "gd";
    /// `VM_PFNMAP`: frames without metadata to count.
    PFNMAP = 0x400, "pf";
    /// `VM_LOCKED`.
    LOCKED = 0x2000, "lo";
    /// `VM_SEQ_READ`.
    SEQ_READ = 0x8000, "sr";
    /// `VM_RAND_READ`.
    RAND_READ = 0x1_0000, "rr";
    /// `VM_DONTCOPY`: not for children.
    DONTCOPY = 0x2_0000, "dc";
    /// `VM_DONTEXPAND`: `mremap` must not make it larger.
    DONTEXPAND = 0x4_0000, "de";
    /// `VM_LOCKONFAULT`.
    LOCKONFAULT = 0x8_0000, "lf";
    /// `VM_ACCOUNT`: counts as committed memory.
    ACCOUNT = 0x10_0000, "ac";
    /// `VM_NORESERVE`: does not count as committed memory.
    NORESERVE = 0x20_0000, "nr";
    /// `VM_WIPEONFORK`: zero in children.
    WIPEONFORK = 0x200_0000, "wf";
    /// `VM_DONTDUMP`.
    DONTDUMP = 0x400_0000, "dd";
    /// `VM_SOFTDIRTY`: made or changed since somebody asked.
    SOFTDIRTY = 0x800_0000, "sd";
    /// `VM_HUGEPAGE`.
    HUGEPAGE = 0x2000_0000, "hg";
    /// `VM_NOHUGEPAGE`.
    NOHUGEPAGE = 0x4000_0000, "nh";
}

impl VmaFlags {
    /// None.
    pub const NONE: Self = Self(0);
    /// What page protections are made of (`VM_ACCESS_FLAGS`).
    pub const ACCESS: Self = Self(Self::READ.0 | Self::WRITE.0 | Self::EXEC.0);
}

impl fmt::Debug for VmaFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)?;
        for (_, letters) in Self::NAMED.iter().filter(|(flag, _)| self.contains(*flag)) {
            write!(f, " {letters}")?;
        }
        Ok(())
    }
}
