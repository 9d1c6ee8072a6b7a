//! What is known of a chunk's free areas without looking at its maps.
//!
//! Linux keeps the largest free run of every block and of the chunk, and rescans when an allocation breaks it. Here each
//! also has an upper bound on all *other* runs, so that taking a piece of the largest run needs a scan only when the
//! rest of it is no longer surely the largest; and freeing never needs one.

use pagevisor_shared::percpu::{PCPU_BLOCK_BITS, PcpuBlock};

use super::bits;
use crate::raw::{Chunk, Maps};
use crate::sync::Plain;

const BITS: u32 = PCPU_BLOCK_BITS as u32;

/// Notes that `[from, to)`, which was free, is taken. False when the largest run is no longer known.
#[inline(always)]
fn take(md: &PcpuBlock, from: u32, to: u32) -> bool {
    if md.first_free.get() == from {
        md.first_free.set(to);
    }
    let (start, len) = (md.contig_hint_start.get(), md.contig_hint.get());
    if from < start || to > start + len {
        return true;
    }
    let (left, right) = (from - start, start + len - to);
    let (rest, at, other) = if left >= right { (left, start, right) } else { (right, to, left) };
    let second = md.scan_hint.get().max(other);
    md.contig_hint.set(rest);
    md.contig_hint_start.set(at);
    md.scan_hint.set(second);
    rest >= second
}

/// Notes that `[start, end)` is a free run now, of which `[from, ..)` was freed.
#[inline(always)]
fn give(md: &PcpuBlock, start: u32, end: u32, from: u32) {
    if from < md.first_free.get() {
        md.first_free.set(from);
    }
    let (old, at) = (md.contig_hint.get(), md.contig_hint_start.get());
    let run = end - start;
    if run < old {
        md.scan_hint.set(md.scan_hint.get().max(run));
        return;
    }
    // Unless the run has grown from the largest, that one is another.
    if old != 0 && !(start <= at && at < end) {
        md.scan_hint.set(md.scan_hint.get().max(old));
    }
    md.contig_hint.set(run);
    md.contig_hint_start.set(start);
}

/// The largest and the second largest of the runs that are passed to it.
#[derive(Default)]
struct Largest {
    len: u32,
    start: u32,
    second: u32,
}

impl Largest {
    #[inline(always)]
    fn add(&mut self, start: u32, len: u32) {
        if len > self.len {
            self.second = self.second.max(self.len);
            (self.start, self.len) = (start, len);
        } else if len > self.second {
            self.second = len;
        }
    }

    /// Notes that other runs may have up to `len` bits.
    #[inline(always)]
    fn add_bound(&mut self, len: u32) {
        self.second = self.second.max(len);
    }

    fn store(&self, md: &PcpuBlock) {
        md.contig_hint.set(self.len);
        md.contig_hint_start.set(self.start);
        md.scan_hint.set(self.second);
    }
}

/// Looks for a block's largest run (`pcpu_block_refresh_hint`).
#[cold]
#[inline(never)]
fn refresh_block(maps: &Maps, index: usize) {
    let (base, md) = (index * PCPU_BLOCK_BITS, &maps.blocks[index]);
    let end = base + PCPU_BLOCK_BITS;
    let mut largest = Largest::default();
    let mut from = bits::next_zero(maps.alloc, base + md.first_free.get() as usize, end);
    md.first_free.set((from - base) as u32);
    while from < end {
        let stop = bits::next_set(maps.alloc, from, end);
        largest.add((from - base) as u32, (stop - from) as u32);
        from = bits::next_zero(maps.alloc, stop, end);
    }
    largest.store(md);
}

/// Looks for the chunk's largest run, by what is known of its blocks (`pcpu_chunk_refresh_hint`).
#[cold]
#[inline(never)]
fn refresh_chunk(chunk: Chunk, maps: &Maps) {
    let first = (chunk.md.first_free.get() / BITS).min(maps.blocks.len() as u32);
    let mut largest = Largest::default();
    // Where the run begins that reaches the block.
    let mut run = first * BITS;
    for (md, base) in maps.blocks[first as usize..].iter().zip((first..).map(|block| block * BITS)) {
        let (left, right) = (md.left_free.get(), md.right_free.get());
        if left == BITS {
            continue;
        }
        if base + left > run {
            largest.add(run, base + left - run);
        }
        // One that is as long as one at the ends may be that one. Then it is known already, or will be.
        let (contig, at) = (md.contig_hint.get(), md.contig_hint_start.get());
        if at != 0 && at + contig != BITS {
            largest.add(base + at, contig);
        }
        largest.add_bound(md.scan_hint.get());
        run = base + BITS - right;
    }
    let end = maps.blocks.len() as u32 * BITS;
    if end > run {
        largest.add(run, end - run);
    }
    largest.store(&chunk.md);
}

