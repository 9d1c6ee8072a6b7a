//! Eight CPUs of two nodes at once: areas of all kinds and sizes, freed by whoever comes by.

use std::sync::Mutex;

use pagevisor_mm::Mm;
use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};
use pagevisor_mm::vmalloc::VmallocRequest;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::pgtable::Protection;
use pagevisor_shared::random::SplitMix64;
use pagevisor_shared::units::{Order, PAGE_SIZE, Pfn, PhysAddr, VirtAddr};
use pagevisor_shared::vmalloc::VmFlags;

use super::{GIB, MIB, assert_sound, in_use};

const CPUS: usize = 8;
const ROUNDS: u64 = 1500;

/// What somebody holds.
enum Area {
    /// Memory that begins with a mark.
    Memory { addr: VirtAddr, pages: u64, mark: u64 },
    /// Pages of one's own, mapped a second time.
    Mapped { addr: VirtAddr, pages: Vec<Pfn> },
    /// A device.
    Device { addr: VirtAddr, phys: PhysAddr },
}

fn machine() -> Machine {
    let nodes = Topology::new().node(&[(16 * MIB, 528 * MIB)], 4).node(&[(4 * GIB, 4 * GIB + 512 * MIB)], 4);
    let machine = nodes.boot();
    machine.platform().clear_log();
    machine
}

/// Sizes in pages: mostly few, now and then large pages.
fn pages(random: &mut SplitMix64) -> u64 {
    match random.below(20) {
        0 => 512 + random.below(600),
        1..4 => 40 + random.below(260),
        4..8 => 1,
        _ => 1 + random.below(40),
    }
}

fn allocate(mm: &Mm<HostPlatform>, random: &mut SplitMix64, mark: u64) -> Option<Area> {
    match random.below(10) {
        0 => {
            let pages: Option<Vec<_>> =
                (0..1 + random.below(9)).map(|_| mm.alloc_pages(Gfp::KERNEL, Order::ZERO)).collect();
            let pages = pages.expect("memory");
            let addr = mm.vmap(&pages, Protection::KERNEL).expect("addresses");
            Some(Area::Mapped { addr, pages })
        }
        1 => {
            let phys = PhysAddr::new(3 * GIB + random.below(4096) * PAGE_SIZE);
            let addr = mm.ioremap(phys, (1 + random.below(8)) * PAGE_SIZE).expect("addresses");
            Some(Area::Device { addr, phys })
        }
        kind => {
            let pages = pages(random);
            let align = PAGE_SIZE << if kind == 2 { random.below(10) } else { 0 };
            let flags = if kind == 3 { VmFlags::USERMAP } else { VmFlags::ALLOW_HUGE_VMAP };
            let addr = mm.vmalloc_range(&VmallocRequest { align, flags, ..VmallocRequest::new(pages * PAGE_SIZE) })?;
            assert_eq!(addr.raw() % align, 0);
            for page in [0, pages - 1] {
                assert!(mm.vwrite(VirtAddr::new(addr.raw() + page * PAGE_SIZE), &(mark + page).to_le_bytes()));
            }
            Some(Area::Memory { addr, pages, mark })
        }
    }
}

fn release(machine: &Machine, mm: &Mm<HostPlatform>, random: &mut SplitMix64, area: Area) {
    match area {
        Area::Memory { addr, pages, mark } => {
            for page in [0, pages - 1] {
                let mut found = [0; 8];
                assert!(mm.vread(VirtAddr::new(addr.raw() + page * PAGE_SIZE), &mut found));
                assert_eq!(u64::from_le_bytes(found), mark + page, "somebody else wrote to {addr}");
            }
            let found = mm.find_vm_area(addr).expect("it is there");
            assert_eq!((found.addr, u64::from(found.nr_pages)), (addr, pages));
            if random.below(8) == 0 {
                machine.platform().interrupt(|| mm.vfree(addr));
            } else {
                mm.vfree(addr);
            }
        }
        Area::Mapped { addr, pages } => {
            for (index, page) in (0..).zip(&pages) {
                assert_eq!(mm.vmalloc_to_page(VirtAddr::new(addr.raw() + index * PAGE_SIZE)), Some(*page));
            }
            mm.vunmap(addr);
            pages.into_iter().for_each(|page| mm.free_pages(page, Order::ZERO));
        }
        Area::Device { addr, phys } => {
            assert_eq!(mm.walk_kernel(addr).map(|mapping| mapping.phys), Some(phys));
            mm.iounmap(addr);
        }
    }
}

/// One CPU's part: it takes, hands to all, and frees what anybody took.
fn churn(machine: &Machine, mm: &Mm<HostPlatform>, cpu: u64, shared: &Mutex<Vec<Area>>) {
    let mut random = SplitMix64::new(cpu);
    for round in 0..ROUNDS {
        if random.below(60) == 0 {
            mm.purge_vmap_areas();
        }
        if let Some(area) = allocate(mm, &mut random, cpu << 48 | round << 16) {
            shared.lock().expect("nobody panics").push(area);
        }
        let mut list = shared.lock().expect("nobody panics");
        let victim = (list.len() > 60).then(|| random.below(list.len() as u64) as usize);
        let victim = victim.map(|victim| list.swap_remove(victim));
        drop(list);
        if let Some(area) = victim {
            release(machine, mm, &mut random, area);
        }
    }
}

#[test]
fn eight_cpus_take_and_free_areas_of_all_kinds() {
    let machine = machine();
    let mm = machine.mm();
    mm.vfree(mm.vmalloc(1).expect("a page"));
    mm.purge_vmap_areas();
    let before = in_use(mm).1;
    let shared = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for cpu in 0..CPUS {
            let (machine, shared) = (&machine, &shared);
            scope.spawn(move || machine.on_cpu(cpu, |mm| churn(machine, mm, cpu as u64, shared)));
        }
    });
    mm.vfree_deferred();
    assert_sound(mm);
    let mut random = SplitMix64::new(99);
    for area in shared.into_inner().expect("nobody panicked") {
        release(&machine, mm, &mut random, area);
    }
    mm.vfree_deferred();
    mm.purge_vmap_areas();
    assert_eq!(mm.vmalloc_areas(), (0, 1), "the space is not whole again");
    assert_eq!(in_use(mm).1, before, "page tables are left");
    assert_sound(mm);
    assert_eq!(machine.log_text(), "");
}
