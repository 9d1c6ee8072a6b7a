//! Sets of frames as ranges that ascend and do not touch.

use std::ops::Range;

/// A set of frames.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Spans(Vec<Range<u64>>);

impl Spans {
    /// The union of `ranges`.
    pub fn new(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().filter(|range| range.start < range.end).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        let mut spans: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match spans.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => spans.push(range),
            }
        }
        Self(spans)
    }

    /// The ranges.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().cloned()
    }

    /// Number of frames.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// The parts of the set within `range`.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let first = self.0.partition_point(|span| span.end <= range.start);
        let spans = self.0.get(first..).unwrap_or(&[]).iter().take_while(move |span| span.start < range.end);
        spans.map(move |span| span.start.max(range.start)..span.end.min(range.end))
    }

    /// Whether a frame is in the set.
    pub fn contains(&self, frame: u64) -> bool {
        self.within(frame..frame.saturating_add(1)).next().is_some()
    }

    /// How many frames of `range` are in the set.
    pub fn count_within(&self, range: Range<u64>) -> u64 {
        self.within(range).map(|part| part.end - part.start).sum()
    }

    /// The parts of `range` that are not in the set.
    pub fn gaps(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let end = range.end;
        let mut next = range.start;
        self.within(range).chain(std::iter::once(end..end)).filter_map(move |part| {
            let gap = next..part.start;
            next = part.end;
            (gap.start < gap.end).then_some(gap)
        })
    }

    /// What is in both sets.
    pub fn intersection(&self, other: &Self) -> Self {
        Self(self.iter().flat_map(|range| other.within(range).collect::<Vec<_>>()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(ranges: &[(u64, u64)]) -> Spans {
        Spans::new(ranges.iter().map(|(start, end)| *start..*end))
    }

    fn pairs(ranges: impl Iterator<Item = Range<u64>>) -> Vec<(u64, u64)> {
        ranges.map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn ranges_become_a_set() {
        let set = spans(&[(10, 20), (0, 5), (5, 6), (15, 30), (40, 40), (50, 51)]);
        assert_eq!(pairs(set.iter()), [(0, 6), (10, 30), (50, 51)]);
        assert_eq!(set.len(), 27);
        assert!(set.contains(0) && set.contains(29) && !set.contains(30) && !set.contains(6));
        assert!(!set.contains(u64::MAX));
    }

    #[test]
    fn parts_and_gaps_make_up_the_whole() {
        let set = spans(&[(0, 6), (10, 30), (50, 51)]);
        assert_eq!(pairs(set.within(4..12)), [(4, 6), (10, 12)]);
        assert_eq!(pairs(set.gaps(4..12)), [(6, 10)]);
        assert_eq!(pairs(set.gaps(0..60)), [(6, 10), (30, 50), (51, 60)]);
        assert_eq!(pairs(set.gaps(12..20)), []);
        assert_eq!(set.count_within(4..12) + 4, 8);
        assert_eq!(
            pairs(set.intersection(&spans(&[(5, 11), (29, 100)])).iter()),
            [(5, 6), (10, 11), (29, 30), (50, 51)]
        );
    }
}
