//! Random sequences of calls against a map with one entry per byte, compared after every step.

use pagevisor_mm::memblock::{Kind, Memblock, MemblockFlags};
use pagevisor_shared::units::{NodeId, PhysAddr};
use proptest::prelude::*;

use crate::{at, bookkeeping, regions};

/// The space: it straddles the end of page 0, which is never given out.
const FIRST: u64 = 4096 - 32;
const BYTES: usize = 288;

/// What one byte is: node and flags of the region that covers it.
type Cell = Option<(Option<usize>, MemblockFlags)>;

/// The whole truth about memory, byte by byte.
#[derive(Clone)]
struct Model {
    memory: [Cell; BYTES],
    reserved: [Cell; BYTES],
    bottom_up: bool,
    limit: u64,
    movable_node: bool,
    some_mirror: bool,
}

/// What to look for, as `find_in_range_node` takes it.
#[derive(Clone, Copy, Debug)]
struct Want {
    size: u64,
    align: u64,
    start: u64,
    end: u64,
    nid: Option<usize>,
}

#[derive(Clone, Debug)]
enum Op {
    Add { base: u64, size: u64, nid: Option<usize>, flags: MemblockFlags },
    Remove { base: u64, size: u64 },
    Reserve { base: u64, size: u64 },
    Free { base: u64, size: u64 },
    Mark { base: u64, size: u64, flag: MemblockFlags, set: bool },
    SetNode { base: u64, size: u64, reserved: bool, nid: Option<usize> },
    Trim { align: u64 },
    Cap { base: u64, size: u64 },
    Limit { bytes: u64 },
    BottomUp(bool),
    CurrentLimit(u64),
    MovableNode(bool),
    Find { want: Want, flags: MemblockFlags },
    AllocRange { want: Want, exact: bool },
    AllocTryNid { want: Want, exact: bool },
}

const ALL_FLAGS: [MemblockFlags; 5] = [
    MemblockFlags::NONE,
    MemblockFlags::HOTPLUG,
    MemblockFlags::MIRROR,
    MemblockFlags::NOMAP,
    MemblockFlags::DRIVER_MANAGED,
];

impl Model {
    fn new() -> Self {
        Self {
            memory: [None; BYTES],
            reserved: [None; BYTES],
            bottom_up: false,
            limit: u64::MAX,
            movable_node: false,
            some_mirror: false,
        }
    }

    /// The cells of `[base, base + size)`.
    fn part(cells: &mut [Cell; BYTES], base: u64, size: u64) -> &mut [Cell] {
        let index = |addr: u64| (addr.saturating_sub(FIRST) as usize).min(BYTES);
        &mut cells[index(base)..index(base.saturating_add(size))]
    }

    /// Maximal runs of equal cells, as regions.
    fn runs(cells: &[Cell; BYTES]) -> Vec<(u64, u64, Option<usize>, MemblockFlags)> {
        let mut runs = Vec::new();
        let mut start = 0;
        for index in 1..=BYTES {
            if index == BYTES || cells[index] != cells[start] {
                if let Some((nid, flags)) = cells[start] {
                    runs.push((FIRST + start as u64, (index - start) as u64, nid, flags));
                }
                start = index;
            }
        }
        runs
    }

    fn trim(&mut self, align: u64) {
        for (base, size, _, _) in Self::runs(&self.memory) {
            let (start, end) = (base.next_multiple_of(align), (base + size) / align * align);
            if start >= end {
                Self::part(&mut self.memory, base, size).fill(None);
            } else {
                Self::part(&mut self.memory, base, start - base).fill(None);
                Self::part(&mut self.memory, end, base + size - end).fill(None);
            }
        }
    }

    fn cap(&mut self, base: u64, size: u64) {
        if size == 0 || self.memory.iter().all(Option::is_none) {
            return;
        }
        let inside = |index: usize| (base..base + size).contains(&(FIRST + index as u64));
        for index in (0..BYTES).filter(|index| !inside(*index)) {
            self.reserved[index] = None;
            if self.memory[index].is_some_and(|(_, flags)| !flags.contains(MemblockFlags::NOMAP)) {
                self.memory[index] = None;
            }
        }
    }

