//! Events: each kind is recorded exactly when it should be.

use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};
use pagevisor_mm::instrument::FailNth;
use pagevisor_mm::{Hooks, Mm};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::region::event::{EVENT_SLOTS, Event, EventKind, EventRead};
use pagevisor_shared::region::zone::hot;
use pagevisor_shared::units::{CpuId, Pfn, PhysAddr};

use crate::{MIB, assert_sound, order};

const ALL: u64 = (1 << EventKind::ALL.len()) - 1;

fn topology() -> Topology {
    Topology::pages_only().node(&[(0, 640 << 10), (MIB, 96 * MIB)], 1)
}

fn boot(line: &str) -> Machine {
    topology().command_line(line).boot()
}

/// The events of a CPU from position `from` on.
fn events_of(mm: &Mm<HostPlatform>, cpu: usize, mut from: u64) -> Vec<Event> {
    let ring = mm.region().events(CpuId::new(cpu).expect("a CPU")).expect("a ring");
    let mut events = Vec::new();
    loop {
        match ring.read(from) {
            EventRead::Event(event) => events.push(event),
            EventRead::End => return events,
            other => panic!("{other:?}"),
        }
        from += 1;
    }
}

/// What `work` records on CPU 0 while the kinds of `mask` are on.
fn recorded(mm: &Mm<HostPlatform>, mask: u64, work: impl FnOnce()) -> Vec<Event> {
    let start = mm.region().events(CpuId::default()).expect("a ring").head();
    mm.set_events(mask);
    work();
    mm.set_events(0);
    events_of(mm, 0, start)
}

fn kinds(events: &[Event]) -> Vec<EventKind> {
    events.iter().map(|event| event.kind).collect()
}

#[test]
fn allocations_and_frees_are_recorded_with_what_they_were() {
    let machine = boot("");
    let mm = machine.mm();
    machine.platform().set_backtrace(&[0xffff_ffff_8100_1234]);
    let mut pages = Vec::new();
    let events = recorded(mm, EventKind::MmPageAlloc.bit() | EventKind::MmPageFree.bit(), || {
        for raw in [0, 1, 3, 5, 9, 10] {
            let page = mm.alloc_pages(Gfp::KERNEL, order(raw)).expect("a block");
            machine.platform().advance(10);
            mm.free_pages(page, order(raw));
            pages.push((page.raw(), raw as u8));
        }
    });
    assert_eq!(events.len(), 12);
    for ((alloc, free), (pfn, order)) in events.iter().step_by(2).zip(events.iter().skip(1).step_by(2)).zip(&pages) {
        assert_eq!((alloc.kind, free.kind), (EventKind::MmPageAlloc, EventKind::MmPageFree));
        assert_eq!((alloc.pfn, alloc.order, free.pfn, free.order), (*pfn, *order, *pfn, *order));
        assert_eq!((alloc.gfp, alloc.migratetype), (Gfp::KERNEL, MigrateType::Unmovable.index() as u8));
        assert_eq!(alloc.caller, 0xffff_ffff_8100_1234);
        assert_eq!((alloc.cpu, alloc.node), (0, 0));
        assert!(free.tsc > alloc.tsc || *order == 0);
    }
    assert_sound(mm);
}

#[test]
fn nothing_is_recorded_while_it_is_off_and_the_short_ways_are_back() {
    let machine = boot("");
    let mm = machine.mm();
    let head = || mm.region().events(CpuId::default()).expect("a ring").head();
    let work = || {
        let page = mm.alloc_page(Gfp::KERNEL).expect("a page");
        mm.free_page(page);
        mm.drain_all_pages(None);
    };
    work();
    assert_eq!(head(), 0);
    // Kinds that the short ways do not write leave them as they are.
    assert_eq!(mm.set_events(EventKind::MmPagePcpuDrain.bit() | EventKind::CmaRelease.bit()), 0);
    assert_eq!(mm.instrumented(), 0);
    assert_eq!(mm.set_events(EventKind::MmPageFree.bit()), 1 << 4 | 1 << 10);
    assert_eq!(mm.instrumented(), hot::ON | hot::EVENTS);
    work();
    assert_eq!(kinds(&events_of(mm, 0, 0)), [EventKind::MmPageFree]);
    // Bits that are no kind are not kept.
    mm.set_events(!ALL);
    assert_eq!((mm.instrumented(), mm.set_events(0)), (0, 0));
    work();
    assert_eq!(head(), 1);
}

