//! Further chunks: where their pages are, what becomes of them.

use std::sync::Mutex;

use pagevisor_mm::instrument::FailNth;
use pagevisor_mm::sync::Plain;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::percpu::PCPU_MIN_UNIT_SIZE;
use pagevisor_shared::random::SplitMix64;
use pagevisor_shared::units::{Pfn, VirtAddr};

use super::*;

/// Takes and gives so much that several chunks come and go.
fn come_and_go(mm: &Mm<HostPlatform>) {
    let taken: Vec<_> = (0..60).map(|_| mm.alloc_percpu(4000, 8).expect("memory")).collect();
    assert!(mm.percpu_root().expect("a root").nr_chunks.get() > 5);
    taken.into_iter().for_each(|ptr| mm.free_percpu(ptr));
    mm.percpu_balance();
}

#[test]
fn every_page_is_on_its_cpus_node() {
    let machine = machine(SMALL);
    let mm = machine.mm();
    let taken: Vec<_> = (0..60).map(|_| mm.alloc_percpu(4000, 8).expect("memory")).collect();
    assert_sound(mm);
    for (round, ptr) in taken.iter().enumerate() {
        fill(mm, *ptr, 4000, round as u8);
        for cpu in cpus(mm) {
            let frame = Pfn::containing(mm.per_cpu_phys(*ptr, 0, cpu).expect("memory"));
            let node = mm.region().cpus()[cpu.index()].node.get() as usize;
            assert_eq!(mm.page_to_nid(frame).map(|node| node.index()), Some(node));
            // What the page tables say is the same.
            let addr = mm.per_cpu_ptr(*ptr, cpu);
            if Mm::<HostPlatform>::is_vmalloc_addr(addr) {
                let mapping = mm.walk_kernel(VirtAddr::new(addr.raw())).expect("mapped");
                assert_eq!(Some(mapping.phys), mm.per_cpu_phys(*ptr, 0, cpu));
            }
        }
    }
    assert!(taken.iter().enumerate().all(|(round, ptr)| is_filled(mm, *ptr, 4000, round as u8)));
}

#[test]
fn what_is_freed_goes_back() {
    let machine = machine(SMALL);
    let mm = machine.mm();
    come_and_go(mm);
    let before = Pages::of(mm);
    for _ in 0..30 {
        come_and_go(mm);
    }
    Pages::of(mm).assert_back(before);
    assert_sound(mm);
    assert_eq!(mm.region().header().nr_percpu_pages.get(), mm.pcpu_nr_pages());
}

#[test]
fn the_areas_of_chunks_are_nobody_elses_to_free() {
    let machine = machine(SMALL);
    let mm = machine.mm();
    // As large as may be: no room in the first chunk.
    let ptr = mm.alloc_percpu(PCPU_MIN_UNIT_SIZE, 8).expect("memory");
    fill(mm, ptr, PCPU_MIN_UNIT_SIZE as usize, 7);
    let areas = mm.vmalloc_areas();
    assert_eq!(areas.0 as u64, GROUPS);
    type Free = fn(&Mm<HostPlatform>, VirtAddr);
    let calls: [(Free, &str); 5] = [
        (|mm, addr| mm.vfree(addr), "Trying to vfree() nonexistent vm area ("),
        (|mm, addr| mm.vfree_atomic(addr), "Trying to vfree() nonexistent vm area ("),
        (|mm, addr| mm.kvfree(addr), "Trying to vfree() nonexistent vm area ("),
        (|mm, addr| mm.vunmap(addr), "Trying to vunmap() nonexistent vm area ("),
        (|mm, addr| mm.iounmap(addr), "iounmap: bad address "),
    ];
    for cpu in cpus(mm) {
        let area = mm.find_vm_area(mm.per_cpu_ptr(ptr, cpu)).expect("a unit is in an area").addr;
        for (free, complaint) in calls {
            machine.platform().clear_log();
            free(mm, area);
            assert!(machine.log_text().contains(complaint), "{complaint}: {}", machine.log_text());
            mm.vfree_deferred();
            assert_eq!(mm.vmalloc_areas(), areas, "{complaint}");
        }
        mm.kfree(area);
        let mut byte = [0];
        assert!(!mm.vread(area, &mut byte) && !mm.vwrite(area, &byte), "an area without pages of its own");
    }
    assert!(is_filled(mm, ptr, PCPU_MIN_UNIT_SIZE as usize, 7));
    assert_sound(mm);
    mm.free_percpu(ptr);
    assert_sound(mm);
}

