//! What everybody relies on.

use std::collections::HashSet;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::slab::{KMALLOC_MAX_CACHE_SIZE, KMALLOC_MAX_SIZE, ZERO_SIZE_PTR};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::{Pfn, VirtAddr};

use crate::{assert_sound, free_pages, small};

#[test]
fn objects_are_apart_and_aligned() {
    let machine = small();
    let mm = machine.mm();
    let start = free_pages(mm);
    for (size, align) in [(8, 0), (24, 0), (32, 0), (40, 8), (100, 64), (256, 256), (1000, 16), (4096, 4096), (9000, 0)]
    {
        let cache = mm.kmem_cache_create("objects", size, align, SlabFlags::NONE, None).expect("a cache");
        assert_eq!(mm.kmem_cache_size(cache), size);
        let mut objects: Vec<_> =
            (0..1000).map(|_| mm.kmem_cache_alloc(cache, Gfp::KERNEL).expect("an object").raw()).collect();
        assert!(objects.iter().all(|addr| addr % align.max(8) as u64 == 0));
        objects.sort_unstable();
        assert!(objects.windows(2).all(|pair| pair[1] - pair[0] >= size as u64), "objects of {size} bytes overlap");
        objects.iter().for_each(|addr| assert_eq!(mm.virt_to_cache(VirtAddr::new(*addr)), Some(cache)));
        for addr in objects {
            mm.kmem_cache_free(cache, VirtAddr::new(addr));
        }
        mm.kmem_cache_destroy(cache);
        assert_eq!(mm.kmem_cache_find("objects"), None);
    }
    mm.kmem_cache_shrink_all();
    assert_eq!(free_pages(mm), start);
    assert_sound(mm);
    assert_eq!(machine.log_text(), "");
}

#[test]
fn kmalloc_gives_what_was_asked_for() {
    let machine = small();
    let mm = machine.mm();
    let start = free_pages(mm);
    let mut held = Vec::new();
    let mut seen = HashSet::new();
    for size in (1..300).chain([511, 512, 513, 4095, 4096, 4097, 8192, 8193, 65536, 1 << 20]) {
        let addr = mm.kmalloc(size, Gfp::KERNEL).expect("memory");
        assert!(mm.ksize(addr) >= size && seen.insert(addr.raw()));
        let classes = [8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192];
        if size <= KMALLOC_MAX_CACHE_SIZE {
            assert_eq!(Some(mm.ksize(addr)), classes.into_iter().find(|class| *class >= size));
        }
        held.push(addr);
    }
    held.drain(..).for_each(|addr| mm.kfree(addr));
    assert_eq!(mm.kmalloc(0, Gfp::KERNEL), Some(ZERO_SIZE_PTR));
    mm.kfree(ZERO_SIZE_PTR);
    mm.kfree(VirtAddr::new(0));
    assert_eq!(mm.kmalloc(KMALLOC_MAX_SIZE + 1, Gfp::KERNEL), None);
    assert_eq!(mm.kcalloc(usize::MAX / 2, 4, Gfp::KERNEL), None);
    mm.kmem_cache_shrink_all();
    assert_eq!(free_pages(mm), start);
    assert_sound(mm);
    assert_eq!(machine.log_text(), "");
}

/// Slabs of kmalloc's classes are all objects, as those of Linux's slab.params are.
#[test]
fn classes_waste_nothing() {
    let machine = small();
    let mm = machine.mm();
    for (size, name) in
        [(8, "kmalloc-8"), (32, "kmalloc-32"), (96, "kmalloc-96"), (192, "kmalloc-192"), (256, "kmalloc-256")]
            .into_iter()
            .chain([
                (1024, "kmalloc-1k"),
                (4096, "kmalloc-4k"),
                (8192, "kmalloc-8k"),
                (64, "dma-kmalloc-64"),
                (16, "kmalloc-rcl-16"),
            ])
    {
        let record = mm.kmem_cache_record(mm.kmem_cache_find(name).expect("a cache of kmalloc"));
        let bytes = 4096 << record.gfporder.load(Relaxed);
        assert_eq!((record.size.load(Relaxed), record.num.load(Relaxed)), (size, bytes / size), "{name}");
    }
}

#[test]
fn a_slab_that_somebody_looks_at_goes_back_when_they_have_done() {
    let machine = small();
    let mm = machine.mm();
    mm.kmem_cache_shrink_all();
    let start = free_pages(mm);
    for size in [512, 4096, 8192] {
        let cache = mm.kmem_cache_create("looked-at", size, 0, SlabFlags::NONE, None).expect("a cache");
        let objects: Vec<_> = (0..100).map(|_| mm.kmem_cache_alloc(cache, Gfp::KERNEL).expect("an object")).collect();
        // Of different slabs, first, last and in between.
        let looked_at = [0, 50, 99].map(|at| mm.phys(objects[at]).map(Pfn::containing).expect("of the direct map"));
        looked_at.iter().for_each(|pfn| assert!(mm.get_page(*pfn), "{pfn} is in use"));
        objects.into_iter().for_each(|object| mm.kmem_cache_free(cache, object));
        mm.kmem_cache_destroy(cache);
        mm.kmem_cache_shrink_all();
        assert_eq!(mm.kmem_cache_find("looked-at"), None, "objects of {size} bytes");
        assert_eq!(free_pages(mm), start - 3, "objects of {size} bytes");
        assert_sound(mm);
        looked_at.iter().for_each(|pfn| mm.put_page(*pfn));
        assert_eq!(free_pages(mm), start, "objects of {size} bytes");
    }
    assert_sound(mm);
    assert_eq!(machine.log_text(), "");
}
