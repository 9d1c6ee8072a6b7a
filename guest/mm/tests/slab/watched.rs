//! What watches objects: failures, events, clearing. Off it leaves nothing behind.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::Mm;
use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};
use pagevisor_mm::instrument::{FailNth, FaultAttr};
use pagevisor_mm::slab::{Cache, KMALLOC_MAX_CACHE_SIZE, ZERO_SIZE_PTR};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::event::{Event, EventKind, EventRead, NO_NODE};
use pagevisor_shared::region::zone::hot;
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::{CpuId, NodeId, VirtAddr};
use proptest::prelude::*;

use crate::{MIB, assert_sound, free_pages, quiet, read, small, write};

const QUIET: Gfp = Gfp::KERNEL.with(Gfp::NOWARN);
/// Everything fails.
const ALL: FaultAttr =
    FaultAttr { probability: 100, times: -1, ignore_gfp_reclaim: false, gfp: Gfp::NONE, ..FaultAttr::new() };

fn booted_with(line: &str) -> Machine {
    quiet(Topology::new().node(&[(0, 640 << 10), (MIB, 64 * MIB)], 1).command_line(line).boot())
}

fn two_nodes() -> Machine {
    let topology = Topology::new().node(&[(0, 640 << 10), (MIB, 64 * MIB)], 2).node(&[(64 * MIB, 128 * MIB)], 2);
    quiet(topology.boot())
}

fn cache(mm: &Mm<HostPlatform>, name: &str, size: usize) -> Cache {
    mm.kmem_cache_create(name, size, 0, SlabFlags::NONE, None).expect("a cache")
}

/// Whether all gates of a cache's arrays are shut.
fn is_shut(mm: &Mm<HostPlatform>, cache: Cache) -> bool {
    let arrays = (0..mm.region().nr_cpus()).map(|cpu| mm.kmem_cache_array(cache, CpuId::new(cpu).expect("a CPU")));
    let words: Vec<_> = arrays.map(|array| (array.hot.load(Relaxed) & 1, array.lock.load(Relaxed))).collect();
    assert!(words.iter().all(|word| *word == words[0] && word.0 == word.1), "{words:?}");
    words[0].0 == 1
}

fn attempts(mm: &Mm<HostPlatform>, cache: Cache, gfp: Gfp, count: usize) -> String {
    let one = |_| match mm.kmem_cache_alloc(cache, gfp) {
        Some(object) => {
            mm.kmem_cache_free(cache, object);
            '.'
        }
        None => 'x',
    };
    (0..count).map(one).collect()
}

#[test]
fn attributes_choose_which_objects_fail() {
    let machine = small();
    let mm = machine.mm();
    let [ours, others] = ["ours", "others"].map(|name| cache(mm, name, 100));
    attempts(mm, ours, QUIET, 1);
    let cases = [
        (ALL, QUIET, "xxxxxx"),
        (FaultAttr { interval: 3, ..ALL }, QUIET, "..x..x"),
        (FaultAttr { times: 2, ..ALL }, QUIET, "xx...."),
        // In bytes of objects.
        (FaultAttr { space: 350, ..ALL }, QUIET, "...xxx"),
        (FaultAttr { gfp: Gfp::HARDWALL, ..ALL }, QUIET, "......"),
        (FaultAttr { gfp: Gfp::HARDWALL, ..ALL }, Gfp::USER | Gfp::NOWARN, "xxxxxx"),
        (FaultAttr { ignore_gfp_reclaim: true, ..ALL }, QUIET, "......"),
        (FaultAttr { ignore_gfp_reclaim: true, ..ALL }, Gfp::NOWAIT | Gfp::NOWARN, "xxxxxx"),
        (ALL, QUIET | Gfp::NOFAIL, "......"),
        (FaultAttr { cache_filter: true, ..ALL }, QUIET, "......"),
        // Orders are not for objects.
        (FaultAttr { min_order: 5, ..ALL }, QUIET, "xxxxxx"),
    ];
    for (attr, gfp, expected) in cases {
        mm.set_failslab(attr).expect("possible");
        assert_eq!(attempts(mm, ours, gfp, 6), expected, "{attr:?}, {gfp}");
    }
    mm.set_failslab(FaultAttr { cache_filter: true, ..ALL }).expect("possible");
    assert!(mm.kmem_cache_failslab(ours, true));
    assert_eq!((attempts(mm, ours, QUIET, 2), attempts(mm, others, QUIET, 2)), ("xx".into(), "..".into()));
    assert!(mm.kmem_cache_failslab(ours, false));
    assert_eq!(attempts(mm, ours, QUIET, 2), "..");
    mm.set_failslab(FaultAttr::new()).expect("possible");
    assert!(mm.set_failslab(FaultAttr { times: -2, ..ALL }).is_err());
    assert!(!is_shut(mm, ours) && !is_shut(mm, others));
    mm.kmem_cache_destroy(others);
    assert!(!mm.kmem_cache_failslab(others, true), "there is no such cache any more");
    assert_eq!(machine.log_text(), "");
    assert_sound(mm);
}

