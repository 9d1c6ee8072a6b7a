//! Every allocation inside fails once: nothing is left behind.

use pagevisor_mm::instrument::{FailNth, FaultAttr};
use pagevisor_mm::{Mm, hosted::HostPlatform};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::pgtable::Protection;
use pagevisor_shared::units::{Order, PAGE_SIZE, Pfn, PhysAddr, VirtAddr};

use super::{MIB, assert_sound, in_use, machine};

/// Does `make` with the first, second, ... allocation of an object failing until it goes through; undoes it.
fn each_object_fails(
    name: &str,
    make: impl Fn(&Mm<HostPlatform>) -> Option<VirtAddr>,
    undo: impl Fn(&Mm<HostPlatform>, VirtAddr),
) -> u32 {
    let machine = machine();
    let mm = machine.mm();
    // CPUs have their arrays, which are done without where there is no memory.
    mm.vfree(mm.vmalloc(1).expect("memory"));
    let mut failed = 0;
    let mut before = None;
    for nth in 1..5000 {
        mm.set_failslab_nth(FailNth::of_machine(nth)).expect("possible");
        let made = make(mm);
        let fired = mm.region().sysctl().failslab.nth.load(std::sync::atomic::Ordering::Relaxed) == 0;
        mm.set_failslab_nth(FailNth::of_machine(0)).expect("possible");
        failed += u32::from(made.is_none());
        undo(mm, made.unwrap_or_default());
        mm.purge_vmap_areas();
        mm.kmem_cache_shrink_all();
        if nth > 1 {
            assert_eq!(before.replace(in_use(mm)).unwrap_or_else(|| in_use(mm)), in_use(mm), "{name}: object {nth}");
        }
        assert_eq!(mm.vmalloc_areas(), (0, 1), "{name}: object {nth} failed");
        if !fired {
            assert_sound(mm);
            return failed;
        }
    }
    panic!("{name} never came to an end");
}

/// Does `make` with the first, second, ... allocation failing until it goes through; undoes it.
fn each_fails(
    name: &str,
    make: impl Fn(&Mm<HostPlatform>) -> Option<VirtAddr>,
    undo: impl Fn(&Mm<HostPlatform>, VirtAddr),
) -> u32 {
    let machine = machine();
    let mm = machine.mm();
    // The records' pages stay.
    undo(mm, make(mm).expect("memory"));
    mm.purge_vmap_areas();
    let before = in_use(mm);
    let mut failed = 0;
    for nth in 1..5000 {
        mm.set_fail_nth(FailNth::of_machine(nth)).expect("possible");
        let made = make(mm);
        let fired = mm.region().sysctl().fail_page_alloc.nth.load(std::sync::atomic::Ordering::Relaxed) == 0;
        mm.set_fail_nth(FailNth::of_machine(0)).expect("possible");
        match made {
            Some(addr) => undo(mm, addr),
            None => failed += 1,
        }
        mm.purge_vmap_areas();
        assert_eq!(in_use(mm), before, "{name}: allocation {nth} of it failed");
        assert_eq!(mm.vmalloc_areas(), (0, 1), "{name}: allocation {nth} of it failed");
        if !fired {
            assert_sound(mm);
            return failed;
        }
    }
    panic!("{name} never came to an end");
}

#[test]
fn no_failure_leaves_anything() {
    let vfree = |mm: &Mm<HostPlatform>, addr| mm.vfree(addr);
    // Tables fail it; pages have smaller ones to fall back to, and single pages none.
    assert!(each_fails("1 page", |mm| mm.vmalloc(1), vfree) >= 3);
    assert!(each_fails("700 pages", |mm| mm.vmalloc(700 * PAGE_SIZE - MIB), vfree) >= 2);
    assert!(each_fails("user", |mm| mm.vmalloc_user(600 * PAGE_SIZE), vfree) >= 600);
    assert!(each_fails("large", |mm| mm.vmalloc(6 * MIB + PAGE_SIZE), vfree) >= 2);
    for size in [1, 700 * PAGE_SIZE - MIB, 6 * MIB + PAGE_SIZE] {
        assert!(each_object_fails("vmalloc", |mm| mm.vmalloc(size), vfree) >= 1, "{size}: its record");
    }
    let device = PhysAddr::new(0xe000_0000);
    let unmap = |mm: &Mm<HostPlatform>, addr| mm.iounmap(addr);
    assert!(each_object_fails("device", |mm| mm.ioremap(device, 5 * MIB), unmap) >= 1, "its record");
    // Without a directory for large pages it tries small ones.
    assert!(each_fails("device", |mm| mm.ioremap(device, 5 * MIB), |mm, addr| mm.iounmap(addr)) >= 1);
}

