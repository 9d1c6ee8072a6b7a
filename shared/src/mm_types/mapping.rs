//! What pages of user memory belong to.

use core::mem::size_of;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// What a page in use belongs to, as [`crate::page::Page::mapping`] holds it: 0 for nothing, otherwise the number of an
/// [`AddressSpace`] or an [`AnonVma`] in the [`MappingTable`], above a bit that says which.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MappingId(u32);

/// Bits of [`crate::page::Page::mapping`] below the number.
pub const MAPPING_SHIFT: u32 = 1;

impl MappingId {
    /// An [`AnonVma`] (`PAGE_MAPPING_ANON`).
    pub const ANON: u32 = 1;

    /// The file with number `number`.
    #[inline]
    pub const fn file(number: u32) -> Self {
        Self(number << MAPPING_SHIFT)
    }

    /// The anonymous memory with number `number`.
    #[inline]
    pub const fn anon(number: u32) -> Self {
        Self(number << MAPPING_SHIFT | Self::ANON)
    }

    /// What `word` says; `None` for nothing.
    #[inline]
    pub const fn from_word(word: u32) -> Option<Self> {
        if word == 0 { None } else { Some(Self(word)) }
    }

    /// The word.
    #[inline]
    pub const fn word(self) -> u32 {
        self.0
    }

    /// Whether it is anonymous memory (`PageAnon`).
    #[inline]
    pub const fn is_anon(self) -> bool {
        self.0 & Self::ANON != 0
    }

    /// The number, which is not 0.
    #[inline]
    pub const fn number(self) -> u32 {
        self.0 >> MAPPING_SHIFT
    }
}

/// The way from numbers to [`AnonVma`]s and [`AddressSpace`]s: a tree of pages of 512 addresses each, three levels, the
/// top one at [`crate::region::Roots::mappings`]. A free number's word is 0.
#[derive(Clone, Copy, Debug)]
pub struct MappingTable;

impl MappingTable {
    /// Numbers that there can be, the 0 that nobody has included.
    pub const NUMBERS: u32 = 1 << 27;

    /// Index of the word for `number` in its page at `level` (2: the top page, 0: the pages of addresses).
    #[inline]
    pub const fn index(number: u32, level: u32) -> usize {
        (number >> (9 * level)) as usize & 511
    }
}

/// A family of anonymous pages (`struct anon_vma`).
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct AnonVma {
    /// Its number.
    pub id: AtomicU32,
    /// References.
    pub refcount: AtomicU32,
    /// The oldest of its family, which may be itself.
    pub root: AtomicU64,
    /// The one it was forked from, which may be itself.
    pub parent: AtomicU64,
    /// Children, itself included if it is a root (`num_children`).
    pub num_children: AtomicU32,
    /// Areas whose `anon_vma` it is (`num_active_vmas`).
    pub num_active_vmas: AtomicU32,
    /// Held by who changes the family.
    pub lock: AtomicU32,
    /// Padding.
    pub pad: AtomicU32,
    /// First of the [`AnonVmaChain`]s to areas that may map its pages (`rb_root`).
    pub chain: AtomicU64,
    /// Padding.
    pub reserved: [AtomicU64; 2],
}

const _: () = assert!(size_of::<AnonVma>() == 64);

/// Says that an area may map pages of a family (`struct anon_vma_chain`). It is on two lists: the area's, and the family's.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct AnonVmaChain {
    /// The [`super::VmArea`].
    pub vma: AtomicU64,
    /// The [`AnonVma`].
    pub anon_vma: AtomicU64,
    /// The next one of the area (`same_vma`).
    pub next_of_vma: AtomicU64,
    /// The next one of the family (`rb`).
    pub next: AtomicU64,
    /// The one before, of the family.
    pub prev: AtomicU64,
    /// Padding.
    pub reserved: [AtomicU64; 3],
}

const _: () = assert!(size_of::<AnonVmaChain>() == 64);

