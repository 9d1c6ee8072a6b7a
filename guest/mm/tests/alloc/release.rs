//! Many single pages given up at once: as one by one, and recorded as Linux records it.

use pagevisor_mm::Mm;
use pagevisor_mm::check::{free_list, pageset_list};
use pagevisor_mm::hosted::HostPlatform;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::region::event::{EventKind, EventRead};
use pagevisor_shared::region::zone::NR_PCP_LISTS;
use pagevisor_shared::units::{CpuId, Order, Pfn};
use pagevisor_shared::vmstat::VmEvent;
use proptest::prelude::*;

use crate::{assert_sound, order, small, two_nodes};

/// Everything that a free may change: all lists and counts.
fn state(mm: &Mm<HostPlatform>) -> (Vec<Vec<Pfn>>, Vec<u64>) {
    let (mut lists, mut counts) = (Vec::new(), vec![mm.vm_event(VmEvent::Pgfree)]);
    for (zone, state) in mm.populated_zones() {
        for raw in 0..11 {
            lists.extend(MigrateType::ALL.iter().map(|kind| free_list(mm, zone, order(raw), *kind)));
        }
        lists.extend((0..NR_PCP_LISTS).map(|pindex| pageset_list(mm, CpuId::default(), zone, pindex)));
        counts.extend(state.vm_stat.iter().map(|word| word.load(std::sync::atomic::Ordering::Relaxed) as u64));
    }
    (lists, counts)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Pages of all zones and types, some in use twice, some given up twice.
    #[test]
    fn the_result_is_that_of_one_by_one(
        wanted in proptest::collection::vec((0usize..4, 1usize..90), 1..20),
        chunk in 1usize..100, swaps in any::<Vec<(u16, u16)>>(), shared in 0usize..50, twice in 0usize..50,
    ) {
        const GFPS: [Gfp; 4] = [Gfp::KERNEL, Gfp::HIGHUSER_MOVABLE, Gfp::KERNEL.with(Gfp::DMA), Gfp::KERNEL.with(Gfp::DMA32)];
        let machines = [two_nodes(), two_nodes()];
        let [mut at_once, mut one_by_one] = [&machines[0], &machines[1]].map(|machine| {
            let mm = machine.mm();
            let gfps = wanted.iter().flat_map(|&(which, count)| std::iter::repeat_n(GFPS[which], count));
            let mut pages: Vec<Pfn> = gfps.map(|gfp| mm.alloc_pages(gfp, Order::ZERO).expect("a page")).collect();
            let len = pages.len();
            swaps.iter().for_each(|&(a, b)| pages.swap(usize::from(a) % len, usize::from(b) % len));
            pages.get(shared).inspect(|pfn| assert!(mm.get_page(**pfn)));
            pages.extend(pages.get(twice).copied());
            pages
        });
        prop_assert_eq!(&at_once, &one_by_one);
        at_once.chunks_mut(chunk).for_each(|pages| machines[0].mm().release_pages(pages));
        one_by_one.drain(..).for_each(|pfn| machines[1].mm().free_pages(pfn, Order::ZERO));
        prop_assert_eq!(state(machines[0].mm()), state(machines[1].mm()));
        let said = |line: &&str| line.contains("BUG") || line.contains("because");
        let reports = machines.each_ref().map(|machine| {
            machine.log_text().lines().filter(said).map(str::to_owned).collect::<Vec<_>>()
        });
        prop_assert_eq!(&reports[0], &reports[1]);
        assert_sound(machines[0].mm());
    }
}

#[test]
fn each_page_is_recorded_when_it_is_ready_and_when_it_is_on_its_list() {
    let machine = small();
    let mm = machine.mm();
    let pages: Vec<Pfn> = (0..40).map(|_| mm.alloc_pages(Gfp::KERNEL, Order::ZERO).expect("a page")).collect();
    // One stays in use, one is not there, one is not single.
    assert!(mm.get_page(pages[7]));
    let block = mm.alloc_pages(Gfp::KERNEL, order(3)).expect("a block");
    let given = [&pages[..], &[Pfn::new(1 << 40), block]].concat();
    mm.set_events(EventKind::MmPageFree.bit() | EventKind::MmPageFreeBatched.bit());
    mm.release_pages(&mut given.clone());
    mm.set_events(0);
    let ring = mm.region().events(CpuId::default()).expect("a ring");
    let events: Vec<_> = (0..ring.head())
        .map(|at| match ring.read(at) {
            EventRead::Event(event) => (event.kind, Pfn::new(event.pfn), event.order),
            other => panic!("{other:?}"),
        })
        .collect();
    let freed = pages.iter().enumerate().filter(|(at, _)| *at != 7).map(|(_, pfn)| *pfn);
    let all = |kind| freed.clone().map(move |pfn| (kind, pfn, 0)).collect::<Vec<_>>();
    assert_eq!(events, [all(EventKind::MmPageFree), all(EventKind::MmPageFreeBatched)].concat());
    mm.free_pages(pages[7], Order::ZERO);
    mm.free_pages(block, order(3));
}

#[test]
fn pages_of_an_isolated_block_stay_there() {
    let machine = small();
    let mm = machine.mm();
    let mut allocated = core::iter::from_fn(|| mm.alloc_pages(Gfp::HIGHUSER_MOVABLE, order(3)));
    let first = allocated.find(|pfn| pfn.is_aligned(order(9))).expect("a block");
    mm.split_page(first, order(3));
    let mut pages: Vec<Pfn> = (0..8).map(|page| first.add(page)).collect();
    // Pages on LRU lists can be moved, so their block can be isolated.
    assert!(!pages.iter().any(|pfn| mm.page(*pfn).expect("memory").set_flag(PageFlag::Lru)));
    mm.start_isolate_page_range(&(first..first.add(8)), MigrateType::Movable).expect("it is isolated");
    assert!(pages.iter().all(|pfn| mm.page(*pfn).expect("memory").clear_flag(PageFlag::Lru)));
    mm.set_events(EventKind::MmPageFreeBatched.bit());
    let freed = mm.vm_event(VmEvent::Pgfree);
    mm.release_pages(&mut pages);
    assert_eq!(mm.vm_event(VmEvent::Pgfree), freed + 8);
    // They are not on a pageset, and were not on their way to one.
    assert!(mm.test_pages_isolated(&(first..first.add(8))));
    assert_eq!(mm.region().events(CpuId::default()).expect("a ring").head(), 0);
    assert_sound(mm);
}