/// Takes `[first, last)` of block `index` off what is known of it; 1 if it was free as a whole until now and has memory.
#[inline(always)]
fn update_block_alloc(maps: &Maps, index: usize, first: u32, last: u32) -> u32 {
    let Some(md) = maps.blocks.get(index) else { return 0 };
    let (left, right) = (md.left_free.get(), md.right_free.get());
    if first < left {
        md.left_free.set(first);
    }
    if last > BITS - right {
        md.right_free.set(BITS - last);
    }
    if !take(md, first, last) {
        refresh_block(maps, index);
    }
    u32::from(left == BITS && bits::test(maps.populated, index))
}

/// Takes `[from, to)` off what is known as free, after it was marked in the map
/// (`pcpu_block_update_hint_alloc`); gives how many blocks with memory were free as a whole until now.
#[inline(always)]
pub(super) fn update_alloc(chunk: Chunk, maps: &Maps, from: usize, to: usize) -> u32 {
    update_alloc_of(chunk, maps, chunk.md.contig_hint.get(), from, to)
}

/// As [`update_alloc`], for who knows already what is `largest` in the chunk.
#[inline(always)]
pub(super) fn update_alloc_of(chunk: Chunk, maps: &Maps, largest: u32, from: usize, to: usize) -> u32 {
    if shrink_largest(&chunk.md, maps, largest, from as u32, (to - from) as u32) {
        return 0;
    }
    update_alloc_anywhere(chunk, maps, from, to)
}

/// Takes `len` bits from `from` on, if the largest runs of chunk and block both begin there, behind something allocated,
/// and stay the largest.
#[inline(always)]
fn shrink_largest(all: &PcpuBlock, maps: &Maps, largest: u32, from: u32, len: u32) -> bool {
    let rest = largest.wrapping_sub(len);
    if all.contig_hint_start.get() != from || rest < all.scan_hint.get() {
        return false;
    }
    let (index, at) = (from / BITS, from % BITS);
    let Some(md) = maps.blocks.get(index as usize) else { return false };
    let run = md.contig_hint.get();
    if md.contig_hint_start.get() != at || run < len || run - len < md.scan_hint.get() || at < md.left_free.get() {
        return false;
    }
    md.contig_hint_start.set(at + len);
    md.contig_hint.set(run - len);
    if md.right_free.get() == BITS - at {
        md.right_free.set(BITS - at - len);
    }
    if md.first_free.get() == at {
        md.first_free.set(at + len);
    }
    all.contig_hint_start.set(from + len);
    all.contig_hint.set(rest);
    if all.first_free.get() == from {
        all.first_free.set(from + len);
    }
    true
}

#[inline(never)]
fn update_alloc_anywhere(chunk: Chunk, maps: &Maps, from: usize, to: usize) -> u32 {
    let index = from / PCPU_BLOCK_BITS;
    let empty = if index == (to - 1) / PCPU_BLOCK_BITS {
        let base = index * PCPU_BLOCK_BITS;
        update_block_alloc(maps, index, (from - base) as u32, (to - base) as u32)
    } else {
        update_blocks_alloc(maps, from, to)
    };
    if !take(&chunk.md, from as u32, to as u32) {
        refresh_chunk(chunk, maps);
    }
    empty
}

/// The same for the blocks of an area that is in several of them.
#[inline(never)]
fn update_blocks_alloc(maps: &Maps, from: usize, to: usize) -> u32 {
    let blocks = from / PCPU_BLOCK_BITS..=(to - 1) / PCPU_BLOCK_BITS;
    blocks
        .map(|index| {
            let base = index * PCPU_BLOCK_BITS;
            let (first, last) = (from.max(base) - base, (to - base).min(PCPU_BLOCK_BITS));
            update_block_alloc(maps, index, first as u32, last as u32)
        })
        .sum()
}

/// Where the free run begins that ends at `from` in block `index`, from the chunk's start.
#[inline(always)]
fn chunk_run_start(chunk: Chunk, maps: &Maps, index: usize, block_start: u32) -> u32 {
    let base = index as u32 * BITS;
    if block_start > 0 || index == 0 {
        return base + block_start;
    }
    let (start, len) = (chunk.md.contig_hint_start.get(), chunk.md.contig_hint.get());
    if start < base && base <= start + len {
        return start;
    }
    walk_down(maps, index)
}

