//! Memory ends at each place where others allocate: nothing is lost and nothing is half done.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pagevisor_mm::hosted::HostPlatform;
use pagevisor_mm::instrument::{FailNth, FaultAttr};
use pagevisor_mm::mempool::{Functions, KmallocSource, PageSource, SlabSource, Source};
use pagevisor_mm::shrinker::{OldShrinker, ShrinkControl};
use pagevisor_mm::{KBox, KVec, Mm, NoMemory};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::Order;

use crate::{assert_sound, boot, free_pages};

/// Runs `attempt` with no pages to be had, then with a few, then with a few more, until they are enough. Each time it
/// starts with nothing in slabs, and everything must be back in the end. Then the same with each object on the way
/// failing. Gives how often it failed for pages.
fn at_every_place(mut attempt: impl FnMut(&Mm<HostPlatform>) -> Result<(), NoMemory>) -> u32 {
    at_every_object(&mut attempt);
    let machine = boot(1);
    let mm = machine.mm();
    let start = free_pages(mm);
    for failures in 0.. {
        let all = FaultAttr { min_order: 0, ignore_gfp_reclaim: false, ignore_gfp_highmem: false, ..FaultAttr::new() };
        let attr = FaultAttr { probability: 100, times: -1, space: 2 * failures, ..all };
        mm.set_fail_page_alloc(attr).expect("good attributes");
        let result = attempt(mm);
        mm.set_fail_page_alloc(FaultAttr::new()).expect("good attributes");
        assert_eq!(free_pages(mm), start, "with {failures} pages twice");
        if result.is_ok() {
            machine.platform().clear_log();
            assert_sound(&machine);
            return failures as u32;
        }
    }
    unreachable!("there is an end to all numbers");
}

/// Runs `attempt` with the 1st, 2nd, ... allocation of an object failing, until none is left to.
fn at_every_object(attempt: &mut impl FnMut(&Mm<HostPlatform>) -> Result<(), NoMemory>) {
    let machine = boot(1);
    let mm = machine.mm();
    let start = free_pages(mm);
    for nth in 1.. {
        mm.set_failslab_nth(FailNth::of_machine(nth)).expect("good attributes");
        let result = attempt(mm);
        let left = mm.region().sysctl().failslab.nth.load(Relaxed);
        mm.set_failslab_nth(FailNth::of_machine(0)).expect("good attributes");
        assert_eq!(free_pages(mm), start, "without object {nth}");
        if left != 0 {
            assert!(result.is_ok(), "nothing failed");
            machine.platform().clear_log();
            return assert_sound(&machine);
        }
    }
}

fn pool_comes_and_goes<S: Source<HostPlatform>>(mm: &Mm<HostPlatform>, source: S) -> Result<(), NoMemory> {
    let pool = mm.mempool_create(20, source)?;
    assert_eq!(pool.curr_nr(), 20);
    let held: Vec<_> = (0..40).map_while(|_| pool.alloc(Gfp::NOWAIT)).collect();
    assert!(held.len() >= 20, "the reserve at least");
    let resized = pool.resize(700);
    assert_eq!(pool.min_nr(), if resized.is_ok() { 700 } else { 20 });
    held.into_iter().for_each(|element| pool.free(element));
    assert!(pool.curr_nr() >= 20);
    pool.destroy();
    resized
}

#[test]
fn pools_of_pages_and_of_kmalloc() {
    assert!(at_every_place(|mm| pool_comes_and_goes(mm, PageSource(Order::ZERO))) > 20);
    assert!(at_every_place(|mm| pool_comes_and_goes(mm, KmallocSource(2000))) >= 10);
}

#[test]
fn pools_of_a_cache() {
    let failures = at_every_place(|mm| {
        let cache = mm.kmem_cache_create("elements", 700, 0, SlabFlags::NONE, None).map_err(|_| NoMemory)?;
        let result = pool_comes_and_goes(mm, SlabSource(cache));
        mm.kmem_cache_destroy(cache);
        result
    });
    assert!(failures >= 4, "{failures}");
}

#[test]
fn a_pool_that_cannot_be_filled_gives_back_what_it_got() {
    let machine = boot(1);
    let stock = AtomicU64::new(7);
    let source = Functions {
        alloc: |_: &Mm<HostPlatform>, _| stock.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).ok(),
        free: |_: &Mm<HostPlatform>, _| {
            stock.fetch_add(1, Relaxed);
        },
    };
    assert_eq!(machine.mm().mempool_create(8, &source).err(), Some(NoMemory));
    assert_eq!(stock.load(Relaxed), 7);
    let pool = machine.mm().mempool_create(7, &source).expect("seven");
    // Too few for a larger reserve is no failure: they come with time.
    pool.resize(9).expect("memory");
    assert_eq!((pool.min_nr(), pool.curr_nr()), (9, 7));
    drop(pool);
    assert_eq!(stock.load(Relaxed), 7);
}

#[test]
fn boxes_and_vectors() {
    let failures = at_every_place(|mm| {
        let held = KBox::new(mm, [1_u64; 600], Gfp::KERNEL)?;
        let mut vec = KVec::new(mm);
        for number in 0..20_000_u64 {
            if let Err(error) = vec.push(number, Gfp::KERNEL) {
                assert!(vec.iter().copied().eq(0..number), "the content stays");
                return Err(error);
            }
        }
        drop(held);
        Ok(())
    });
    assert!(failures >= 4, "{failures}");
}

#[test]
fn registering_shrinkers() {
    static NOTHING: OldShrinker<fn(&Mm<HostPlatform>, &ShrinkControl) -> i64> = OldShrinker::new(|_, _| 0);
    let failures = at_every_place(|mm| {
        let ids: Vec<_> = (0..100).map(|_| mm.register_shrinker("nothing", &NOTHING)).collect();
        let mut seen = 0;
        mm.for_each_shrinker(Default::default(), |_, _, _| seen += 1);
        assert_eq!(seen, ids.iter().flatten().count());
        ids.iter().flatten().for_each(|id| mm.unregister_shrinker(*id));
        if seen == ids.len() { Ok(()) } else { Err(NoMemory) }
    });
    assert!(failures >= 2, "{failures}");
}
