//! The operations on what lies above pages: objects of slab caches, `kmalloc`, `vmalloc` and per-CPU memory.
//!
//! What they allocate is named by handles as blocks of pages are: [`super::Op::FreePages`] frees it, too, and
//! [`super::Op::ReadPage`], [`super::Op::WritePage`], [`super::Op::FillPattern`] and [`super::Op::CheckPattern`] reach its
//! content. The operations that free here insist that a handle stands for what they free.

use super::error::OpError;
use super::op::OpCode;
use super::raw::RawOp;
use crate::gfp::Gfp;
use crate::slab::SlabFlags;
use crate::units::NodeId;

/// Most objects of an operation: their addresses fill half of a reply.
pub const MAX_OBJECTS: u32 = 4096;

/// Bytes of a command's payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Text {
    /// Offset in the payload.
    pub payload: u32,
    /// Bytes.
    pub len: u32,
}

/// Objects that are to be allocated. The result's value is the address of a single one; for several it is how many
/// there are, and the payload at `aux` holds their addresses, 64 bits each. When memory runs out those allocated so far
/// stay, and are counted in the value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Objects {
    /// Flags.
    pub gfp: Gfp,
    /// The node they are to come from; the executing CPU's for `None`.
    pub node: Option<NodeId>,
    /// First handle.
    pub handle: u32,
    /// How many, 1 to [`MAX_OBJECTS`].
    pub count: u32,
}

/// What `vmalloc` is to do beside allocating.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mapping {
    /// Single pages only, for mapping to user space (`vmalloc_user`).
    pub user: bool,
    /// Large pages where size and alignment allow.
    pub huge: bool,
}

/// An operation on objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ObjectOp {
    /// `kmem_cache_create`. The value is the address of the descriptor.
    CacheCreate {
        /// The handle for the cache.
        handle: u32,
        /// Its name.
        name: Text,
        /// Bytes of an object.
        size: u32,
        /// Alignment, a power of two; 0 for a word.
        align: u32,
        /// What it is to be like.
        flags: SlabFlags,
    },
    /// `kmem_cache_destroy`: [`OpError::Busy`] if objects are still in use; then the cache stays.
    CacheDestroy {
        /// The cache.
        handle: u32,
    },
    /// `kmem_cache_alloc_node`.
    CacheAlloc {
        /// The cache.
        cache: u32,
        /// What is wanted.
        objects: Objects,
    },
    /// `kmem_cache_free`; [`OpError::WrongKind`] for an object of another cache.
    CacheFree {
        /// The cache.
        cache: u32,
        /// First handle.
        handle: u32,
        /// Number of handles.
        count: u32,
    },
    /// `kmem_cache_shrink`; 0 for all caches, and what waits to be purged of `vmalloc`. The value is 1 if the cache
    /// still has slabs.
    CacheShrink {
        /// The cache.
        handle: u32,
    },
    /// `kmalloc_node`.
    Kmalloc {
        /// Bytes of each.
        size: u64,
        /// What is wanted.
        objects: Objects,
    },
    /// `kfree`, which takes objects of caches, too.
    Kfree {
        /// First handle.
        handle: u32,
        /// Number of handles.
        count: u32,
    },
    /// `__vmalloc_node`.
    Vmalloc {
        /// Bytes of each.
        size: u64,
        /// How it is to be mapped.
        mapping: Mapping,
        /// What is wanted.
        objects: Objects,
    },
    /// `vfree`.
    Vfree {
        /// First handle.
        handle: u32,
        /// Number of handles.
        count: u32,
    },
    /// `__alloc_percpu_gfp`. Addresses are pointers to per-CPU memory; the content is all CPUs' instances in a row.
    AllocPercpu {
        /// Bytes of an instance.
        size: u32,
        /// Alignment, a power of two up to a page.
        align: u32,
        /// What is wanted; the node means nothing.
        objects: Objects,
    },
    /// `free_percpu`.
    FreePercpu {
        /// First handle.
        handle: u32,
        /// Number of handles.
        count: u32,
    },
    /// `register_shrinker`: allocates objects from a cache, and a shrinker that frees them, the youngest first, whenever it
    /// is asked for its share.
    RegisterShrinker {
        /// The handle for the shrinker.
        handle: u32,
        /// The cache.
        cache: u32,
        /// How many objects.
        objects: u32,
        /// What an object costs to make anew (`seeks`): 2 is the default, the less, the more are freed; 0 for nothing.
        seeks: u32,
        /// Objects to look at in a call; 0 for `SHRINK_BATCH`.
        batch: u32,
    },
    /// `unregister_shrinker`: frees the objects that the shrinker has left. The value is how many there were.
    UnregisterShrinker {
        /// The shrinker.
        handle: u32,
    },
    /// Whether allocations from a cache fail under a fault with a cache filter: `/sys/kernel/slab/NAME/failslab`.
    SetFailslab {
        /// The cache's name.
        name: Text,
        /// Whether they do.
        on: bool,
    },
    /// A line written to slabinfo: `name limit batchcount shared`.
    SetSlabinfo {
        /// The line.
        line: Text,
    },
}