#[test]
fn who_cannot_wait_gets_what_has_memory_already() {
    let machine = machine(SMALL);
    let mm = machine.mm();
    let mut taken = Vec::new();
    while let Some(ptr) = mm.alloc_percpu_gfp(2048, 8, Gfp::ATOMIC_ALLOC) {
        taken.push(ptr);
    }
    let chunks = || mm.percpu_root().expect("a root").nr_chunks.get();
    assert_eq!(chunks(), 2, "made a chunk where it could not wait");
    // Whoever has time makes some for the next one.
    mm.percpu_balance();
    assert_eq!(chunks(), 3);
    for _ in 0..8 {
        let ptr = mm.alloc_percpu_gfp(2048, 8, Gfp::ATOMIC_ALLOC).expect("four pages are ready");
        assert!(is_zero(mm, ptr, 2048));
        taken.push(ptr);
    }
    assert_eq!(mm.alloc_percpu_gfp(2048, 8, Gfp::ATOMIC_ALLOC), None);
    assert_sound(mm);
    taken.into_iter().for_each(|ptr| mm.free_percpu(ptr));
    assert_sound(mm);
}

#[test]
fn no_failing_allocation_leaks() {
    let machine = machine(SMALL);
    let mm = machine.mm();
    come_and_go(mm);
    let before = Pages::of(mm);
    // More often than there are pages to lose: then failures far behind what one round allocates.
    for nth in (1..60).cycle().take(118) {
        mm.set_fail_nth(FailNth::of_machine(nth)).expect("possible");
        let taken: Vec<_> = (0..20).filter_map(|_| mm.alloc_percpu(4000, 8)).collect();
        assert_sound(mm);
        assert!(taken.iter().all(|ptr| is_zero(mm, *ptr, 4000)));
        taken.into_iter().for_each(|ptr| mm.free_percpu(ptr));
        mm.set_fail_nth(FailNth::of_machine(0)).expect("possible");
        mm.percpu_balance();
    }
    come_and_go(mm);
    Pages::of(mm).assert_back(before);
    assert_sound(mm);
}

#[test]
fn many_cpus_take_and_give_at_once() {
    let machine = machine(SMALL);
    let handed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for cpu in 0..4 {
            let (machine, handed) = (&machine, &handed);
            scope.spawn(move || {
                machine.on_cpu(cpu, |mm| {
                    let mut random = SplitMix64::new(cpu as u64);
                    for round in 0..400 {
                        let size = 4 + random.below(3000) as usize;
                        let gfp = if random.below(4) == 0 { Gfp::ATOMIC_ALLOC } else { Gfp::KERNEL };
                        if let Some(ptr) = mm.alloc_percpu_gfp(size as u64, 8, gfp) {
                            assert!(is_zero(mm, ptr, size));
                            fill(mm, ptr, size, round as u8);
                            handed.lock().expect("nobody panics").push((ptr, size, round as u8));
                        }
                        // Somebody else's, as often as not.
                        let mut list = handed.lock().expect("nobody panics");
                        if list.len() > 40 {
                            let victim = random.below(list.len() as u64) as usize;
                            let (ptr, size, seed) = list.swap_remove(victim);
                            drop(list);
                            assert!(is_filled(mm, ptr, size, seed));
                            mm.free_percpu(ptr);
                        }
                        if round % 50 == 0 {
                            mm.percpu_balance();
                        }
                    }
                });
            });
        }
    });
    let mm = machine.mm();
    assert_sound(mm);
    for (ptr, size, seed) in handed.into_inner().expect("nobody panicked") {
        assert!(is_filled(mm, ptr, size, seed));
        mm.free_percpu(ptr);
    }
    mm.percpu_balance();
    assert_sound(mm);
}
