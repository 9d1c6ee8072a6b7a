//! Areas of a chunk: taking and giving back. Everything here is done under the lock.

use pagevisor_shared::percpu::{PCPU_MIN_ALLOC_SIZE, PcpuRoot};

use super::balance::EMPTY_POP_PAGES_LOW;
use super::{bits, hints, slots};
use crate::raw::{Chunk, Maps};
use crate::sync::Plain;

/// Bytes of a unit behind so many bits.
const fn bytes(bits: usize) -> u32 {
    (bits as u64 * PCPU_MIN_ALLOC_SIZE) as u32
}

/// Whether empty pages of `chunk` count in the root: those that dynamic allocations may have.
fn counts(root: &PcpuRoot, chunk: Chunk) -> bool {
    chunk.addr() != root.reserved_chunk.get() && chunk.isolated.get() == 0
}

/// Notes that `chunk` has `taken` fewer and `given` more populated pages without an allocation
/// (`pcpu_update_empty_pages`).
#[inline(always)]
pub(super) fn update_empty_pages(root: &PcpuRoot, chunk: Chunk, taken: u32, given: u32) {
    if taken != given {
        chunk.nr_empty_pop_pages.set(chunk.nr_empty_pop_pages.get() + given - taken);
        if counts(root, chunk) {
            let left = root.nr_empty_pop_pages.get() + u64::from(given) - u64::from(taken);
            root.nr_empty_pop_pages.set(left);
            if taken != 0 && left < EMPTY_POP_PAGES_LOW {
                root.balance_pending.set(1);
            }
        }
    }
}

/// Takes the free area of `len` bits at bit `at` (`pcpu_alloc_area`).
#[inline(always)]
pub(super) fn take(root: &PcpuRoot, chunk: Chunk, maps: &Maps, at: usize, len: usize) {
    let (index, low) = (at / 64, at % 64);
    let (Some(alloc), Some(bound)) = (maps.alloc.get(index), maps.bound.get(index)) else { return };
    bound.set(bound.get() | 1 << low);
    if low + len <= 64 {
        alloc.set(alloc.get() | (u64::MAX >> (64 - len)) << low);
    } else {
        bits::write(maps.alloc, at, at + len, true);
    }
    chunk.free_bytes.drop_by(bytes(len));
    chunk.nr_alloc.bump(1);
    let before = chunk.md.contig_hint.get();
    let empty = hints::update_alloc_of(chunk, maps, before, at, at + len);
    update_empty_pages(root, chunk, empty, 0);
    slots::relocate(root, chunk, before);
}

/// Gives back the area that starts at bit `at` (`pcpu_free_area`); false if there is none.
#[inline(always)]
pub(super) fn give(root: &PcpuRoot, chunk: Chunk, maps: &Maps, at: usize) -> bool {
    let (index, bit) = (at / 64, 1u64 << (at % 64));
    let (Some(alloc), Some(bound)) = (maps.alloc.get(index), maps.bound.get(index)) else { return false };
    let (taken, starts) = (alloc.get(), bound.get());
    if taken & starts & bit == 0 {
        return false;
    }
    bound.set(starts & !bit);
    // It ends where another starts, or where nothing is allocated.
    let ends = (starts | !taken) & !(bit | (bit - 1));
    let end = if ends != 0 {
        // From its own bit up to the lowest end.
        alloc.set(taken & !((ends & ends.wrapping_neg()) - bit));
        index * 64 + ends.trailing_zeros() as usize
    } else {
        let end = find_end(maps, (index + 1) * 64);
        bits::write(maps.alloc, at, end, false);
        end
    };
    chunk.free_bytes.bump(bytes(end - at));
    chunk.nr_alloc.drop_by(1);
    let before = chunk.md.contig_hint.get();
    let empty = hints::update_free(chunk, maps, at, end, taken & bit >> 1 != 0);
    update_empty_pages(root, chunk, 0, empty);
    slots::relocate(root, chunk, before);
    true
}

/// Where the area ends that goes on at `from`, the start of a word.
fn find_end(maps: &Maps, from: usize) -> usize {
    let words = maps.alloc.iter().zip(maps.bound).enumerate().skip(from / 64);
    let mut ends = words.map(|(index, (alloc, bound))| (index, bound.get() | !alloc.get()));
    let last = ends.find(|(_, ends)| *ends != 0);
    last.map_or(maps.alloc.len() * 64, |(index, ends)| index * 64 + ends.trailing_zeros() as usize)
}

/// Makes what belongs to somebody else, at the chunk's start and end, look allocated.
pub(super) fn hide(chunk: Chunk, maps: &Maps) {
    let all = maps.blocks.len() * pagevisor_shared::percpu::PCPU_BLOCK_BITS;
    let (start, end) = (chunk.start_offset.get() as usize / 4, all - chunk.end_offset.get() as usize / 4);
    for (from, to) in [(0, start), (end, all)] {
        if from < to {
            bits::write(maps.alloc, from, to, true);
            let empty = hints::update_alloc(chunk, maps, from, to);
            chunk.nr_empty_pop_pages.drop_by(empty);
        }
    }
}
