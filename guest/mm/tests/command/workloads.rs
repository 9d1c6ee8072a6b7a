//! Workloads: what they report, that they can be repeated, that they leave nothing behind.

use pagevisor_mm::check::free_list;
use pagevisor_shared::command::workload::{Count, Kind, Mark, Params, Phase, Report, TraceRecord};
use pagevisor_shared::command::{Op, Placement};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::event::{EventKind, EventRead};
use pagevisor_shared::units::{CpuId, NodeId, NodeMask, Order, Pfn};
use pagevisor_shared::vmstat::ZoneStat;
use pagevisor_shared::zone::MAX_NR_ZONES;

use crate::{Guest, cpus, small, two_nodes};

pub fn count(report: &[u64], which: Count) -> u64 {
    report[which as usize]
}

pub fn free_pages(guest: &Guest) -> u64 {
    let mm = guest.machine.mm();
    mm.drain_all_pages(None);
    mm.populated_zones().map(|(index, _)| mm.zone_page_state_snapshot(index, ZoneStat::NrFreePages)).sum()
}

fn placed(report: &[u64], nodes: usize) -> Vec<u64> {
    let table = &report[Report::placement()..Report::accesses(nodes)];
    table.chunks(MAX_NR_ZONES).map(|node| node.iter().sum()).collect()
}

pub fn of(kind: Kind) -> Params {
    Params { gfp: Gfp::KERNEL | Gfp::NOWARN, ..Params::new(kind) }
}

pub fn order(raw: u32) -> Order {
    Order::new(raw).expect("an order")
}

#[test]
fn every_kind_gives_back_what_it_took() {
    let guest = two_nodes();
    let before = free_pages(&guest);
    for kind in Kind::ALL.into_iter().filter(|kind| kind.is_of_pages()) {
        for lanes in [cpus(&[]), cpus(&[0]), cpus(&[1, 2]), cpus(&[0, 1, 3]), cpus(&[0, 1, 2, 3])] {
            let params = Params { ops: 500, cpus: lanes, fill: 20, touch: 1, order: order(1), ..of(kind) };
            let cpu = lanes.iter().next().unwrap_or_default();
            let records = [
                TraceRecord::Alloc { cpu, id: 3, order: order(1), gfp: Gfp::KERNEL }.encode(),
                TraceRecord::Alloc { cpu, id: 900, order: order(2), gfp: Gfp::KERNEL }.encode(),
                TraceRecord::Free { cpu, id: 900 }.encode(),
                TraceRecord::Alloc { cpu, id: 900, order: order(0), gfp: Gfp::KERNEL }.encode(),
            ];
            let report = guest.run(&Params { records: records.len() as u32, ids: 901, ..params }, &records);
            let (allocs, freed) = (count(&report, Count::Allocs), count(&report, Count::Freed));
            assert_eq!(allocs, freed, "{kind:?} {lanes}");
            assert!(allocs > 2, "{kind:?} {lanes}: {allocs}");
            assert_eq!((count(&report, Count::Kept), count(&report, Count::Nodes)), (0, 2));
            assert_eq!(free_pages(&guest), before, "{kind:?} {lanes}");
            guest.assert_sound();
        }
    }
}

/// All free lists, in order.
pub fn free_lists(guest: &Guest) -> Vec<Vec<Pfn>> {
    let mm = guest.machine.mm();
    let kinds = pagevisor_shared::migrate::MigrateType::ALL;
    let mut lists = Vec::new();
    for (zone, _) in mm.populated_zones() {
        for raw in 0..11 {
            lists.extend(kinds.iter().map(|kind| free_list(mm, zone, order(raw), *kind)));
        }
    }
    lists
}

#[test]
fn the_same_again() {
    let run = || {
        let guest = two_nodes();
        let mut mix = [0; 11];
        mix[..4].copy_from_slice(&[8, 4, 2, 1]);
        let params = Params { ops: 3000, seed: 42, mix, touch: 2, keep: true, ..of(Kind::Random) };
        let mut report = guest.run(&params, &[]);
        report[Count::Ticks as usize] = 0;
        let lists = free_lists(&guest);
        (report, lists)
    };
    let (first, second) = (run(), run());
    assert_eq!(first, second);
    assert!(count(&first.0, Count::Kept) > 0);
}

#[test]
fn what_is_kept_is_released() {
    let guest = small();
    let before = free_pages(&guest);
    let report = guest.run(&Params { ops: 100, order: order(2), keep: true, ..of(Kind::Sequential) }, &[]);
    assert_eq!(count(&report, Count::Kept), 100);
    guest.run(&Params { ops: 10, keep: true, ..of(Kind::Access) }, &[]);
    assert!(before - free_pages(&guest) > 400);
    assert!(guest.ok(Op::ReleaseWorkload) > 100);
    assert_eq!(guest.ok(Op::ReleaseWorkload), 0);
    assert_eq!(free_pages(&guest), before);
}

#[test]
fn placement_and_accesses_are_counted() {
    let guest = two_nodes();
    let one = NodeId::new(1).expect("a node");
    let params = Params { ops: 64, touch: 3, placement: Placement::Preferred(one), ..of(Kind::Sequential) };
    let report = guest.run(&params, &[]);
    assert_eq!(placed(&report, 2), [0, 64]);
    // Each line is written and read.
    assert_eq!(report[Report::accesses(2)..Report::accesses(2) + 4], [0, 64 * 6, 0, 0]);
    let both = Placement::Interleave(NodeMask(3));
    let report = guest.run(&Params { ops: 64, placement: both, ..of(Kind::Sequential) }, &[]);
    assert_eq!(placed(&report, 2), [32, 32]);
    let report = guest.run(&Params { ops: 1000, fill: 5, placement: both, ..of(Kind::Access) }, &[]);
    let accesses = &report[Report::accesses(2)..Report::accesses(2) + 4];
    assert_eq!(accesses.iter().sum::<u64>(), 1000);
    assert!(accesses[0] > 400 && accesses[1] > 400, "{accesses:?}");
}