#[test]
fn failures_are_told_as_linux_tells_them() {
    let machine = booted_with("failslab=1,100,0,1");
    let mm = machine.mm();
    assert_eq!(mm.kmalloc(100, Gfp::NOWAIT), None);
    let text = machine.log_text();
    assert!(text.contains("FAULT_INJECTION: forcing a failure.\n"), "{text}");
    assert!(text.contains("name failslab, interval 1, probability 100, space 0, times 1\n"), "{text}");
    // Once only, and Linux's attributes leave those alone that may reclaim.
    let addr = mm.kmalloc(100, Gfp::NOWAIT).expect("the second");
    mm.kfree(addr);
    let state = &mm.region().sysctl().failslab;
    assert_eq!((state.failed.load(Relaxed), state.times.load(Relaxed)), (1, 0));
    assert_sound(mm);
}

#[test]
fn gates_are_shut_as_long_as_something_watches() {
    let machine = two_nodes();
    let mm = machine.mm();
    let before = cache(mm, "before", 64);
    let object = mm.kmem_cache_alloc(before, QUIET).expect("an object");
    mm.set_failslab(FaultAttr { gfp: Gfp::ACCOUNT, ..ALL }).expect("possible");
    let debugged = mm.kmem_cache_create("debugged", 64, 0, SlabFlags::POISON, None).expect("a cache");
    let meanwhile = cache(mm, "meanwhile", 64);
    assert!(mm.kmem_caches().all(|cache| is_shut(mm, cache)));
    // Pages are not watched.
    assert!(mm.region().pcps().iter().all(|pcp| pcp.hot.load(Relaxed) == 0));
    let other = mm.kmem_cache_alloc(meanwhile, QUIET).expect("an object");
    mm.set_instrumented(hot::SLAB_EVENTS, true);
    mm.set_failslab(FaultAttr::new()).expect("possible");
    assert!(mm.kmem_caches().all(|cache| is_shut(mm, cache)));
    mm.set_instrumented(hot::SLAB_EVENTS, false);
    for cache in mm.kmem_caches() {
        assert_eq!(is_shut(mm, cache), cache == debugged, "{}", cache.name());
    }
    mm.kmem_cache_free(before, object);
    mm.kmem_cache_free(meanwhile, other);
    for cache in [before, debugged, meanwhile] {
        mm.kmem_cache_destroy(cache);
    }
    assert_eq!((machine.log_text().as_str(), mm.kmem_cache_find("before")), ("", None));
    assert_sound(mm);
}

/// Does `work` with the 1st, 2nd, ... allocation of an object failing until there is none; all must be back each time.
fn each_object_fails(name: &str, work: impl Fn(&Mm<HostPlatform>)) -> u64 {
    let machine = two_nodes();
    let mm = machine.mm();
    work(mm);
    mm.kmem_cache_shrink_all();
    let before = free_pages(mm);
    for nth in 1..1000 {
        mm.set_failslab_nth(FailNth::of_machine(nth)).expect("possible");
        work(mm);
        let left = mm.region().sysctl().failslab.nth.load(Relaxed);
        mm.set_failslab_nth(FailNth::of_machine(0)).expect("possible");
        mm.kmem_cache_shrink_all();
        assert_eq!(free_pages(mm), before, "{name}: object {nth} failed");
        assert_sound(mm);
        if left != 0 {
            return nth - 1;
        }
    }
    panic!("{name} never came to an end");
}

