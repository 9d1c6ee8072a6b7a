//! Mistakes of callers are reported, and do no harm.

use pagevisor_mm::hosted::Machine;
use pagevisor_mm::slab::{Cache, CacheError};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::{Order, VirtAddr};

use crate::{assert_sound, read, small, write};

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

/// A cache that watches for everything, and an object of it.
fn watched(machine: &Machine) -> (Cache, VirtAddr) {
    let flags = SlabFlags::RED_ZONE.with(SlabFlags::POISON).with(SlabFlags::STORE_USER);
    let cache = machine.mm().kmem_cache_create("watched", 48, 0, flags, None).expect("a cache");
    let object = machine.mm().kmem_cache_alloc(cache, Gfp::KERNEL).expect("an object");
    (cache, object)
}

#[test]
fn correct_use_of_a_watched_cache_is_silent() {
    let machine = small();
    let mm = machine.mm();
    let (cache, first) = watched(&machine);
    assert_eq!(read(first, 48)[..47], [0x5a; 47]);
    let mut objects: Vec<_> = (0..300).map(|_| mm.kmem_cache_zalloc(cache, Gfp::KERNEL).expect("an object")).collect();
    assert!(objects.iter().all(|object| read(*object, 48) == [0; 48]));
    objects.push(first);
    objects.iter().for_each(|object| write(*object, 48, 7));
    assert_sound(mm);
    objects.into_iter().for_each(|object| mm.kmem_cache_free(cache, object));
    assert_sound(mm);
    mm.kmem_cache_destroy(cache);
    assert_eq!(machine.log_text(), "");
}

#[test]
fn a_double_free_is_reported_and_ignored() {
    let machine = small();
    let mm = machine.mm();
    let (cache, object) = watched(&machine);
    mm.kmem_cache_free(cache, object);
    mm.kmem_cache_free(cache, object);
    let log = machine.log_text();
    assert!(log.starts_with("slab error in verify_redzone_free(): cache `watched': double free detected\n"), "{log}");
    assert!(log.contains("redzone 1:0x9f911029d74e35b, redzone 2:0x9f911029d74e35b"), "{log}");
    assert!(log.contains("Last user: ("), "{log}");
    mm.kmem_cache_destroy(cache);
    assert_sound(mm);
}

#[test]
fn a_write_past_the_end_is_reported() {
    let machine = small();
    let mm = machine.mm();
    let (cache, object) = watched(&machine);
    write(object, 49, 1);
    mm.kmem_cache_free(cache, object);
    let log = machine.log_text();
    let line = "slab error in verify_redzone_free(): cache `watched': memory outside object was overwritten\n";
    assert!(log.starts_with(line), "{log}");
    mm.kmem_cache_destroy(cache);
    assert_sound(mm);
}

#[test]
fn the_neighbours_of_a_damaged_object_are_shown_and_a_single_bit_is_told() {
    let machine = small();
    let mm = machine.mm();
    let (cache, first) = watched(&machine);
    let more = (0..20).map(|_| mm.kmem_cache_alloc(cache, Gfp::KERNEL).expect("an object"));
    let mut objects: Vec<u64> = more.chain([first]).map(VirtAddr::raw).collect();
    objects.sort_unstable();
    let size = objects.windows(2).map(|pair| pair[1] - pair[0]).min().expect("two objects");
    let beside = |three: &&[u64]| three[1] - three[0] == size && three[2] - three[1] == size;
    let three = objects.windows(3).find(beside).expect("three in a row");
    let [prev, object, next] = [0, 1, 2].map(|index| VirtAddr::new(three[index]));
    write(prev, 48, 0x31);
    write(next, 48, 0x32);
    mm.kmem_cache_free(cache, object);
    write(VirtAddr::new(object.raw() + 16), 1, 0x6f);
    assert_eq!(mm.kmem_cache_alloc(cache, Gfp::KERNEL), Some(object));
    let neighbour = |which: &str, at: VirtAddr, byte: &str, text: &str| {
        let line = format!("{}  {}\n", [byte; 16].join(" "), text.repeat(16));
        let head = format!("{which} obj: start={:016x}, len=48\n", at.raw());
        let zones = "Redzone: 0xd84156c5635688c0/0xd84156c5635688c0\nLast user: (";
        (format!("{head}{zones}"), format!("\n000: {line}010: {line}"))
    };
    let (prev, next) = (neighbour("Prev", prev, "31", "1"), neighbour("Next", next, "32", "2"));
    let log = machine.log_text();
    let bit = "Single bit error detected. Probably bad RAM.\nRun memtest86+ or a similar memory test tool.\n";
    let damage = format!("\n010: 6f{}  o{}\n{bit}{}", " 6b".repeat(15), "k".repeat(15), prev.0);
    assert!(log.contains(&damage), "{log}");
    assert!(log.contains(&format!("{}{}", prev.1, next.0)) && log.ends_with(&next.1), "{log}");
    assert_eq!(machine.platform().stacks_dumped(), 0);
    objects.into_iter().for_each(|object| mm.kmem_cache_free(cache, VirtAddr::new(object)));
    mm.kmem_cache_destroy(cache);
    assert_sound(mm);
}

#[test]
fn a_use_after_free_is_reported() {
    let machine = small();
    let mm = machine.mm();
    let (cache, object) = watched(&machine);
    mm.kmem_cache_free(cache, object);
    write(object, 3, 0x41);
    assert_eq!(mm.kmem_cache_alloc(cache, Gfp::KERNEL), Some(object));
    let log = machine.log_text();
    assert!(log.starts_with("Slab corruption (Not tainted): watched start="), "{log}");
    assert!(log.contains("Redzone: 0x9f911029d74e35b/0x9f911029d74e35b\nLast user: ("), "{log}");
    assert!(log.contains("000: 41 41 41 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b  AAAkkkkkkkkkkkkk\n"), "{log}");
    assert!(!log.contains("bit error") && !log.contains("Call Trace"), "{log}");
    mm.kmem_cache_free(cache, object);
    mm.kmem_cache_destroy(cache);
    assert_sound(mm);
}
