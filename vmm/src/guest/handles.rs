//! Which handles are in use. The host chooses them; the guest refuses wrong ones.

use std::collections::BTreeMap;

use pagevisor_shared::command::MAX_HANDLE;

/// A set of handles, such as the free ones: ranges by their start, none next to another.
#[derive(Debug)]
pub(super) struct Handles(BTreeMap<u32, u32>);

impl Default for Handles {
    /// All but handle 0, which is what a forgotten field says.
    fn default() -> Self {
        Self(BTreeMap::from([(1, MAX_HANDLE - 1)]))
    }
}

impl Handles {
    /// No handle at all.
    pub(super) fn none() -> Self {
        Self(BTreeMap::new())
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the lowest ranges, at most `most` of them: start and length of each.
    pub(super) fn take_ranges(&mut self, most: usize) -> Vec<(u32, u32)> {
        std::iter::from_fn(|| self.0.pop_first()).take(most).collect()
    }

    /// The lowest range of `count` free handles, which are in use now.
    pub(super) fn take(&mut self, count: u32) -> Option<u32> {
        let (&start, &free) = self.0.iter().find(|(_, free)| **free >= count.max(1))?;
        self.0.remove(&start);
        if free > count {
            self.0.insert(start + count, free - count);
        }
        Some(start)
    }

    /// Gives handles back.
    pub(super) fn give(&mut self, mut start: u32, mut count: u32) {
        if count == 0 {
            return;
        }
        if let Some((&before, &free)) = self.0.range(..start).next_back()
            && before + free == start
        {
            self.0.remove(&before);
            (start, count) = (before, free + count);
        }
        if let Some(free) = self.0.remove(&(start + count)) {
            count += free;
        }
        self.0.insert(start, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_come_back_in_any_order() {
        let mut handles = Handles::default();
        let ranges: Vec<u32> = [1, 10, 3, 8192].map(|count| handles.take(count).unwrap()).into();
        assert_eq!(ranges, [1, 2, 12, 15]);
        handles.give(2, 10);
        assert_eq!(handles.take(11), Some(15 + 8192));
        assert_eq!(handles.take(4), Some(2));
        handles.give(12, 3);
        handles.give(1, 1);
        handles.give(15, 8192);
        handles.give(2, 4);
        handles.give(15 + 8192, 11);
        assert_eq!(handles.0, Handles::default().0);
    }

    #[test]
    fn there_is_an_end_of_handles() {
        let mut handles = Handles::default();
        assert_eq!(handles.take(MAX_HANDLE), None);
        assert_eq!(handles.take(MAX_HANDLE - 1), Some(1));
        assert_eq!(handles.take(1), None);
        handles.give(77, 1);
        assert_eq!(handles.take(2), None);
        assert_eq!(handles.take(1), Some(77));
    }
}
