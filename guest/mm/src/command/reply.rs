//! A reply being written: results in front, their payload behind the room for all of them.

use core::sync::atomic::AtomicU64;

use pagevisor_shared::command::{OpError, OpResult, ReplyHeader};

use crate::sync::Plain;

/// Bytes of a word.
const WORD: usize = 8;

/// A reply.
#[derive(Debug)]
pub(super) struct Reply<'a> {
    words: &'a [AtomicU64],
    /// First word of the payload.
    start: usize,
    /// Words of payload.
    used: usize,
    results: usize,
}

impl<'a> Reply<'a> {
    /// A reply to `ops` operations in `words`, if they have room for the results.
    pub(super) fn new(words: &'a [AtomicU64], ops: usize) -> Option<Self> {
        let start = (ReplyHeader::BYTES + ops * OpResult::BYTES) / WORD;
        (start <= words.len()).then_some(Self { words, start, used: 0, results: 0 })
    }

    /// Room for `words` words of payload: its offset in bytes, and the words.
    pub(super) fn room(&mut self, words: usize) -> Result<(u32, &'a [AtomicU64]), OpError> {
        let first = self.start + self.used;
        let room = self.words.get(first..first.saturating_add(words)).ok_or(OpError::NoRoom)?;
        let offset = self.used * WORD;
        self.used += words;
        Ok((offset as u32, room))
    }

    /// Gives back the last `words` words.
    pub(super) fn shrink(&mut self, words: usize) {
        self.used -= words.min(self.used);
    }

    /// Writes a result.
    #[inline]
    pub(super) fn push(&mut self, result: OpResult) {
        let at = ReplyHeader::BYTES / WORD + 2 * self.results;
        let error = result.error.map_or(0, |error| error as u32);
        if let Some([first, second]) = self.words.get(at..at + 2) {
            first.set(u64::from(error) | u64::from(result.aux) << 32);
            second.set(result.value);
            self.results += 1;
        }
    }

    /// Completes `header` and writes it; gives the length of the reply in bytes.
    pub(super) fn finish(self, mut header: ReplyHeader) -> usize {
        // Results that there are none of leave no gap.
        let end = ReplyHeader::BYTES / WORD + 2 * self.results;
        if end < self.start {
            for word in 0..self.used {
                self.words[end + word].set(self.words[self.start + word].get());
            }
        }
        header.nr_results = self.results as u32;
        header.payload_len = (self.used * WORD) as u32;
        let bytes = header.to_bytes();
        for (word, part) in self.words.iter().zip(bytes.as_chunks().0) {
            word.set(u64::from_le_bytes(*part));
        }
        header.message_len() as usize
    }
}