/// The pages of a file (`struct address_space` and what is needed of `struct inode`).
///
/// Invariants, when nobody holds [`Self::lock`]: the tree at `i_pages` has `nrpages` pages, each with this as its mapping
/// and its place as its index.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct AddressSpace {
    /// Its number.
    pub id: AtomicU32,
    /// References of inodes and mapped files.
    pub refcount: AtomicU32,
    /// Device: major number shifted by 20, minor number.
    pub dev: AtomicU32,
    /// Held, with interrupts off, by who changes the tree.
    pub lock: AtomicU32,
    /// Number of the inode.
    pub ino: AtomicU64,
    /// Bytes of the file.
    pub i_size: AtomicU64,
    /// Root of the tree of pages: a node of 64 words (`xa_head`); the low bits are the tree's height.
    pub i_pages: AtomicU64,
    /// Pages in it.
    pub nrpages: AtomicU64,
    /// First area that maps it.
    pub i_mmap: AtomicU64,
    /// Areas that map it shared and may write.
    pub i_mmap_writable: AtomicU32,
    /// Held by who changes the list of areas.
    pub i_mmap_lock: AtomicU32,
    /// [`Self::SHMEM`], [`Self::NORESERVE`].
    pub flags: AtomicU32,
    /// Seals of a memfd (`F_SEAL_*`).
    pub seals: AtomicU32,
    /// Blocks allocated, in units of 512 bytes (`i_blocks`).
    pub i_blocks: AtomicU64,
    /// Held by who writes to the file or cuts it (`i_rwsem`).
    pub i_rwsem: AtomicU32,
    /// Padding.
    pub pad: AtomicU32,
    /// Padding.
    pub reserved: [AtomicU64; 4],
}

const _: () = assert!(size_of::<AddressSpace>() == 128);

impl AddressSpace {
    /// Pages count as shared memory (`shmem_mapping`).
    pub const SHMEM: u32 = 1;
    /// Shared memory whose pages are promised as they come (`VM_NORESERVE`); otherwise all of it is from the start.
    pub const NORESERVE: u32 = 2;
    /// Bits of [`Self::i_pages`] that are the height: levels of nodes, 0 without any page.
    pub const HEIGHT: u64 = 63;
}

/// A node of a tree of pages (`struct xa_node`): 64 words, 0 for nothing. In nodes of the lowest level they are frame
/// numbers ([`Self::entry`]), above they are addresses of nodes.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct PageNode {
    /// The words.
    pub slots: [AtomicU64; Self::SLOTS],
}

impl PageNode {
    /// Bits of a page's index that one level of nodes stands for (`XA_CHUNK_SHIFT`).
    pub const SHIFT: u32 = 6;
    /// Words of a node (`XA_CHUNK_SIZE`).
    pub const SLOTS: usize = 1 << Self::SHIFT;

    /// The slot, in nodes of `level` (0: the lowest), on the way to page `index`.
    #[inline]
    pub const fn slot(index: u64, level: u32) -> usize {
        (index >> (level * Self::SHIFT)) as usize & (Self::SLOTS - 1)
    }

    /// The word for frame `pfn`: no address of a node is odd.
    #[inline]
    pub const fn entry(pfn: u32) -> u64 {
        (pfn as u64) << 1 | 1
    }

    /// The frame that `word` names; `None` for nothing and for nodes.
    #[inline]
    pub const fn frame(word: u64) -> Option<u32> {
        if word & 1 != 0 { Some((word >> 1) as u32) } else { None }
    }
}

/// A file that is mapped (`struct file`, as far as mappings need it).
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct MappedFile {
    /// References.
    pub refcount: AtomicU32,
    /// Bytes of the path.
    pub path_len: AtomicU32,
    /// The [`AddressSpace`].
    pub mapping: AtomicU64,
    /// Address of the path, as `maps` shows it; 0 for none.
    pub path: AtomicU64,
    /// How it was opened, and what it is: [`Self::READ`] and so on.
    pub mode: AtomicU32,
    /// Padding.
    pub pad: AtomicU32,
    /// Padding.
    pub reserved: [AtomicU64; 4],
}

const _: () = assert!(size_of::<MappedFile>() == 64);

impl MappedFile {
    /// Opened for reading (`FMODE_READ`).
    pub const READ: u32 = 1;
    /// Opened for writing (`FMODE_WRITE`).
    pub const WRITE: u32 = 2;
    /// May be executed.
    pub const EXEC: u32 = 4;
    /// It has no pages: what is mapped of it, privately, is memory as if there were no file (`mmap_zero`).
    pub const ANON: u32 = 8;
}
