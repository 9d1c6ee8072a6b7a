//! The sequence counter: a writer marks what it changes, readers notice and look again.
//!
//! The writer is alone (it holds a lock). It makes the counter odd, changes the data, makes it even. A reader that
//! saw the same even number before and after has seen one state. The data is made of relaxed atomics, so the fences
//! here are all the ordering there is.

use core::sync::atomic::Ordering;

use crate::sync::Word;

/// Starts a change. The caller is the only writer (it holds the lock that the data belongs to).
#[inline(always)]
pub fn write_begin<W: Word<u32>>(seq: &W) {
    seq.store(seq.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    // Pairs with the fence in `read_retry`: a reader that sees any word of the change sees the odd number too.
    W::fence(Ordering::Release);
}

/// Ends a change.
#[inline(always)]
pub fn write_end<W: Word<u32>>(seq: &W) {
    // Release pairs with the acquire load in `read_begin`: who sees this even number sees the whole change.
    seq.store(seq.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
}

/// The number to hand to [`read_retry`], or `None` while a change is going on.
#[inline(always)]
pub fn read_begin<W: Word<u32>>(seq: &W) -> Option<u32> {
    let start = seq.load(Ordering::Acquire);
    (start & 1 == 0).then_some(start)
}

/// Whether what was read since [`read_begin`] gave `start` may be a mixture.
#[inline(always)]
pub fn read_retry<W: Word<u32>>(seq: &W, start: u32) -> bool {
    W::fence(Ordering::Acquire);
    seq.load(Ordering::Relaxed) != start
}

/// Runs `read` until it saw one state, at most `tries` times; `None` when a writer was always in the way (or died
/// inside its change).
pub fn read<T, W: Word<u32>>(seq: &W, tries: u32, mut read: impl FnMut() -> T) -> Option<T> {
    for _ in 0..tries {
        if let Some(start) = read_begin(seq) {
            let value = read();
            if !read_retry(seq, start) {
                return Some(value);
            }
        }
        core::hint::spin_loop();
    }
    None
}
