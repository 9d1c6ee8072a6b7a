//! Families of anonymous pages: the links between them and areas, from both ends, and what families count.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem::offset_of;

use pagevisor_shared::mm_types::{AnonVma, AnonVmaChain, MappingTable};
use pagevisor_shared::units::PAGE_SIZE;
use std::sync::atomic::Ordering::Relaxed;

use super::Area;
use crate::state::StateError;
use crate::state::slab::Record;
use crate::verify::Verifier;
use crate::verify::report::Place;
use crate::verify::rule::Rule;

/// A family that areas are linked to.
#[derive(Clone, Debug, Default)]
pub(super) struct Family {
    id: u32,
    refcount: u32,
    root: u64,
    parent: u64,
    num_children: u32,
    num_active_vmas: u32,
    first: u64,
    /// The links that areas have to it.
    links: HashSet<u64>,
    /// Areas whose own it is.
    own: u32,
}

/// All families that areas are linked to, by address.
#[derive(Debug, Default)]
pub(super) struct Families(BTreeMap<u64, Family>);

impl Verifier<'_> {
    /// Follows an area's links; gives the numbers of the families that it is linked to.
    pub(super) fn check_area_links(
        &mut self,
        area: &Area,
        families: &mut Families,
    ) -> Result<HashSet<u32>, StateError> {
        let place = Place::Virtual(area.info.address);
        let most = self.memory.present.len() * (PAGE_SIZE / size_of::<AnonVmaChain>() as u64);
        let (mut numbers, mut seen) = (HashSet::new(), HashSet::new());
        let (mut link, mut own) = (area.chain, area.anon_vma == 0);
        while link != 0 {
            let mut bytes = [0; size_of::<AnonVmaChain>()];
            if !self.program_record(link, &mut bytes)? || !seen.insert(link) || seen.len() as u64 > most {
                self.findings.add(Rule::FamilyLinks, place, format_args!("the area's link {link:#x} is none"));
                return Ok(numbers);
            }
            let record = Record(&bytes);
            let vma = record.u64(offset_of!(AnonVmaChain, vma));
            if vma != area.info.address {
                let evidence = format_args!("the link {link:#x} is the area {vma:#x}'s");
                self.findings.add(Rule::FamilyLinks, place, evidence);
            }
            let address = record.u64(offset_of!(AnonVmaChain, anon_vma));
            if let Entry::Vacant(unknown) = families.0.entry(address) {
                let mut bytes = [0; size_of::<AnonVma>()];
                if !self.program_record(address, &mut bytes)? {
                    let evidence = format_args!("the link {link:#x} leads to {address:#x}, which is no family");
                    self.findings.add(Rule::FamilyLinks, place, evidence);
                    return Ok(numbers);
                }
                unknown.insert(Family::of(&Record(&bytes)));
            }
            if let Some(family) = families.0.get_mut(&address) {
                family.links.insert(link);
                numbers.insert(family.id);
                if address == area.anon_vma {
                    own = true;
                    family.own += 1;
                }
            }
            link = record.u64(offset_of!(AnonVmaChain, next_of_vma));
        }
        if !own {
            let evidence = format_args!("no link leads to the area's own family {:#x}", area.anon_vma);
            self.findings.add(Rule::FamilyLinks, place, evidence);
        }
        Ok(numbers)
    }

    /// Families know the links that areas have to them, and count what there is.
    pub(super) fn check_families(&mut self, families: &Families) -> Result<(), StateError> {
        let (mut children, mut members) = (HashMap::<u64, u32>::new(), HashMap::<u64, u32>::new());
        for family in families.0.values() {
            *children.entry(family.parent).or_default() += 1;
            *members.entry(family.root).or_default() += 1;
        }
        for (address, family) in &families.0 {
            self.check_family_list(*address, family)?;
            let place = Place::Virtual(*address);
            let of = |map: &HashMap<u64, u32>| map.get(address).copied().unwrap_or(0);
            let references = if family.root == *address { of(&members) } else { 1 };
            let counts = [
                ("num_active_vmas", family.num_active_vmas, family.own),
                ("num_children", family.num_children, of(&children)),
                ("refcount", family.refcount, references),
            ];
            for (what, counted, found) in counts {
                self.findings.equal(Rule::FamilyCounts, place, what, counted, found);
            }
            let numbered = self.numbered(family.id)?;
            if numbered != *address {
                let evidence = format_args!("its number {} leads to {numbered:#x}", family.id);
                self.findings.add(Rule::MappingNumbers, place, evidence);
            }
        }
        Ok(())
    }

    /// Goes along a family's list of links.
    fn check_family_list(&mut self, address: u64, family: &Family) -> Result<(), StateError> {
        let (mut before, mut next, mut found) = (0, family.first, 0);
        while next != 0 {
            let mut bytes = [0; size_of::<AnonVmaChain>()];
            let there = self.program_record(next, &mut bytes)?;
            let prev = Record(&bytes).u64(offset_of!(AnonVmaChain, prev));
            found += 1;
            if !there || prev != before || found > family.links.len() || !family.links.contains(&next) {
                let evidence = format_args!("the link {next:#x} on its list is no area's, or has another before it");
                self.findings.add(Rule::FamilyLinks, Place::Virtual(address), evidence);
                return Ok(());
            }
            (before, next) = (next, Record(&bytes).u64(offset_of!(AnonVmaChain, next)));
        }
        let place = Place::Virtual(address);
        self.findings.equal(Rule::FamilyLinks, place, "number of links on its list", found, family.links.len());
        Ok(())
    }

    /// What the table of numbers says of `number`; 0 for nothing.
    pub(super) fn numbered(&self, number: u32) -> Result<u64, StateError> {
        let mut at = self.region.header().roots.mappings.load(Relaxed);
        for level in (0..=2).rev() {
            let mut bytes = [0; 8];
            let word = at.wrapping_add(MappingTable::index(number, level) as u64 * 8);
            if at == 0 || !self.read(word, &mut bytes)? {
                return Ok(0);
            }
            at = u64::from_le_bytes(bytes);
        }
        Ok(at)
    }
}

impl Family {
    fn of(record: &Record<'_>) -> Self {
        Self {
            id: record.u32(offset_of!(AnonVma, id)),
            refcount: record.u32(offset_of!(AnonVma, refcount)),
            root: record.u64(offset_of!(AnonVma, root)),
            parent: record.u64(offset_of!(AnonVma, parent)),
            num_children: record.u32(offset_of!(AnonVma, num_children)),
            num_active_vmas: record.u32(offset_of!(AnonVma, num_active_vmas)),
            first: record.u64(offset_of!(AnonVma, chain)),
            links: HashSet::new(),
            own: 0,
        }
    }
}
