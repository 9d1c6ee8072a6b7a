//! How a cache's objects lie in its slabs (`__kmem_cache_create`, `calculate_slab_order`).

use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::{MAX_ORDER, PAGE_SIZE};

use super::CacheError;

/// Bytes of a cache line (`cache_line_size`).
const CACHE_LINE: u32 = 64;
/// Bytes of a word, and of a red zone (`REDZONE_ALIGN`).
const WORD: u32 = 8;
/// Smallest distance between objects (`SLAB_OBJ_MIN_SIZE`), so that their numbers fit into bytes.
const SLAB_OBJ_MIN_SIZE: u32 = 16;
/// Most objects in a slab (`SLAB_OBJ_MAX_NUM`).
const SLAB_OBJ_MAX_NUM: u32 = 255;
/// Highest order that slabs have if a lower one would do (`slab_max_order`) on a machine of more than 32 MiB.
pub(super) const SLAB_MAX_ORDER_HI: u32 = 1;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// Bytes of an object.
    pub(super) object_size: u32,
    /// Alignment; 0 for none in particular.
    pub(super) align: u32,
    pub(super) flags: SlabFlags,
    /// Free objects must stay as they are: there is a constructor, or somebody may look at them.
    pub(super) keeps_content: bool,
    /// `slab_max_order`.
    pub(super) max_order: u32,
}

/// The cache that lists of a size would come from: bytes that one takes, and whether its own lists lie off its slabs.
pub(super) type FreelistCache<'a> = &'a dyn Fn(u32) -> Option<(u32, bool)>;

/// What a slab looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    /// With what was chosen for the list, and without debugging that is impossible.
    pub(super) flags: SlabFlags,
    /// From one object to the next.
    pub(super) size: u32,
    pub(super) align: u32,
    pub(super) obj_offset: u32,
    pub(super) colour: u32,
    pub(super) colour_off: u32,
    pub(super) num: u32,
    pub(super) order: u32,
    pub(super) freelist_size: u32,
}

/// `calculate_alignment`.
pub(super) const fn calculate_alignment(flags: SlabFlags, align: u32, size: u32) -> u32 {
    let mut align = align;
    if flags.contains(SlabFlags::HWCACHE_ALIGN) {
        // Small objects share a line.
        let mut line = CACHE_LINE;
        while size <= line / 2 {
            line /= 2;
        }
        if align < line {
            align = line;
        }
    }
    if align < WORD { WORD } else { align.next_multiple_of(WORD) }
}

impl Request {
    /// Works out the layout.
    ///
    /// # Errors
    /// [`CacheError::TooBig`] when no slab holds an object.
    pub(super) fn layout(&self, freelist_cache: FreelistCache<'_>) -> Result<Layout, CacheError> {
        let mut flags = self.flags;
        let align = calculate_alignment(flags, self.align, self.object_size);
        // Words beside the object cannot be had where objects are aligned to more than that.
        if align > WORD {
            flags = flags.without(SlabFlags::RED_ZONE.with(SlabFlags::STORE_USER));
        }
        let mut layout = Layout {
            flags,
            size: self.object_size.next_multiple_of(WORD),
            align,
            obj_offset: 0,
            colour: 0,
            colour_off: CACHE_LINE.max(align),
            num: 0,
            order: 0,
            freelist_size: 0,
        };
        if flags.contains(SlabFlags::RED_ZONE) {
            layout.obj_offset = WORD;
            layout.size += 2 * WORD;
        }
        if flags.contains(SlabFlags::STORE_USER) {
            layout.size += WORD;
        }
        layout.size = layout.size.next_multiple_of(align);
        if flags.contains(SlabFlags::LINKED) {
            layout.num = PAGE_SIZE as u32 / layout.size;
            return Ok(layout);
        }
        if layout.size < SLAB_OBJ_MIN_SIZE {
            layout.size = SLAB_OBJ_MIN_SIZE.next_multiple_of(align);
        }
        let chosen = self
            .in_object(layout, freelist_cache)
            .or_else(|| self.off_slab(layout, freelist_cache))
            .or_else(|| self.calculate_slab_order(layout, SlabFlags::NONE, freelist_cache))
            .ok_or(CacheError::TooBig)?;
        Ok(Layout { freelist_size: chosen.num, ..chosen })
    }

    /// `set_objfreelist_slab_cache`.
    fn in_object(&self, layout: Layout, freelist_cache: FreelistCache<'_>) -> Option<Layout> {
        if self.keeps_content {
            return None;
        }
        let layout = self.calculate_slab_order(layout, SlabFlags::OBJFREELIST, freelist_cache)?;
        (layout.num <= self.object_size).then_some(layout)
    }

    /// `set_off_slab_cache`.
    fn off_slab(&self, layout: Layout, freelist_cache: FreelistCache<'_>) -> Option<Layout> {
        let chosen = self.calculate_slab_order(layout, SlabFlags::OFF_SLAB, freelist_cache)?;
        let left = ((PAGE_SIZE as u32) << chosen.order) - chosen.num * chosen.size;
        // With room for the list on the slab it is put there, at the expense of colours.
        (left < chosen.num).then_some(chosen)
    }

    /// `calculate_slab_order`: the lowest order that wastes little.
    fn calculate_slab_order(
        &self,
        mut layout: Layout,
        list: SlabFlags,
        freelist_cache: FreelistCache<'_>,
    ) -> Option<Layout> {
        let mut left = 0;
        for order in 0..MAX_ORDER as u32 {
            let bytes = (PAGE_SIZE as u32) << order;
            // `cache_estimate`.
            let each = if list == SlabFlags::NONE { layout.size + 1 } else { layout.size };
            let num = bytes / each;
            if num == 0 {
                continue;
            }
            if num > SLAB_OBJ_MAX_NUM {
                break;
            }
            if list == SlabFlags::OFF_SLAB {
                // Lists of the lists' cache would need lists.
                let Some((list_bytes, false)) = freelist_cache(num) else { continue };
                if list_bytes > self.object_size / 2 {
                    continue;
                }
            }
            (layout.num, layout.order, left) = (num, order, bytes - num * each);
            // What can be reclaimed is allocated where no high order can be had.
            if self.flags.contains(SlabFlags::RECLAIM_ACCOUNT) || order >= self.max_order || left * 8 <= bytes {
                break;
            }
        }
        if layout.num == 0 {
            return None;
        }
        layout.flags = layout.flags.with(list);
        if list == SlabFlags::OBJFREELIST && layout.num == 1 && left == 0 && !layout.flags.intersects(SlabFlags::DEBUG)
        {
            layout.flags = layout.flags.with(SlabFlags::WHOLE);
        }
        layout.colour = left / layout.colour_off;
        Some(layout)
    }
}

/// Objects, objects moved at a time and factor of the shared array that a cache starts with (`enable_cpucache`).
pub(super) const fn default_tunables(size: u32, nr_cpus: usize) -> (u32, u32, u32) {
    let limit = if size > 131_072 {
        1
    } else if size > PAGE_SIZE as u32 {
        8
    } else if size > 1024 {
        24
    } else if size > 256 {
        54
    } else {
        120
    };
    let shared = if size <= PAGE_SIZE as u32 && nr_cpus > 1 { 8 } else { 0 };
    (limit, limit.div_ceil(2), shared)
}