/// Where the free run begins that reaches the start of block `index`.
#[inline(never)]
fn walk_down(maps: &Maps, index: usize) -> u32 {
    let mut index = index;
    while index > 0 && maps.blocks[index - 1].left_free.get() == BITS {
        index -= 1;
    }
    let right = if index > 0 { maps.blocks[index - 1].right_free.get() } else { 0 };
    index as u32 * BITS - right
}

/// Where the free run ends that reaches `block_end` in block `index`, from the chunk's start.
#[inline(always)]
fn chunk_run_end(chunk: Chunk, maps: &Maps, index: usize, block_end: u32) -> u32 {
    let base = index as u32 * BITS;
    if block_end < BITS {
        return base + block_end;
    }
    let (start, len) = (chunk.md.contig_hint_start.get(), chunk.md.contig_hint.get());
    let next = base + BITS;
    if start <= next && next < start + len {
        return start + len;
    }
    walk_up(maps, index + 1)
}

/// Where the free run ends that reaches the start of block `index`.
#[inline(never)]
fn walk_up(maps: &Maps, index: usize) -> u32 {
    let mut index = index;
    while index < maps.blocks.len() && maps.blocks[index].left_free.get() == BITS {
        index += 1;
    }
    let left = maps.blocks.get(index).map_or(0, |md| md.left_free.get());
    index as u32 * BITS + left
}

/// The free run of the block at `base` that `[from, to)`, just freed, is part of. The map is looked at only where
/// neither end of the block nor the largest run is next to it.
#[inline(always)]
fn block_run(maps: &Maps, md: &PcpuBlock, base: usize, from: u32, to: u32) -> (u32, u32) {
    let (at, len) = (md.contig_hint_start.get(), md.contig_hint.get());
    let start = if from == md.left_free.get() {
        0
    } else if len != 0 && from == at + len {
        at
    } else {
        (bits::run_start(maps.alloc, base + from as usize, base) - base) as u32
    };
    let stop = if to == BITS - md.right_free.get() {
        BITS
    } else if len != 0 && to == at {
        at + len
    } else {
        (bits::next_set(maps.alloc, base + to as usize, base + PCPU_BLOCK_BITS) - base) as u32
    };
    (start, stop)
}

/// Adds `[first, last)` to what is known as free of block `index`; gives the free run that it is part of there, and 1 if
/// the block is free as a whole from now on and has memory.
#[inline(always)]
fn update_block_free(maps: &Maps, index: usize, first: u32, last: u32) -> (u32, u32, u32) {
    let Some(md) = maps.blocks.get(index) else { return (0, 0, 0) };
    let (start, stop) = block_run(maps, md, index * PCPU_BLOCK_BITS, first, last);
    let mut empty = 0;
    if start == 0 {
        md.left_free.set(stop);
    }
    if stop == BITS {
        md.right_free.set(BITS - start);
        empty = u32::from(start == 0 && bits::test(maps.populated, index));
    }
    give(md, start, stop, first);
    (start, stop, empty)
}

/// Adds `[from, to)` to what is known as free, after it was cleared in the map (`pcpu_block_update_hint_free`); gives
/// how many blocks with memory are free as a whole from now on. `behind` says that what is in front of it is allocated; it
/// may be so even if it does not.
#[inline(always)]
pub(super) fn update_free(chunk: Chunk, maps: &Maps, from: usize, to: usize, behind: bool) -> u32 {
    // It is so, too, if nothing below is free.
    let behind = behind || (from as u32) < chunk.md.first_free.get();
    if behind && grow_largest(&chunk.md, maps, from as u32, to as u32) {
        return 0;
    }
    update_free_anywhere(chunk, maps, from, to)
}

/// Adds `[from, to)`, which is behind something allocated, if the largest runs of chunk and block both begin behind it,
/// and it does not begin the block.
#[inline(always)]
fn grow_largest(all: &PcpuBlock, maps: &Maps, from: u32, to: u32) -> bool {
    let (index, at) = (from / BITS, from % BITS);
    let Some(md) = maps.blocks.get(index as usize) else { return false };
    let (len, start, run) = (to - from, md.contig_hint_start.get(), md.contig_hint.get());
    if all.contig_hint_start.get() != to || at + len != start || run == 0 || at == 0 {
        return false;
    }
    md.contig_hint_start.set(at);
    md.contig_hint.set(run + len);
    if md.right_free.get() == BITS - start {
        md.right_free.set(BITS - at);
    }
    if at < md.first_free.get() {
        md.first_free.set(at);
    }
    all.contig_hint_start.set(from);
    all.contig_hint.set(all.contig_hint.get() + len);
    if from < all.first_free.get() {
        all.first_free.set(from);
    }
    true
}