    fn limit_memory(&mut self, bytes: u64) {
        let mut left = bytes;
        let end = (0..BYTES).find(|index| {
            left -= u64::from(self.memory[*index].is_some());
            left == 0
        });
        if let Some(last) = end.filter(|_| bytes > 0) {
            self.memory[last + 1..].fill(None);
            self.reserved[last + 1..].fill(None);
        }
    }

    fn takes(&self, cell: Cell, nid: Option<usize>, flags: MemblockFlags) -> bool {
        let Some((of, has)) = cell else { return false };
        let asked = |flag| flags.contains(flag) || !has.contains(flag);
        (nid.is_none() || nid == of)
            && (!self.movable_node || asked(MemblockFlags::HOTPLUG))
            && (!flags.contains(MemblockFlags::MIRROR) || has.contains(MemblockFlags::MIRROR))
            && asked(MemblockFlags::NOMAP)
            && asked(MemblockFlags::DRIVER_MANAGED)
    }

    /// Tries every address: the lowest or highest at which a block of free, alike bytes fits.
    fn find(&self, want: Want, flags: MemblockFlags) -> Option<u64> {
        let end = if want.end == 0 { self.limit } else { want.end };
        let fits = |addr: u64| {
            let first = (addr - FIRST) as usize;
            let Some(block) = self.memory.get(first..first + want.size as usize) else { return false };
            addr >= 4096
                && addr >= want.start
                && addr.checked_add(want.size).is_some_and(|stop| stop <= end)
                && addr.is_multiple_of(want.align)
                && self.takes(block[0], want.nid, flags)
                && block.iter().all(|cell| *cell == block[0])
                && self.reserved[first..first + want.size as usize].iter().all(Option::is_none)
        };
        let mut addresses = FIRST..FIRST + BYTES as u64;
        if self.bottom_up { addresses.find(|addr| fits(*addr)) } else { addresses.rev().find(|addr| fits(*addr)) }
    }

    /// Every attempt an allocation makes, in order, until one finds a place.
    fn alloc(&mut self, want: Want, exact: bool, drop_min: bool) -> Option<u64> {
        let starts = if drop_min && want.start > 0 { vec![want.start, 0] } else { vec![want.start] };
        let nids = if want.nid.is_some() && !exact { vec![want.nid, None] } else { vec![want.nid] };
        let flags =
            if self.some_mirror { vec![MemblockFlags::MIRROR, MemblockFlags::NONE] } else { vec![MemblockFlags::NONE] };
        let mut attempts = Vec::new();
        for &start in &starts {
            for &flags in &flags {
                attempts.extend(nids.iter().map(|&nid| (Want { start, nid, ..want }, flags)));
            }
        }
        let addr = attempts.into_iter().find_map(|(want, flags)| self.find(want, flags))?;
        self.reserve(addr, want.size);
        Some(addr)
    }

    fn reserve(&mut self, base: u64, size: u64) {
        for cell in Self::part(&mut self.reserved, base, size) {
            cell.get_or_insert((None, MemblockFlags::NONE));
        }
    }
}

fn nid(id: Option<usize>) -> Option<NodeId> {
    id.and_then(NodeId::new)
}

/// Does `op` to both; what they return must agree.
fn step(model: &mut Model, memblock: &mut Memblock, op: &Op) -> Result<(), TestCaseError> {
    match *op {
        Op::Find { want, flags } => {
            let (start, end) = (at(want.start), at(want.end));
            let found = memblock.find_in_range_node(want.size, want.align, start, end, nid(want.nid), flags);
            prop_assert_eq!(found.map(PhysAddr::raw), model.find(want, flags));
        }
        Op::AllocRange { want, exact } => {
            let (start, end) = (at(want.start), at(want.end));
            let got = memblock.phys_alloc_range_nid(want.size, want.align, start, end, nid(want.nid), exact);
            prop_assert_eq!(got.ok().map(PhysAddr::raw), model.alloc(want, exact, false));
        }
        Op::AllocTryNid { want, exact } => {
            let (start, end) = (at(want.start), at(want.end));
            let got = if exact {
                memblock.alloc_exact_nid_raw(want.size, want.align, start, end, nid(want.nid))
            } else {
                memblock.alloc_try_nid_raw(want.size, want.align, start, end, nid(want.nid))
            };
            let capped = Want { end: want.end.min(model.limit), ..want };
            prop_assert_eq!(got.ok().map(PhysAddr::raw), model.alloc(capped, exact, true));
        }
        _ => change(model, memblock, op),
    }
    Ok(())
}

