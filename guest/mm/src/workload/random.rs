//! Random numbers of workloads: SplitMix64 (Steele, Lea and Flood 2014).

/// A sequence of random numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// What tells the sequences of lanes apart.
    const LANE: u64 = 0xd1b5_4a32_d192_ed03;

    /// The sequence of lane `lane` of a workload with that seed.
    pub(super) const fn new(seed: u64, lane: usize) -> Self {
        Self(seed ^ Self::LANE.wrapping_mul(lane as u64))
    }

    /// The next number.
    #[inline]
    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next number below `limit`, which fits into 32 bits.
    #[inline]
    pub(super) const fn below(&mut self, limit: u64) -> u64 {
        ((self.next() >> 32) * limit) >> 32
    }
}
