//! How the two sides of a virtqueue spare each other notifications: `VIRTIO_F_EVENT_IDX` (virtio 1.2, 2.7.7 and 2.7.10).
//!
//! Each side counts what it puts into its ring in an *index*, and names in its *event* the entry of the other's ring that
//! it wants to be told of. The rules are the same in both directions:
//!
//! - Who puts entries in writes them, then the index (release), then, after a full fence, reads the other's event
//!   ([`must_tell`]). He tells the other if the event is among the entries put in since he last looked. He may put in
//!   several before he looks once, but must look before he waits for anything himself.
//! - Who takes entries out takes all, then writes to its event the index that it has seen, then, after a full fence,
//!   reads the index again ([`sleep`]). If it has moved, the entries are taken out first; else he may sleep.
//!
//! No wake-up is lost: of the two fences one comes first. If it is the taker's, the other side reads the new event and
//! tells. If it is the other's, the taker reads the new index and does not sleep. Without the fences both could read what
//! was before (store buffering), and nobody would ever look again.
//!
//! The kernel's driver uses these functions; the device has them from the `virtio-queue` crate (`needs_notification`,
//! `enable_notification`), with fences at the same places.

use core::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};

use crate::sync::Word;

/// Whether entry `event` is among those between the indices `old` and `new` (`vring_need_event`). All count modulo 2^16.
pub const fn passes(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Whether the other side is to be told that the index has come from `old` to `new`, which was written before.
#[inline]
pub fn must_tell<W: Word<u16>>(event: &W, new: u16, old: u16) -> bool {
    W::fence(SeqCst);
    passes(event.load(Relaxed), new, old)
}

/// Asks to be told of the next entry behind `seen`. If this is false, there is one already: take it out first.
#[inline]
#[must_use]
pub fn sleep<W: Word<u16>>(event: &W, index: &W, seen: u16) -> bool {
    event.store(seen, Relaxed);
    W::fence(SeqCst);
    index.load(Acquire) == seen
}

/// Asks not to be told, for the next 2^16 - 1 entries behind `seen`.
#[inline]
pub fn ignore<W: Word<u16>>(event: &W, seen: u16) {
    event.store(seen.wrapping_sub(1), Relaxed);
}