/// Does `op`, one of those that return nothing, to both.
fn change(model: &mut Model, memblock: &mut Memblock, op: &Op) {
    match *op {
        Op::Add { base, size, nid: id, flags } => {
            // Only nodes come with flags in Linux's calls.
            match nid(id) {
                Some(node) => memblock.add_node(at(base), size, node, flags).unwrap(),
                None => memblock.add(at(base), size).unwrap(),
            }
            let flags = if id.is_some() { flags } else { MemblockFlags::NONE };
            for cell in Model::part(&mut model.memory, base, size) {
                cell.get_or_insert((id, flags));
            }
        }
        Op::Remove { base, size } => {
            memblock.remove(at(base), size).unwrap();
            Model::part(&mut model.memory, base, size).fill(None);
        }
        Op::Reserve { base, size } => {
            memblock.reserve(at(base), size).unwrap();
            model.reserve(base, size);
        }
        Op::Free { base, size } => {
            memblock.phys_free(at(base), size).unwrap();
            Model::part(&mut model.reserved, base, size).fill(None);
        }
        Op::Mark { base, size, flag, set } => {
            let call = match (flag, set) {
                (MemblockFlags::HOTPLUG, true) => Memblock::mark_hotplug,
                (MemblockFlags::HOTPLUG, false) => Memblock::clear_hotplug,
                (MemblockFlags::MIRROR, _) => Memblock::mark_mirror,
                (_, true) => Memblock::mark_nomap,
                (_, false) => Memblock::clear_nomap,
            };
            call(memblock, at(base), size).unwrap();
            let set = set || flag == MemblockFlags::MIRROR;
            model.some_mirror |= flag == MemblockFlags::MIRROR;
            for (_, flags) in Model::part(&mut model.memory, base, size).iter_mut().flatten() {
                *flags = if set { *flags | flag } else { flags.without(flag) };
            }
        }
        Op::SetNode { base, size, reserved, nid: id } => {
            let kind = if reserved { Kind::Reserved } else { Kind::Memory };
            memblock.set_node(at(base), size, kind, nid(id)).unwrap();
            let cells = if reserved { &mut model.reserved } else { &mut model.memory };
            Model::part(cells, base, size).iter_mut().flatten().for_each(|cell| cell.0 = id);
        }
        Op::Trim { align } => {
            memblock.trim_memory(align);
            model.trim(align);
        }
        Op::Cap { base, size } => {
            memblock.cap_memory_range(at(base), size);
            model.cap(base, size);
        }
        Op::Limit { bytes } => {
            memblock.enforce_memory_limit(bytes);
            model.limit_memory(bytes);
        }
        Op::BottomUp(on) => {
            memblock.set_bottom_up(on);
            model.bottom_up = on;
        }
        Op::CurrentLimit(limit) => {
            memblock.set_current_limit(at(limit));
            model.limit = limit;
        }
        Op::MovableNode(on) => {
            memblock.set_movable_node(on);
            model.movable_node = on;
        }
        Op::Find { .. } | Op::AllocRange { .. } | Op::AllocTryNid { .. } => unreachable!("these return something"),
    }
}

