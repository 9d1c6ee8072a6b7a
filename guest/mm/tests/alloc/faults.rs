//! Allocations that are made to fail, and the switch that lets the general way see every allocation.

use pagevisor_mm::instrument::{BadFault, FailNth, FaultAttr};
use pagevisor_mm::platform::Level;
use pagevisor_mm::{Mm, hosted::HostPlatform};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::records::FaultState;
use pagevisor_shared::region::zone::hot;
use pagevisor_shared::units::{CpuId, Order};
use proptest::prelude::*;

use super::{assert_sound, order, small, two_nodes};

/// Everything may fail, always.
const ALL: FaultAttr = FaultAttr {
    probability: 100,
    times: -1,
    min_order: 0,
    ignore_gfp_reclaim: false,
    ignore_gfp_highmem: false,
    ..FaultAttr::new()
};

fn state(mm: &Mm<HostPlatform>) -> &'static FaultState {
    &mm.region().sysctl().fail_page_alloc
}

/// Allocates and frees `count` pages; tells for each whether it was there.
fn attempts(mm: &Mm<HostPlatform>, gfp: Gfp, order: Order, count: usize) -> Vec<bool> {
    let attempt = |_| {
        let page = mm.alloc_pages(gfp, order);
        page.inspect(|page| mm.free_pages(*page, order)).is_some()
    };
    (0..count).map(attempt).collect()
}

#[test]
fn nothing_fails_unless_asked_for() {
    let machine = small();
    let mm = machine.mm();
    assert_eq!(mm.instrumented(), 0);
    assert!(attempts(mm, Gfp::KERNEL, Order::ZERO, 50).iter().all(|there| *there));
    mm.set_fail_page_alloc(FaultAttr::new()).expect("Linux's own");
    assert_eq!(mm.instrumented(), 0, "a probability of 0 looks at nothing");
    mm.set_fail_page_alloc(ALL).expect("possible");
    assert_eq!(mm.instrumented(), hot::ON | hot::FAIL_PAGE_ALLOC);
    assert!(attempts(mm, Gfp::KERNEL, Order::ZERO, 5).iter().all(|there| !there));
    mm.set_fail_page_alloc(FaultAttr::new()).expect("Linux's own");
    assert!(attempts(mm, Gfp::KERNEL, Order::ZERO, 50).iter().all(|there| *there));
    assert!(mm.region().pcps().iter().all(|pcp| pcp.lock.load(std::sync::atomic::Ordering::Relaxed) == 0));
    assert_sound(mm);
}

#[test]
fn only_what_the_attributes_name_fails() {
    let machine = small();
    let mm = machine.mm();
    let fails = |attr: FaultAttr, gfp: Gfp, raw: u32| {
        mm.set_fail_page_alloc(attr).expect("possible");
        !attempts(mm, gfp, order(raw), 1)[0]
    };
    let linux = FaultAttr { probability: 100, times: -1, ..FaultAttr::new() };
    assert!(!fails(linux, Gfp::NOWAIT, 0), "orders from 1 on");
    assert!(fails(linux, Gfp::NOWAIT, 1));
    assert!(!fails(linux, Gfp::KERNEL, 1), "not those that may reclaim");
    assert!(!fails(linux, Gfp::NOWAIT | Gfp::HIGHMEM, 1), "not those from high memory");
    assert!(fails(FaultAttr { ignore_gfp_highmem: false, ..linux }, Gfp::NOWAIT | Gfp::HIGHMEM, 1));
    assert!(fails(ALL, Gfp::KERNEL, 0));
    assert!(!fails(ALL, Gfp::KERNEL | Gfp::NOFAIL, 0), "what must not fail");
    let user = FaultAttr { gfp: Gfp::HARDWALL, ..ALL };
    assert!(fails(user, Gfp::USER, 0) && !fails(user, Gfp::KERNEL, 0));
}

