//! What tests compare: violations and lists as vectors.

use std::vec::Vec;

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::region::zone::ListHead;
use pagevisor_shared::units::{CpuId, Order, Pfn};
use pagevisor_shared::zone::ZoneIndex;

use super::{AreaViolation, ChunkViolation, Violation, verify, verify_percpu, verify_spaces, verify_vmalloc};
use crate::Mm;
use crate::list;
use crate::mmap::{Space, could_be_one};
use crate::platform::Platform;
use crate::sync::Plain;

/// As [`verify`], all at once.
pub fn violations<P: Platform>(mm: &Mm<P>) -> Vec<Violation> {
    let mut found = Vec::new();
    verify(mm, &mut |violation| found.push(violation));
    found
}

/// As [`verify_vmalloc`], all at once.
pub fn area_violations<P: Platform>(mm: &Mm<P>) -> Vec<AreaViolation> {
    let mut found = Vec::new();
    verify_vmalloc(mm, &mut |violation| found.push(violation));
    found
}

/// As [`verify_spaces`], all at once.
pub fn space_violations<P: Platform>(mm: &Mm<P>) -> Vec<AreaViolation> {
    let mut found = Vec::new();
    verify_spaces(mm, &mut |violation| found.push(violation));
    found
}

/// Neighbours in `space` that would be one area if one of them had come last, by their common address. Areas that were
/// made so by other means than a new meaning for a range (a fork, stacks that grow) may be among them.
pub fn unmerged_areas<P: Platform>(_mm: &Mm<P>, space: Space) -> Vec<u64> {
    let areas = core::iter::successors(space.first_vma(), |vma| vma.next());
    let pairs = areas.filter_map(|vma| Some((vma, vma.next()?)));
    let one = pairs.filter(|(vma, next)| vma.end() == next.start() && could_be_one::<P>(*vma, *next));
    one.map(|(_, next)| next.start()).collect()
}

/// As [`verify_percpu`], all at once.
pub fn chunk_violations<P: Platform>(mm: &Mm<P>) -> Vec<ChunkViolation> {
    let mut found = Vec::new();
    verify_percpu(mm, &mut |violation| found.push(violation));
    found
}

/// The blocks of a zone's free list, first first. For tests; at most as many as its counter promises.
pub fn free_list<P: Platform>(mm: &Mm<P>, zone: ZoneIndex, order: Order, kind: MigrateType) -> Vec<Pfn> {
    let Some(state) = mm.zone(zone) else { return Vec::new() };
    let area = &state.free_area[order.index()];
    follow(mm, &area.free_list[kind.index()], area.nr_free[kind.index()].get())
}

/// The blocks of a pageset list, first first. For tests.
pub fn pageset_list<P: Platform>(mm: &Mm<P>, cpu: CpuId, zone: ZoneIndex, pindex: usize) -> Vec<Pfn> {
    let Some(pcp) = mm.region().pcps_of(cpu).get(zone.index()) else { return Vec::new() };
    follow(mm, &pcp.lists[pindex], pcp.count.get() as u64)
}

/// Frames of a list, at most `most`.
fn follow<P: Platform>(mm: &Mm<P>, head: &ListHead, most: u64) -> Vec<Pfn> {
    let mut frames = Vec::new();
    let mut pfn = head.first.get();
    while pfn != 0 && (frames.len() as u64) < most {
        frames.push(Pfn::new(pfn as u64));
        pfn = list::next(pfn, mm.memmap().page(pfn));
    }
    frames
}
