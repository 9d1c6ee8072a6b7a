//! `memblock_alloc`, `_raw`, `_from`, `_low` and `memblock_phys_alloc*`: where they place, and what they clear.

use pagevisor_mm::memblock::{AllocError, Memblock};
use pagevisor_shared::units::PhysAddr;

use crate::{BASE, END, KIB, MIB, Machine, PAGE, Placed, SIZE, STALE, at, node, placements};

fn placed(result: Result<PhysAddr, AllocError>) -> Placed {
    result.ok().map(PhysAddr::raw)
}

/// The two cases' rest of a page that a request for 64 bytes leaves.
const LINE: u64 = 64;
const MEM: (u64, u64, Option<usize>) = (BASE, SIZE, None);

placements! {
    simple {
        memory: [MEM], reserved: [],
        ask: |m| placed(m.alloc(LINE, LINE)),
        top_down: Some(END - LINE) => [(END - LINE, LINE)],
        bottom_up: Some(BASE) => [(BASE, LINE)],
    }
    raw {
        memory: [MEM], reserved: [],
        ask: |m| placed(m.alloc_raw(LINE, LINE)),
        top_down: Some(END - LINE) => [(END - LINE, LINE)],
        bottom_up: Some(BASE) => [(BASE, LINE)],
    }
    /// No alignment means a cache line.
    default_alignment {
        memory: [(BASE + 1, SIZE, None)], reserved: [],
        ask: |m| placed(m.alloc(1, 0)),
        top_down: Some(END) => [(END, 1)],
        bottom_up: Some(BASE + LINE) => [(BASE + LINE, 1)],
    }
    /// The size is not rounded to the alignment.
    alignment_moves_the_start_only {
        memory: [MEM], reserved: [],
        ask: |m| placed(m.alloc(100, 1024)),
        top_down: Some(END - KIB) => [(END - KIB, 100)],
        bottom_up: Some(BASE) => [(BASE, 100)],
    }
    /// Reserved memory apart from the new block stays apart.
    disjoint {
        memory: [MEM], reserved: [(END - 2 * KIB, KIB), (BASE + KIB, KIB)],
        ask: |m| placed(m.alloc(512, LINE)),
        top_down: Some(END - 512) => [(BASE + KIB, KIB), (END - 2 * KIB, KIB), (END - 512, 512)],
        bottom_up: Some(BASE) => [(BASE, 512), (BASE + KIB, KIB), (END - 2 * KIB, KIB)],
    }
    /// The end (start) of memory is taken: the block is placed next to it and merges.
    next_to_reserved {
        memory: [MEM], reserved: [(BASE, KIB), (END - KIB, KIB)],
        ask: |m| placed(m.alloc(KIB, LINE)),
        top_down: Some(END - 2 * KIB) => [(BASE, KIB), (END - 2 * KIB, 2 * KIB)],
        bottom_up: Some(BASE + KIB) => [(BASE, 2 * KIB), (END - KIB, KIB)],
    }
    /// The first gap in the direction of the search is too small for an aligned block.
    second_fit {
        memory: [MEM], reserved: [(BASE + 512, KIB), (END - 512 - KIB, KIB)],
        ask: |m| placed(m.alloc(KIB, LINE)),
        top_down: Some(END - 512 - 2 * KIB) => [(BASE + 512, KIB), (END - 512 - 2 * KIB, 2 * KIB)],
        bottom_up: Some(BASE + 512 + KIB) => [(BASE + 512, 2 * KIB), (END - 512 - KIB, KIB)],
    }
    /// Only the gap between two reserved regions fits, exactly: all three merge.
    in_between {
        memory: [MEM], reserved: [(BASE, 6 * KIB), (BASE + 8 * KIB, 8 * KIB)],
        ask: |m| placed(m.alloc(2 * KIB, LINE)),
        top_down: Some(BASE + 6 * KIB) => [(BASE, SIZE)],
        bottom_up: Some(BASE + 6 * KIB) => [(BASE, SIZE)],
    }
    small_gaps {
        memory: [MEM], reserved: [(BASE, 4 * KIB), (BASE + 5 * KIB, 4 * KIB), (BASE + 10 * KIB, 6 * KIB)],
        ask: |m| placed(m.alloc(KIB + 1, 1)),
        top_down: None => [(BASE, 4 * KIB), (BASE + 5 * KIB, 4 * KIB), (BASE + 10 * KIB, 6 * KIB)],
        bottom_up: None => [(BASE, 4 * KIB), (BASE + 5 * KIB, 4 * KIB), (BASE + 10 * KIB, 6 * KIB)],
    }
    all_reserved {
        memory: [MEM], reserved: [(BASE, SIZE)],
        ask: |m| placed(m.alloc(1, 1)),
        top_down: None => [(BASE, SIZE)],
        bottom_up: None => [(BASE, SIZE)],
    }
    no_space {
        memory: [MEM], reserved: [(BASE, SIZE - KIB)],
        ask: |m| placed(m.alloc(KIB + 1, 1)),
        top_down: None => [(BASE, SIZE - KIB)],
        bottom_up: None => [(BASE, SIZE - KIB)],
    }
    exactly_the_rest {
        memory: [MEM], reserved: [(BASE, SIZE - KIB)],
        ask: |m| placed(m.alloc(KIB, LINE)),
        top_down: Some(END - KIB) => [(BASE, SIZE)],
        bottom_up: Some(END - KIB) => [(BASE, SIZE)],
    }
    no_memory {
        memory: [], reserved: [],
        ask: |m| placed(m.alloc(1, 1)),
        top_down: None => [],
        bottom_up: None => [],
    }
    too_large {
        memory: [MEM], reserved: [],
        ask: |m| placed(m.alloc(SIZE + 1, 1)),
        top_down: None => [],
        bottom_up: None => [],
    }
    larger_than_any_address {
        memory: [MEM], reserved: [],
        ask: |m| placed(m.alloc(u64::MAX, 1)),
        top_down: None => [],
        bottom_up: None => [],
    }
    /// Memory that is adjacent but of two nodes is two ranges: no block spans them.
    never_across_regions {
        memory: [(BASE, KIB, Some(0)), (BASE + KIB, KIB, Some(1))], reserved: [],
        ask: |m| placed(m.alloc(KIB + 1, 1)),
        top_down: None => [],
        bottom_up: None => [],
    }
    /// Page 0 is never given out, or 0 could not mean failure.
    not_the_first_page {
        memory: [(0, 2 * PAGE, None)], reserved: [(PAGE, KIB)],
        ask: |m| placed(m.alloc(KIB, LINE)),
        top_down: Some(2 * PAGE - KIB) => [(PAGE, KIB), (2 * PAGE - KIB, KIB)],
        bottom_up: Some(PAGE + KIB) => [(PAGE, 2 * KIB)],
    }
    only_the_first_page {
        memory: [(0, PAGE, None)], reserved: [],
        ask: |m| placed(m.alloc(1, 1)),
        top_down: None => [],
        bottom_up: None => [],
    }
    above_the_current_limit {
        memory: [MEM], reserved: [],
        ask: |m| { m.set_current_limit(at(BASE + 4 * KIB)); placed(m.alloc(KIB, LINE)) },
        top_down: Some(BASE + 3 * KIB) => [(BASE + 3 * KIB, KIB)],
        bottom_up: Some(BASE) => [(BASE, KIB)],
    }
    /// An end of its own does not lift an allocation above the current limit ...
    the_current_limit_binds_alloc {
        memory: [MEM], reserved: [],
        ask: |m| {
            m.set_current_limit(at(BASE + 4 * KIB));
            placed(m.alloc_try_nid(KIB, LINE, at(0), PhysAddr::new(u64::MAX), None))
        },
        top_down: Some(BASE + 3 * KIB) => [(BASE + 3 * KIB, KIB)],
        bottom_up: Some(BASE) => [(BASE, KIB)],
    }
    /// ... but does so for the physical calls.
    the_current_limit_frees_phys_alloc_range {
        memory: [MEM], reserved: [(BASE, 4 * KIB)],
        ask: |m| {
            m.set_current_limit(at(BASE + 4 * KIB));
            placed(m.phys_alloc_range(KIB, LINE, at(0), PhysAddr::new(u64::MAX)))
        },
        top_down: Some(END - KIB) => [(BASE, 4 * KIB), (END - KIB, KIB)],
        bottom_up: Some(BASE + 4 * KIB) => [(BASE, 5 * KIB)],
    }
    phys_alloc {
        memory: [MEM], reserved: [],
        ask: |m| placed(m.phys_alloc(PAGE, PAGE)),
        top_down: Some(END - PAGE) => [(END - PAGE, PAGE)],
        bottom_up: Some(BASE) => [(BASE, PAGE)],
    }
    /// The physical calls keep their lower bound: they fail rather than go below.
    phys_alloc_range_keeps_its_start {
        memory: [MEM], reserved: [(END - KIB, KIB)],
        ask: |m| placed(m.phys_alloc_range(KIB, 1, at(END - KIB), at(END))),
        top_down: None => [(END - KIB, KIB)],
        bottom_up: None => [(END - KIB, KIB)],
    }
    phys_alloc_range_inside_bounds {
        memory: [MEM], reserved: [],
        ask: |m| placed(m.phys_alloc_range(KIB, KIB, at(BASE + 2 * KIB + 1), at(BASE + 8 * KIB + 1))),
        top_down: Some(BASE + 7 * KIB) => [(BASE + 7 * KIB, KIB)],
        bottom_up: Some(BASE + 3 * KIB) => [(BASE + 3 * KIB, KIB)],
    }

    from_inside {
        memory: [MEM], reserved: [],
        ask: |m| placed(m.alloc_from(KIB, LINE, at(BASE + 4 * KIB))),
        top_down: Some(END - KIB) => [(END - KIB, KIB)],
        bottom_up: Some(BASE + 4 * KIB) => [(BASE + 4 * KIB, KIB)],
    }
    from_misaligned {
        memory: [MEM], reserved: [],
        ask: |m| placed(m.alloc_from(32, LINE, at(END - LINE - 4))),
        top_down: Some(END - LINE) => [(END - LINE, 32)],
        bottom_up: Some(END - LINE) => [(END - LINE, 32)],
    }
    /// Aligned up, no room is left above the bound: the bound is given up.
    from_too_high {
        memory: [MEM], reserved: [],
        ask: |m| placed(m.alloc_from(LINE, LINE, at(END - LINE + 1))),
        top_down: Some(END - LINE) => [(END - LINE, LINE)],
        bottom_up: Some(BASE) => [(BASE, LINE)],
    }
    from_no_space_above {
        memory: [MEM], reserved: [(END - 2 * KIB, 2 * KIB)],
        ask: |m| placed(m.alloc_from(KIB, LINE, at(END - 2 * KIB))),
        top_down: Some(END - 3 * KIB) => [(END - 3 * KIB, 3 * KIB)],
        bottom_up: Some(BASE) => [(BASE, KIB), (END - 2 * KIB, 2 * KIB)],
    }
    from_below_memory {
        memory: [MEM], reserved: [],
        ask: |m| placed(m.alloc_from(KIB, LINE, at(PAGE))),
        top_down: Some(END - KIB) => [(END - KIB, KIB)],
        bottom_up: Some(BASE) => [(BASE, KIB)],
    }
}

