//! Pools.

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};

use pagevisor_mm::hosted::HostPlatform;
use pagevisor_mm::mempool::{Functions, KmallocSource, PageSource, SlabSource};
use pagevisor_mm::{Mm, NoMemory};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::{NodeId, Order, Pfn, VirtAddr};

use crate::{assert_sound, boot, exhaust, free_pages};

/// Gets pages back.
fn release(mm: &Mm<HostPlatform>, pages: Vec<Pfn>) {
    pages.into_iter().for_each(|page| mm.free_page(page));
}

#[test]
fn the_minimum_is_there_when_nothing_else_is() {
    let machine = boot(1);
    let mm = machine.mm();
    let start = free_pages(mm);
    let cache = mm.kmem_cache_create("elements", 256, 0, SlabFlags::NONE, None).expect("a cache");
    let pool = mm.mempool_create(16, SlabSource(cache)).expect("a pool");
    assert_eq!((pool.min_nr(), pool.curr_nr()), (16, 16));
    let taken = exhaust(mm);
    let quiet = Gfp::NOWAIT | Gfp::NOWARN;
    let others: Vec<_> = core::iter::from_fn(|| mm.kmem_cache_alloc(cache, quiet)).collect();
    assert_eq!(mm.kmem_cache_alloc(cache, Gfp::ATOMIC_ALLOC | Gfp::NOWARN), None);
    // Not one less and not one more, and all of them different from what others have.
    let ours: Vec<_> = core::iter::from_fn(|| pool.alloc(Gfp::NOWAIT)).collect();
    assert_eq!(ours.len(), 16);
    assert_eq!(pool.curr_nr(), 0);
    assert_eq!(ours.iter().chain(&others).collect::<HashSet<_>>().len(), 16 + others.len());
    // Whatever comes back is there for the next one.
    for element in &ours {
        pool.free(*element);
        assert_eq!(pool.curr_nr(), 1);
        assert_eq!(pool.alloc(Gfp::ATOMIC_ALLOC), Some(*element));
        assert_eq!(pool.alloc(Gfp::ATOMIC_ALLOC), None);
    }
    ours.iter().for_each(|element| pool.free(*element));
    assert_eq!(pool.curr_nr(), 16);
    release(mm, taken);
    others.iter().for_each(|object| mm.kmem_cache_free(cache, *object));
    pool.destroy();
    mm.kmem_cache_destroy(cache);
    assert_eq!(free_pages(mm), start);
    assert_sound(&machine);
}

#[test]
fn who_may_wait_always_gets_one() {
    const ROUNDS: u64 = 200;
    let machine = boot(4);
    let mm = machine.mm();
    let pool = mm.mempool_create(2, PageSource(Order::ZERO)).expect("a pool");
    let taken = exhaust(mm);
    assert_eq!(mm.alloc_pages(Gfp::ATOMIC_ALLOC | Gfp::NOWARN, Order::ZERO), None);
    let (users, served) = ([const { AtomicU64::new(0) }; 2], AtomicU64::new(0));
    let first = mm.alloc_pages(Gfp::NOWAIT | Gfp::NOWARN, Order::ZERO);
    assert_eq!(first, None);
    // Four CPUs share two pages.
    std::thread::scope(|scope| {
        for cpu in 0..4 {
            let (machine, pool, users, served) = (&machine, &pool, &users, &served);
            scope.spawn(move || {
                machine.on_cpu(cpu, |_| {
                    for _ in 0..ROUNDS {
                        let page = pool.alloc(Gfp::KERNEL).expect("it may wait");
                        let slot = &users[page.raw() as usize % 2];
                        let _ = slot.fetch_add(1, SeqCst);
                        served.fetch_add(1, SeqCst);
                        std::thread::yield_now();
                        slot.fetch_sub(1, SeqCst);
                        pool.free(page);
                    }
                });
            });
        }
    });
    assert_eq!(served.load(SeqCst), 4 * ROUNDS);
    assert_eq!(pool.curr_nr(), 2);
    release(mm, taken);
    drop(pool);
    assert_sound(&machine);
}

#[test]
fn one_that_waits_is_served_by_a_free() {
    let machine = boot(2);
    let mm = machine.mm();
    let source = Functions { alloc: |_: &Mm<HostPlatform>, _| None, free: |_: &Mm<HostPlatform>, _: u32| () };
    assert_eq!(mm.mempool_create(1, source).err(), Some(NoMemory), "there is nothing to fill it with");
    let stock = AtomicU64::new(1);
    let source = Functions {
        alloc: |_: &Mm<HostPlatform>, _| stock.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).ok(),
        free: |_: &Mm<HostPlatform>, _| {
            stock.fetch_add(1, SeqCst);
        },
    };
    let pool = mm.mempool_create(1, source).expect("a pool");
    let element = pool.alloc(Gfp::NOWAIT).expect("the one");
    assert_eq!(pool.alloc(Gfp::NOWAIT), None);
    let served = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            machine.on_cpu(1, |_| {
                let element = pool.alloc(Gfp::NOIO);
                served.store(true, SeqCst);
                element
            })
        });
        for _ in 0..50 {
            std::thread::yield_now();
            assert!(!served.load(SeqCst), "there was none to be had");
        }
        pool.free(element);
        assert_eq!(waiting.join().expect("it does not panic"), Some(element));
    });
    pool.free(element);
    drop(pool);
    assert_eq!(stock.load(SeqCst), 1);
}

