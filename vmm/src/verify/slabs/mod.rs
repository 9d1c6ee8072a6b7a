//! Slab caches: descriptors, lists of slabs, lists of free objects, arrays, and what is counted.
//!
//! ```text
//! descriptors   the region's table, sizes                 lists       slabs of each node, and their pages
//! freelists     which objects slabs have left             arrays      which objects arrays hold, in whose memory
//! accounts      slab pages that no list has, counters
//! ```

mod accounts;
mod arrays;
mod descriptors;
mod freelists;
mod lists;

use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::units::{Order, PAGE_SIZE};

use super::Verifier;
use super::spans::Spans;
use crate::state::StateError;
use crate::state::slab::SlabCache;

/// A slab that is on a list.
#[derive(Clone, Copy, Debug)]
struct Slab {
    /// First frame.
    pfn: u64,
    /// Its cache, as an index into [`Slabs::caches`].
    cache: usize,
    node: usize,
    /// Guest-physical address of the first object's buffer.
    first: u64,
    /// Where its bits start in [`Slabs::bits`]: one for each object that the slab has left, then one for each that an
    /// array holds.
    bits: usize,
}

/// What an object is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Object {
    InUse,
    Free,
    Held,
}

/// All slabs.
#[derive(Debug, Default)]
pub(super) struct Slabs {
    caches: Vec<SlabCache>,
    /// In order of frame.
    slabs: Vec<Slab>,
    bits: Vec<u64>,
    /// Frames of the slabs.
    frames: Spans,
}

/// Words for a bit of each object.
const fn words(cache: &SlabCache) -> usize {
    (cache.num as usize).div_ceil(64)
}

/// Bytes from the start of a cache's slab to the list of its free objects, if that is on the slab.
const fn on_slab_list(cache: &SlabCache) -> u64 {
    cache.slab_bytes().saturating_sub(cache.freelist_size as u64)
}

impl Slabs {
    fn cache(&self, slab: &Slab) -> Option<&SlabCache> {
        self.caches.get(slab.cache)
    }

    /// The slab that the byte at a guest-physical address is in.
    fn at(&self, gpa: u64) -> Option<&Slab> {
        let pfn = gpa / PAGE_SIZE;
        let behind = self.slabs.partition_point(|slab| slab.pfn <= pfn);
        let slab = self.slabs.get(behind.checked_sub(1)?)?;
        (pfn - slab.pfn < self.cache(slab)?.slab_pages()).then_some(slab)
    }

    /// The slab and number of the object that starts at a guest-physical address.
    fn object(&self, gpa: u64) -> Option<(Slab, u32)> {
        let slab = self.at(gpa)?;
        let cache = self.cache(slab)?;
        let offset = gpa.checked_sub(slab.first + u64::from(cache.obj_offset))?;
        let number = offset / u64::from(cache.size).max(1);
        let starts = number * u64::from(cache.size) == offset && number < cache.num.into();
        starts.then_some((*slab, number as u32))
    }

    fn state(&self, slab: &Slab, number: u32) -> Object {
        let Some(words) = self.cache(slab).map(words) else { return Object::InUse };
        let bit = |start: usize| {
            self.bits.get(start + number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 != 0)
        };
        match (bit(slab.bits), bit(slab.bits + words)) {
            (true, _) => Object::Free,
            (_, true) => Object::Held,
            _ => Object::InUse,
        }
    }

    fn mark(&mut self, slab: &Slab, number: u32, state: Object) {
        let Some(words) = self.cache(slab).map(words) else { return };
        let start = slab.bits + if state == Object::Held { words } else { 0 };
        if let Some(word) = self.bits.get_mut(start + number as usize / 64) {
            *word |= 1 << (number % 64);
        }
    }
}

impl Verifier<'_> {
    /// Checks all slab caches. Page metadata are known by now.
    pub(super) fn check_slabs(&mut self) -> Result<(), StateError> {
        let mut slabs = self.read_slab_caches()?;
        self.walk_slab_lists(&mut slabs);
        self.check_freelists(&mut slabs)?;
        self.check_arrays(&mut slabs)?;
        self.check_descriptor_objects(&slabs);
        self.check_array_memory(&slabs)?;
        self.check_freelist_memory(&slabs);
        self.check_slab_pages(&slabs);
        self.check_slab_counters(&slabs);
        self.checked.slabs = slabs.slabs.len() as u64;
        self.slab_frames = slabs.frames;
        Ok(())
    }

    /// Guest-physical address of what a virtual address of the direct map means; `None` for an address elsewhere.
    pub(super) fn direct(&self, address: u64) -> Option<u64> {
        let gpa = address.checked_sub(self.roots.page_offset)?;
        self.memory.present.contains(gpa / PAGE_SIZE).then_some(gpa)
    }

    /// Bytes that whoever allocated `address` may use: an object, or a large block of pages. `None` when nobody did.
    fn allocated_bytes(&self, slabs: &Slabs, address: u64) -> Option<u64> {
        let gpa = self.direct(address)?;
        if slabs.frames.contains(gpa / PAGE_SIZE) {
            let (slab, number) = slabs.object(gpa)?;
            let in_use = slabs.state(&slab, number) == Object::InUse;
            return slabs.cache(&slab).filter(|_| in_use).map(|cache| cache.object_size.into());
        }
        let page = self.metadata.get(gpa / PAGE_SIZE)?;
        let order = Order::new(super::pages::order_of(&page)).ok()?;
        let large = gpa.is_multiple_of(PAGE_SIZE) && page.refcount != 0 && page.flags & PageFlag::Head.mask() != 0;
        large.then_some(order.bytes())
    }
}