#[test]
fn an_allocation_that_fails_is_recorded_without_a_page() {
    let machine = boot("");
    let mm = machine.mm();
    let events = recorded(mm, ALL & !EventKind::MmPageAllocZoneLocked.bit(), || {
        mm.set_fail_nth(FailNth::of_machine(1)).expect("accepted");
        assert_eq!(mm.alloc_pages(Gfp::KERNEL | Gfp::NOWARN, order(2)), None);
        let all = crate::take_all(mm, Gfp::KERNEL | Gfp::NOWARN, order(10));
        all.iter().for_each(|page| mm.free_pages(*page, order(10)));
    });
    // One that is told to fail never gets as far as to allocate.
    assert_eq!((events[0].kind, events[0].order), (EventKind::FailPageAlloc, 2));
    let failed: Vec<_> = events.iter().filter(|event| event.kind == EventKind::MmPageAlloc && event.pfn == 0).collect();
    assert!(!failed.is_empty());
    assert!(failed.iter().all(|event| event.order == 10));
}

#[test]
fn refills_and_drains_are_recorded_block_by_block() {
    let machine = boot("");
    let mm = machine.mm();
    let mask = EventKind::MmPageAllocZoneLocked.bit() | EventKind::MmPagePcpuDrain.bit();
    let mut page = Pfn::new(0);
    let refill = recorded(mm, mask, || page = mm.alloc_page(Gfp::KERNEL | Gfp::MOVABLE).expect("a page"));
    let pcp = &mm.region().pcps_of(CpuId::default())[usize::from(refill[0].zone)];
    let on_list = pcp.count.load(std::sync::atomic::Ordering::Relaxed) as usize;
    assert_eq!(refill.len(), on_list + 1);
    let movable = MigrateType::Movable.index() as u8;
    assert!(refill.iter().all(|event| {
        let what = (event.kind, event.order, event.migratetype, event.args[0]);
        what == (EventKind::MmPageAllocZoneLocked, 0, movable, 1)
    }));
    assert_eq!(refill[0].pfn, page.raw());
    assert!(refill.windows(2).all(|pair| pair[1].pfn == pair[0].pfn + 1));
    mm.free_page(page);
    let drain = recorded(mm, mask, || mm.drain_all_pages(None));
    assert_eq!(drain.len(), on_list + 1);
    assert!(drain.iter().all(|event| (event.kind, event.order) == (EventKind::MmPagePcpuDrain, 0)));
    let sorted = |events: &[Event]| {
        let mut frames: Vec<_> = events.iter().map(|event| event.pfn).collect();
        frames.sort_unstable();
        frames
    };
    assert_eq!(sorted(&drain), sorted(&refill));
    // The oldest goes first: the page that was freed last comes last.
    assert_eq!(drain.last().map(|event| event.pfn), Some(page.raw()));
    // Blocks too large for pagesets come from the lists and are no refill.
    let large = recorded(mm, mask, || page = mm.alloc_pages(Gfp::KERNEL, order(5)).expect("a block"));
    assert_eq!((large.len(), large[0].pfn, large[0].order, large[0].args[0]), (1, page.raw(), 5, 0));
    mm.free_pages(page, order(5));
    assert_sound(mm);
}

#[test]
fn taking_from_another_type_is_recorded_with_what_became_of_the_page_block() {
    let machine = boot("");
    let mm = machine.mm();
    // All memory is movable at first, so the first unmovable page takes a whole page block.
    let mut page = Pfn::new(0);
    let events = recorded(mm, EventKind::MmPageAllocExtfrag.bit(), || {
        page = mm.alloc_pages(Gfp::KERNEL, order(4)).expect("a block");
    });
    let unmovable: Vec<_> = events.iter().map(|event| (event.order, event.args)).collect();
    let movable = MigrateType::Movable.index() as u64;
    assert!(matches!(unmovable[..], [(4, [_, kind, 1])] if kind == movable), "{unmovable:?}");
    assert_eq!(events[0].migratetype, MigrateType::Unmovable.index() as u8);
    assert_eq!(mm.pageblock_migratetype(Pfn::new(events[0].pfn)), MigrateType::Unmovable);
    mm.free_pages(page, order(4));
}