#[test]
fn the_source_is_asked_first_and_gently() {
    let machine = boot(1);
    let mm = machine.mm();
    let (asked, give) = (Cell::new(Vec::<Gfp>::new()), Cell::new(true));
    let (next, freed) = (Cell::new(0_u32), Cell::new(Vec::<u32>::new()));
    let note = |gfp| {
        let mut all = asked.take();
        all.push(gfp);
        asked.set(all);
    };
    let source = Functions {
        alloc: |_: &Mm<HostPlatform>, gfp| {
            note(gfp);
            next.set(next.get() + 1);
            give.get().then_some(next.get())
        },
        free: |_: &Mm<HostPlatform>, element| {
            let mut all = freed.take();
            all.push(element);
            freed.set(all);
        },
    };
    let pool = mm.mempool_create_node(2, source, Gfp::NOIO, NodeId::new(0)).expect("a pool");
    assert_eq!(asked.take(), [Gfp::NOIO; 2]);
    // From the source, although the reserve is full.
    assert_eq!(pool.alloc(Gfp::KERNEL), Some(3));
    let gentle = Gfp::NOMEMALLOC | Gfp::NORETRY | Gfp::NOWARN;
    assert_eq!(asked.take(), [(Gfp::KERNEL | gentle).without(Gfp::DIRECT_RECLAIM | Gfp::IO)]);
    give.set(false);
    // Then the reserve, last in first out, and then the source with all rights.
    assert_eq!((pool.alloc(Gfp::KERNEL), pool.alloc(Gfp::KERNEL)), (Some(2), Some(1)));
    assert_eq!(asked.take().len(), 2);
    let patient = Gfp::NOWAIT | Gfp::IO;
    assert_eq!(pool.alloc(patient), None);
    assert_eq!(asked.take(), [(patient | gentle).without(Gfp::IO), patient | gentle]);
    assert_eq!(pool.alloc(Gfp::NOWAIT), None);
    assert_eq!(asked.take(), [Gfp::NOWAIT | gentle]);
    // The reserve first, then the source.
    [1, 2, 3].into_iter().for_each(|element| pool.free(element));
    assert_eq!(freed.take(), [3]);
    drop(pool);
    assert_eq!(freed.take(), [2, 1]);
}

#[test]
fn a_reserve_can_be_resized() {
    let machine = boot(1);
    let mm = machine.mm();
    let start = free_pages(mm);
    let pool = mm.mempool_create(4, KmallocSource(100)).expect("a pool");
    assert_eq!(pool.resize(0), Err(NoMemory));
    pool.resize(600).expect("memory");
    assert_eq!((pool.min_nr(), pool.curr_nr()), (600, 600));
    pool.resize(3).expect("less");
    assert_eq!((pool.min_nr(), pool.curr_nr()), (3, 3));
    let taken = exhaust(mm);
    let quiet = Gfp::NOWAIT | Gfp::NOWARN;
    let others: Vec<_> = core::iter::from_fn(|| mm.kmalloc(100, quiet)).collect();
    let ours: HashSet<VirtAddr> = core::iter::from_fn(|| pool.alloc(Gfp::NOWAIT)).collect();
    assert_eq!(ours.len(), 3);
    // There is memory to keep track of more, but not for more.
    pool.resize(8).expect("room to note eight");
    assert_eq!((pool.min_nr(), pool.curr_nr()), (8, 0));
    others.iter().take(6).for_each(|object| pool.free(*object));
    assert_eq!(pool.curr_nr(), 6);
    release(mm, taken);
    others.iter().skip(6).for_each(|object| mm.kfree(*object));
    ours.iter().for_each(|object| pool.free(*object));
    assert_eq!(pool.curr_nr(), 8);
    drop(pool);
    machine.platform().clear_log();
    assert_eq!(free_pages(mm), start);
    assert_sound(&machine);
}

#[test]
fn a_pool_is_resized_while_others_use_it() {
    let machine = boot(4);
    let mm = machine.mm();
    let start = free_pages(mm);
    let pool = mm.mempool_create(8, KmallocSource(64)).expect("a pool");
    std::thread::scope(|scope| {
        for cpu in 1..4 {
            let (machine, pool) = (&machine, &pool);
            scope.spawn(move || {
                machine.on_cpu(cpu, |_| {
                    for round in 0..500 {
                        let held: Vec<_> = (0..round % 7).filter_map(|_| pool.alloc(Gfp::KERNEL)).collect();
                        assert_eq!(held.iter().collect::<HashSet<_>>().len(), round % 7);
                        held.into_iter().for_each(|element| pool.free(element));
                    }
                });
            });
        }
        for round in 0..300 {
            pool.resize(1 + round * 7 % 40).expect("memory");
        }
    });
    pool.resize(1).expect("less");
    assert_eq!(pool.curr_nr(), 1);
    drop(pool);
    assert_eq!(free_pages(mm), start);
    assert_sound(&machine);
}