#[test]
fn low_stays_below_4_gib() {
    let mut memblock = crate::bookkeeping();
    memblock.add(at(2 << 30), 4 << 30).unwrap();
    let low = memblock.find_in_range(at(0), at(0xffff_ffff), PAGE, PAGE);
    assert_eq!(low, Some(at(0xffff_e000)), "Linux's limit is the last byte below 4 GiB, not the first above");
    let mut machine = Machine::new(2 * MIB, false);
    machine.memblock.add(at(BASE), SIZE).unwrap();
    machine.memblock.add(at(5 << 30), MIB).unwrap();
    assert_eq!(placed(machine.memblock.alloc_low(KIB, KIB)), Some(END - KIB));
    assert_eq!(placed(machine.memblock.alloc_raw(KIB, KIB)), Some((5 << 30) + MIB - KIB));
}

#[test]
fn a_size_of_zero_takes_nothing() {
    let mut machine = Machine::new(2 * MIB, false);
    machine.memblock.add(at(BASE), SIZE).unwrap();
    assert_eq!(placed(machine.memblock.alloc(0, LINE)), Some(END));
    assert!(machine.memblock.reserved().is_empty());
}

type Call = fn(&mut Memblock) -> Result<PhysAddr, AllocError>;

#[test]
fn cleared_unless_raw_or_physical() {
    let cleared: [Call; 5] = [
        |m| m.alloc(PAGE, 0),
        |m| m.alloc_from(PAGE, 0, at(BASE)),
        |m| m.alloc_low(PAGE, 0),
        |m| m.alloc_node(PAGE, 0, Some(node(0))),
        |m| m.alloc_try_nid(PAGE, 0, at(0), at(END), None),
    ];
    let stale: [Call; 6] = [
        |m| m.alloc_raw(PAGE, 0),
        |m| m.alloc_try_nid_raw(PAGE, 0, at(0), at(0), None),
        |m| m.alloc_exact_nid_raw(PAGE, 0, at(0), at(0), None),
        |m| m.phys_alloc(PAGE, 0),
        |m| m.phys_alloc_range(PAGE, 0, at(0), at(0)),
        |m| m.phys_alloc_try_nid(PAGE, 0, None),
    ];
    for (calls, value) in [(&cleared[..], 0), (&stale[..], STALE)] {
        for call in calls {
            let mut machine = Machine::new(2 * MIB, false);
            machine.memblock.add(at(BASE), SIZE).unwrap();
            let addr = call(&mut machine.memblock).unwrap();
            assert!(machine.all(addr, PAGE, value));
            assert!(machine.all(at(BASE), addr.raw() - BASE, STALE), "nothing else is touched");
            assert!(machine.all(at(addr.raw() + PAGE), END - addr.raw() - PAGE, STALE));
        }
    }
}

