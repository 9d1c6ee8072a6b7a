//! What roots have in common, what is refused, and several CPUs in one address space.

use pagevisor_mm::instrument::FailNth;
use pagevisor_mm::pgtable::MapError;
use pagevisor_mm::vmalloc::VmallocRequest;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::pgtable::{Entry, PMD_SIZE, Protection, USER_END};
use pagevisor_shared::random::SplitMix64;
use pagevisor_shared::units::{PAGE_SIZE, PhysAddr, VirtAddr};

use super::{GIB, assert_sound, in_use, machine};

const SMALL: Entry = Entry::to_page(PhysAddr::new(0x123_4000), Protection::SHARED);
const LARGE: Entry = Entry::to_large_page(PhysAddr::new(0x120_0000), Protection::SHARED);

#[test]
fn a_root_sees_all_that_is_mapped_after_it_was_made() {
    let machine = machine();
    let mm = machine.mm();
    let tables = mm.pgd_alloc(Gfp::KERNEL).expect("memory");
    // Areas behind each of the first, a middle and the last of the top-level entries there are.
    for align in [1, 512 * GIB, 4096 * GIB, 16384 * GIB] {
        let request = VmallocRequest { align, ..VmallocRequest::new(3 * PAGE_SIZE) };
        let addr = mm.vmalloc_range(&request).expect("memory");
        assert!(mm.walk_kernel(addr).is_some());
        assert!(mm.has_kernel_half(&tables), "{addr} is behind an entry that others do not have");
    }
    mm.pgd_free(tables);
    assert_sound(mm);
}

#[test]
fn the_tables_of_the_kernels_half_cost_a_page_each() {
    let machine = machine();
    let mm = machine.mm();
    let before = in_use(mm).1;
    mm.pgd_free(mm.pgd_alloc(Gfp::KERNEL).expect("memory"));
    assert_eq!(in_use(mm).1 - before, 64);
}

#[test]
fn without_a_block_of_pages_they_are_made_one_by_one() {
    let machine = machine();
    let mm = machine.mm();
    // Single pages are left, and no two side by side.
    let mut taken = Vec::new();
    while let Some(page) = mm.alloc_pages(Gfp::KERNEL | Gfp::NOWARN, pagevisor_shared::units::Order::ZERO) {
        taken.push(page);
    }
    taken.sort();
    let (kept, freed): (Vec<_>, Vec<_>) = taken.into_iter().partition(|page| page.raw() % 2 == 0);
    freed.into_iter().for_each(|page| mm.free_pages(page, pagevisor_shared::units::Order::ZERO));
    let before = in_use(mm).1;
    let tables = mm.pgd_alloc(Gfp::KERNEL).expect("memory");
    assert_eq!(in_use(mm).1 - before, 64);
    let request = VmallocRequest { align: 16384 * GIB, ..VmallocRequest::new(PAGE_SIZE) };
    mm.vmalloc_range(&request).expect("memory");
    assert!(mm.has_kernel_half(&tables));
    mm.pgd_free(tables);
    kept.into_iter().for_each(|page| mm.free_pages(page, pagevisor_shared::units::Order::ZERO));
    assert_sound(mm);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let machine = machine();
    let mm = machine.mm();
    let tables = mm.pgd_alloc(Gfp::KERNEL).expect("memory");
    let set = |virt: u64, level, entry| mm.set_entry(&tables, VirtAddr::new(virt), level, entry, Gfp::KERNEL);
    assert_eq!(set(USER_END, 0, SMALL), Err(MapError::Invalid));
    assert_eq!(set(0xffff_c900_0000_0000, 0, SMALL), Err(MapError::Invalid));
    assert_eq!(set(0x1800, 0, SMALL), Err(MapError::Invalid));
    assert_eq!(set(PAGE_SIZE, 1, LARGE), Err(MapError::Invalid));
    assert_eq!(set(0, 0, Entry::NONE), Err(MapError::Invalid));
    // It would be taken for a table.
    assert_eq!(set(0, 1, SMALL), Err(MapError::Invalid));
    assert_eq!(set(0, 2, LARGE), Err(MapError::Invalid));
    assert_eq!(tables.bytes(), 0);
    assert_eq!(set(PMD_SIZE, 1, LARGE), Ok(Entry::NONE));
    assert_eq!(set(PMD_SIZE + PAGE_SIZE, 0, SMALL), Err(MapError::Occupied));
    assert_eq!(set(0, 0, SMALL), Ok(Entry::NONE));
    assert_eq!(set(0, 1, LARGE), Err(MapError::Occupied));
    // Nor may what is there become what it may not be.
    mm.walk_page_range(&tables, VirtAddr::new(PMD_SIZE), VirtAddr::new(PMD_SIZE + 1), |leaf| {
        assert_eq!((leaf.level(), leaf.update(|_| SMALL), leaf.entry()), (1, LARGE, LARGE));
        assert_eq!(leaf.update(|_| Entry::NONE), LARGE);
        assert_eq!(leaf.entry(), LARGE);
    });
    mm.pgd_free(tables);
    assert_sound(mm);
}