#[test]
fn a_node_runs_out() {
    let guest = two_nodes();
    let one = NodeId::new(1).expect("a node");
    let report = guest.run(&Params { ops: 500, placement: Placement::Preferred(one), ..of(Kind::NodeExhaust) }, &[]);
    assert_eq!(count(&report, Count::NodeFallback), 500);
    assert_eq!(placed(&report, 2)[0], 500);
    let report = guest.run(&of(Kind::DmaExhaust), &[]);
    assert!(count(&report, Count::Allocs) > 1000 && count(&report, Count::Failed) == 1, "{:?}", &report[..10]);
}

#[test]
fn fragmented_memory_has_no_large_blocks() {
    let guest = small();
    let params = |nth| Params { ops: 8, fill: 95, nth, order: order(9), ..of(Kind::Fragment) };
    let apart = guest.run(&params(2), &[]);
    let together = guest.run(&params(1 << 20), &[]);
    assert_eq!((count(&apart, Count::Tries), count(&together, Count::Tries)), (8, 8));
    assert!(count(&apart, Count::Hits) < count(&together, Count::Hits), "{:?}\n{:?}", &apart[..10], &together[..10]);
}

/// The marks in a CPU's ring, and the other events between them, which go by `None`.
fn marks(guest: &Guest, cpu: usize) -> Vec<Option<Mark>> {
    let ring = guest.machine.mm().region().events(CpuId::new(cpu).expect("a CPU")).expect("a ring");
    let mut marks = Vec::new();
    for at in 0..ring.head() {
        let EventRead::Event(event) = ring.read(at) else { panic!("the ring has room for all") };
        assert_eq!(usize::from(event.cpu), cpu);
        marks.push((event.kind == EventKind::WorkloadMark).then(|| Mark::decode(&event).expect("a mark")));
    }
    marks
}

/// Parts as they begin (`true`) and end.
fn parts(marks: &[Option<Mark>]) -> Vec<(Phase, bool)> {
    marks.iter().flatten().map(|mark| (mark.phase, !mark.end)).collect()
}

#[test]
fn marks_tell_what_runs_where() {
    let guest = two_nodes();
    guest.machine.mm().set_events(EventKind::WorkloadMark.bit());
    let params = Params { ops: 4, seed: 9, order: order(9), fill: 1, cpus: cpus(&[1, 3]), ..of(Kind::Fragment) };
    guest.run(&params, &[]);
    let one_after_another = |phases: &[Phase]| {
        let inner = phases.iter().flat_map(|&phase| [(phase, true), (phase, false)]);
        let whole = [(Phase::Whole, true), (Phase::Whole, false)];
        [whole[0]].into_iter().chain(inner).chain([whole[1]]).collect::<Vec<_>>()
    };
    for (lane, cpu) in [(0, 1), (1, 3)] {
        let marks = marks(&guest, cpu);
        assert_eq!(parts(&marks), one_after_another(&[Phase::Fill, Phase::Thin, Phase::Probe, Phase::Release]));
        for mark in marks.into_iter().flatten() {
            assert_eq!(mark, Mark::new(&params, mark.phase, mark.end, lane));
        }
    }
    assert_eq!((marks(&guest, 0), marks(&guest, 2)), (vec![], vec![]));
    // What is kept is not released.
    let guest = small();
    guest.machine.mm().set_events(EventKind::WorkloadMark.bit());
    guest.run(&Params { keep: true, ops: 8, ..of(Kind::Random) }, &[]);
    assert_eq!(parts(&marks(&guest, 0)), one_after_another(&[]));
}

#[test]
fn the_marks_of_every_kind_are_pairs_around_what_it_does() {
    for kind in Kind::ALL.into_iter().filter(|kind| kind.is_of_pages()) {
        let guest = small();
        guest.machine.mm().set_events(EventKind::WorkloadMark.bit() | EventKind::MmPageAlloc.bit());
        let cpu = CpuId::default();
        let records = [TraceRecord::Alloc { cpu, id: 3, order: order(0), gfp: Gfp::KERNEL }.encode()];
        let limited = kind != Kind::DmaExhaust && kind != Kind::NodeExhaust;
        let params = Params {
            ops: 20,
            hold: 20,
            fill: 1,
            records: 1,
            ids: 4,
            order: order(if limited { 0 } else { 9 }),
            ..of(kind)
        };
        guest.run(&params, &records);
        let marks = marks(&guest, 0);
        let mut open = Vec::new();
        let (mut inside, mut phases) = (0, 0);
        for mark in &marks {
            match mark {
                None => inside += usize::from(!open.is_empty()),
                Some(mark) if mark.end => assert_eq!(open.pop(), Some(mark.phase), "{kind:?}"),
                Some(mark) => {
                    assert_eq!(open.is_empty(), mark.phase == Phase::Whole, "{kind:?}");
                    assert!(open.len() < 2 && mark.kind == kind);
                    open.push(mark.phase);
                    phases += 1;
                }
            }
        }
        assert!(open.is_empty() && inside > 0 && phases > 0, "{kind:?}: {marks:?}");
    }
}
