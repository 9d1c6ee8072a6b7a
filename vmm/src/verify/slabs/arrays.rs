//! The arrays of free objects: those of CPUs, those that nodes share, those of other nodes' objects.

use pagevisor_shared::slab::{ArrayCache, SlabWord};
use pagevisor_shared::units::{NodeId, Order};
use std::sync::atomic::Ordering::Relaxed;

use super::{Object, Slabs};
use crate::state::StateError;
use crate::state::slab::{ArrayInfo, Holder, SlabCache};
use crate::verify::Verifier;
use crate::verify::report::Place;
use crate::verify::rule::Rule;

/// Most objects of an array: what the largest allocation holds.
const MAX_LIMIT: u64 = Order::MAX.bytes() / 8;

/// An array of a cache.
#[derive(Clone, Copy)]
struct Array<'c> {
    cache: &'c SlabCache,
    holder: Holder,
    info: &'c ArrayInfo,
    /// The node whose objects it holds.
    home: usize,
}

impl std::fmt::Display for Array<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ", self.cache.name)?;
        match self.holder {
            Holder::Cpu(cpu) => write!(f, "array of CPU {cpu}"),
            Holder::Shared(node) => write!(f, "shared array of node {node}"),
            Holder::Alien { on, of } => write!(f, "array of node {of}'s objects on node {on}"),
        }
    }
}

impl Array<'_> {
    fn place(&self) -> Place {
        match self.holder {
            Holder::Cpu(cpu) => Place::Cpu(cpu.into()),
            Holder::Shared(node) | Holder::Alien { on: node, .. } => Place::Node(node.into()),
        }
    }
}

