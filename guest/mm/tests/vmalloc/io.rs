//! `vmap`, `ioremap`, and what is refused.

use pagevisor_mm::instrument::FaultAttr;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::pgtable::{Entry, PMD_SIZE, Protection};
use pagevisor_shared::units::{Order, PAGE_SIZE, Pfn, PhysAddr, VirtAddr};
use pagevisor_shared::vmalloc::VmFlags;

use super::{GIB, MIB, assert_sound, frames, in_use, machine};

#[test]
fn somebodys_pages_are_mapped_in_order_and_stay_theirs() {
    let machine = machine();
    let mm = machine.mm();
    let mut pages: Vec<Pfn> = (0..600).map(|_| mm.alloc_pages(Gfp::KERNEL, Order::ZERO).expect("a page")).collect();
    pages.reverse();
    let addr = mm.vmap(&pages, Protection::KERNEL).expect("memory for tables");
    assert_eq!(frames(mm, addr, 600), pages);
    let area = mm.find_vm_area(VirtAddr::new(addr.raw() + 5 * PAGE_SIZE)).expect("an area");
    assert_eq!((area.addr, area.size, area.flags), (addr, 601 * PAGE_SIZE, VmFlags::MAP));
    mm.vunmap(addr);
    assert_eq!(mm.vmalloc_to_page(addr), None);
    assert_eq!(mm.find_vm_area(addr), None);
    assert!(pages.iter().all(|page| mm.page(*page).expect("a page").refcount() == 1));
    pages.into_iter().for_each(|page| mm.free_pages(page, Order::ZERO));
    assert_eq!(mm.vmap(&[], Protection::KERNEL), None);
    assert_sound(mm);
    assert_eq!(machine.log_text(), "");
}

#[test]
fn devices_are_mapped_as_they_want_to_be_cached() {
    let machine = machine();
    let mm = machine.mm();
    let device = PhysAddr::new(0xd000_0010);
    let bits = Entry::WRITE_THROUGH | Entry::CACHE_DISABLE;
    for (map, wanted) in [
        (mm.ioremap(device, 8), Entry::CACHE_DISABLE),
        (mm.ioremap_wc(device, 8), Entry::WRITE_THROUGH),
        (mm.ioremap_uc(device, 8), bits),
        (mm.ioremap_cache(device, 8), 0),
    ] {
        let addr = map.expect("memory for tables");
        let mapping = mm.walk_kernel(addr).expect("mapped");
        assert_eq!(mapping.phys, device);
        assert_eq!(mapping.entry.0 & bits, wanted);
        assert_eq!(mapping.entry.0 & Entry::NO_EXECUTE, Entry::NO_EXECUTE);
        assert_eq!(mm.find_vm_area(addr).expect("an area").phys, PhysAddr::new(0xd000_0000));
        mm.iounmap(addr);
        assert_eq!(mm.walk_kernel(addr), None);
    }
    // Across a page's end.
    let addr = mm.ioremap(PhysAddr::new(0xd000_0ffc), 8).expect("memory for tables");
    assert_eq!(mm.walk_kernel(VirtAddr::new(addr.raw() + 4)).expect("mapped").phys, PhysAddr::new(0xd000_1000));
    mm.iounmap(addr);
    assert_eq!(machine.log_text(), "");
}

#[test]
fn large_devices_take_large_pages() {
    let machine = machine();
    let mm = machine.mm();
    let addr = mm.ioremap(PhysAddr::new(0xe000_0000 + MIB), 6 * MIB).expect("memory for tables");
    // The area starts at 2 MiB and the device a MiB further on: they never meet.
    assert_eq!(mm.walk_kernel(addr).expect("mapped").entry.0 & Entry::LARGE, 0);
    let before = in_use(mm);
    let large = mm.ioremap(PhysAddr::new(0xe000_0000), 6 * MIB + 4096).expect("memory for tables");
    for offset in [0, PMD_SIZE, 2 * PMD_SIZE] {
        let mapping = mm.walk_kernel(VirtAddr::new(large.raw() + offset)).expect("mapped");
        assert_ne!(mapping.entry.0 & Entry::LARGE, 0);
        assert_eq!(mapping.phys.raw(), 0xe000_0000 + offset);
    }
    let last = mm.walk_kernel(VirtAddr::new(large.raw() + 6 * MIB)).expect("mapped");
    assert_eq!((last.entry.0 & Entry::LARGE, last.phys.raw()), (0, 0xe000_0000 + 6 * MIB));
    mm.iounmap(large);
    mm.purge_vmap_areas();
    assert_eq!(in_use(mm).1, before.1);
    mm.iounmap(addr);
    assert_sound(mm);
}

