//! What slabs say of the objects they have left.

use std::collections::HashMap;

use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::slab::{FreelistWords, SlabFlags};
use pagevisor_shared::units::PAGE_SHIFT;

use super::{Object, Slab, Slabs, on_slab_list};
use crate::state::slab::SlabCache;
use crate::state::{PageMeta, StateError};
use crate::verify::Verifier;
use crate::verify::report::Place;
use crate::verify::rule::Rule;

impl Verifier<'_> {
    /// Marks the objects that each slab has left.
    pub(super) fn check_freelists(&mut self, slabs: &mut Slabs) -> Result<(), StateError> {
        let mut buffer = Vec::new();
        for index in 0..slabs.slabs.len() {
            let Some(slab) = slabs.slabs.get(index).copied() else { continue };
            let Some(cache) = slabs.caches.get(slab.cache).cloned() else { continue };
            let Some(page) = self.metadata.get(slab.pfn) else { continue };
            self.check_freelist(slabs, &slab, &cache, &page, &mut buffer)?;
        }
        Ok(())
    }

    fn check_freelist(
        &mut self,
        slabs: &mut Slabs,
        slab: &Slab,
        cache: &SlabCache,
        page: &PageMeta,
        buffer: &mut Vec<u8>,
    ) -> Result<(), StateError> {
        let (place, start) = (Place::Pfn(slab.pfn), slab.pfn << PAGE_SHIFT);
        let words = FreelistWords { index: page.index, private: page.private };
        let free = cache.num.saturating_sub(page.mapcount);
        if u32::from(words.colour()) >= cache.colour.max(1) {
            let evidence = format_args!("{}: colour {} of {}", cache.name, words.colour(), cache.colour);
            self.findings.add(Rule::SlabFreelistPlace, place, evidence);
            return Ok(());
        }
        if cache.flags.contains(SlabFlags::LINKED) {
            return self.check_linked(slabs, slab, cache, (words, free), buffer);
        }
        let holder = words.object().map(u32::from);
        let in_object = cache.flags.contains(SlabFlags::OBJFREELIST);
        if in_object && (holder.is_some() != (free != 0) || holder.is_some_and(|number| number >= cache.num)) {
            let evidence = format_args!("{}: the list of {free} free objects is in {holder:?}", cache.name);
            self.findings.add(Rule::SlabFreelistPlace, place, evidence);
            return Ok(());
        }
        if free == 0 {
            return Ok(());
        }
        let list = if cache.flags.contains(SlabFlags::OFF_SLAB) {
            words.off_slab()
        } else if in_object {
            slab.first + u64::from(holder.unwrap_or(0)) * u64::from(cache.size) + u64::from(cache.obj_offset)
        } else {
            start + on_slab_list(cache)
        };
        buffer.resize(free as usize, 0);
        if !self.read(list.saturating_add(page.mapcount.into()), buffer)? {
            let evidence = format_args!("{}: the list at {list:#x} is not in memory", cache.name);
            self.findings.add(Rule::SlabFreelistPlace, place, evidence);
            return Ok(());
        }
        for number in buffer.iter() {
            self.mark_free(slabs, slab, cache, u32::from(*number));
        }
        if let Some(holder) = holder.filter(|holder| in_object && slabs.state(slab, *holder) != Object::Free) {
            let evidence = format_args!("{}: the list is in object {holder}, which is not free", cache.name);
            self.findings.add(Rule::SlabFreelistPlace, place, evidence);
        }
        Ok(())
    }

    /// Marks an object that a list names; `false` when that cannot be.
    fn mark_free(&mut self, slabs: &mut Slabs, slab: &Slab, cache: &SlabCache, number: u32) -> bool {
        let place = Place::Pfn(slab.pfn);
        if number >= cache.num {
            let evidence = format_args!("{}: the list names object {number} of {}", cache.name, cache.num);
            self.findings.add(Rule::SlabFreelist, place, evidence);
            return false;
        }
        if slabs.state(slab, number) == Object::Free {
            let evidence = format_args!("{}: the list names object {number} twice", cache.name);
            self.findings.add(Rule::SlabFreelist, place, evidence);
            return false;
        }
        slabs.mark(slab, number, Object::Free);
        true
    }

    /// A list of objects that are linked to one another.
    fn check_linked(
        &mut self,
        slabs: &mut Slabs,
        slab: &Slab,
        cache: &SlabCache,
        (words, free): (FreelistWords, u32),
        buffer: &mut Vec<u8>,
    ) -> Result<(), StateError> {
        let place = Place::Pfn(slab.pfn);
        buffer.resize(cache.num as usize * cache.size as usize, 0);
        if free != 0 && !self.read(slab.first, buffer)? {
            let evidence = format_args!("{}: the objects are not in memory", cache.name);
            self.findings.add(Rule::SlabFreelistPlace, place, evidence);
            return Ok(());
        }
        let mut next = words.object();
        for left in (1..=free).rev() {
            let Some(number) = next.map(u32::from) else {
                let evidence = format_args!("{}: the list ends where {left} more objects are free", cache.name);
                self.findings.add(Rule::SlabFreelist, place, evidence);
                return Ok(());
            };
            if !self.mark_free(slabs, slab, cache, number) {
                return Ok(());
            }
            let link = buffer.get(number as usize * cache.size as usize..).and_then(|rest| rest.first_chunk());
            next = u16::from_le_bytes(link.copied().unwrap_or_default()).checked_sub(1);
        }
        if let Some(more) = next {
            let evidence = format_args!("{}: the list goes on with {more} behind {free} objects", cache.name);
            self.findings.add(Rule::SlabFreelist, place, evidence);
        }
        Ok(())
    }

    /// Lists off their slabs are objects in use of the cache for them, one for each slab.
    pub(super) fn check_freelist_memory(&mut self, slabs: &Slabs) {
        let mut owners = HashMap::new();
        for slab in &slabs.slabs {
            let Some(cache) = slabs.cache(slab).filter(|cache| cache.flags.contains(SlabFlags::OFF_SLAB)) else {
                continue;
            };
            let page = self.metadata.get(slab.pfn).unwrap_or_default();
            let list = FreelistWords { index: page.index, private: page.private }.off_slab();
            let right = slabs.object(list).is_some_and(|(of, number)| {
                let id = slabs.cache(&of).map(|cache| u32::from(cache.id));
                id == Some(cache.freelist_cache) && slabs.state(&of, number) == Object::InUse
            });
            if !right {
                let evidence = format_args!(
                    "{}: the list at {list:#x} is no object in use of cache {}",
                    cache.name, cache.freelist_cache
                );
                self.findings.add(Rule::SlabFreelistPlace, Place::Pfn(slab.pfn), evidence);
            }
            if let Some(other) = owners.insert(list, slab.pfn) {
                let evidence = format_args!("{}: the list at {list:#x} is that of {other:#x} too", cache.name);
                self.findings.add(Rule::SlabFreelistPlace, Place::Pfn(slab.pfn), evidence);
            }
        }
    }

    /// Every page that says it is in a slab is in one that a list has.
    pub(super) fn check_slab_pages(&mut self, slabs: &Slabs) {
        let found = &mut self.findings;
        for (pfn, page) in self.metadata.touched(&self.memory.present) {
            if page.flags & PageFlag::Slab.mask() != 0 && !slabs.frames.contains(pfn) {
                let evidence = format_args!("flags are {:#x}, but no list has the slab", page.flags);
                found.add(Rule::SlabPageStray, Place::Pfn(pfn), evidence);
            }
        }
    }
}