impl Verifier<'_> {
    /// Marks the objects that arrays hold.
    pub(super) fn check_arrays(&mut self, slabs: &mut Slabs) -> Result<(), StateError> {
        let caches = slabs.caches.clone();
        for cache in &caches {
            for (cpu, info) in (0u16..).zip(&cache.cpus) {
                let home = self.region.cpus().get(usize::from(cpu)).map_or(0, |cpu| cpu.mem_node.load(Relaxed));
                let array = Array { cache, holder: Holder::Cpu(cpu), info, home: home as usize };
                self.check_array(slabs, array)?;
            }
            for (on, node) in (0u16..).zip(&cache.nodes) {
                let array = Array { cache, holder: Holder::Shared(on), info: &node.shared, home: on.into() };
                self.check_array(slabs, array)?;
                for (of, info) in (0u16..).zip(&self.alien_arrays(cache, usize::from(on))?) {
                    let array = Array { cache, holder: Holder::Alien { on, of }, info, home: of.into() };
                    self.check_array(slabs, array)?;
                    if on == of && info.avail != 0 {
                        let evidence = format_args!("{array}: {} objects of the node itself", info.avail);
                        self.findings.add(Rule::SlabArrayNode, array.place(), evidence);
                    }
                }
            }
        }
        Ok(())
    }

    /// The arrays of other nodes' objects on node `on`; none when there is no memory for them, or where the node says.
    fn alien_arrays(&self, cache: &SlabCache, on: usize) -> Result<Vec<ArrayInfo>, StateError> {
        let address = cache.nodes.get(on).map_or(0, |node| node.alien);
        let Some(gpa) = self.direct(address) else { return Ok(Vec::new()) };
        let mut bytes = vec![0; size_of::<ArrayCache>() * cache.nodes.len()];
        let there = self.read(gpa, &mut bytes)?;
        let records = bytes.chunks_exact(size_of::<ArrayCache>()).map(ArrayInfo::of_bytes);
        Ok(if there { records.collect() } else { Vec::new() })
    }

    fn check_array(&mut self, slabs: &mut Slabs, array: Array<'_>) -> Result<(), StateError> {
        let ArrayInfo { lock, hot, hot_lock, avail, limit, entry, home, .. } = *array.info;
        // The lock of a node's arrays is that of its lists. While something watches, that of a CPU's is another.
        if lock != u32::from(hot != 0) || hot_lock != 0 {
            let evidence = format_args!("{array}: lock is {lock}, hot {hot}, hot_lock {hot_lock}");
            self.findings.add(Rule::SlabLock, array.place(), evidence);
        }
        if avail > limit || (limit == 0) != (entry == 0) || u64::from(limit) > MAX_LIMIT {
            let evidence = format_args!("{array}: {avail} objects where {limit} may be, at {entry:#x}");
            self.findings.add(Rule::SlabArrayLimit, array.place(), evidence);
            return Ok(());
        }
        if limit == 0 {
            return Ok(());
        }
        let expected = NodeId::new(array.home).map(|node| SlabWord::new(array.cache.id, node, false));
        if !matches!(array.holder, Holder::Shared(_)) && Some(home) != expected {
            let evidence = format_args!("{array}: home is {:#x}, not {expected:x?}", home.0);
            self.findings.add(Rule::SlabArrayNode, array.place(), evidence);
        }
        let mut bytes = vec![0; avail as usize * 8];
        let there = match self.direct(entry) {
            Some(gpa) => self.read(gpa, &mut bytes)?,
            None => false,
        };
        if !there {
            let evidence = format_args!("{array}: no memory at {entry:#x}");
            self.findings.add(Rule::SlabArrayMemory, array.place(), evidence);
            return Ok(());
        }
        for word in bytes.as_chunks().0 {
            self.check_held(slabs, array, u64::from_le_bytes(*word));
        }
        Ok(())
    }

    /// An object that an array holds is one of the cache, of the node, out of its slab and nowhere else.
    fn check_held(&mut self, slabs: &mut Slabs, array: Array<'_>, address: u64) {
        let place = Place::Virtual(address);
        let object = self.direct(address).and_then(|gpa| slabs.object(gpa));
        let object = object.filter(|(slab, _)| slabs.cache(slab).is_some_and(|cache| cache.id == array.cache.id));
        let Some((slab, number)) = object else {
            let evidence = format_args!("{array}: no object of the cache starts there");
            return self.findings.add(Rule::SlabArrayObject, place, evidence);
        };
        if slab.node != array.home {
            let evidence = format_args!("{array}: the object is of node {}, not {}", slab.node, array.home);
            self.findings.add(Rule::SlabArrayNode, place, evidence);
        }
        match slabs.state(&slab, number) {
            Object::InUse => slabs.mark(&slab, number, Object::Held),
            Object::Free => {
                let evidence = format_args!("{array}: the object is free in its slab {:#x} too", slab.pfn);
                self.findings.add(Rule::SlabObjectTwice, place, evidence);
            }
            Object::Held => {
                let evidence = format_args!("{array}: the object is in an array already");
                self.findings.add(Rule::SlabObjectTwice, place, evidence);
            }
        }
    }

    /// The memory of arrays is allocated, and there is enough of it.
    pub(super) fn check_array_memory(&mut self, slabs: &Slabs) -> Result<(), StateError> {
        for cache in &slabs.caches {
            let cpus = (0u16..).zip(&cache.cpus).map(|(cpu, info)| (Holder::Cpu(cpu), info));
            let shared = (0u16..).zip(&cache.nodes).map(|(node, of)| (Holder::Shared(node), &of.shared));
            for (holder, info) in cpus.chain(shared).filter(|(_, info)| info.limit != 0) {
                let array = Array { cache, holder, info, home: 0 };
                let needed = u64::from(info.limit) * 8;
                self.check_owned(slabs, array, info.entry, needed);
            }
            for (on, node) in (0u16..).zip(&cache.nodes).filter(|(_, node)| node.alien != 0) {
                let aliens = self.alien_arrays(cache, usize::from(on))?;
                let end = |info: &ArrayInfo| info.entry.wrapping_add(u64::from(info.limit) * 8);
                // The entries follow the records.
                let lowest = aliens.iter().map(|info| info.entry).min().unwrap_or(u64::MAX);
                let highest = aliens.iter().map(end).max().unwrap_or(u64::MAX);
                let records = (aliens.len() * size_of::<ArrayCache>()) as u64;
                let array = Array { cache, holder: Holder::Alien { on, of: 0 }, info: &node.shared, home: 0 };
                let needed = highest.wrapping_sub(node.alien);
                let behind = lowest >= node.alien.saturating_add(records);
                self.check_owned(slabs, array, node.alien, if behind { needed } else { u64::MAX });
            }
        }
        Ok(())
    }

    fn check_owned(&mut self, slabs: &Slabs, array: Array<'_>, address: u64, needed: u64) {
        let room = self.allocated_bytes(slabs, address);
        if room.is_none_or(|room| room < needed) {
            let evidence = format_args!("{array}: it needs {needed} bytes there, of {room:?} allocated");
            self.findings.add(Rule::SlabArrayMemory, Place::Virtual(address), evidence);
        }
    }
}