/// Memory that reads as zero from the start is not cleared again, but memory that was freed is.
#[test]
fn fresh_memory_is_cleared_only_once_used() {
    let mut machine = Machine::new(2 * MIB, true);
    machine.memblock.add(at(BASE), SIZE).unwrap();
    machine.scribble(at(END - 1));
    let fresh = machine.memblock.alloc(PAGE, PAGE).unwrap();
    assert_eq!(machine.byte(END - 1), STALE, "it was promised to be zero, so nobody looks");
    machine.scribble(fresh);
    assert!(machine.memblock.used_range().is_empty());
    machine.memblock.phys_free(fresh, PAGE).unwrap();
    assert_eq!(machine.memblock.used_range(), fresh..at(END));
    let again = machine.memblock.alloc(PAGE / 2, PAGE).unwrap();
    assert_eq!(again, fresh);
    assert!(machine.all(again, PAGE / 2, 0));
}

#[test]
fn a_failure_says_what_was_asked_for() {
    let mut memblock = crate::bookkeeping();
    let error = memblock.alloc_try_nid_raw(4096, 4096, at(0x1000), at(0x8000), Some(node(1))).unwrap_err();
    assert_eq!(error.to_string(), "Failed to allocate 4096 bytes align=0x1000 nid=1 from=0x1000 max_addr=0x8000");
    let error = memblock.alloc(64, 0).unwrap_err();
    assert_eq!(error.to_string(), "Failed to allocate 64 bytes align=0x0 nid=-1 from=0x0 max_addr=0x0");
}

#[test]
#[should_panic(expected = "alignment 0x30 is not a power of two")]
fn a_crooked_alignment_is_refused() {
    let _ = crate::bookkeeping().alloc(64, 48);
}

#[test]
fn full_tables_fail_the_allocation_and_leave_everything_as_it_was() {
    let mut memblock = crate::bookkeeping();
    memblock.add(at(BASE), MIB).unwrap();
    for index in 0..128 {
        memblock.reserve(at(BASE + 2 * index * KIB), KIB).unwrap();
    }
    assert!(memblock.alloc_raw(64, 64).is_err(), "apart from all others, so it would need a slot");
    assert_eq!(memblock.reserved().len(), 128);
    assert_eq!(memblock.reserved_size(), 128 * KIB);
}
