//! The lists that chunks are on, by the size of their largest free area. Everything here is done under the lock.

use pagevisor_shared::percpu::{PCPU_MIN_ALLOC_SIZE, PcpuRoot, size_to_slot};

use crate::raw::Chunk;
use crate::sync::Plain;

/// `slot` of a chunk that is on no list.
pub(crate) const NO_SLOT: u32 = u32::MAX;

/// The slot where chunks with a free area of `bytes` are (`pcpu_size_to_slot`).
#[inline(always)]
pub(super) fn slot_of_size(root: &PcpuRoot, bytes: u64) -> u32 {
    if bytes == root.unit_size.get() { root.free_slot.get() } else { size_to_slot(bytes as u32) }
}

/// The slot that `chunk` belongs on (`pcpu_chunk_slot`).
#[inline(always)]
pub(crate) fn slot_of(root: &PcpuRoot, chunk: Chunk) -> u32 {
    match chunk.md.contig_hint.get() {
        0 => 0,
        contig => slot_of_size(root, u64::from(contig) * PCPU_MIN_ALLOC_SIZE),
    }
}

/// Takes `chunk` off its list.
pub(super) fn remove(root: &PcpuRoot, chunk: Chunk) {
    let slot = chunk.slot.get();
    let Some(head) = root.slots.get(slot as usize) else { return };
    let (next, prev) = (chunk.next.get(), chunk.prev.get());
    match Chunk::at(prev) {
        Some(before) => before.next.set(next),
        None => head.set(next),
    }
    if let Some(behind) = Chunk::at(next) {
        behind.prev.set(prev);
    }
    chunk.next.set(0);
    chunk.prev.set(0);
    chunk.slot.set(NO_SLOT);
    if head.get() == 0 {
        root.slot_mask.set(root.slot_mask.get() & !(1 << slot));
    }
}

/// Puts `chunk`, which is on no list, at the front of `slot`, or at its end.
pub(super) fn add(root: &PcpuRoot, chunk: Chunk, slot: u32, front: bool) {
    let Some(head) = root.slots.get(slot as usize) else { return };
    let first = head.get();
    let last = if front { None } else { list(first).last() };
    match last {
        Some(last) => {
            last.next.set(chunk.addr());
            chunk.prev.set(last.addr());
            chunk.next.set(0);
        }
        None => {
            chunk.prev.set(0);
            chunk.next.set(first);
            if let Some(behind) = Chunk::at(first) {
                behind.prev.set(chunk.addr());
            }
            head.set(chunk.addr());
        }
    }
    chunk.slot.set(slot);
    root.slot_mask.set(root.slot_mask.get() | 1 << slot);
}

/// Puts `chunk` where it belongs after its largest free area was `before` bits until now (`pcpu_chunk_relocate`).
#[inline(always)]
pub(super) fn relocate(root: &PcpuRoot, chunk: Chunk, before: u32) {
    let now = chunk.md.contig_hint.get();
    // Slots are by the highest bit, which is another one if what differs is more than what is alike; but chunks that may
    // be free as a whole have a slot for that.
    if now ^ before > now & before || chunk.immutable.get() == 0 {
        relocate_changed(root, chunk);
    }
}

/// Puts `chunk` where it belongs. The reserved one is on no list, and one that is to be emptied stays where it is.
#[cold]
#[inline(never)]
fn relocate_changed(root: &PcpuRoot, chunk: Chunk) {
    let (old, new) = (chunk.slot.get(), slot_of(root, chunk));
    if old != new && old != NO_SLOT && chunk.isolated.get() == 0 {
        move_to(root, chunk, new, old < new);
    }
}

/// Moves `chunk` to `slot`.
pub(super) fn move_to(root: &PcpuRoot, chunk: Chunk, slot: u32, front: bool) {
    remove(root, chunk);
    add(root, chunk, slot, front);
}

/// The chunks of the list that begins at `first`.
pub(crate) fn list(first: u64) -> impl Iterator<Item = Chunk> {
    core::iter::successors(Chunk::at(first), |chunk| Chunk::at(chunk.next.get()))
}

/// All chunks.
pub(crate) fn all(root: &PcpuRoot) -> impl Iterator<Item = Chunk> {
    core::iter::successors(Chunk::at(root.chunks.get()), |chunk| Chunk::at(chunk.all_next.get()))
}

/// Enters `chunk` among all chunks.
pub(super) fn enter(root: &PcpuRoot, chunk: Chunk) {
    let first = root.chunks.get();
    chunk.all_next.set(first);
    chunk.all_prev.set(0);
    if let Some(behind) = Chunk::at(first) {
        behind.all_prev.set(chunk.addr());
    }
    root.chunks.set(chunk.addr());
    root.nr_chunks.bump(1);
}

/// Takes `chunk` from among all chunks.
pub(super) fn leave(root: &PcpuRoot, chunk: Chunk) {
    let (next, prev) = (chunk.all_next.get(), chunk.all_prev.get());
    match Chunk::at(prev) {
        Some(before) => before.all_next.set(next),
        None => root.chunks.set(next),
    }
    if let Some(behind) = Chunk::at(next) {
        behind.all_prev.set(prev);
    }
    root.nr_chunks.drop_by(1);
}
