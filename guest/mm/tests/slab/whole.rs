//! Caches whose slabs are one object each: they go the shortest way to the page allocator.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::Mm;
use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};
use pagevisor_mm::slab::Cache;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::{CpuId, NodeId, Pfn, VirtAddr};
use proptest::prelude::*;

use crate::{MIB, alloc, assert_sound, free_pages, quiet, read, small, write};

/// Bytes of their objects: slabs of order 0, 1 and 2.
const SIZES: [usize; 3] = [4096, 8192, 16_384];

const WHOLE: u32 = SlabFlags::WHOLE.bits();

fn flags(mm: &Mm<HostPlatform>, cache: Cache) -> u32 {
    mm.kmem_cache_record(cache).flags.load(Relaxed)
}

fn whole(mm: &Mm<HostPlatform>, size: usize) -> Cache {
    let cache = mm.kmem_cache_create("whole", size, 0, SlabFlags::NONE, None).expect("a cache");
    assert_eq!(flags(mm, cache) & WHOLE, WHOLE);
    cache
}

#[test]
fn only_what_fills_its_slab_and_is_not_debugged_is_whole() {
    let machine = small();
    let mm = machine.mm();
    for (size, flags) in [
        (4096, SlabFlags::POISON),
        (8192, SlabFlags::STORE_USER),
        (2048, SlabFlags::NONE),
        (3000, SlabFlags::NONE),
        (8000, SlabFlags::NONE),
        (12_288, SlabFlags::NONE),
    ] {
        let cache = mm.kmem_cache_create("not-whole", size, 0, flags, None).expect("a cache");
        assert_eq!(self::flags(mm, cache) & WHOLE, 0, "{size}, {flags:?}");
        mm.kmem_cache_destroy(cache);
    }
    let constructed = mm.kmem_cache_create("made", 8192, 0, SlabFlags::NONE, Some(|_| ())).expect("a cache");
    assert_eq!(flags(mm, constructed) & WHOLE, 0);
    mm.kmem_cache_destroy(constructed);
}

/// What a node may keep, what it keeps, and that there are no slabs but those of objects in use, of arrays, and free ones.
#[test]
fn no_more_stay_free_than_linux_keeps() {
    for size in SIZES {
        let machine = small();
        let mm = machine.mm();
        let cache = whole(mm, size);
        let node = mm.kmem_cache_node(cache, NodeId::new(0).expect("a node"));
        let array = mm.kmem_cache_array(cache, CpuId::new(0).expect("a CPU"));
        let objects = alloc(mm, cache, 300);
        let mut in_use = objects.len() as u64;
        let mut most = 0;
        for object in objects {
            mm.kmem_cache_free(cache, object);
            in_use -= 1;
            let (free, slabs) = (node.free_objects.load(Relaxed), node.total_slabs.load(Relaxed));
            assert!(free <= node.free_limit.load(Relaxed) as u64, "{free} objects of {size} bytes are free");
            let in_arrays = u64::from(array.avail.load(Relaxed) + node.shared.avail.load(Relaxed));
            assert_eq!((node.free_slabs.load(Relaxed), slabs), (free, in_use + in_arrays + free), "{size} bytes");
            assert_sound(mm);
            most = most.max(free);
        }
        assert!(most > 0, "objects of {size} bytes never go back to their slabs");
    }
}

#[test]
fn an_object_that_is_freed_twice_or_askew_is_reported_and_the_others_go_back() {
    for size in SIZES {
        let machine = small();
        let mm = machine.mm();
        let cache = whole(mm, size);
        mm.kmem_cache_free(cache, alloc(mm, cache, 1)[0]);
        mm.kmem_cache_shrink_all();
        let start = free_pages(mm);
        // Enough that what goes wrong is flushed, once to the free slabs, and once to the page allocator.
        let objects = alloc(mm, cache, 200);
        let mut wrong = Vec::new();
        for (at, object) in objects.iter().enumerate() {
            if at % 40 == 11 {
                wrong.push(VirtAddr::new(object.raw() + 64));
                mm.kmem_cache_free(cache, VirtAddr::new(object.raw() + 64));
            }
            mm.kmem_cache_free(cache, *object);
            if at % 40 == 30 {
                wrong.push(*object);
                mm.kmem_cache_free(cache, *object);
            }
        }
        mm.kmem_cache_shrink_all();
        let log = machine.log_text();
        let report = "slab error in free_block(): cache `whole': bad object";
        assert_eq!(log.matches(report).count(), wrong.len(), "objects of {size} bytes: {log}");
        for addr in wrong {
            assert!(log.contains(&format!("{report} {:#018x}\n", addr.raw())), "{addr:?} of {size} bytes: {log}");
        }
        assert_eq!(free_pages(mm), start, "objects of {size} bytes");
        assert_sound(mm);
    }
}