/// The tables are the model's runs: sorted, disjoint, merged as far as can be, with the right totals. And the walks
/// and questions agree with it byte by byte.
fn compare(model: &Model, memblock: &Memblock) -> Result<(), TestCaseError> {
    let (memory, reserved) = (Model::runs(&model.memory), Model::runs(&model.reserved));
    prop_assert_eq!(regions(memblock.memory()), memory.as_slice());
    prop_assert_eq!(regions(memblock.reserved()), reserved.as_slice());
    prop_assert_eq!(memblock.phys_mem_size(), memory.iter().map(|r| r.1).sum::<u64>());
    prop_assert_eq!(memblock.reserved_size(), reserved.iter().map(|r| r.1).sum::<u64>());

    let mut free = [None; BYTES];
    for range in memblock.free_mem_ranges(None, MemblockFlags::NONE) {
        prop_assert!(range.start < range.end);
        let part = Model::part(&mut free, range.start.raw(), range.end.raw() - range.start.raw());
        part.fill(Some((range.nid.map(NodeId::index), MemblockFlags::NONE)));
    }
    for (index, free) in free.into_iter().enumerate() {
        let addr = at(FIRST + index as u64);
        prop_assert_eq!(memblock.is_memory(addr), model.memory[index].is_some());
        prop_assert_eq!(memblock.is_reserved(addr), model.reserved[index].is_some());
        let is_free = model.takes(model.memory[index], None, MemblockFlags::NONE) && model.reserved[index].is_none();
        let want = is_free.then(|| (model.memory[index].unwrap().0, MemblockFlags::NONE));
        prop_assert_eq!(free, want, "byte {:#x}", addr.raw());
    }
    let mut backward: Vec<_> = memblock.free_mem_ranges_rev(None, MemblockFlags::NONE).collect();
    backward.reverse();
    prop_assert_eq!(backward, memblock.free_mem_ranges(None, MemblockFlags::NONE).collect::<Vec<_>>());
    Ok(())
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    // Mostly short ranges, so that many regions live side by side; sometimes one over nearly everything.
    (0..BYTES as u64, prop_oneof![6 => 0..24_u64, 1 => 0..BYTES as u64])
        .prop_map(|(from, size)| (FIRST + from, size.min(BYTES as u64 - from)))
}

fn node() -> impl Strategy<Value = Option<usize>> {
    proptest::option::weighted(0.8, 0..3_usize)
}

fn flags() -> impl Strategy<Value = MemblockFlags> {
    prop_oneof![4 => Just(MemblockFlags::NONE), 1 => proptest::sample::select(&ALL_FLAGS[..])]
}

fn bound() -> impl Strategy<Value = u64> {
    prop_oneof![2 => Just(0), 3 => FIRST..FIRST + BYTES as u64 + 8, 1 => Just(u64::MAX)]
}

fn want() -> impl Strategy<Value = Want> {
    (1..20_u64, 0..6_u32, bound(), bound(), node()).prop_map(|(size, shift, start, end, nid)| Want {
        size,
        align: 1 << shift,
        start,
        end,
        nid,
    })
}

fn op() -> impl Strategy<Value = Op> {
    let mark = proptest::sample::select(vec![MemblockFlags::HOTPLUG, MemblockFlags::MIRROR, MemblockFlags::NOMAP]);
    prop_oneof![
        6 => (range(), node(), flags()).prop_map(|((base, size), nid, flags)| Op::Add { base, size, nid, flags }),
        2 => range().prop_map(|(base, size)| Op::Remove { base, size }),
        4 => range().prop_map(|(base, size)| Op::Reserve { base, size }),
        4 => range().prop_map(|(base, size)| Op::Free { base, size }),
        2 => (range(), mark, any::<bool>())
            .prop_map(|((base, size), flag, set)| Op::Mark { base, size, flag, set }),
        2 => (range(), any::<bool>(), node())
            .prop_map(|((base, size), reserved, nid)| Op::SetNode { base, size, reserved, nid }),
        1 => (0..4_u32).prop_map(|shift| Op::Trim { align: 1 << shift }),
        1 => (BYTES as u64 / 2..BYTES as u64).prop_map(|size| Op::Cap { base: FIRST + 16, size }),
        1 => (0..2 * BYTES as u64).prop_map(|bytes| Op::Limit { bytes }),
        1 => any::<bool>().prop_map(Op::BottomUp),
        1 => prop_oneof![FIRST..FIRST + BYTES as u64, Just(u64::MAX)].prop_map(Op::CurrentLimit),
        1 => any::<bool>().prop_map(Op::MovableNode),
        5 => (want(), flags()).prop_map(|(want, flags)| Op::Find { want, flags }),
        5 => (want(), any::<bool>()).prop_map(|(want, exact)| Op::AllocRange { want, exact }),
        5 => (want(), any::<bool>()).prop_map(|(want, exact)| Op::AllocTryNid { want, exact }),
    ]
}

proptest! {
    // At most 60 steps: each makes at most two more regions, so no table has to grow.
    #![proptest_config(ProptestConfig { cases: 800, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_byte_map(ops in proptest::collection::vec(op(), 1..60)) {
        let mut model = Model::new();
        let mut memblock = bookkeeping();
        memblock.set_mirrored_kernelcore(true);
        for op in &ops {
            step(&mut model, &mut memblock, op)?;
            compare(&model, &memblock)?;
        }
    }
}
