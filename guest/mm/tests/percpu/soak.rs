//! Many chunks that come and go: what is counted, where they are found, and that all memory comes back.

use pagevisor_mm::sync::Plain;
use pagevisor_shared::percpu::{PCPU_MIN_UNIT_SIZE, PcpuRoot};
use pagevisor_shared::random::SplitMix64;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};
use pagevisor_shared::vmalloc::VmFlags;
use proptest::prelude::*;

use super::*;

/// Chunks that are always there: the parts of the first.
const FIRST: u32 = 2;

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// So many allocations of up to so many bytes.
    Grow {
        count: usize,
        most: u64,
    },
    /// Frees so many of a hundred.
    Shrink {
        percent: u64,
    },
    Balance,
}

fn phase() -> impl Strategy<Value = Phase> {
    prop_oneof![
        3 => (1..120usize, prop_oneof![Just(600u64), Just(5000), Just(32 << 10)])
            .prop_map(|(count, most)| Phase::Grow { count, most }),
        3 => prop_oneof![Just(100), 20..100u64].prop_map(|percent| Phase::Shrink { percent }),
        2 => Just(Phase::Balance),
    ]
}

struct Held {
    ptr: PerCpuPtr,
    size: usize,
    seed: u8,
}

/// What is counted agrees, and each chunk has an area for every group.
#[track_caller]
fn check(mm: &Mm<HostPlatform>) {
    assert_eq!(chunk_violations(mm), []);
    let root = mm.percpu_root().expect("a root");
    let areas = mm.vmalloc_areas().0;
    assert_eq!(areas as u64, GROUPS * further(root), "areas of {} chunks", root.nr_chunks.get());
    assert_eq!(mm.region().header().nr_percpu_pages.get(), mm.pcpu_nr_pages());
}

/// Chunks in the vmalloc space.
fn further(root: &PcpuRoot) -> u64 {
    (root.nr_chunks.get() - FIRST).into()
}

fn give(mm: &Mm<HostPlatform>, held: Held) -> PerCpuPtr {
    assert!(is_filled(mm, held.ptr, held.size, held.seed), "somebody else wrote to {:?}", held.ptr);
    mm.free_percpu(held.ptr);
    held.ptr
}

fn run(phases: &[Phase], seed: u64) {
    let machine = machine(SMALL);
    let mm = machine.mm();
    let root = mm.percpu_root().expect("a root");
    let booted = root.nr_populated.get();
    // Slab caches, top-level page tables and the chunk that is kept are there from then on.
    let first: Vec<_> = (0..40).map(|_| mm.alloc_percpu(4000, 8).expect("memory")).collect();
    first.into_iter().for_each(|ptr| mm.free_percpu(ptr));
    mm.percpu_balance();
    let before = Pages::of(mm);
    let mut random = SplitMix64::new(seed);
    let mut held: Vec<Held> = Vec::new();
    for phase in phases {
        match *phase {
            Phase::Grow { count, most } => {
                for round in 0..count {
                    let size = 1 + random.below(most);
                    let align = 1 << random.below(13);
                    let Some(ptr) = mm.alloc_percpu(size, align) else { break };
                    assert!(is_zero(mm, ptr, size as usize));
                    fill(mm, ptr, size as usize, round as u8);
                    held.push(Held { ptr, size: size as usize, seed: round as u8 });
                }
            }
            Phase::Shrink { percent } => {
                for _ in 0..held.len() * percent as usize / 100 {
                    let victim = held.swap_remove(random.below(held.len() as u64) as usize);
                    give(mm, victim);
                }
            }
            Phase::Balance => mm.percpu_balance(),
        }
        check(mm);
    }
    let freed: Vec<_> = held.into_iter().map(|held| give(mm, held)).collect();
    mm.percpu_balance();
    check(mm);
    assert!(further(root) <= 1, "{} chunks", root.nr_chunks.get());
    // The last one stays with all the memory it has, if that was not worth taking before it became the last.
    let most = booted + root.unit_size.get() / PAGE_SIZE;
    assert!(root.nr_populated.get() <= most, "{} pages of a unit, {most} at most", root.nr_populated.get());
    // Nothing of it is there twice.
    machine.platform().clear_log();
    freed.iter().for_each(|ptr| mm.free_percpu(*ptr));
    assert_eq!(machine.log_text().matches("is not allocated").count(), freed.len());
    check(mm);
    Pages::of(mm).assert_back(before);
    assert_sound(mm);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chunks_come_and_go_and_nothing_is_left(phases in prop::collection::vec(phase(), 1..14), seed: u64) {
        run(&phases, seed);
    }
}

/// `free_percpu` asks `pcpu_should_reclaim_chunk` only of chunks that are still in use.
#[test]
fn the_last_chunk_keeps_its_memory_and_any_other_gives_it_back() {
    let machine = machine(SMALL);
    let mm = machine.mm();
    let root = mm.percpu_root().expect("a root");
    let booted = root.nr_populated.get();
    let pages = PCPU_MIN_UNIT_SIZE / PAGE_SIZE;
    // As large as may be: each gets a chunk of its own.
    let [first, second] = [0; 2].map(|_| mm.alloc_percpu(PCPU_MIN_UNIT_SIZE, 8).expect("memory"));
    assert_eq!((further(root), root.nr_populated.get()), (2, booted + 2 * pages));
    mm.free_percpu(first);
    mm.percpu_balance();
    assert_eq!((further(root), root.nr_populated.get()), (2, booted + 2 * pages));
    mm.free_percpu(second);
    mm.percpu_balance();
    check(mm);
    assert_eq!(further(root), 1);
    assert!(root.nr_populated.get() <= booted + pages);
    assert_sound(mm);
}

#[test]
fn what_is_between_the_groups_of_a_chunk_is_free_for_others() {
    let machine = machine(SMALL);
    let mm = machine.mm();
    let taken: Vec<_> = (0..200).map(|_| mm.alloc_percpu(4000, 8).expect("memory")).collect();
    let root = mm.percpu_root().expect("a root");
    assert!(root.nr_chunks.get() > 20, "{} chunks", root.nr_chunks.get());
    check(mm);
    let (mut bytes, mut chunks) = (0, std::collections::HashSet::new());
    for ptr in &taken {
        for cpu in cpus(mm) {
            let addr = mm.per_cpu_ptr(*ptr, cpu);
            let Some(area) = mm.find_vm_area(VirtAddr::new(addr.raw())) else { continue };
            assert_eq!((area.flags, area.nr_pages), (VmFlags::ALLOC.with(VmFlags::PERCPU), 0));
            if chunks.insert(area.addr) {
                bytes += area.size;
            }
        }
    }
    assert_eq!(chunks.len() as u64, GROUPS * further(root));
    // As many addresses as there are units, and not those from the first group to the last.
    let units = u64::from(root.nr_units.get()) * root.unit_size.get();
    assert_eq!(bytes, units * further(root));
    assert!(root.group_offsets.iter().any(|offset| offset.get() > units + PAGE_SIZE), "the groups are side by side");
    taken.into_iter().for_each(|ptr| mm.free_percpu(ptr));
    mm.percpu_balance();
    check(mm);
    assert_sound(mm);
}