#[test]
fn contiguous_areas_record_their_allocations() {
    let machine = topology().reserve(32 * MIB, 40 * MIB).boot();
    let mm = machine.mm();
    let range = PhysAddr::new(32 * MIB)..PhysAddr::new(40 * MIB);
    let area = mm.cma_init_reserved_mem(&range).expect("an area");
    let mut pages = None;
    let mask = EventKind::CmaAllocStart.bit() | EventKind::CmaAllocFinish.bit() | EventKind::CmaRelease.bit();
    let events = recorded(mm, mask | EventKind::TestPagesIsolated.bit(), || {
        let first = mm.cma_alloc(area, 100, order(3)).expect("pages");
        assert!(mm.cma_release(area, first, 100));
        assert!(!mm.cma_release(area, first, 100));
        assert_eq!(mm.cma_alloc(area, 2048, order(9)).map(|_| ()), Some(()));
        assert_eq!(mm.cma_alloc(area, 1, order(0)), None);
        assert_eq!(mm.cma_alloc(area, 2049, order(0)), None);
        pages = Some(first.raw());
    });
    use EventKind::{CmaAllocFinish, CmaAllocStart, CmaRelease, TestPagesIsolated};
    let (first, what) = (pages.expect("set"), kinds(&events));
    let once = [CmaAllocStart, TestPagesIsolated, CmaAllocFinish];
    assert_eq!(what[..3], once);
    assert_eq!(what[3], CmaRelease);
    assert_eq!(what[4..7], once);
    assert_eq!(what[7..], [CmaAllocStart, CmaAllocFinish]);
    assert_eq!((events[0].pfn, events[0].args), (0, [100, 3, 0]));
    assert_eq!((events[2].pfn, events[2].args), (first, [100, 3, 0]));
    assert_eq!((events[3].pfn, events[3].args), (first, [100, 0, 0]));
    let [start, end, stop] = events[1].args;
    assert!(start <= first && end == first + 100 && stop >= end, "{:?}", events[1]);
    assert_eq!((events[8].pfn, events[8].args), (0, [1, 0, 0]));
}

#[test]
fn testing_an_isolation_tells_where_it_failed() {
    let machine = boot("");
    let mm = machine.mm();
    let range = Pfn::new(16384)..Pfn::new(16384 + 512);
    let events = recorded(mm, EventKind::TestPagesIsolated.bit(), || {
        assert!(!mm.test_pages_isolated(&range));
        mm.start_isolate_page_range(&range, MigrateType::Movable).expect("nothing is in use");
        assert!(mm.test_pages_isolated(&range));
        mm.undo_isolate_page_range(&range, MigrateType::Movable);
    });
    let args: Vec<_> = events.iter().map(|event| event.args).collect();
    assert_eq!(args, [[16384, 16896, 16384], [16384, 16896, 16896]]);
}

#[test]
fn waking_background_reclaim_is_recorded_where_there_is_any() {
    let mask = EventKind::MmVmscanWakeupKswapd.bit();
    let exhaust = |mm: &Mm<HostPlatform>| {
        recorded(mm, mask, || {
            let all = crate::take_all(mm, Gfp::KERNEL | Gfp::NOWARN, order(0));
            all.iter().for_each(|page| mm.free_page(*page));
        })
    };
    assert_eq!(exhaust(boot("").mm()), []);
    let hooks = Hooks { wake_kswapd: Some(|_, _| {}), ..Hooks::none() };
    let machine = topology().try_boot(hooks).expect("boots");
    let events = exhaust(machine.mm());
    assert!(!events.is_empty());
    assert!(events.iter().any(|event| (event.node, event.order) == (0, 0) && event.gfp.contains(Gfp::KERNEL)));
}

#[test]
fn each_cpu_has_a_ring_and_the_command_line_starts_recording() {
    let machine = Topology::pages_only()
        .node(&[(MIB, 64 * MIB)], 1)
        .node(&[(64 * MIB, 128 * MIB)], 1)
        .command_line("trace_event=kmem:mm_page_alloc,mm_page_free quiet")
        .boot();
    let mm = machine.mm();
    assert_eq!(mm.instrumented(), hot::ON | hot::EVENTS);
    let page = machine.on_cpu(1, |mm| mm.alloc_page(Gfp::KERNEL)).expect("a page");
    mm.free_page(page);
    let (mine, other) = (events_of(mm, 0, 0), events_of(mm, 1, 0));
    assert_eq!((kinds(&mine), kinds(&other)), (vec![EventKind::MmPageFree], vec![EventKind::MmPageAlloc]));
    assert_eq!((mine[0].cpu, mine[0].node, mine[0].pfn), (0, 1, page.raw()));
    assert_eq!((other[0].cpu, other[0].node, other[0].pfn), (1, 1, page.raw()));
    let refused = boot("trace_event=mm_page_alloc,no_such_event");
    assert_eq!(refused.mm().instrumented(), 0);
    assert!(refused.log_text().contains("Malformed early option 'trace_event=mm_page_alloc,no_such_event'"));
}

#[test]
fn a_full_ring_overwrites_the_oldest() {
    let machine = boot("trace_event=mm_page_free");
    let mm = machine.mm();
    for _ in 0..EVENT_SLOTS + 100 {
        let page = mm.alloc_page(Gfp::KERNEL).expect("a page");
        mm.free_page(page);
    }
    let ring = mm.region().events(CpuId::default()).expect("a ring");
    assert_eq!(ring.head(), EVENT_SLOTS as u64 + 100);
    assert_eq!(ring.read(0), EventRead::Lost(ring.oldest()));
    assert_eq!(events_of(mm, 0, ring.oldest()).len(), EVENT_SLOTS - 1);
}
