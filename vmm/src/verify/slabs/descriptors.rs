//! Descriptors: the table of them, and whether what each says can be.

use std::collections::{HashMap, HashSet};

use pagevisor_shared::slab::{MAX_CACHES, SlabFlags};
use pagevisor_shared::units::MAX_ORDER;

use super::{Object, Slabs, on_slab_list};
use crate::state::StateError;
use crate::state::slab::SlabCache;
use crate::verify::Verifier;
use crate::verify::report::Place;
use crate::verify::rule::Rule;

/// The number of the cache of caches.
const CACHE_OF_CACHES: u16 = 1;
/// Most objects of a slab whose list has a byte for each.
const MAX_LISTED: u32 = 256;
/// The smallest objects that are linked to one another.
const MIN_LINKED: u32 = 8;

/// What of a descriptor cannot be.
fn wrong_size(cache: &SlabCache) -> Option<&'static str> {
    let linked = cache.flags.contains(SlabFlags::LINKED);
    let whole = cache.flags.contains(SlabFlags::WHOLE);
    let alone = cache.flags.contains(SlabFlags::OBJFREELIST) && !cache.flags.intersects(SlabFlags::DEBUG);
    let lists = [SlabFlags::LINKED, SlabFlags::OBJFREELIST, SlabFlags::OFF_SLAB];
    let objects = u64::from(cache.num) * u64::from(cache.size);
    let inside = if lists.iter().any(|list| cache.flags.contains(*list)) { 0 } else { cache.freelist_size };
    let colours = u64::from(cache.colour) * u64::from(cache.colour_off);
    let checks = [
        (lists.iter().filter(|list| cache.flags.contains(**list)).count() > 1, "its flags"),
        (whole && (!alone || cache.num != 1 || objects != cache.slab_bytes()), "its flags"),
        (cache.order.raw() as usize >= MAX_ORDER, "gfporder"),
        (!cache.align.is_power_of_two(), "align"),
        (cache.object_size == 0 || cache.object_size > cache.size.saturating_sub(cache.obj_offset), "object_size"),
        (linked && cache.size < MIN_LINKED || !linked && cache.num > MAX_LISTED, "num"),
        (!linked && cache.freelist_size < cache.num, "freelist_size"),
        (objects.saturating_add(inside.into()).saturating_add(colours) > cache.slab_bytes(), "what a slab holds"),
        (cache.reciprocal_size != (1u64 << 32).div_ceil(cache.size.into()) as u32, "reciprocal_size"),
        (cache.batchcount == 0 || cache.batchcount > cache.limit, "batchcount"),
        (cache.flags.contains(SlabFlags::OFF_SLAB) != (cache.freelist_cache != 0), "freelist_cache"),
        (cache.name.is_empty(), "its name"),
    ];
    checks.into_iter().find(|(wrong, _)| *wrong).map(|(_, what)| what)
}

impl Verifier<'_> {
    /// Reads the descriptors, and leaves out those that say what cannot be.
    pub(super) fn read_slab_caches(&mut self) -> Result<Slabs, StateError> {
        let found = self.view.slab_caches()?;
        for damage in &found.damaged {
            // Where the address itself is wrong, it is told by the entry's number.
            if damage.at < MAX_CACHES as u64 {
                let evidence = format_args!("entry {} of the table leads to no descriptor", damage.at);
                self.findings.add(Rule::SlabTable, Place::Virtual(damage.found), evidence);
            } else {
                let evidence = format_args!("{} is {:#x}", damage.what, damage.found);
                self.findings.add(Rule::SlabDescriptor, Place::Virtual(damage.at), evidence);
            }
        }
        let mut addresses = HashSet::new();
        let mut caches = Vec::new();
        for cache in found.caches {
            let place = Place::Virtual(cache.address);
            if !addresses.insert(cache.address) {
                let evidence = format_args!("{} is in the table twice", cache.name);
                self.findings.add(Rule::SlabTable, place, evidence);
            } else if let Some(what) = wrong_size(&cache) {
                let evidence = format_args!(
                    "{what} of cache {} ({}) cannot be: {} objects of {} bytes ({}), order {}, {} bytes of list at {:#x}, \
                     {} colours",
                    cache.id,
                    cache.name,
                    cache.num,
                    cache.size,
                    cache.object_size,
                    cache.order.raw(),
                    cache.freelist_size,
                    on_slab_list(&cache),
                    cache.colour
                );
                self.findings.add(Rule::SlabDescriptor, place, evidence);
            } else {
                caches.push(cache);
            }
        }
        caches.sort_by_key(|cache| cache.id);
        Ok(Slabs { caches, ..Slabs::default() })
    }

    /// Descriptors are objects of the cache of caches, and all its objects in use are descriptors.
    pub(super) fn check_descriptor_objects(&mut self, slabs: &Slabs) {
        let mut known = HashMap::new();
        for cache in &slabs.caches {
            let object = self.direct(cache.address).and_then(|gpa| slabs.object(gpa));
            let id = |cache: &SlabCache| cache.id;
            let right = object.is_some_and(|(slab, number)| {
                slabs.cache(&slab).map(id) == Some(CACHE_OF_CACHES) && slabs.state(&slab, number) == Object::InUse
            });
            if !right {
                let evidence =
                    format_args!("the descriptor of {} is no object in use of the cache of caches", cache.name);
                self.findings.add(Rule::SlabTable, Place::Virtual(cache.address), evidence);
            }
            known.insert(cache.address, ());
        }
        let descriptors = slabs.slabs.iter().filter_map(|slab| {
            let cache = slabs.cache(slab).filter(|cache| cache.id == CACHE_OF_CACHES)?;
            Some((slab, cache))
        });
        for (slab, cache) in descriptors {
            for number in 0..cache.num {
                let gpa = slab.first + u64::from(number) * u64::from(cache.size) + u64::from(cache.obj_offset);
                let address = self.roots.page_offset.wrapping_add(gpa);
                if slabs.state(slab, number) == Object::InUse && !known.contains_key(&address) {
                    let evidence = format_args!("an object of {} in use is in no entry of the table", cache.name);
                    self.findings.add(Rule::SlabTable, Place::Virtual(address), evidence);
                }
            }
        }
    }
}
