//! Damaged programs: tasks, address spaces, areas, families, files and page tables.

use std::mem::offset_of;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::mm_types::{AddressSpace, AnonVma, AnonVmaChain, MappedFile, MmStruct, PageNode, VmArea};
use pagevisor_shared::region::GuestState;
use pagevisor_shared::vmalloc::RB_BLACK;

use super::{Random, cases};
use crate::report::View;
use crate::state::fake::programs::{AREAS_OF, FRAMES, SPACE, TASKS, USER_TABLES};
use crate::state::fake::slabs::direct;
use crate::state::fake::{FakeGuest, meta_gpa};
use crate::verify::verify;

/// Where families, links, and nodes of the file's tree are; and the table of numbers.
const FAMILIES: u64 = TASKS + 0x4000;
const NODES: u64 = TASKS + 0x5000;
const NUMBERS: u64 = TASKS + 0x6000;
/// The mapped file, and its pages' record.
const FILE: u64 = TASKS + 0x3000;
const MAPPING: u64 = FILE + 256;

/// All views of programs.
const VIEWS: [&str; 13] = [
    "ps",
    "pid/1/maps",
    "pid/1/smaps",
    "pid/1/smaps_rollup",
    "pid/1/status",
    "pid/1/statm",
    "pid/1/numa_maps",
    "pid/1/pagemap",
    "pid/2/status",
    "vm 1",
    "vm -p 1",
    "vtop 1 601123",
    "vtop 1 7fffffffe000",
];

/// Adds what only the verifier looks at: the tree of areas, the family of two of them, the file's tree.
fn complete(guest: &FakeGuest) {
    let put = |at: u64, offset: usize, value: u64| guest.memory.write_u64(at + offset as u64, value);
    let area = |number: u64| AREAS_OF + number * 256;
    put(SPACE, offset_of!(MmStruct, mm_rb), direct(area(1)));
    put(SPACE, offset_of!(MmStruct, highest_vm_end), 0x7fff_ffff_f000);
    put(area(1), offset_of!(VmArea, parent), RB_BLACK);
    put(area(1), offset_of!(VmArea, left), direct(area(0)));
    put(area(1), offset_of!(VmArea, right), direct(area(2)));
    put(area(0), offset_of!(VmArea, parent), direct(area(1)));
    put(area(2), offset_of!(VmArea, parent), direct(area(1)));
    let stack_gap = 0x7fff_fffd_e000 - 0x10_0000 - 0x60_3000;
    for (number, gap) in [(0, 0x40_0000), (1, stack_gap), (2, stack_gap)] {
        put(area(number), offset_of!(VmArea, subtree_gap), gap);
    }
    // The heap and the stack are of one family, the first of its two links leads to the stack.
    let links = [FAMILIES + 64, FAMILIES + 128];
    guest.memory.write_u32(FAMILIES + offset_of!(AnonVma, id) as u64, 5);
    for (offset, value) in [
        (offset_of!(AnonVma, refcount), 1),
        (offset_of!(AnonVma, num_children), 1),
        (offset_of!(AnonVma, num_active_vmas), 2),
    ] {
        guest.memory.write_u32(FAMILIES + offset as u64, value);
    }
    put(FAMILIES, offset_of!(AnonVma, root), direct(FAMILIES));
    put(FAMILIES, offset_of!(AnonVma, parent), direct(FAMILIES));
    put(FAMILIES, offset_of!(AnonVma, chain), direct(links[1]));
    put(links[1], offset_of!(AnonVmaChain, next), direct(links[0]));
    put(links[0], offset_of!(AnonVmaChain, prev), direct(links[1]));
    for (link, number) in links.into_iter().zip([1, 2]) {
        put(link, offset_of!(AnonVmaChain, vma), direct(area(number)));
        put(link, offset_of!(AnonVmaChain, anon_vma), direct(FAMILIES));
        put(area(number), offset_of!(VmArea, anon_vma), direct(FAMILIES));
        put(area(number), offset_of!(VmArea, anon_vma_chain), direct(link));
    }
    put(FILE, offset_of!(MappedFile, mapping), direct(MAPPING));
    guest.memory.write_u32(MAPPING + offset_of!(AddressSpace, id) as u64, 9);
    put(MAPPING, offset_of!(AddressSpace, i_mmap), direct(area(0)));
    put(MAPPING, offset_of!(AddressSpace, nrpages), 1);
    put(MAPPING, offset_of!(AddressSpace, i_pages), direct(NODES) | 2);
    guest.memory.write_u64(NODES, direct(NODES + 512));
    guest.memory.write_u64(NODES + 512, PageNode::entry(FRAMES[0]));
    for (number, to) in [(5, FAMILIES), (9, MAPPING)] {
        guest.memory.write_u64(NUMBERS, NUMBERS + 4096);
        guest.memory.write_u64(NUMBERS + 4096, NUMBERS + 8192);
        guest.memory.write_u64(NUMBERS + 8192 + number * 8, direct(to));
    }
    guest.region().header().roots.mappings.store(NUMBERS, Relaxed);
    // A guest that is down is not looked at again and again.
    guest.region().header().state.store(GuestState::Panicked as u32, Relaxed);
}

/// Where to damage.
fn place(random: &mut Random) -> u64 {
    match random.below(10) {
        0 => TASKS + random.below(2) * 256 + random.below(32) * 8,
        1 | 2 => SPACE + random.below(48) * 8,
        3 | 4 => AREAS_OF + random.below(3) * 256 + random.below(24) * 8,
        5 => FILE + random.below(48) * 8,
        6 => FAMILIES + random.below(24) * 8,
        7 => [NODES + random.below(128) * 8, NUMBERS + random.below(3) * 4096 + random.below(16) * 8]
            [random.below(2) as usize],
        8 => USER_TABLES + random.below(8 * 512) * 8,
        _ => meta_gpa(FRAMES[random.below(5) as usize]) + random.below(4) * 8,
    }
}

#[test]
fn damaged_programs() {
    let guest = FakeGuest::new().with_programs();
    complete(&guest);
    let whole = verify(&guest.view(), &[]).unwrap();
    let told = |name: &str| whole.findings.iter().any(|finding| finding.rule.name().starts_with(name));
    for rules in ["area-", "family-", "mapping-", "file-", "program-tables", "task-list", "space-list", "space-sizes"] {
        assert!(!told(rules), "{rules}: {:#?}", whole.findings);
    }
    cases("damaged programs", |random| {
        let damage: Vec<_> = (0..=random.below(3))
            .map(|_| {
                let gpa = place(random);
                let old = guest.memory.read_u64(gpa);
                guest.memory.write_u64(gpa, random.edge(old));
                (gpa, old)
            })
            .collect();
        if let Ok(view) = guest.try_view() {
            match VIEWS.get(random.below(VIEWS.len() as u64 + 5) as usize) {
                Some(name) => {
                    let parsed: View = name.parse().unwrap();
                    drop(parsed.render(&view, random.below(2) == 0, &mut Vec::new()));
                }
                None => drop(verify(&view, &[]).unwrap()),
            }
        }
        for (gpa, old) in damage.into_iter().rev() {
            guest.memory.write_u64(gpa, old);
        }
    });
    assert_eq!(verify(&guest.view(), &[]).unwrap().findings, whole.findings, "the damage was not mended");
}