/// The bytes of an object, which the caller may write to, or not.
fn bytes(addr: VirtAddr, len: usize) -> &'static [AtomicU8] {
    let first = std::ptr::with_exposed_provenance::<AtomicU8>(addr.raw() as usize);
    // SAFETY: an object lies in an arena, which is never unmapped; atomics are valid with any content.
    unsafe { std::slice::from_raw_parts(first, len) }
}

#[test]
fn who_writes_to_an_element_in_reserve_is_reported() {
    let machine = boot(1);
    let mm = machine.mm();
    let start = free_pages(mm);
    let debugged = SlabFlags::POISON.with(SlabFlags::RED_ZONE);
    let cache = mm.kmem_cache_create("watched", 40, 0, debugged, None).expect("a cache");
    let pool = mm.mempool_create(2, SlabSource(cache)).expect("a pool");
    let taken = exhaust(mm);
    let others: Vec<_> = core::iter::from_fn(|| mm.kmem_cache_alloc(cache, Gfp::NOWAIT | Gfp::NOWARN)).collect();
    machine.platform().clear_log();
    let [one, two] = [(); 2].map(|()| pool.alloc(Gfp::NOWAIT).expect("the reserve"));
    assert_eq!(machine.log_text(), "", "nobody wrote to it");
    let content = |addr| bytes(addr, 40).iter().map(|byte| byte.load(SeqCst)).collect::<Vec<_>>();
    assert_eq!(content(one), [0x5a; 40]);
    pool.free(one);
    assert_eq!((&content(one)[..39], content(one)[39]), (&[0x6b; 39][..], 0xa5));
    bytes(one, 40)[20].store(0x11, SeqCst);
    assert_eq!(pool.alloc(Gfp::NOWAIT), Some(one));
    let text = machine.log_text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "BUG: mempool element poison mismatch");
    assert!(lines[1].starts_with("Mempool ") && lines[1].ends_with(" size 40"), "{text}");
    let expected = format!(" nr=0 @ {:016x}: ... 0x6b 6b 6b 6b 6b 6b 6b 6b 11 6b 6b 6b 6b 6b 6b 6b ...", one.raw());
    assert_eq!(lines[2], expected);
    machine.platform().clear_log();
    // At its ends, and when the pool gives it up.
    for at in [0, 39] {
        pool.free(two);
        bytes(two, 40)[at].store(0x22, SeqCst);
        assert_eq!(pool.alloc(Gfp::NOWAIT), Some(two));
        assert!(machine.log_text().contains("BUG: mempool element poison mismatch"), "byte {at}");
        machine.platform().clear_log();
    }
    [one, two].into_iter().for_each(|element| pool.free(element));
    bytes(one, 40)[3].store(0x33, SeqCst);
    release(mm, taken);
    pool.destroy();
    assert!(machine.log_text().contains(" 33 6b "), "{}", machine.log_text());
    machine.platform().clear_log();
    others.iter().for_each(|object| mm.kmem_cache_free(cache, *object));
    mm.kmem_cache_destroy(cache);
    assert_eq!(free_pages(mm), start);
    assert_sound(&machine);
}

#[test]
fn elements_of_other_caches_are_as_they_were() {
    let machine = boot(1);
    let mm = machine.mm();
    let construct: fn(VirtAddr) = |addr| bytes(addr, 40).iter().for_each(|byte| byte.store(5, SeqCst));
    let plain = mm.kmem_cache_create("plain", 40, 0, SlabFlags::NONE, None).expect("a cache");
    let made = mm.kmem_cache_create("made", 40, 0, SlabFlags::RED_ZONE, Some(construct)).expect("a cache");
    for cache in [plain, made] {
        let pool = mm.mempool_create(1, SlabSource(cache)).expect("a pool");
        let taken = exhaust(mm);
        let others: Vec<_> = core::iter::from_fn(|| mm.kmem_cache_alloc(cache, Gfp::NOWAIT | Gfp::NOWARN)).collect();
        machine.platform().clear_log();
        let element = pool.alloc(Gfp::NOWAIT).expect("the reserve");
        bytes(element, 40).iter().for_each(|byte| byte.store(7, SeqCst));
        pool.free(element);
        assert!(bytes(element, 40).iter().all(|byte| byte.load(SeqCst) == 7));
        bytes(element, 40)[3].store(8, SeqCst);
        assert_eq!(pool.alloc(Gfp::NOWAIT), Some(element));
        pool.free(element);
        release(mm, taken);
        others.iter().for_each(|object| mm.kmem_cache_free(cache, *object));
        pool.destroy();
        mm.kmem_cache_destroy(cache);
    }
    assert_sound(&machine);
}
