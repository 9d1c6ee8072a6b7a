//! Areas of a chunk: taking and giving back. Everything here is done under the lock.

use pagevisor_shared::percpu::{PCPU_MIN_ALLOC_SIZE, PcpuRoot};

use super::{bits, hints, slots};
use crate::platform::Platform;
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
            root.nr_empty_pop_pages.set(root.nr_empty_pop_pages.get() + u64::from(given) - u64::from(taken));
        }
    }
}

/// Takes the free area of `len` bits at bit `at` (`pcpu_alloc_area`).
#[inline]
pub(super) fn take<P: Platform>(platform: &P, root: &PcpuRoot, chunk: Chunk, maps: &Maps, at: usize, len: usize) {
    let end = at + len;
    bits::write(maps.alloc, at, end, true);
    bits::set(maps.bound, at);
    bits::write(maps.bound, at + 1, end, false);
    bits::set(maps.bound, end);
    chunk.free_bytes.drop_by(bytes(len));
    chunk.nr_alloc.bump(1);
    let empty = hints::update_alloc(chunk, maps, at, end);
    update_empty_pages(root, chunk, empty, 0);
    slots::relocate(platform, root, chunk);
}

/// Gives back the area that starts at bit `at`, and tells how many bits it had (`pcpu_free_area`); `None` if there is
/// none.
#[inline]
pub(super) fn give<P: Platform>(platform: &P, root: &PcpuRoot, chunk: Chunk, maps: &Maps, at: usize) -> Option<usize> {
    let all = maps.blocks.len() * pagevisor_shared::percpu::PCPU_BLOCK_BITS;
    if at >= all || !bits::test(maps.alloc, at) || !bits::test(maps.bound, at) || is_hidden(chunk, at, all) {
        return None;
    }
    let end = bits::next_set(maps.bound, at + 1, all);
    bits::write(maps.alloc, at, end, false);
    chunk.free_bytes.bump(bytes(end - at));
    chunk.nr_alloc.drop_by(1);
    let empty = hints::update_free(chunk, maps, at, end);
    update_empty_pages(root, chunk, 0, empty);
    slots::relocate(platform, root, chunk);
    Some(end - at)
}

/// Whether bit `at` belongs to somebody else.
#[inline(always)]
fn is_hidden(chunk: Chunk, at: usize, all: usize) -> bool {
    let (start, end) = (chunk.start_offset.get(), chunk.end_offset.get());
    at < start as usize / 4 || at >= all - end as usize / 4
}

/// Makes what belongs to somebody else, at the chunk's start and end, look allocated.
pub(super) fn hide(chunk: Chunk, maps: &Maps) {
    let all = maps.blocks.len() * pagevisor_shared::percpu::PCPU_BLOCK_BITS;
    let (start, end) = (chunk.start_offset.get() as usize / 4, all - chunk.end_offset.get() as usize / 4);
    for (from, to) in [(0, start), (end, all)] {
        if from < to {
            bits::write(maps.alloc, from, to, true);
            bits::set(maps.bound, from);
            bits::set(maps.bound, to);
            let empty = hints::update_alloc(chunk, maps, from, to);
            chunk.nr_empty_pop_pages.drop_by(empty);
        }
    }
}