#[test]
fn no_failure_of_an_object_leaves_anything() {
    let sizes = |mm: &Mm<HostPlatform>| {
        for size in [0, 1, 8, 96, 500, 4096, KMALLOC_MAX_CACHE_SIZE, KMALLOC_MAX_CACHE_SIZE + 1] {
            if let Some(addr) = mm.kmalloc(size, QUIET) {
                mm.kfree(addr);
            }
        }
        for gfp in [QUIET | Gfp::RECLAIMABLE, QUIET | Gfp::DMA] {
            mm.kfree(mm.kcalloc(3, 50, gfp).unwrap_or(ZERO_SIZE_PTR));
        }
    };
    // Each class, and the arrays that come with the first object.
    assert!(each_object_fails("kmalloc", sizes) >= 9);
    let again = |mm: &Mm<HostPlatform>| {
        let Some(small) = mm.kmalloc(50, QUIET) else { return };
        write(small, 50, 7);
        match mm.krealloc(small, 5000, QUIET) {
            Some(large) => {
                assert_eq!(read(large, 50), [7; 50]);
                mm.kfree(large);
            }
            None => {
                assert_eq!(read(small, 50), [7; 50], "it is as it was");
                mm.kfree(small);
            }
        }
    };
    assert!(each_object_fails("krealloc", again) >= 2);
    let bulk = |mm: &Mm<HostPlatform>| {
        let cache = cache(mm, "bulk", 200);
        let mut objects = [VirtAddr::new(0); 90];
        let got = mm.kmem_cache_alloc_bulk(cache, QUIET, &mut objects);
        assert!([0, 90].contains(&got), "all or none: {got}");
        mm.kmem_cache_free_bulk(cache, &objects[..got]);
        let node = NodeId::new(1);
        if let Some(object) = mm.kmem_cache_alloc_node(cache, QUIET, node) {
            mm.kmem_cache_free(cache, object);
        }
        mm.kmem_cache_destroy(cache);
        assert_eq!(mm.kmem_cache_find("bulk"), None);
    };
    assert!(each_object_fails("bulk", bulk) >= 91);
    // Lists of free objects off the slab.
    let off_slab = |mm: &Mm<HostPlatform>| {
        let cache = mm.kmem_cache_create("off", 2048, 0, SlabFlags::HWCACHE_ALIGN, Some(|_| ())).expect("a cache");
        let held: Vec<_> = (0..40).filter_map(|_| mm.kmem_cache_alloc(cache, QUIET)).collect();
        held.into_iter().for_each(|object| mm.kmem_cache_free(cache, object));
        mm.kmem_cache_destroy(cache);
    };
    assert!(each_object_fails("off slab", off_slab) >= 40);
    let debugged = |mm: &Mm<HostPlatform>| {
        let flags = SlabFlags::POISON.with(SlabFlags::RED_ZONE).with(SlabFlags::STORE_USER);
        let cache = mm.kmem_cache_create("debugged", 100, 0, flags, None).expect("a cache");
        let held: Vec<_> = (0..3).filter_map(|_| mm.kmem_cache_alloc(cache, QUIET)).collect();
        held.into_iter().for_each(|object| mm.kmem_cache_free(cache, object));
        mm.kmem_cache_destroy(cache);
    };
    assert!(each_object_fails("debugged", debugged) >= 3);
}

/// What `work` records on CPU 0 while the kinds of `mask` are on.
fn recorded(mm: &Mm<HostPlatform>, kinds: &[EventKind], work: impl FnOnce()) -> Vec<Event> {
    let ring = mm.region().events(CpuId::default()).expect("a ring");
    let mut at = ring.head();
    mm.set_events(kinds.iter().fold(0, |mask, kind| mask | kind.bit()));
    work();
    mm.set_events(0);
    let mut events = Vec::new();
    while let EventRead::Event(event) = ring.read(at) {
        events.push(event);
        at += 1;
    }
    events
}

const KINDS: [EventKind; 4] =
    [EventKind::Kmalloc, EventKind::Kfree, EventKind::KmemCacheAlloc, EventKind::KmemCacheFree];