#[test]
fn no_failing_allocation_leaves_anything() {
    let machine = machine();
    let mm = machine.mm();
    mm.pgd_free(mm.pgd_alloc(Gfp::KERNEL).expect("memory"));
    let before = in_use(mm);
    let mut failed = 0;
    for nth in 1..12 {
        mm.set_fail_nth(FailNth::of_machine(nth)).expect("possible");
        if let Some(tables) = mm.pgd_alloc(Gfp::KERNEL) {
            for virt in [0, 3 * GIB, 600 * GIB] {
                let result = mm.set_entry(&tables, VirtAddr::new(virt), 0, SMALL, Gfp::KERNEL);
                assert!(matches!(result, Ok(Entry::NONE) | Err(MapError::NoMemory)), "{result:?}");
                failed += usize::from(result.is_err());
            }
            mm.pgd_free(tables);
        }
        mm.set_fail_nth(FailNth::of_machine(0)).expect("possible");
        assert_eq!(in_use(mm), before, "the {nth}. failure leaves something");
    }
    assert!(failed > 5, "{failed} of the entries failed");
    assert_sound(mm);
}

#[test]
fn several_cpus_share_an_address_space() {
    const PAGES: u64 = 1024;
    let machine = machine();
    let mm = machine.mm();
    mm.pgd_free(mm.pgd_alloc(Gfp::KERNEL).expect("memory"));
    let before = in_use(mm);
    let tables = mm.pgd_alloc(Gfp::KERNEL).expect("memory");
    let work = |cpu: u64| {
        let mut random = SplitMix64::new(cpu);
        // Each has pages of its own, in tables that all share; now and then all tables go that are empty.
        let mut mine = vec![false; PAGES as usize];
        for _ in 0..4000 {
            let page = random.below(PAGES);
            let virt = VirtAddr::new(511 * GIB + 1022 * (1 << 20) + (page * 4 + cpu) * PAGE_SIZE);
            let entry = Entry::to_page(PhysAddr::new((page * 4 + cpu + 1) * PAGE_SIZE), Protection::SHARED);
            let held = &mut mine[page as usize];
            if *held {
                let mut taken = Vec::new();
                mm.walk_page_range(&tables, virt, VirtAddr::new(virt.raw() + 1), |leaf| taken.push(leaf.take()));
                assert_eq!(taken, [entry]);
            } else {
                assert_eq!(mm.set_entry(&tables, virt, 0, entry, Gfp::KERNEL), Ok(Entry::NONE));
                assert_eq!(mm.lookup_entry(&tables, virt), Some((entry, 0)));
            }
            *held = !*held;
            if random.below(64) == 0 {
                let chain = mm.free_pgtables(&tables, VirtAddr::new(0), VirtAddr::new(USER_END));
                mm.free_tables(chain);
            }
        }
        mine.into_iter().filter(|held| *held).count()
    };
    let left: usize = std::thread::scope(|scope| {
        let (work, machine) = (&work, &machine);
        let spawn = |cpu| scope.spawn(move || machine.on_cpu(cpu, |_| work(cpu as u64)));
        let threads: Vec<_> = (0..4).map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().expect("nobody panics")).sum()
    });
    let mut found = 0;
    mm.walk_page_range(&tables, VirtAddr::new(0), VirtAddr::new(USER_END), |leaf| {
        found += 1;
        leaf.take();
    });
    assert_eq!(found, left);
    let chain = mm.free_pgtables(&tables, VirtAddr::new(0), VirtAddr::new(USER_END));
    mm.free_tables(chain);
    assert_eq!(tables.bytes(), 0);
    mm.pgd_free(tables);
    assert_eq!(in_use(mm), before);
    assert_sound(mm);
}