#[test]
fn the_first_of_all_may_fail_and_the_next_works() {
    let mut failed = 0;
    for nth in 1.. {
        let machine = machine();
        let mm = machine.mm();
        mm.set_fail_nth(FailNth::of_machine(nth)).expect("possible");
        let first = mm.vmalloc(PAGE_SIZE);
        let fired = mm.region().sysctl().fail_page_alloc.nth.load(std::sync::atomic::Ordering::Relaxed) == 0;
        mm.set_fail_nth(FailNth::of_machine(0)).expect("possible");
        failed += u32::from(first.is_none());
        mm.vfree(first.unwrap_or_default());
        assert_sound(mm);
        let addr = mm.vmalloc(PAGE_SIZE).expect("memory");
        assert!(mm.vmalloc_to_page(addr).is_some());
        mm.vfree(addr);
        mm.purge_vmap_areas();
        assert_eq!(mm.vmalloc_areas(), (0, 1));
        assert_sound(mm);
        if !fired {
            break;
        }
    }
    // Without a block for the top-level tables they are made one by one.
    assert!(failed >= 3, "the cache, records and the page");
}

#[test]
fn no_failure_of_vmap_leaves_anything() {
    let pages: Vec<Pfn> = (0..1500).map(|index| Pfn::new(0xd_0000 + index)).collect();
    let failed = each_fails("vmap", |mm| mm.vmap(&pages, Protection::KERNEL), |mm, addr| mm.vunmap(addr));
    assert!(failed >= 3, "three page tables and a directory");
}

#[test]
fn under_constant_failure_everything_fails_or_works() {
    let machine = machine();
    let mm = machine.mm();
    mm.vfree(mm.vmalloc(1).expect("memory"));
    mm.purge_vmap_areas();
    let before = in_use(mm);
    let attr = FaultAttr { probability: 30, times: -1, min_order: 0, ignore_gfp_reclaim: false, ..FaultAttr::new() };
    mm.set_fail_page_alloc(attr).expect("possible");
    let made: Vec<_> = (1..300u64)
        .filter_map(|pages| mm.vmalloc_with(pages * PAGE_SIZE, Gfp::KERNEL | Gfp::NOWARN, Protection::KERNEL))
        .collect();
    assert!(!made.is_empty() && made.len() < 299, "{}", made.len());
    mm.set_fail_page_alloc(FaultAttr::new()).expect("Linux's own");
    made.into_iter().for_each(|addr| mm.vfree(addr));
    mm.purge_vmap_areas();
    // Records of areas may have taken pages.
    assert!(in_use(mm).0 - before.0 <= 10 && in_use(mm).1 == before.1);
    assert_eq!(mm.vmalloc_areas(), (0, 1));
    assert_sound(mm);
}

#[test]
fn exhausted_memory_is_an_orderly_failure() {
    let machine = machine();
    let mm = machine.mm();
    mm.vfree(mm.vmalloc(1).expect("memory"));
    mm.purge_vmap_areas();
    let before = in_use(mm);
    let held: Vec<_> =
        core::iter::from_fn(|| mm.alloc_pages(Gfp::KERNEL | Gfp::NOWARN | Gfp::NORETRY, Order::MAX)).collect();
    let kept = held.len() - 1;
    held[kept..].iter().for_each(|block| mm.free_pages(*block, Order::MAX));
    assert_eq!(mm.vmalloc(100 * MIB), None);
    let log = machine.log_text();
    assert!(
        log.contains("swapper/0: vmalloc error: size 104857600, page order 0, failed to allocate pages, mode:"),
        "{log}"
    );
    held[..kept].iter().for_each(|block| mm.free_pages(*block, Order::MAX));
    mm.purge_vmap_areas();
    assert_eq!(in_use(mm), before);
    assert_sound(mm);
}