#[test]
fn objects_are_recorded_with_what_they_were() {
    let machine = small();
    let mm = machine.mm();
    machine.platform().set_backtrace(&[0xffff_ffff_8100_1234]);
    let cache = cache(mm, "a-cache-with-quite-a-long-name", 100);
    let record = mm.kmem_cache_record(cache);
    // Arrays are there then.
    attempts(mm, cache, QUIET, 1);
    for size in [64, 100] {
        mm.kfree(mm.kmalloc(size, QUIET).expect("memory"));
    }
    let mut addrs = Vec::new();
    let events = recorded(mm, &KINDS, || {
        let (small, large) = (mm.kmalloc(50, QUIET), mm.kmalloc_node(50_000, Gfp::KERNEL, NodeId::new(0)));
        let object = mm.kmem_cache_alloc(cache, Gfp::ATOMIC_ALLOC);
        addrs.extend([small, large, object].map(|addr| addr.expect("memory")));
        mm.kfree(addrs[0]);
        mm.kfree(addrs[1]);
        mm.kmem_cache_free(cache, addrs[2]);
        assert_eq!(mm.kmalloc(0, QUIET), Some(ZERO_SIZE_PTR));
        assert_eq!(mm.kmalloc(usize::MAX, QUIET), None);
    });
    let raw: Vec<_> = addrs.iter().map(|addr| addr.raw()).collect();
    let told: Vec<_> = events.iter().map(|event| (event.kind, event.args, event.gfp, event.node)).collect();
    let large = 65536;
    let name = |at: usize| record.name[at].load(Relaxed);
    let expected = [
        (EventKind::Kmalloc, [raw[0], 50, 64], QUIET, NO_NODE),
        (EventKind::Kmalloc, [raw[1], 50_000, large], Gfp::KERNEL, 0),
        (EventKind::KmemCacheAlloc, [raw[2], 100, record.size.load(Relaxed).into()], Gfp::ATOMIC_ALLOC, NO_NODE),
        (EventKind::Kfree, [raw[0], 0, 0], Gfp::NONE, 0),
        (EventKind::Kfree, [raw[1], 0, 0], Gfp::NONE, 0),
        (EventKind::KmemCacheFree, [raw[2], name(1), name(2)], Gfp::NONE, 0),
    ];
    assert_eq!(told, expected);
    assert_eq!(&events[5].text(), b"a-cache-with-quite-a-lon");
    assert!(events.iter().all(|event| event.caller == 0xffff_ffff_8100_1234));
    // Off it is off, and the short ways are back.
    assert!(!is_shut(mm, cache));
    assert_eq!(recorded(mm, &[EventKind::MmPageAlloc], || drop(attempts(mm, cache, QUIET, 5))), []);
    assert_sound(mm);
}

#[test]
fn failures_are_events() {
    let machine = small();
    let mm = machine.mm();
    let cache = cache(mm, "failing", 100);
    let events = recorded(mm, &[EventKind::Failslab, EventKind::KmemCacheAlloc], || {
        mm.set_failslab_nth(FailNth::of_machine(2)).expect("possible");
        assert_eq!(attempts(mm, cache, QUIET, 1), ".", "the array is the second");
        mm.set_failslab_nth(FailNth::of_machine(1)).expect("possible");
        assert_eq!(attempts(mm, cache, QUIET, 1), "x");
    });
    let failures: Vec<_> = events.iter().filter(|event| event.kind == EventKind::Failslab).collect();
    assert_eq!(failures.len(), 2, "{events:?}");
    assert_eq!((failures[1].args[0], failures[1].gfp), (100, QUIET));
    let last = events.last().expect("events");
    assert_eq!((last.kind, last.args[0]), (EventKind::KmemCacheAlloc, 0), "failures are allocations, too");
    assert_sound(mm);
}

/// A constructor.
fn fill_with_fives(addr: VirtAddr) {
    write(addr, 40, 5);
}