/// Nothing of what its metadata said is left on a page when it becomes part of another cache's slab.
#[test]
fn pages_that_come_back_are_as_good_as_others() {
    for (size, small_size) in [(4096, 512), (8192, 1024)] {
        let machine = small();
        let mm = machine.mm();
        let cache = whole(mm, size);
        let other = mm.kmem_cache_create("other", small_size, 0, SlabFlags::NONE, None).expect("a cache");
        alloc(mm, cache, 200).into_iter().for_each(|object| mm.kmem_cache_free(cache, object));
        let objects = alloc(mm, other, 800);
        for (at, object) in objects.iter().enumerate() {
            write(*object, small_size, at as u8);
        }
        let (gone, left): (Vec<_>, Vec<_>) = objects.iter().enumerate().partition(|(at, _)| at % 3 == 0);
        gone.into_iter().for_each(|(_, object)| mm.kmem_cache_free(other, *object));
        for (at, object) in left {
            assert!(
                read(*object, small_size).iter().all(|byte| *byte == at as u8),
                "object {at} of {small_size} bytes"
            );
        }
        assert_sound(mm);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Alloc {
        cpu: usize,
        count: usize,
    },
    /// From the one that was allocated as the `pick`th on, or backwards from there.
    Free {
        cpu: usize,
        pick: usize,
        count: usize,
        backwards: bool,
    },
    /// Somebody has a reference to an object's first page while it is freed.
    LookAt {
        pick: usize,
    },
    Drain,
    Tune {
        limit: u32,
        batch: u32,
        shared: u32,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3usize, 1..120usize).prop_map(|(cpu, count)| Step::Alloc { cpu, count }),
        6 => (0..3usize, any::<usize>(), 1..150usize, any::<bool>())
            .prop_map(|(cpu, pick, count, backwards)| Step::Free { cpu, pick, count, backwards }),
        2 => any::<usize>().prop_map(|pick| Step::LookAt { pick }),
        1 => Just(Step::Drain),
        1 => (1..40u32, 1..40u32, 0..3u32).prop_map(|(limit, batch, shared)| Step::Tune { limit, batch, shared }),
    ]
}

/// Small zones, so that chains go over their borders and over those of page blocks.
fn machine() -> Machine {
    let first = [(0, 640 << 10), (MIB, 24 * MIB)];
    quiet(Topology::new().node(&first, 2).node(&[(128 * MIB, 144 * MIB)], 1).boot())
}

fn free(machine: &Machine, cache: Cache, objects: &mut Vec<VirtAddr>, step: &Step) {
    let Step::Free { cpu, pick, count, backwards } = *step else { return };
    if objects.is_empty() {
        return;
    }
    let from = pick % objects.len();
    let to = (from + count).min(objects.len());
    let mut gone: Vec<_> = objects.drain(from..to).collect();
    if backwards {
        gone.reverse();
    }
    machine.on_cpu(cpu, |mm| gone.into_iter().for_each(|object| mm.kmem_cache_free(cache, object)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn all_pages_come_back(size in prop::sample::select(&SIZES[..]), steps in prop::collection::vec(step(), 1..60)) {
        let machine = machine();
        let mm = machine.mm();
        let cache = whole(mm, size);
        let (mut objects, mut looked_at) = (Vec::new(), Vec::new());
        mm.kmem_cache_shrink_all();
        let start = free_pages(mm);
        for step in &steps {
            match *step {
                Step::Alloc { cpu, count } => machine.on_cpu(cpu, |mm| {
                    let gfp = Gfp::KERNEL.with(Gfp::NOWARN);
                    objects.extend((0..count).map_while(|_| mm.kmem_cache_alloc(cache, gfp)));
                }),
                Step::Free { .. } => free(&machine, cache, &mut objects, step),
                Step::LookAt { pick } if !objects.is_empty() => {
                    let pfn = mm.phys(objects[pick % objects.len()]).map(Pfn::containing).expect("of the direct map");
                    prop_assert!(mm.get_page(pfn));
                    looked_at.push(pfn);
                }
                Step::LookAt { .. } => {}
                Step::Drain => mm.drain_all_pages(None),
                Step::Tune { limit, batch, shared } => {
                    prop_assert!(mm.kmem_cache_tune(cache, limit, batch.min(limit), shared));
                }
            }
            assert_sound(mm);
        }
        let rest = Step::Free { cpu: 0, pick: 0, count: objects.len(), backwards: false };
        free(&machine, cache, &mut objects, &rest);
        looked_at.into_iter().for_each(|pfn| mm.put_page(pfn));
        mm.kmem_cache_destroy(cache);
        mm.kmem_cache_shrink_all();
        prop_assert_eq!(mm.kmem_cache_find("whole"), None);
        assert_sound(mm);
        // What arrays of pointers take goes back with them.
        prop_assert_eq!(free_pages(mm), start);
    }
}
