//! How the slab allocator's per-CPU arrays scale: nanoseconds per `kmalloc(64)` and `kfree` of a thread, with 1, 2, 4 and 8
//! threads that stand for CPUs. Prints a line each: threads, nanoseconds. Run by `scripts/bench --only scaling`.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use pagevisor_mm::hosted::{Machine, Topology};
use pagevisor_shared::gfp::Gfp;

/// Pairs of a thread in one run.
const PAIRS: u32 = 1_000_000;
/// Runs, of which the fastest counts: whatever else the machine does makes a run slower.
const RUNS: usize = 7;

/// The time that the slowest of `cpus` threads takes for its pairs.
fn run(machine: &Machine, cpus: usize) -> Duration {
    let start = Barrier::new(cpus);
    let work = |cpu| {
        machine.on_cpu(cpu, |mm| {
            start.wait();
            let began = Instant::now();
            for _ in 0..PAIRS {
                let object = mm.kmalloc(black_box(64), Gfp::KERNEL).expect("memory");
                mm.kfree(black_box(object));
            }
            began.elapsed()
        })
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cpus).map(|cpu| scope.spawn(move || work(cpu))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a run")).max().expect("a thread")
    })
}

fn main() {
    const MIB: u64 = 1 << 20;
    for cpus in [1, 2, 4, 8] {
        let machine = Topology::new().node(&[(0, 640 << 10), (MIB, 64 * MIB)], cpus).boot();
        let fastest = (0..RUNS).map(|_| run(&machine, cpus)).min().expect("a run");
        println!("{cpus}\t{:.2}", fastest.as_secs_f64() * 1e9 / f64::from(PAIRS));
    }
}
