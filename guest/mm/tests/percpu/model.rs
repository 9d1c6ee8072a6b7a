//! Random operations, against the list of what is allocated.

use proptest::prelude::*;

use super::*;
use pagevisor_mm::sync::Plain;
use pagevisor_shared::gfp::Gfp;

#[derive(Clone, Copy, Debug)]
enum Op {
    Alloc { size: u64, align: u32, atomic: bool },
    Free(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let size = prop_oneof![4 => 1..64u64, 3 => 1..1024u64, 2 => 1..9000u64, 1 => 1..(32u64 << 10)];
    prop_oneof![
        3 => (size, 0..13u32, any::<bool>()).prop_map(|(size, align, atomic)| Op::Alloc { size, align, atomic }),
        2 => (0..1000usize).prop_map(Op::Free),
    ]
}

struct Area {
    ptr: PerCpuPtr,
    size: u64,
    seed: u8,
}

/// Does `ops` and then frees everything, checking all the way.
fn run(sizes: [u64; 4], ops: &[Op]) {
    let machine = machine(sizes);
    let mm = machine.mm();
    let mut areas: Vec<Area> = Vec::new();
    for (round, op) in ops.iter().enumerate() {
        match *op {
            Op::Alloc { size, align, atomic } => {
                let gfp = if atomic { Gfp::ATOMIC_ALLOC } else { Gfp::KERNEL };
                let Some(ptr) = mm.alloc_percpu_gfp(size, 1 << align, gfp) else { continue };
                assert!(ptr.raw().is_multiple_of(1 << align), "{ptr:?} is not aligned to {}", 1 << align);
                let meets = |area: &&Area| ptr.raw() < area.ptr.raw() + area.size && area.ptr.raw() < ptr.raw() + size;
                assert!(areas.iter().find(meets).is_none(), "{ptr:?} overlaps another");
                assert!(is_zero(mm, ptr, size as usize));
                fill(mm, ptr, size as usize, round as u8);
                if round % 16 == 0 {
                    mm.percpu_balance();
                }
                areas.push(Area { ptr, size, seed: round as u8 });
            }
            Op::Free(victim) if !areas.is_empty() => {
                let area = areas.swap_remove(victim % areas.len());
                assert!(is_filled(mm, area.ptr, area.size as usize, area.seed), "somebody else wrote to it");
                mm.free_percpu(area.ptr);
            }
            Op::Free(_) => {}
        }
        // A recount looks at every bit.
        if round % 8 == 0 {
            assert_eq!(chunk_violations(mm), []);
        }
    }
    for area in areas {
        assert!(is_filled(mm, area.ptr, area.size as usize, area.seed), "somebody else wrote to it");
        mm.free_percpu(area.ptr);
    }
    mm.percpu_balance();
    assert_sound(mm);
    let root = mm.percpu_root().expect("there is per-CPU memory");
    // What stays is a chunk without allocations, with a few pages for those who cannot wait.
    assert!(root.nr_chunks.get() <= 3, "{} chunks", root.nr_chunks.get());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn areas_are_apart_aligned_and_zero(ops in prop::collection::vec(op(), 1..200)) {
        run(SMALL, &ops);
    }

    #[test]
    fn a_large_first_chunk_keeps_its_books(ops in prop::collection::vec(op(), 1..300), dynamic in 20u64..100) {
        run([100, 0, dynamic << 10, 4096], &ops);
    }
}
