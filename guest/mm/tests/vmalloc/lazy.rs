//! When addresses come back, and freeing from interrupts.

use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};

use super::{MIB, assert_sound, in_use, machine};

#[test]
fn addresses_come_back_once_many_are_free_and_all_processors_have_forgotten_them() {
    let machine = machine();
    let mm = machine.mm();
    let most = mm.lazy_max_pages();
    assert_eq!(most, 2 * 32 * MIB / PAGE_SIZE, "two CPUs take two bits");
    let first = mm.vmalloc(7 * PAGE_SIZE).expect("memory");
    mm.vfree(first);
    let mut freed = 8;
    while freed + 8 <= most {
        let addr = mm.vmalloc(7 * PAGE_SIZE).expect("memory");
        assert_ne!(addr, first, "nobody was told to forget it");
        mm.vfree(addr);
        freed += 8;
    }
    assert!(machine.platform().take_flushes().is_empty());
    mm.vfree(mm.vmalloc(7 * PAGE_SIZE).expect("memory"));
    let flushes = machine.platform().take_flushes();
    let end = first.raw() + (freed + 8) * PAGE_SIZE;
    assert_eq!(flushes.len(), 1, "one for all of them");
    assert_eq!(flushes[0], first.raw()..end);
    assert_eq!(mm.vmalloc(7 * PAGE_SIZE), Some(first));
    mm.vfree(first);
    assert_sound(mm);
}

#[test]
fn from_interrupts_it_is_freed_later() {
    let machine = machine();
    let mm = machine.mm();
    let areas: Vec<_> = (0..5).map(|_| mm.vmalloc(PAGE_SIZE).expect("memory")).collect();
    machine.platform().interrupt(|| areas.iter().for_each(|addr| mm.vfree(*addr)));
    assert!(areas.iter().all(|addr| mm.vmalloc_to_page(*addr).is_some()), "not yet");
    machine.platform().interrupt(|| mm.vfree(areas[2]));
    assert!(machine.log_text().contains("Trying to vfree() nonexistent vm area"), "freed twice");
    machine.platform().clear_log();
    mm.vfree(areas[1]);
    assert!(machine.log_text().contains("Trying to vfree() nonexistent vm area"), "freed twice");
    assert!(areas.iter().all(|addr| mm.vmalloc_to_page(*addr).is_none()), "somebody came by");
    machine.platform().interrupt(|| assert_eq!(mm.vmalloc(0), None));
    let other = mm.vmalloc(PAGE_SIZE).expect("memory");
    mm.vfree_atomic(other);
    assert!(mm.vmalloc_to_page(other).is_some());
    mm.vfree_deferred();
    assert!(mm.vmalloc_to_page(other).is_none());
    assert_sound(mm);
}

#[test]
fn tables_go_when_they_are_empty_and_not_before() {
    let machine = machine();
    let mm = machine.mm();
    mm.vfree(mm.vmalloc(1).expect("memory"));
    mm.purge_vmap_areas();
    let none = in_use(mm).1;
    // Two areas share the page table of the first 2 MiB.
    let (a, b) = (mm.vmalloc(PAGE_SIZE).expect("memory"), mm.vmalloc(PAGE_SIZE).expect("memory"));
    assert_eq!(in_use(mm).1, none + 2, "a directory and a page table");
    mm.vfree(a);
    mm.purge_vmap_areas();
    assert_eq!(in_use(mm).1, none + 2);
    assert!(mm.vmalloc_to_page(b).is_some());
    mm.vfree(b);
    assert_eq!(in_use(mm).1, none + 2, "processors may remember it");
    mm.purge_vmap_areas();
    assert_eq!(in_use(mm).1, none);
    assert!(!mm.purge_vmap_areas(), "nothing to do");
    let far = mm.vmalloc(80 * MIB).expect("memory");
    assert!(mm.vmalloc_to_page(VirtAddr::new(far.raw() + 80 * MIB - 1)).is_some());
    mm.vfree(far);
    mm.purge_vmap_areas();
    assert_eq!(in_use(mm).1, none);
    assert_sound(mm);
}