#[test]
fn interval_times_and_space_count_as_in_linux() {
    let machine = small();
    let mm = machine.mm();
    let run = |attr: FaultAttr, raw: u32, count| {
        mm.set_fail_page_alloc(attr).expect("possible");
        attempts(mm, Gfp::KERNEL, order(raw), count)
            .iter()
            .map(|there| if *there { '.' } else { 'x' })
            .collect::<String>()
    };
    assert_eq!(run(FaultAttr { interval: 3, ..ALL }, 0, 9), "..x..x..x");
    assert_eq!(run(FaultAttr { times: 2, ..ALL }, 0, 5), "xx...");
    assert_eq!(run(FaultAttr { times: 0, ..ALL }, 0, 3), "...");
    // Pages are taken off the space as long as it is larger than the allocation.
    assert_eq!(run(FaultAttr { space: 5, ..ALL }, 1, 4), "..xx");
    assert_eq!(run(FaultAttr { space: 3, interval: 2, times: 1, ..ALL }, 0, 6), "...x..");
    assert_eq!(state(mm).failed.load(std::sync::atomic::Ordering::Relaxed), 3 + 2 + 2 + 1);
}

#[test]
fn the_nth_allocation_fails() {
    let machine = two_nodes();
    let mm = machine.mm();
    mm.set_fail_nth(FailNth::of_machine(3)).expect("possible");
    // What must not fail does not count.
    assert!(attempts(mm, Gfp::KERNEL | Gfp::NOFAIL, Order::ZERO, 5).iter().all(|there| *there));
    assert_eq!(attempts(mm, Gfp::KERNEL, Order::ZERO, 5), [true, true, false, true, true]);
    // Only those of CPU 1 count, and only large ones.
    let second = CpuId::new(1);
    mm.set_fail_nth(FailNth { cpu: second, min_order: 1, ..FailNth::of_machine(2) }).expect("possible");
    assert_eq!(attempts(mm, Gfp::KERNEL, order(1), 4), [true; 4]);
    machine.on_cpu(1, |mm| {
        assert_eq!(attempts(mm, Gfp::KERNEL, Order::ZERO, 4), [true; 4]);
        assert_eq!(attempts(mm, Gfp::KERNEL, order(1), 4), [true, false, true, true]);
    });
    // One of a bulk counts as one.
    mm.set_fail_nth(FailNth::of_machine(2)).expect("possible");
    let mut pages = [None; 3];
    let got: Vec<_> = (0..4).map(|_| mm.alloc_pages_bulk(Gfp::KERNEL, None, None, &mut pages)).collect();
    assert_eq!(got, [1, 1, 2, 3]);
    pages.iter().flatten().for_each(|page| mm.free_page(*page));
    mm.set_fail_nth(FailNth::of_machine(0)).expect("none");
    assert_eq!(mm.instrumented(), 0);
    assert_sound(mm);
}

#[test]
fn a_failure_is_told_unless_nobody_wants_to_know() {
    let machine = small();
    let mm = machine.mm();
    mm.set_fail_page_alloc(FaultAttr { times: 7, ..ALL }).expect("possible");
    machine.platform().clear_log();
    attempts(mm, Gfp::KERNEL | Gfp::NOWARN, Order::ZERO, 1);
    assert_eq!(machine.log_text(), "");
    attempts(mm, Gfp::KERNEL, Order::ZERO, 1);
    assert_eq!(
        machine.log_text(),
        "FAULT_INJECTION: forcing a failure.\n\
         name fail_page_alloc, interval 1, probability 100, space 0, times 6\n\
         Call Trace:\n"
    );
    assert_eq!(machine.platform().log_lines()[0].0, Level::Notice);
}

