//! The kernel log: a ring of records that the guest writes and any number of readers follow.
//!
//! Positions count 8-byte words since the start and never wrap; the word at position `p` is `words[p % size]`. The
//! writer (one at a time: the guest's log lock) first moves `tail` past the records it is about to overwrite, then
//! writes the words, then moves `head`. A reader copies a record and checks afterwards that `tail` has not passed
//! it. A record is
//!
//! ```text
//! word 0    text bytes (16 bits) | level (8) << 16 | cpu (8) << 24 | LOG_RECORD << 32
//! word 1    nanoseconds since the kernel's first instruction
//! word 2..  text, UTF-8, little-endian
//! ```

use core::sync::atomic::{AtomicU64, Ordering};

use crate::sync::Word;

/// Bytes of text memory in the ring.
pub const LOG_BYTES: u64 = 256 << 10;
/// Longest text of a record in bytes; longer ones are cut.
pub const LOG_LINE_MAX: usize = 1000;
/// Upper half of a record's first word.
const LOG_RECORD: u64 = 0x4c4f_4752;

/// Head of the log ring, in front of its words.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct LogHeader<W = AtomicU64> {
    /// Position behind the newest record.
    pub head: W,
    /// Position of the oldest record.
    pub tail: W,
}

/// A record that was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogRecord<'a> {
    /// Severity, 0 (emergency) to 7 (debug).
    pub level: u8,
    /// CPU that wrote it.
    pub cpu: u8,
    /// Nanoseconds since the kernel's first instruction.
    pub nanos: u64,
    /// The text's bytes; UTF-8 from an honest guest.
    pub text: &'a [u8],
}

/// What [`LogRing::read`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogRead<'a> {
    /// A record; the next one is at the position given.
    Record(LogRecord<'a>, u64),
    /// Nothing newer yet.
    End,
    /// The position was overwritten; the oldest record is at the position given.
    Lost(u64),
    /// The position holds no record: the ring is damaged.
    Corrupt,
}

/// The ring: its head and its words.
#[derive(Clone, Copy, Debug)]
pub struct LogRing<'a, W = AtomicU64> {
    header: &'a LogHeader<W>,
    words: &'a [W],
}

impl<'a, W> LogRing<'a, W> {
    /// The ring made of `header` and `words`. A record never takes all of `words`: longer texts are cut.
    pub const fn new(header: &'a LogHeader<W>, words: &'a [W]) -> Self {
        assert!(words.len() > 2);
        Self { header, words }
    }
}

impl<'a, W: Word<u64>> LogRing<'a, W> {
    #[inline]
    fn word(&self, position: u64) -> &'a W {
        // In range: the remainder is below the length, which `new` proved to be above zero.
        &self.words[(position % self.words.len() as u64) as usize]
    }

    /// Appends a record. The caller is the only writer.
    pub fn write(&self, level: u8, cpu: u8, nanos: u64, text: &[u8]) {
        let text = &text[..text.len().min(LOG_LINE_MAX).min((self.words.len() - 2) * 8)];
        let head = self.header.head.load(Ordering::Relaxed);
        let end = head + 2 + text.len().div_ceil(8) as u64;
        self.make_room(end);
        let meta = text.len() as u64 | (level as u64) << 16 | (cpu as u64) << 24 | LOG_RECORD << 32;
        self.word(head).store(meta, Ordering::Relaxed);
        self.word(head + 1).store(nanos, Ordering::Relaxed);
        for (index, chunk) in text.chunks(8).enumerate() {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            self.word(head + 2 + index as u64).store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
        // Release pairs with the acquire load of `head` in `read`.
        self.header.head.store(end, Ordering::Release);
    }

    /// Moves the tail so that the words up to `end` may be overwritten.
    fn make_room(&self, end: u64) {
        let oldest = end.saturating_sub(self.words.len() as u64);
        let mut tail = self.header.tail.load(Ordering::Relaxed);
        if tail >= oldest {
            return;
        }
        while tail < oldest {
            let meta = self.word(tail).load(Ordering::Relaxed);
            tail += 2 + (meta & 0xffff).div_ceil(8);
        }
        self.header.tail.store(tail, Ordering::Relaxed);
        // Pairs with the acquire fence in `read`: who sees an overwritten word sees the moved tail.
        W::fence(Ordering::Release);
    }

    /// Position of the oldest record.
    pub fn oldest(&self) -> u64 {
        self.header.tail.load(Ordering::Acquire)
    }

    /// Positions of the oldest record and behind the newest, if they can be true. A hostile writer may put anything
    /// there; with this every record that is read ends at or before `head`, so a reader always moves forward and
    /// never beyond what was there when it looked.
    fn bounds(&self) -> Option<(u64, u64)> {
        // An honest writer can lap the ring between two loads, but not each time.
        (0..4).find_map(|_| {
            let head = self.header.head.load(Ordering::Acquire);
            let tail = self.header.tail.load(Ordering::Acquire);
            (tail <= head && head - tail <= self.words.len() as u64).then_some((tail, head))
        })
    }

    /// Reads the record at `position` into `text`.
    pub fn read<'t>(&self, position: u64, text: &'t mut [u8; LOG_LINE_MAX]) -> LogRead<'t> {
        let Some((tail, head)) = self.bounds() else { return LogRead::Corrupt };
        if position < tail {
            return LogRead::Lost(tail);
        }
        if position >= head {
            return LogRead::End;
        }
        let meta = self.word(position).load(Ordering::Relaxed);
        let nanos = self.word(position.wrapping_add(1)).load(Ordering::Relaxed);
        let len = (meta & 0xffff) as usize;
        if meta >> 32 == LOG_RECORD && len <= LOG_LINE_MAX {
            for (index, chunk) in text[..len].chunks_mut(8).enumerate() {
                let bytes = self.word(position.wrapping_add(2 + index as u64)).load(Ordering::Relaxed).to_le_bytes();
                chunk.copy_from_slice(&bytes[..chunk.len()]);
            }
        }
        W::fence(Ordering::Acquire);
        let tail = self.header.tail.load(Ordering::Relaxed);
        if position < tail {
            return LogRead::Lost(tail);
        }
        let words = 2 + len.div_ceil(8) as u64;
        if meta >> 32 != LOG_RECORD || len > LOG_LINE_MAX || words > head - position {
            return LogRead::Corrupt;
        }
        let record = LogRecord { level: (meta >> 16) as u8, cpu: (meta >> 24) as u8, nanos, text: &text[..len] };
        LogRead::Record(record, position + words)
    }
}