/// No node in particular.
const ANY_NODE: u8 = 0xff;
const USER: u8 = 1;
const HUGE: u8 = 2;

impl Objects {
    fn encode(self, code: OpCode) -> RawOp {
        let node = self.node.map_or(ANY_NODE, |node| node.index() as u8);
        let Self { gfp, handle, count, .. } = self;
        RawOp { code: code as u16, order: node, gfp: gfp.bits(), handle, count, ..RawOp::default() }
    }

    fn decode(raw: &RawOp) -> Result<Self, OpError> {
        let node = match raw.order {
            ANY_NODE => None,
            node => Some(NodeId::new(node.into()).ok_or(OpError::Invalid)?),
        };
        let gfp = Gfp::from_bits(raw.gfp).ok_or(OpError::Invalid)?;
        Ok(Self { gfp, node, handle: raw.handle, count: raw.count })
    }
}

/// Two numbers in one.
const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

const fn parts(pair: u64) -> (u32, u32) {
    (pair as u32, (pair >> 32) as u32)
}

impl ObjectOp {
    /// The handles that it frees, if that is what it does.
    pub const fn frees(&self) -> Option<(u32, u32)> {
        match *self {
            Self::CacheDestroy { handle } | Self::UnregisterShrinker { handle } => Some((handle, 1)),
            Self::CacheFree { handle, count, .. }
            | Self::Kfree { handle, count }
            | Self::Vfree { handle, count }
            | Self::FreePercpu { handle, count } => Some((handle, count)),
            _ => None,
        }
    }

