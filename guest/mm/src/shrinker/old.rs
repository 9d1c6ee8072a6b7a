//! Shrinkers of one function.

use super::{DEFAULT_SEEKS, ShrinkControl, Shrinker};
use crate::Mm;
use crate::platform::Platform;

/// A shrinker as Linux had them before counting and scanning were two functions.
///
/// The function is called with the number of objects to look at (`nr_to_scan`), and gives how many there are then. With
/// 0 it only says how many there are. -1 means that it cannot do anything now, for fear of a deadlock for instance.
#[derive(Clone, Copy, Debug)]
pub struct OldShrinker<F> {
    shrink: F,
    seeks: u32,
    batch: u64,
}

impl<F> OldShrinker<F> {
    /// A shrinker whose objects cost as much as most.
    pub const fn new(shrink: F) -> Self {
        Self { shrink, seeks: DEFAULT_SEEKS, batch: 0 }
    }

    /// Sets what an object costs.
    #[must_use]
    pub fn with_seeks(self, seeks: u32) -> Self {
        Self { seeks, ..self }
    }

    /// Sets how many objects it looks at in a call.
    #[must_use]
    pub fn with_batch(self, batch: u64) -> Self {
        Self { batch, ..self }
    }
}

impl<P, F> Shrinker<P> for OldShrinker<F>
where
    P: Platform,
    F: Fn(&Mm<P>, &ShrinkControl) -> i64 + Sync,
{
    fn count_objects(&self, mm: &Mm<P>, control: &ShrinkControl) -> u64 {
        let query = ShrinkControl { nr_to_scan: 0, ..*control };
        (self.shrink)(mm, &query).max(0) as u64
    }

    fn scan_objects(&self, mm: &Mm<P>, control: &mut ShrinkControl) -> Option<u64> {
        let before = self.count_objects(mm, control);
        let left = (self.shrink)(mm, control);
        // -1: not now.
        let left = u64::try_from(left).ok()?;
        Some(before.saturating_sub(left))
    }

    fn seeks(&self) -> u32 {
        self.seeks
    }

    fn batch(&self) -> u64 {
        self.batch
    }
}
