//! Runs of bits in maps of words.

use core::sync::atomic::AtomicU64;

use crate::sync::Plain;

/// The first bit from `from` up that is set in `map` after `flip` was applied to its words; `end` if none is below it.
#[inline(always)]
fn next(map: &[AtomicU64], from: usize, end: usize, flip: u64) -> usize {
    if from >= end {
        return end;
    }
    let mut index = from / 64;
    let mut mask = u64::MAX << (from % 64);
    while let Some(word) = map.get(index) {
        let word = (word.get() ^ flip) & mask;
        if word != 0 {
            return (index * 64 + word.trailing_zeros() as usize).min(end);
        }
        index += 1;
        if index * 64 >= end {
            break;
        }
        mask = u64::MAX;
    }
    end
}

/// The first set bit in `[from, end)`, else `end` (`find_next_bit`).
#[inline(always)]
pub(super) fn next_set(map: &[AtomicU64], from: usize, end: usize) -> usize {
    next(map, from, end, 0)
}

/// The first clear bit in `[from, end)`, else `end` (`find_next_zero_bit`).
#[inline(always)]
pub(super) fn next_zero(map: &[AtomicU64], from: usize, end: usize) -> usize {
    next(map, from, end, u64::MAX)
}

/// Where the run of clear bits begins that ends at `from`, not below `start`.
#[inline(always)]
pub(super) fn run_start(map: &[AtomicU64], from: usize, start: usize) -> usize {
    let mut from = from;
    while from > start {
        let index = (from - 1) / 64;
        let word = map.get(index).map_or(0, Plain::get) & (u64::MAX >> (63 - (from - 1) % 64));
        if word != 0 {
            return (index * 64 + 64 - word.leading_zeros() as usize).max(start);
        }
        from = index * 64;
    }
    start
}

/// Whether bit `bit` is set.
#[inline(always)]
pub(super) fn test(map: &[AtomicU64], bit: usize) -> bool {
    map.get(bit / 64).is_some_and(|word| word.get() >> (bit % 64) & 1 != 0)
}

/// Sets (`bitmap_set`) or clears (`bitmap_clear`) the bits of `[from, end)`.
#[inline(always)]
pub(super) fn write(map: &[AtomicU64], from: usize, end: usize, set: bool) {
    let mut from = from;
    while from < end {
        let stop = end.min((from | 63) + 1);
        let Some(word) = map.get(from / 64) else { return };
        let mask = (u64::MAX >> (64 - (stop - from))) << (from % 64);
        word.set(if set { word.get() | mask } else { word.get() & !mask });
        from = stop;
    }
}

/// The first `bits` clear bits side by side in `[from, end)` that begin at a multiple of the power of two `align`.
#[inline]
pub(super) fn find_zero_area(map: &[AtomicU64], from: usize, end: usize, bits: usize, align: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at = (next_zero(map, at, end) + align - 1) & !(align - 1);
        let stop = at + bits;
        if stop > end {
            return None;
        }
        let taken = next_set(map, at, stop);
        if taken == stop {
            return Some(at);
        }
        at = taken + 1;
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use pagevisor_shared::random::SplitMix64;

    const BITS: usize = 320;

    fn maps() -> impl Iterator<Item = (Vec<AtomicU64>, Vec<bool>)> {
        let mut random = SplitMix64::new(7);
        (0..200).map(move |round| {
            let plain: Vec<bool> = (0..BITS).map(|_| random.next() % 16 < round % 17).collect();
            let words = (0..BITS / 64)
                .map(|word| AtomicU64::new((0..64).fold(0, |all, bit| all | u64::from(plain[word * 64 + bit]) << bit)));
            (words.collect(), plain)
        })
    }

    #[test]
    fn searches_agree_with_a_plain_one() {
        for (map, plain) in maps() {
            for (from, end) in [(0, BITS), (5, 300), (63, 64), (64, 130), (100, 100), (127, 129), (0, 1)] {
                let first = |want: bool| (from..end).find(|&bit| plain[bit] == want).unwrap_or(end);
                assert_eq!(next_set(&map, from, end), first(true));
                assert_eq!(next_zero(&map, from, end), first(false));
                let start = (from..end).rev().find(|&bit| plain[bit]).map_or(from, |bit| bit + 1);
                assert_eq!(run_start(&map, end, from), start);
                for (bits, align) in [(1, 1), (3, 1), (8, 8), (20, 4), (64, 64)] {
                    let fits =
                        |&at: &usize| at % align == 0 && at + bits <= end && !plain[at..at + bits].contains(&true);
                    assert_eq!(find_zero_area(&map, from, end, bits, align), (from..end).find(fits));
                }
            }
        }
    }

    #[test]
    fn writing_touches_just_the_range() {
        for (from, end) in [(0, 64), (3, 5), (60, 70), (0, BITS), (64, 64), (1, 319), (128, 192)] {
            for set in [false, true] {
                let map: Vec<_> = (0..BITS / 64).map(|_| AtomicU64::new(if set { 0 } else { u64::MAX })).collect();
                write(&map, from, end, set);
                for bit in 0..BITS {
                    assert_eq!(test(&map, bit), (from <= bit && bit < end) == set, "bit {bit} of {from}..{end}");
                }
            }
        }
    }
}
