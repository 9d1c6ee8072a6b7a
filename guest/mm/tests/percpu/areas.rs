//! Single allocations.

use pagevisor_mm::percpu::PerCpuPtr;
use pagevisor_mm::sync::Plain;
use pagevisor_shared::gfp::Gfp;

use super::*;

#[test]
fn instances_of_cpus_are_as_far_apart_as_their_units() {
    let machine = machine(SMALL);
    let mm = machine.mm();
    let ptr = mm.alloc_percpu(24, 8).expect("room");
    let unit = |cpu| mm.per_cpu_ptr(PerCpuPtr::new(0), cpu).raw();
    for cpu in cpus(mm) {
        assert_eq!(mm.per_cpu_ptr(ptr, cpu).raw(), unit(cpu) + ptr.raw());
        machine.on_cpu(cpu.index(), |mm| assert_eq!(mm.this_cpu_ptr(ptr), mm.per_cpu_ptr(ptr, cpu)));
    }
    // Behind the static and the reserved part.
    assert!(ptr.raw() >= 1500 + (8 << 10));
    mm.free_percpu(ptr);
    assert_sound(mm);
}

#[test]
fn what_is_illegal_is_reported_in_linuxs_words() {
    let machine = machine(SMALL);
    let mm = machine.mm();
    for (size, align) in [(0, 8), ((32 << 10) + 1, 8), (8, 8192), (8, 12), (u64::MAX, 8), (8, 0)] {
        machine.platform().clear_log();
        assert_eq!(mm.alloc_percpu(size, align), None);
        let said = format!("illegal size ({size}) or align ({align}) for percpu allocation\nCall Trace:\n");
        assert_eq!(machine.log_text(), said);
        assert_eq!(mm.alloc_percpu_gfp(size, align, Gfp::KERNEL.with(Gfp::NOWARN)), None);
        assert_eq!(machine.log_text(), said);
    }
    assert_sound(mm);
}

#[test]
fn bad_frees_are_reported_and_harmless() {
    let machine = machine(SMALL);
    let mm = machine.mm();
    let ptr = mm.alloc_percpu(64, 64).expect("room");
    let bad = [0, 1500, 4, ptr.raw() + 4, ptr.raw() + 1, ptr.raw() + 64, 40 << 10, u64::MAX - 3, 1 << 40];
    for raw in bad {
        machine.platform().clear_log();
        mm.free_percpu(PerCpuPtr::new(raw));
        assert!(machine.log_text().starts_with("free_percpu(): percpu ptr "), "{raw:#x}");
        assert_sound(mm);
    }
    mm.free_percpu(ptr);
    machine.platform().clear_log();
    mm.free_percpu(ptr);
    assert!(!machine.log_text().is_empty(), "freed twice");
    assert_sound(mm);
}

#[test]
fn the_reserved_part_serves_nobody_else() {
    let machine = machine(SMALL);
    let mm = machine.mm();
    let mut taken = Vec::new();
    while let Some(ptr) = mm.alloc_reserved_percpu(512, 16) {
        assert!((1500..1500 + (8 << 10)).contains(&ptr.raw()));
        taken.push(ptr);
    }
    assert_eq!(taken.len(), (8 << 10) / 512 - 1, "the start is not aligned");
    assert!(machine.log_text().contains("percpu: allocation failed, size=512 align=16 atomic=0, alloc from reserved"));
    let ptr = mm.alloc_percpu(512, 16).expect("the dynamic part has room");
    assert!(ptr.raw() >= 1500 + (8 << 10));
    mm.free_percpu(ptr);
    taken.into_iter().for_each(|ptr| mm.free_percpu(ptr));
    assert_sound(mm);
    assert_eq!(mm.percpu_root().expect("a root").nr_empty_pop_pages.get(), 7);
}

#[test]
fn the_lowest_hole_that_fits_is_taken() {
    let machine = machine(SMALL);
    let mm = machine.mm();
    let taken: Vec<_> = (0..64).map(|_| mm.alloc_percpu(64, 8).expect("room")).collect();
    for hole in [5, 17, 18, 40] {
        mm.free_percpu(taken[hole]);
    }
    assert_eq!(mm.alloc_percpu(128, 8), Some(taken[17]));
    assert_eq!(mm.alloc_percpu(8, 8), Some(taken[5]));
    assert_eq!(mm.alloc_percpu(64, 8), Some(taken[40]));
    assert_eq!(mm.alloc_percpu(8, 8), Some(PerCpuPtr::new(taken[5].raw() + 8)));
    assert_sound(mm);
}
