//! Hostile guests: whatever lies in a state region, in guest memory, in a core file, in the device's registers and
//! queues, the host's readers neither panic nor hang nor read what is not theirs.
//!
//! Each target damages something good in a few places, drawn from a seed, lets the readers loose on it and mends it
//! again. `PAGEVISOR_FUZZ_CASES` says how many cases each target tries: a few hundred by default, and in
//! `scripts/test fuzz` so many that all targets together try a million. A case that fails prints its seed, and
//! `PAGEVISOR_FUZZ_SEED` starts from there.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod core_file;
mod layers;
mod memory;
mod programs;
mod region;
mod registers;
mod replies;

use std::process::abort;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use pagevisor_shared::random::SplitMix64;

/// Cases per target, unless the environment says otherwise.
const CASES: u64 = 300;
/// No case may take longer.
const LIMIT: Duration = Duration::from_secs(20);

/// Random numbers.
pub(crate) struct Random(SplitMix64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0.next()
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A number near the edges of things, or near `old`.
    pub fn edge(&mut self, old: u64) -> u64 {
        match self.below(9) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => (1 << self.below(64)) - 1,
            4 => old.wrapping_add(self.below(5)).wrapping_sub(2),
            5 => old ^ 1 << self.below(64),
            6 => old & 0xffff_ffff_0000_0000 | self.below(1 << 20),
            7 => old.rotate_left(32),
            _ => self.next(),
        }
    }
}

/// Tries cases. Each gets random numbers of its own.
pub(crate) fn cases(target: &str, mut case: impl FnMut(&mut Random)) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = number("PAGEVISOR_FUZZ_SEED").unwrap_or(0x5047_0000);
    let count = number("PAGEVISOR_FUZZ_CASES").unwrap_or(CASES);
    let watch = Watch::start(target);
    for seed in first..first + count {
        watch.seed.store(seed, Relaxed);
        case(&mut Random(SplitMix64::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d))));
    }
    watch.finished.store(true, Relaxed);
}

/// Tells the seed of a case that panics, and ends the process when one does not end.
struct Watch {
    target: String,
    seed: Arc<AtomicU64>,
    finished: Arc<AtomicBool>,
}

impl Watch {
    fn start(target: &str) -> Self {
        let watch = Self { target: target.to_owned(), seed: Arc::default(), finished: Arc::default() };
        let (seed, finished, target) = (watch.seed.clone(), watch.finished.clone(), target.to_owned());
        thread::spawn(move || {
            let mut last = (0, Instant::now());
            while !finished.load(Relaxed) {
                let now = seed.load(Relaxed);
                if now != last.0 {
                    last = (now, Instant::now());
                } else if last.1.elapsed() > LIMIT {
                    eprintln!("{target}: PAGEVISOR_FUZZ_SEED={now} did not end within {LIMIT:?}");
                    abort();
                }
                thread::sleep(Duration::from_millis(200));
            }
        });
        watch
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}: failed at PAGEVISOR_FUZZ_SEED={}", self.target, self.seed.load(Relaxed));
        }
        self.finished.store(true, Relaxed);
    }
}
