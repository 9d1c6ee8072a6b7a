//! Programs, sound and damaged. The rest of the guest is made by hand and not sound: only rules about programs count.

use std::mem::offset_of;

use pagevisor_shared::mm_types::{MmStruct, VmArea};
use pagevisor_shared::pgtable::Entry;

use super::*;
use crate::state::fake::programs::{AREAS_OF, FRAMES, SPACE, USER_TABLES};
use crate::state::fake::slabs::direct;

const RULES: [Rule; 9] = [
    Rule::SpaceList,
    Rule::AreaOrder,
    Rule::SpaceSizes,
    Rule::SpaceRss,
    Rule::SpaceTables,
    Rule::ProgramTables,
    Rule::ProgramMapping,
    Rule::ProgramReferences,
    Rule::CommittedAs,
];

fn guest() -> FakeGuest {
    let guest = FakeGuest::new().with_programs();
    guest.region().header().roots.committed_as.store(36, Relaxed);
    guest
}

/// Rules about programs that do not hold, and pages that are not mapped as often as they say.
fn broken(guest: &FakeGuest) -> Vec<Rule> {
    let report = verify(&guest.view(), &[]).unwrap();
    assert_eq!(report.more, 0);
    let mut rules: Vec<Rule> = report.findings.iter().map(|finding| finding.rule).collect();
    rules.retain(|rule| RULES.contains(rule) || *rule == Rule::PageMapcount);
    rules.dedup();
    rules
}

#[test]
fn sound_programs_are_sound() {
    let guest = guest();
    // One of the two that map the file's page is not there.
    guest.set_meta(FRAMES[0], 2, 1);
    assert_eq!(broken(&guest), []);
}

#[test]
fn each_damage_is_told() {
    let space = |offset: usize| SPACE + offset as u64;
    let area = |number: u64, offset: usize| AREAS_OF + number * 256 + offset as u64;
    // The entry for 0x601000, and that for 0x602000.
    let (entry, zero) = (USER_TABLES + 0x4008, USER_TABLES + 0x4010);
    let cases: [(Rule, u64, u64); 16] = [
        (Rule::SpaceList, space(offset_of!(MmStruct, next)), direct(SPACE)),
        (Rule::SpaceList, space(offset_of!(MmStruct, prev)), 0x40),
        (Rule::AreaOrder, area(1, offset_of!(VmArea, vm_start)), 0x40_1000),
        (Rule::AreaOrder, area(1, offset_of!(VmArea, prev)), direct(AREAS_OF + 512)),
        (Rule::AreaOrder, area(2, offset_of!(VmArea, next)), direct(AREAS_OF)),
        (Rule::AreaOrder, area(1, offset_of!(VmArea, vm_end)), 0x60_0000),
        (Rule::SpaceSizes, space(offset_of!(MmStruct, total_vm)), 39),
        (Rule::SpaceSizes, space(offset_of!(MmStruct, stack_vm)), 32),
        (Rule::SpaceRss, space(offset_of!(MmStruct, rss_stat)) + 8, 2),
        (Rule::SpaceRss, entry, 0),
        (Rule::SpaceTables, space(offset_of!(MmStruct, pgtables_bytes)), 0x8000),
        (Rule::ProgramTables, USER_TABLES + 0x2010, (USER_TABLES + 0x4000) | Entry::USER_TABLE),
        (Rule::ProgramMapping, USER_TABLES + 0x3010, (u64::from(FRAMES[1]) << 12) | 0x25),
        (Rule::ProgramMapping, USER_TABLES + 0x3000, (u64::from(FRAMES[0]) << 12) | 0x27),
        (Rule::ProgramMapping, zero, (0x3b00 << 12) | 0x25),
        (Rule::CommittedAs, area(1, offset_of!(VmArea, vm_flags)), 0x73),
    ];
    for (number, (rule, at, value)) in cases.into_iter().enumerate() {
        let guest = guest();
        guest.memory.write_u64(at, value);
        let found = broken(&guest);
        assert!(found.contains(&rule), "{number}: {rule} not in {found:?}");
    }
}

#[test]
fn counts_of_pages_are_those_of_programs() {
    let guest = guest();
    guest.set_meta(FRAMES[0], 2, 1);
    guest.set_meta(FRAMES[1], 2, 2);
    assert_eq!(broken(&guest), [Rule::PageMapcount]);
    let guest = self::guest();
    // A page that the program maps twice, with one reference.
    guest.set_meta(FRAMES[0], 2, 1);
    guest.memory.write_u64(USER_TABLES + 0x4010, (u64::from(FRAMES[1]) << 12) | 0x25);
    assert!(broken(&guest).contains(&Rule::ProgramReferences));
}

#[test]
fn an_address_space_that_is_being_changed_is_left_alone() {
    let guest = guest();
    guest.set_meta(FRAMES[0], 2, 1);
    guest.memory.write_u32(SPACE + offset_of!(MmStruct, mmap_lock) as u64, 1 << 31);
    guest.memory.write_u64(SPACE + offset_of!(MmStruct, total_vm) as u64, 1);
    assert_eq!(broken(&guest), []);
}