#[inline(never)]
fn update_free_anywhere(chunk: Chunk, maps: &Maps, from: usize, to: usize) -> u32 {
    let (index, last_index) = (from / PCPU_BLOCK_BITS, (to - 1) / PCPU_BLOCK_BITS);
    let (start, stop, empty) = if index == last_index {
        let base = index * PCPU_BLOCK_BITS;
        update_block_free(maps, index, (from - base) as u32, (to - base) as u32)
    } else {
        update_blocks_free(maps, from, to)
    };
    let start = chunk_run_start(chunk, maps, index, start);
    let end = chunk_run_end(chunk, maps, last_index, stop);
    give(&chunk.md, start, end, from as u32);
    empty
}

/// The same for an area that is in several blocks: where its run begins in the first of them and ends in the last.
#[inline(never)]
fn update_blocks_free(maps: &Maps, from: usize, to: usize) -> (u32, u32, u32) {
    let (first_index, last_index) = (from / PCPU_BLOCK_BITS, (to - 1) / PCPU_BLOCK_BITS);
    let (mut run_start, mut run_stop, mut empty) = (0, 0, 0);
    for index in first_index..=last_index {
        let base = index * PCPU_BLOCK_BITS;
        let (first, last) = (from.max(base) - base, (to - base).min(PCPU_BLOCK_BITS));
        let (start, stop, whole) = update_block_free(maps, index, first as u32, last as u32);
        if index == first_index {
            run_start = start;
        }
        run_stop = stop;
        empty += whole;
    }
    (run_start, run_stop, empty)
}

/// Makes all that is known say that the whole chunk is free (`pcpu_init_md_blocks`).
pub(super) fn init(chunk: Chunk, maps: &Maps) {
    let all = |md: &PcpuBlock, bits: u32| {
        md.contig_hint.set(bits);
        md.left_free.set(bits);
        md.right_free.set(bits);
        md.nr_bits.set(bits);
    };
    maps.blocks.iter().for_each(|md| all(md, BITS));
    all(&chunk.md, maps.blocks.len() as u32 * BITS);
}

/// A place for `bits` at a multiple of `align`, both in bits, the lowest there is; with `populated`, only where all
/// pages have memory (`pcpu_find_block_fit`).
#[inline(always)]
pub(super) fn find_fit(chunk: Chunk, maps: &Maps, bits: usize, align: usize, populated: bool) -> Option<usize> {
    let md = &chunk.md;
    if bits as u32 > md.contig_hint.get() {
        return None;
    }
    if bits as u32 > md.scan_hint.get() && !populated {
        // Only the largest run can hold it.
        let start = md.contig_hint_start.get() as usize;
        let at = (start + align - 1) & !(align - 1);
        return (at + bits <= start + md.contig_hint.get() as usize).then_some(at);
    }
    scan_blocks(chunk, maps, bits, align, populated)
}

/// The same, by what is known of the blocks.
#[inline(never)]
fn scan_blocks(chunk: Chunk, maps: &Maps, bits: usize, align: usize, populated: bool) -> Option<usize> {
    let (md, up) = (&chunk.md, |at: usize| (at + align - 1) & !(align - 1));
    let mut index = md.first_free.get() as usize / PCPU_BLOCK_BITS;
    // Where the run begins that reaches the block.
    let mut run = index * PCPU_BLOCK_BITS;
    while let Some(md) = maps.blocks.get(index) {
        let base = index * PCPU_BLOCK_BITS;
        index += 1;
        if populated && !bits::test(maps.populated, index - 1) {
            run = base + PCPU_BLOCK_BITS;
            continue;
        }
        let left = md.left_free.get() as usize;
        let at = up(run);
        if at + bits <= base + left {
            return Some(at);
        }
        if md.contig_hint.get() as usize >= bits
            && let Some(at) = find_in_block(maps, md, base, bits, align)
        {
            return Some(at);
        }
        if left < PCPU_BLOCK_BITS {
            run = base + PCPU_BLOCK_BITS - md.right_free.get() as usize;
        }
    }
    None
}

/// A place inside the block at `base`, whose largest run is long enough but for the alignment.
#[inline(always)]
fn find_in_block(maps: &Maps, md: &PcpuBlock, base: usize, bits: usize, align: usize) -> Option<usize> {
    let (start, end) = if bits as u32 > md.scan_hint.get() {
        (md.contig_hint_start.get(), md.contig_hint_start.get() + md.contig_hint.get())
    } else {
        (md.first_free.get(), BITS)
    };
    bits::find_zero_area(maps.alloc, base + start as usize, base + end as usize, bits, align)
}
