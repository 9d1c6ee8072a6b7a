//! Units: where they are, and what they hold at first.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::percpu::PerCpuPtr;
use pagevisor_mm::sync::Plain;
use pagevisor_shared::units::{PAGE_SIZE, Pfn};

use super::*;

#[test]
fn every_unit_is_on_its_cpus_node() {
    for atom in [4096, 2 << 20] {
        let machine = machine([1500, 8 << 10, 28 << 10, atom]);
        let mm = machine.mm();
        for cpu in cpus(mm) {
            let node = mm.region().cpus()[cpu.index()].node.get();
            let unit = mm.phys(mm.per_cpu_ptr(PerCpuPtr::new(0), cpu)).expect("in the direct map");
            for page in 0..10 {
                let pfn = Pfn::new(unit.raw() / PAGE_SIZE + page);
                assert_eq!(mm.page_to_nid(pfn).map(|node| node.index() as u32), Some(node), "CPU {}", cpu.index());
                assert!(mm.is_reserved(pfn));
            }
        }
        assert_sound(mm);
    }
}

#[test]
fn units_start_with_the_static_variables_and_go_on_with_zeros() {
    let machine = topology().unknown_content().percpu(1500, 8 << 10, 28 << 10, 4096).boot();
    let mm = machine.mm();
    for cpu in cpus(mm) {
        let unit = bytes(mm.per_cpu_ptr(PerCpuPtr::new(0), cpu), 38 << 10);
        assert!(unit.iter().take(1500).enumerate().all(|(at, byte)| byte.load(Relaxed) == at as u8));
        assert!(unit.iter().skip(1500).all(|byte| byte.load(Relaxed) == 0));
    }
}

#[test]
fn sizes_are_those_of_linux() {
    // Four CPUs, two groups: 40 KiB a unit; of 2 MiB, no more than two units, or one in two would be spare.
    for (atom, unit_size, units) in [(4096, 40 << 10, 4), (2 << 20, 1 << 20, 4)] {
        let machine = machine([1500, 8 << 10, 28 << 10, atom]);
        let root = machine.mm().percpu_root().expect("there is per-CPU memory");
        if atom == 4096 {
            assert_eq!(root.unit_size.get(), unit_size);
            assert_eq!(root.nr_units.get(), units);
        }
        assert_eq!(root.nr_groups.get(), 2);
        assert_eq!(root.nr_populated.get(), 10);
        assert_eq!(machine.mm().pcpu_nr_pages(), 10 * u64::from(root.nr_units.get()));
        assert_eq!(root.dyn_size.get(), (40 << 10) - (8 << 10) - 1500);
        assert_eq!(machine.mm().region().header().nr_percpu_pages.get(), machine.mm().pcpu_nr_pages());
    }
}

#[test]
fn what_no_unit_needs_goes_back() {
    let free = |topology: Topology| {
        topology.boot().mm().region().zones().iter().map(|zone| zone.managed_pages.get()).sum::<u64>()
    };
    let none = free(topology());
    for atom in [4096, 2 << 20] {
        let [fixed, reserved, dynamic, _] = SMALL;
        // Four units of ten pages, and the records.
        let taken = none - free(topology().percpu(fixed, reserved, dynamic, atom));
        assert!((41..=46).contains(&taken), "{taken} pages with an atom of {atom}");
    }
}

#[test]
fn a_machine_without_room_does_not_boot() {
    let result = std::panic::catch_unwind(|| {
        Topology::new()
            .node(&[(0, 4 << 20)], 1)
            .percpu(8 << 20, 0, 28 << 10, 4096)
            .try_boot(pagevisor_mm::Hooks::none())
    });
    assert!(matches!(result, Ok(Err(pagevisor_mm::BootError::Memory(_)))));
}