#[test]
fn what_makes_no_sense_is_refused_and_reported() {
    let machine = machine();
    let mm = machine.mm();
    let logged = |what: &str| {
        let log = machine.log_text();
        assert!(log.contains(what), "no {what:?} in {log:?}");
        machine.platform().clear_log();
    };
    assert_eq!(mm.vmalloc(0), None);
    logged("vmalloc error: size 0, exceeds total pages");
    machine.platform().advance(11_000_000_000);
    assert_eq!(mm.vmalloc(8 * GIB), None);
    logged("vmalloc error: size 8589934592, exceeds total pages, mode:0xcc0(GFP_KERNEL)");
    assert_eq!(mm.vmalloc(u64::MAX), None);
    assert_eq!(mm.ioremap(PhysAddr::new(32 * MIB), 4096), None);
    logged("ioremap on RAM at 0x0000000002000000 - 0x0000000002000fff");
    assert_eq!(mm.ioremap(PhysAddr::new(0xd000_0000), 0), None);
    assert_eq!(mm.ioremap(PhysAddr::new(u64::MAX - 5), 4096), None);
    assert_eq!(mm.ioremap(PhysAddr::new(1 << 60), 4096), None);
    logged("ioremap: invalid physical address 1000000000000000");
    let addr = mm.vmalloc(3 * PAGE_SIZE).expect("memory");
    mm.vfree(VirtAddr::new(addr.raw() + 8));
    logged("Trying to vfree() bad address");
    mm.vfree(VirtAddr::new(addr.raw() + PAGE_SIZE));
    logged("Trying to vfree() nonexistent vm area");
    mm.vunmap(addr);
    logged("Trying to vunmap() nonexistent vm area");
    mm.iounmap(addr);
    logged("iounmap: bad address");
    mm.vfree(addr);
    mm.vfree(addr);
    logged(&format!("Trying to vfree() nonexistent vm area ({:016x})", addr.raw()));
    for wild in [1, 4096, 0xffff_8880_0000_0000, !4095] {
        mm.vfree(VirtAddr::new(wild));
        logged("Trying to vfree()");
        assert_eq!(mm.vmalloc_to_page(VirtAddr::new(wild)), None);
    }
    machine.platform().interrupt(|| mm.vfree(VirtAddr::new(4096)));
    logged("Trying to vfree()");
    mm.vfree(VirtAddr::new(0));
    assert_eq!(machine.log_text(), "");
    assert_sound(mm);
}

#[test]
fn what_kmalloc_does_not_have_at_hand_is_mapped() {
    let machine = machine();
    let mm = machine.mm();
    let is_mapped = |addr: Option<VirtAddr>| {
        let addr = addr.expect("memory");
        let mapped = mm.find_vm_area(addr).is_some();
        mm.kvfree(addr);
        assert!(mm.find_vm_area(addr).is_none());
        mapped
    };
    assert!(!is_mapped(mm.kvmalloc(100, Gfp::KERNEL)));
    assert!(!is_mapped(mm.kvmalloc(64 << 10, Gfp::KERNEL)));
    assert!(is_mapped(mm.kvmalloc(5 << 20, Gfp::KERNEL)), "more than pages come in");
    assert!(is_mapped(mm.kvcalloc(3, 2 << 20, Gfp::KERNEL)));
    assert_eq!(mm.kvmalloc(5 << 20, Gfp::NOWAIT), None, "mapping may wait");
    assert_eq!(mm.kvmalloc(3 << 30, Gfp::KERNEL | Gfp::NOWARN), None);
    assert_eq!(mm.kvcalloc(usize::MAX, 2, Gfp::KERNEL), None);
    // Large blocks are gone, single pages are not.
    let large = FaultAttr { probability: 100, times: -1, min_order: 1, ignore_gfp_reclaim: false, ..FaultAttr::new() };
    mm.set_fail_page_alloc(large).expect("possible");
    let scattered = mm.kvzalloc(64 << 10, Gfp::KERNEL).expect("single pages");
    assert!(mm.find_vm_area(scattered).is_some());
    let mut bytes = vec![1; 64 << 10];
    assert!(mm.vread(scattered, &mut bytes) && bytes.iter().all(|byte| *byte == 0));
    mm.kvfree(scattered);
    mm.set_fail_page_alloc(FaultAttr::new()).expect("Linux's own");
    assert_eq!(machine.log_text(), "");
    assert_sound(mm);
}