#[test]
fn impossible_wishes_are_refused() {
    let machine = small();
    let mm = machine.mm();
    let bad = mm.set_fail_page_alloc(FaultAttr { min_order: 12, ..ALL });
    assert_eq!(bad, Err(BadFault::Order(12)));
    assert_eq!(mm.set_fail_page_alloc(FaultAttr { times: -2, ..ALL }), Err(BadFault::Times(-2)));
    let cpu = CpuId::new(1).expect("a CPU number");
    assert_eq!(mm.set_fail_nth(FailNth { cpu: Some(cpu), ..FailNth::of_machine(1) }), Err(BadFault::Cpu(cpu)));
    assert_eq!(mm.instrumented(), 0);
}

#[test]
fn the_boot_parameter_is_linux_s() {
    let parsed = FaultAttr::parse("10,30,-5,-1").expect("four numbers");
    assert_eq!(parsed, FaultAttr { interval: 10, probability: 30, space: -5, times: -1, ..FaultAttr::new() });
    for bad in ["", "1,2,3", "1,2,3,x", "-1,2,3,4"] {
        assert_eq!(FaultAttr::parse(bad), None, "{bad}");
    }
}

#[test]
fn the_switch_is_thrown_while_cpus_allocate() {
    let machine = two_nodes();
    std::thread::scope(|scope| {
        let workers: Vec<_> = [0, 1]
            .map(|cpu| {
                let machine = &machine;
                scope.spawn(move || {
                    machine.on_cpu(cpu, |mm| {
                        for round in 0..4000u32 {
                            let order = order(round % 4);
                            let pages: Vec<_> = (0..5).filter_map(|_| mm.alloc_pages(Gfp::KERNEL, order)).collect();
                            pages.iter().for_each(|page| mm.free_pages(*page, order));
                        }
                    });
                })
            })
            .into();
        let mut on = false;
        while !workers.iter().all(|worker| worker.is_finished()) {
            on = !on;
            machine.mm().set_instrumented(hot::INIT_ON_FREE, on);
            std::thread::yield_now();
        }
    });
    machine.mm().set_instrumented(hot::INIT_ON_FREE, true);
    assert_sound(machine.mm());
    machine.mm().set_instrumented(hot::INIT_ON_FREE, false);
    assert_sound(machine.mm());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The same seed fails the same allocations, and about as many as the probability says.
    #[test]
    fn chance_repeats(seed: u64, probability in 1u32..100) {
        let machine = small();
        let run = || {
            let attr = FaultAttr { probability, seed, ..ALL };
            machine.mm().set_fail_page_alloc(attr).expect("possible");
            attempts(machine.mm(), Gfp::KERNEL | Gfp::NOWARN, Order::ZERO, 1000)
        };
        let first = run();
        prop_assert_eq!(&first, &run());
        let failed = first.iter().filter(|there| !**there).count() as i64;
        // Six standard deviations.
        prop_assert!((failed - 10 * probability as i64).abs() <= 96, "{} of 1000 failed at {} %", failed, probability);
    }

    /// What the general ways do while the gates are shut is what the short ways would have done.
    #[test]
    fn watched_or_not_the_pages_are_the_same(steps in proptest::collection::vec((0u32..5, any::<bool>(), any::<u16>()), 1..400)) {
        let run = |watched: bool| {
            let machine = two_nodes();
            let mm = machine.mm();
            // Fails nothing that is asked for below.
            let attr = FaultAttr { gfp: Gfp::ACCOUNT, ..ALL };
            mm.set_fail_page_alloc(if watched { attr } else { FaultAttr::new() }).expect("possible");
            let mut held = Vec::new();
            let mut trace = Vec::new();
            for &(raw, free, pick) in &steps {
                if free && !held.is_empty() {
                    let (page, order) = held.swap_remove(pick as usize % held.len());
                    mm.free_pages(page, order);
                } else {
                    let gfp = if pick % 3 == 0 { Gfp::HIGHUSER_MOVABLE } else { Gfp::KERNEL };
                    let page = mm.alloc_pages(gfp, order(raw)).expect("there is enough");
                    trace.push(page);
                    held.push((page, order(raw)));
                }
            }
            assert_sound(mm);
            trace
        };
        prop_assert_eq!(run(true), run(false));
    }
}
