//! What objects of kmalloc cost in memory, beside Linux 6.1.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::hosted::Topology;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{CpuId, NodeId, PAGE_SIZE, VirtAddr};

use crate::{MIB, assert_sound, quiet};

/// Linux 6.1's slabs of each size class (`/sys/kernel/slab/*`: `object_size`, `order`, `objs_per_slab`), the same for
/// `kmalloc-*`, `kmalloc-rcl-*` and `dma-kmalloc-*`.
const LINUX: [(&str, usize, u32, u64); 13] = [
    ("8", 8, 0, 512),
    ("16", 16, 0, 256),
    ("32", 32, 0, 128),
    ("64", 64, 0, 64),
    ("96", 96, 0, 42),
    ("128", 128, 0, 32),
    ("192", 192, 0, 21),
    ("256", 256, 0, 16),
    ("512", 512, 1, 16),
    ("1k", 1024, 2, 16),
    ("2k", 2048, 3, 16),
    ("4k", 4096, 3, 8),
    ("8k", 8192, 3, 4),
];

/// The kinds of kmalloc caches: the names' beginnings, and flags that ask for them.
const KINDS: [(&str, Gfp); 3] = [
    ("kmalloc-", Gfp::KERNEL),
    ("kmalloc-rcl-", Gfp::KERNEL.with(Gfp::RECLAIMABLE)),
    ("dma-kmalloc-", Gfp::KERNEL.with(Gfp::DMA)),
];

/// Bytes of the slabs that hold `objects`.
fn bytes(objects: u64, order: u32, per_slab: u64) -> u64 {
    objects.div_ceil(per_slab) * (PAGE_SIZE << order)
}

#[test]
fn a_million_objects_of_each_class_take_no_more_than_in_linux() {
    let machine = quiet(Topology::new().node(&[(0, 640 << 10), (MIB, 96 * MIB)], 1).boot());
    let mm = machine.mm();
    for (kind, gfp) in KINDS {
        for (class, size, order, per_slab) in LINUX {
            let name = format!("{kind}{class}");
            let cache = mm.kmem_cache_find(&name).unwrap_or_else(|| panic!("no {name}"));
            let record = mm.kmem_cache_record(cache);
            let (our_order, num) = (record.gfporder.load(Relaxed), record.num.load(Relaxed) as u64);
            let (ours, linux) = (bytes(1_000_000, our_order, num), bytes(1_000_000, order, per_slab));
            assert!(ours <= linux, "{name}: {ours} bytes for {} asked for, Linux {linux}", 1_000_000 * size);

            // That is what it takes: whole slabs, none more than the objects in use and in arrays need.
            let objects: Vec<VirtAddr> = (0..1_000_000 / size as u64 / 8 + 40)
                .map(|_| mm.kmalloc(size, gfp).unwrap_or_else(|| panic!("no memory for {name}")))
                .collect();
            assert!(objects.iter().all(|object| mm.virt_to_cache(*object) == Some(cache)), "not of {name}");
            let lists = mm.kmem_cache_node(cache, NodeId::new(0).expect("a node"));
            let array = mm.kmem_cache_array(cache, CpuId::new(0).expect("a CPU"));
            let slabs = lists.total_slabs.load(Relaxed);
            let held = lists.free_objects.load(Relaxed) + array.avail.load(Relaxed) as u64;
            assert_eq!(record.grown.load(Relaxed) - record.reaped.load(Relaxed), slabs, "{name}");
            // Boot's own objects of the class are among those in use.
            let in_use = slabs * num - held;
            assert!(in_use >= objects.len() as u64, "{name}: {in_use} in use");
            let spare = held.div_ceil(num);
            assert!(slabs <= in_use.div_ceil(num) + spare, "{name}: {slabs} slabs for {in_use} and {held} objects");
            assert!(held < array.limit.load(Relaxed) as u64 + num, "{name}: {held} objects that nobody has");
            objects.into_iter().for_each(|object| mm.kfree(object));
        }
    }
    assert_sound(mm);
}
