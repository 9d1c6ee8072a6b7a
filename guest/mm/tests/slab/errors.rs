//! Mistakes of callers are reported, and do no harm.

use pagevisor_mm::slab::CacheError;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::{Order, VirtAddr};

use crate::{assert_sound, small};

#[test]
fn a_cache_with_objects_in_use_stays() {
    let machine = small();
    let mm = machine.mm();
    let cache = mm.kmem_cache_create("stubborn", 100, 0, SlabFlags::NONE, None).expect("a cache");
    let objects = [(); 50].map(|()| mm.kmem_cache_alloc(cache, Gfp::KERNEL).expect("an object"));
    mm.kmem_cache_destroy(cache);
    let line = "slab error in kmem_cache_destroy(): cache `stubborn': Can't free all objects\nCall Trace:\n";
    assert_eq!(machine.log_text(), line);
    assert_sound(mm);
    // It goes on.
    let more = mm.kmem_cache_alloc(cache, Gfp::KERNEL).expect("an object");
    assert!(!objects.contains(&more));
    objects.into_iter().chain([more]).for_each(|object| mm.kmem_cache_free(cache, object));
    mm.kmem_cache_destroy(cache);
    assert_eq!(machine.log_text(), line);
    assert_eq!(mm.kmem_cache_find("stubborn"), None);
    assert_eq!(mm.kmem_cache_alloc(cache, Gfp::KERNEL), None);
    assert_sound(mm);
}

#[test]
fn an_object_of_another_cache_finds_home() {
    let machine = small();
    let mm = machine.mm();
    let [one, two] =
        ["one", "two"].map(|name| mm.kmem_cache_create(name, 64, 0, SlabFlags::NONE, None).expect("a cache"));
    let object = mm.kmem_cache_alloc(one, Gfp::KERNEL).expect("an object");
    mm.kmem_cache_free(two, object);
    assert!(machine.log_text().contains("Wrong slab cache. two but object is from one"), "{}", machine.log_text());
    assert!(!mm.kmem_cache_shrink(one), "the object did not come back");
    assert_sound(mm);
}

#[test]
fn addresses_that_are_no_objects() {
    let machine = small();
    let mm = machine.mm();
    let cache = mm.kmem_cache_create("mine", 64, 0, SlabFlags::NONE, None).expect("a cache");
    let page = mm.get_free_pages(Gfp::KERNEL, Order::ZERO).expect("a page");
    for addr in [page, VirtAddr::new(1 << 20), VirtAddr::new(u64::MAX), VirtAddr::new(page.raw() + (1 << 40))] {
        let before = machine.platform().stacks_dumped();
        mm.kmem_cache_free(cache, addr);
        assert_eq!(machine.platform().stacks_dumped(), before + 1);
    }
    mm.kfree(page);
    mm.kfree(VirtAddr::new(u64::MAX));
    assert!(machine.log_text().contains("free_large_kmalloc"));
    mm.free_pages_virt(page, Order::ZERO);
    assert_sound(mm);
}

#[test]
fn impossible_caches() {
    let machine = small();
    let mm = machine.mm();
    let create = |name, size, align| mm.kmem_cache_create(name, size, align, SlabFlags::NONE, None).map(|_| ());
    assert_eq!(create("", 8, 0), Err(CacheError::Invalid));
    assert_eq!(create("nothing", 0, 0), Err(CacheError::Invalid));
    assert_eq!(create("huge", 5 << 20, 0), Err(CacheError::Invalid));
    assert_eq!(create("crooked", 8, 24), Err(CacheError::Invalid));
    assert_eq!(machine.platform().stacks_dumped(), 4);
    assert_sound(mm);
}