    /// What it is called where it fails.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::CacheCreate { .. } => "kmem_cache_create",
            Self::CacheDestroy { .. } => "kmem_cache_destroy",
            Self::CacheAlloc { .. } => "kmem_cache_alloc",
            Self::CacheFree { .. } => "kmem_cache_free",
            Self::CacheShrink { .. } => "kmem_cache_shrink",
            Self::Kmalloc { .. } => "kmalloc",
            Self::Kfree { .. } => "kfree",
            Self::Vmalloc { .. } => "vmalloc",
            Self::Vfree { .. } => "vfree",
            Self::AllocPercpu { .. } => "alloc_percpu",
            Self::FreePercpu { .. } => "free_percpu",
            Self::RegisterShrinker { .. } => "register_shrinker",
            Self::UnregisterShrinker { .. } => "unregister_shrinker",
            Self::SetFailslab { .. } => "writing failslab",
            Self::SetSlabinfo { .. } => "writing slabinfo",
        }
    }

    /// As it goes into a message.
    pub(super) fn encode(self) -> RawOp {
        let op = |code: OpCode| RawOp { code: code as u16, ..RawOp::default() };
        match self {
            Self::CacheCreate { handle, name, size, align, flags } => RawOp {
                gfp: flags.bits(),
                handle,
                count: size,
                a: pair(name.payload, name.len),
                b: align.into(),
                ..op(OpCode::KmemCacheCreate)
            },
            Self::CacheDestroy { handle } => RawOp { handle, ..op(OpCode::KmemCacheDestroy) },
            Self::CacheAlloc { cache, objects } => RawOp { a: cache.into(), ..objects.encode(OpCode::KmemCacheAlloc) },
            Self::CacheFree { cache, handle, count } => {
                RawOp { handle, count, a: cache.into(), ..op(OpCode::KmemCacheFree) }
            }
            Self::CacheShrink { handle } => RawOp { handle, ..op(OpCode::KmemCacheShrink) },
            Self::Kmalloc { size, objects } => RawOp { a: size, ..objects.encode(OpCode::Kmalloc) },
            Self::Kfree { handle, count } => RawOp { handle, count, ..op(OpCode::Kfree) },
            Self::Vmalloc { size, mapping, objects } => {
                let user = if mapping.user { USER } else { 0 };
                let huge = if mapping.huge { HUGE } else { 0 };
                RawOp { small: user | huge, a: size, ..objects.encode(OpCode::Vmalloc) }
            }
            Self::Vfree { handle, count } => RawOp { handle, count, ..op(OpCode::Vfree) },
            Self::AllocPercpu { size, align, objects } => {
                RawOp { a: pair(size, align), ..objects.encode(OpCode::AllocPercpu) }
            }
            Self::FreePercpu { handle, count } => RawOp { handle, count, ..op(OpCode::FreePercpu) },
            Self::RegisterShrinker { handle, cache, objects, seeks, batch } => {
                RawOp { handle, count: objects, a: pair(seeks, batch), b: cache.into(), ..op(OpCode::RegisterShrinker) }
            }
            Self::UnregisterShrinker { handle } => RawOp { handle, ..op(OpCode::UnregisterShrinker) },
            Self::SetFailslab { name, on } => {
                RawOp { a: pair(name.payload, name.len), small: on as u8, ..op(OpCode::SetFailslab) }
            }
            Self::SetSlabinfo { line } => RawOp { a: pair(line.payload, line.len), ..op(OpCode::SetSlabinfo) },
        }
    }

    /// From a message. Out of line, so that what works on pages pays nothing for it.
    #[inline(never)]
    pub(super) fn decode(code: OpCode, raw: &RawOp) -> Result<Self, OpError> {
        let RawOp { handle, count, a, b, .. } = *raw;
        let narrow = |raw: u64| u32::try_from(raw).map_err(|_| OpError::Invalid);
        let text = |raw: u64| Text { payload: parts(raw).0, len: parts(raw).1 };
        Ok(match code {
            OpCode::KmemCacheCreate => Self::CacheCreate {
                handle,
                name: text(a),
                size: count,
                align: narrow(b)?,
                flags: SlabFlags::from_bits(raw.gfp).ok_or(OpError::Invalid)?,
            },
            OpCode::KmemCacheDestroy => Self::CacheDestroy { handle },
            OpCode::KmemCacheAlloc => Self::CacheAlloc { cache: narrow(a)?, objects: Objects::decode(raw)? },
            OpCode::KmemCacheFree => Self::CacheFree { cache: narrow(a)?, handle, count },
            OpCode::KmemCacheShrink => Self::CacheShrink { handle },
            OpCode::Kmalloc => Self::Kmalloc { size: a, objects: Objects::decode(raw)? },
            OpCode::Kfree => Self::Kfree { handle, count },
            OpCode::Vmalloc => {
                if raw.small & !(USER | HUGE) != 0 {
                    return Err(OpError::Invalid);
                }
                let mapping = Mapping { user: raw.small & USER != 0, huge: raw.small & HUGE != 0 };
                Self::Vmalloc { size: a, mapping, objects: Objects::decode(raw)? }
            }
            OpCode::Vfree => Self::Vfree { handle, count },
            OpCode::AllocPercpu => {
                Self::AllocPercpu { size: parts(a).0, align: parts(a).1, objects: Objects::decode(raw)? }
            }
            OpCode::FreePercpu => Self::FreePercpu { handle, count },
            OpCode::RegisterShrinker => Self::RegisterShrinker {
                handle,
                cache: narrow(b)?,
                objects: count,
                seeks: parts(a).0,
                batch: parts(a).1,
            },
            OpCode::UnregisterShrinker => Self::UnregisterShrinker { handle },
            OpCode::SetFailslab => Self::SetFailslab { name: text(a), on: raw.small != 0 },
            OpCode::SetSlabinfo => Self::SetSlabinfo { line: text(a) },
            _ => return Err(OpError::Unknown),
        })
    }
}