#[test]
fn objects_are_cleared_when_they_are_allocated() {
    let machine = booted_with("init_on_alloc=1");
    let mm = machine.mm();
    let plain = cache(mm, "plain", 40);
    let made = mm.kmem_cache_create("made", 40, 0, SlabFlags::NONE, Some(fill_with_fives)).expect("a cache");
    let poisoned = mm.kmem_cache_create("poisoned", 40, 0, SlabFlags::POISON, None).expect("a cache");
    for (cache, first) in [(plain, 0), (made, 5), (poisoned, 0x5a)] {
        let object = mm.kmem_cache_alloc(cache, QUIET).expect("an object");
        assert_eq!(read(object, 39), [first; 39], "{}", cache.name());
        write(object, 40, 9);
        mm.kmem_cache_free(cache, object);
        let again = mm.kmem_cache_alloc(cache, QUIET).expect("an object");
        assert_eq!(again, object, "the last is the first");
        let second = if cache == made { 9 } else { first };
        assert_eq!(read(object, 39), [second; 39], "{}", cache.name());
        mm.kmem_cache_free(cache, object);
        let zeros = mm.kmem_cache_zalloc(cache, QUIET).expect("an object");
        assert_eq!(read(zeros, 40), [0; 40], "asked for, they are cleared whatever they are");
        mm.kmem_cache_free(cache, zeros);
    }
    let addr = mm.kmalloc(3000, QUIET).expect("memory");
    write(addr, 4096, 3);
    mm.kfree(addr);
    let addr = mm.kmalloc(3000, QUIET).expect("memory");
    assert_eq!(read(addr, 4096), [0; 4096]);
    mm.kfree(addr);
    assert!(is_shut(mm, plain));
    assert_eq!(machine.log_text(), "");
    assert_sound(mm);
}

#[test]
fn objects_are_cleared_when_they_are_freed() {
    let machine = booted_with("init_on_free=1");
    let mm = machine.mm();
    let plain = cache(mm, "plain", 40);
    let made = mm.kmem_cache_create("made", 40, 0, SlabFlags::NONE, Some(fill_with_fives)).expect("a cache");
    let poisoned = mm.kmem_cache_create("poisoned", 40, 0, SlabFlags::POISON, None).expect("a cache");
    for (cache, left) in [(plain, 0), (made, 9), (poisoned, 0x6b)] {
        let [object, keeps_slab] = [(); 2].map(|()| mm.kmem_cache_alloc(cache, QUIET).expect("an object"));
        write(object, 40, 9);
        mm.kmem_cache_free(cache, object);
        assert_eq!(read(object, 39), [left; 39], "{}", cache.name());
        mm.kmem_cache_free(cache, keeps_slab);
    }
    // What is no object is not cleared, but reported.
    let objects = [(); 2].map(|()| mm.kmem_cache_alloc(plain, QUIET).expect("an object"));
    objects.iter().for_each(|object| write(*object, 40, 8));
    mm.kmem_cache_free(plain, VirtAddr::new(objects[0].raw() + 8));
    mm.kmem_cache_shrink(plain);
    assert!(machine.log_text().contains("bad object"), "{}", machine.log_text());
    objects.iter().for_each(|object| assert_eq!(read(*object, 40), [8; 40]));
    objects.into_iter().for_each(|object| mm.kmem_cache_free(plain, object));
    assert_sound(mm);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// What the general ways do while the gates are shut is what the short ways would have done.
    #[test]
    fn watched_or_not_the_objects_are_the_same(steps in proptest::collection::vec((0usize..5, any::<bool>(), any::<u16>()), 1..400)) {
        let run = |watched: bool| {
            let machine = two_nodes();
            let mm = machine.mm();
            if watched {
                // Fails nothing that is asked for below.
                mm.set_failslab(FaultAttr { gfp: Gfp::ACCOUNT, ..ALL }).expect("possible");
                mm.set_events(EventKind::Kmalloc.bit());
            }
            let mut held: Vec<VirtAddr> = Vec::new();
            let mut trace = Vec::new();
            for &(class, free, pick) in &steps {
                if free && !held.is_empty() {
                    mm.kfree(held.swap_remove(pick as usize % held.len()));
                } else {
                    let size = [8, 64, 200, 1000, 8000][class];
                    let addr = mm.kmalloc(size, Gfp::KERNEL).expect("there is enough");
                    trace.push(addr.raw() - mm.virt(pagevisor_shared::units::PhysAddr::new(0)).raw());
                    held.push(addr);
                }
            }
            assert_sound(mm);
            trace
        };
        prop_assert_eq!(run(true), run(false));
    }
}
