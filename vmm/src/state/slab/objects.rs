//! The objects of a slab.

use std::fmt;

use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::PAGE_SHIFT;

use super::arrays::{Arrays, Holder};
use super::cache::SlabCache;
use super::walk::Slab;
use crate::state::StateView;
use crate::state::error::StateError;

/// What an object is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ObjectState {
    /// Somebody uses it.
    InUse,
    /// Its slab has it.
    Free,
    /// It is free, in an array.
    Held(Holder),
}

/// What is wrong with a slab.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FreelistFault {
    /// Objects of that colour would not lie within the slab.
    Colour(u16),
    /// There are free objects, but no list of them.
    NoList,
    /// The list names an object that there is not.
    NoObject(u32),
    /// The list goes on behind the last free object, with this one.
    More(u32),
    /// The list names an object twice.
    Twice(u32),
    /// An object is free in its slab and in an array.
    FreeAndHeld(u64, Holder),
}

impl fmt::Display for FreelistFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Colour(colour) => write!(f, "colour {colour} does not fit"),
            Self::NoList => f.write_str("free objects without a freelist"),
            Self::NoObject(number) => write!(f, "freelist names object {number}, which there is not"),
            Self::More(number) => write!(f, "freelist goes on with object {number}, but no more are free"),
            Self::Twice(number) => write!(f, "freelist names object {number} twice"),
            Self::FreeAndHeld(object, holder) => write!(f, "object {object:x} on both free and {holder} lists"),
        }
    }
}

/// The objects of a slab with their states.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlabObjects {
    /// Guest-virtual address of the first object's buffer (`s_mem`).
    pub s_mem: u64,
    /// Bytes from one buffer to the next.
    pub size: u32,
    /// By number.
    pub states: Vec<ObjectState>,
    /// What is wrong.
    pub faults: Vec<FreelistFault>,
}

impl SlabObjects {
    /// Address of the buffer of object `number`.
    pub const fn address(&self, number: usize) -> u64 {
        self.s_mem.wrapping_add((number as u64).wrapping_mul(self.size as u64))
    }

    /// Addresses of the buffers, and states.
    pub fn iter(&self) -> impl Iterator<Item = (u64, ObjectState)> {
        self.states.iter().enumerate().map(|(number, state)| (self.address(number), *state))
    }

    /// Marks an object that a list names as free, if that can be.
    fn mark(&mut self, number: u32) -> bool {
        let fault = match self.states.get_mut(number as usize) {
            None => FreelistFault::NoObject(number),
            Some(ObjectState::Free) => FreelistFault::Twice(number),
            Some(state) => {
                *state = ObjectState::Free;
                return true;
            }
        };
        self.faults.push(fault);
        false
    }

    /// Objects that somebody uses.
    pub fn allocated(&self) -> u64 {
        self.states.iter().filter(|state| **state == ObjectState::InUse).count() as u64
    }

    /// The object that the byte at `address` belongs to.
    pub fn object_at(&self, address: u64) -> Option<(u64, ObjectState)> {
        let number = usize::try_from(address.checked_sub(self.s_mem)? / u64::from(self.size).max(1)).ok()?;
        Some((self.address(number), *self.states.get(number)?))
    }
}

impl StateView {
    /// Guest-virtual address of frame `pfn` in the direct map.
    pub fn direct_address(&self, pfn: u64) -> u64 {
        self.roots().page_offset.wrapping_add(pfn << PAGE_SHIFT)
    }

    /// The objects of one of the cache's slabs.
    ///
    /// # Errors
    /// When the list of free objects lies outside memory.
    pub fn slab_objects(&self, cache: &SlabCache, slab: &Slab, arrays: &Arrays) -> Result<SlabObjects, StateError> {
        let colour = u64::from(slab.words.colour()) * u64::from(cache.colour_off);
        let mut objects = SlabObjects {
            s_mem: self.direct_address(slab.pfn.into()).wrapping_add(colour),
            size: cache.size,
            states: vec![ObjectState::InUse; cache.num as usize],
            faults: Vec::new(),
        };
        if colour + u64::from(cache.num) * u64::from(cache.size) > cache.slab_bytes() {
            objects.faults.push(FreelistFault::Colour(slab.words.colour()));
        }
        self.mark_free(cache, slab, colour, &mut objects)?;
        for number in 0..objects.states.len() {
            let address = objects.address(number);
            let (Some(holder), Some(state)) = (arrays.holder(address), objects.states.get_mut(number)) else {
                continue;
            };
            if *state == ObjectState::Free {
                objects.faults.push(FreelistFault::FreeAndHeld(address, holder));
            } else {
                *state = ObjectState::Held(holder);
            }
        }
        Ok(objects)
    }

    /// Marks the objects that the slab's list names.
    fn mark_free(
        &self,
        cache: &SlabCache,
        slab: &Slab,
        colour: u64,
        objects: &mut SlabObjects,
    ) -> Result<(), StateError> {
        let free = cache.num.saturating_sub(slab.active);
        if free == 0 {
            return Ok(());
        }
        if cache.flags.contains(SlabFlags::LINKED) {
            return self.mark_linked(cache, slab, colour, objects);
        }
        let start = u64::from(slab.pfn) << PAGE_SHIFT;
        let list = if cache.flags.contains(SlabFlags::OFF_SLAB) {
            slab.words.off_slab()
        } else if cache.flags.contains(SlabFlags::OBJFREELIST) {
            match slab.words.object().filter(|number| u32::from(*number) < cache.num) {
                Some(number) => start + colour + cache.object_offset(number),
                None => {
                    objects.faults.push(FreelistFault::NoList);
                    return Ok(());
                }
            }
        } else {
            (start + cache.slab_bytes()).saturating_sub(cache.freelist_size.into())
        };
        let mut bytes = vec![0; free as usize];
        self.memory().read(list.saturating_add(slab.active.into()), &mut bytes)?;
        for number in bytes {
            objects.mark(number.into());
        }
        Ok(())
    }

    /// Marks the objects that are linked to one another.
    fn mark_linked(
        &self,
        cache: &SlabCache,
        slab: &Slab,
        colour: u64,
        objects: &mut SlabObjects,
    ) -> Result<(), StateError> {
        let start = (u64::from(slab.pfn) << PAGE_SHIFT) + colour;
        let mut next = slab.words.object();
        for _ in slab.active..cache.num {
            let Some(number) = next else {
                objects.faults.push(FreelistFault::NoList);
                return Ok(());
            };
            // What was marked before ends the walk: the objects make a circle.
            if !objects.mark(number.into()) {
                return Ok(());
            }
            let mut word = [0; 2];
            self.memory().read(start + cache.object_offset(number), &mut word)?;
            next = u16::from_le_bytes(word).checked_sub(1);
        }
        if let Some(more) = next {
            objects.faults.push(FreelistFault::More(more.into()));
        }
        Ok(())
    }
}
