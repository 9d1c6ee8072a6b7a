//! Instructions per operation: `bench=` on the command line.
//!
//! Under QEMU's `-icount shift=0,sleep=off` with one processor the time stamp counter counts instructions exactly, so
//! a difference of two readings is a figure without noise. Names, loops and operation counts follow the reference
//! figures of Linux (scripts/linux-6.1-icount.tsv): each is the median of [`RUNS`] runs, the loop's own overhead of
//! two instructions included. Every operation is a call that is not inlined, as from one kernel module to another.
//!
//! Each result is a line `bench NAME VALUE` on the serial console, with two decimals.

mod fault;
mod mempool;
mod percpu;
mod slab;
mod vmalloc;

use core::fmt::{self, Write as _};
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pagevisor_shared::command::{BUFFER_BYTES, CommandHeader, Op, Placement};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::Order;

pub use percpu::PerCpuMemory;

pub use self::slab::Objects;
use crate::serial::Serial;
use crate::{platform, smp};

/// Runs whose median is reported.
const RUNS: usize = 21;
/// Blocks that the bursts and the mixed workload can hold at a time.
const SLOTS: usize = 1 << 16;
/// Order of the block that holds [`SLOTS`] words.
const SLOTS_ORDER: Order = order_of(7);
/// Steps of a run of the mixed workload.
const MIXED_STEPS: u64 = 5000;

/// An order of the benchmarks, which are all below the limit.
const fn order_of(raw: u8) -> Order {
    match Order::new(raw as u32) {
        Ok(order) => order,
        Err(_) => Order::MAX,
    }
}

/// What is measured: the page allocator, with blocks named by their first frame's number. Frame 0 is never allocated,
/// so it says that nothing was.
pub trait Pages {
    /// `alloc_pages`.
    fn alloc(&self, gfp: Gfp, order: Order) -> u64;
    /// `__free_pages`.
    fn free(&self, pfn: u64, order: Order);
    /// `alloc_pages_bulk_array`: fills the slots that hold 0 and returns how many hold a page.
    fn alloc_bulk(&self, gfp: Gfp, pages: &mut [u64]) -> usize;
    /// `release_pages`: frees all of them.
    fn release(&self, pages: &mut [u64]);
    /// `clear_page`.
    fn clear(&self, pfn: u64);
    /// `copy_page`.
    fn copy(&self, to: u64, from: u64);
    /// The block's memory, as words.
    fn words(&self, pfn: u64, order: Order) -> &[AtomicU64];
    /// `vmalloc`; 0 for failure.
    fn vmalloc(&self, bytes: u64) -> u64;
    /// `vfree`.
    fn vfree(&self, addr: u64);
    /// `kvmalloc`; 0 for failure.
    fn kvmalloc(&self, bytes: u64) -> u64;
    /// `kvfree`.
    fn kvfree(&self, addr: u64);
    /// Pages free in all zones.
    fn free_pages(&self) -> u64;
    /// Executes the command of `len` bytes in `message` and writes the reply.
    fn command(&self, message: &[AtomicU64], len: usize, reply: &[AtomicU64]);
}

/// Runs the benchmarks whose names begin with one of the comma-separated `names`; `all` stands for every one. The cost
/// of booting is known already and always told.
pub fn run<P: Pages + PerCpuMemory + Objects>(pages: &P, names: &str) {
    report_boot();
    let block = pages.alloc(Gfp::KERNEL, SLOTS_ORDER);
    if block == 0 {
        print(format_args!("bench: no memory to work with"));
        return;
    }
    let bench = Bench { pages, names, slots: &pages.words(block, SLOTS_ORDER)[..SLOTS] };
    bench.basics();
    bench.order0();
    for (name, order, ops) in HOT {
        bench.hot(name, Gfp::KERNEL, *order, *ops);
    }
    for (name, order, count) in BURSTS {
        bench.burst(name, *order, *count, false);
    }
    bench.mixed("mixed_o0-9_uniform", |random| (random % 10) as u8);
    // Each order half as likely as the one below.
    bench.mixed("mixed_o0-9_geometric", |random| (random | 1 << 9).trailing_zeros() as u8);
    bench.slab();
    if let Some(mm) = platform::mm() {
        bench.mempool(mm);
        bench.faults(mm);
    }
    bench.commands();
    bench.vmalloc();
    bench.percpu();
    pages.free(block, SLOTS_ORDER);
}

/// Instructions from the kernel's entry to ready, of all CPUs together.
fn report_boot() {
    if let Some(mm) = platform::mm() {
        let header = mm.region().header();
        let ticks = header.tsc_ready.load(Relaxed) - header.tsc_entry.load(Relaxed);
        report("boot", "", 100 * smp::boot_work(ticks));
    }
}

/// Hot pairs: name, order, pairs of a run.
const HOT: &[(&str, u8, u64)] = &[
    ("pages_o1_hot", 1, 500),
    ("pages_o2_hot", 2, 500),
    ("pages_o3_hot", 3, 500),
    ("pages_o4_hot", 4, 500),
    ("pages_o5_hot", 5, 500),
    ("pages_o6_hot", 6, 500),
    ("pages_o7_hot", 7, 500),
    ("pages_o8_hot", 8, 500),
    ("pages_o9_hot", 9, 50),
    ("pages_o10_hot", 10, 50),
];

/// Bursts: name, order, blocks of a run.
const BURSTS: &[(&str, u8, usize)] = &[
    ("pages_o1_burst256", 1, 256),
    ("pages_o2_burst256", 2, 256),
    ("pages_o3_burst256", 3, 256),
    ("pages_o4_burst256", 4, 256),
    ("pages_o9_burst32", 9, 32),
    ("pages_o10_burst16", 10, 16),
];

struct Bench<'a, P> {
    pages: &'a P,
    names: &'a str,
    slots: &'a [AtomicU64],
}

impl<P: Pages> Bench<'_, P> {
    fn basics(&self) {
        self.each("empty_loop", 1000, || {
            black_box(());
        });
        let (a, b) = (self.alloc(Gfp::KERNEL, Order::ZERO), self.alloc(Gfp::KERNEL, Order::ZERO));
        self.each("clear_page", 1000, || self.pages.clear(a));
        self.each("copy_page", 1000, || self.pages.copy(b, a));
        self.free(a, Order::ZERO);
        self.free(b, Order::ZERO);
    }

    fn order0(&self) {
        self.hot("pages_o0_hot", Gfp::KERNEL, 0, 1000);
        self.hot("pages_o0_atomic_hot", Gfp::ATOMIC_ALLOC, 0, 1000);
        self.hot("pages_o0_movable_hot", Gfp::HIGHUSER_MOVABLE, 0, 1000);
        self.each("get_zeroed_page_hot", 1000, || {
            let page = self.alloc(Gfp::KERNEL.with(Gfp::ZERO), Order::ZERO);
            self.free(page, Order::ZERO);
        });
        self.burst("pages_o0_burst512", 0, 512, false);
        self.burst("pages_o0_burst4096", 0, 4096, false);
        self.burst("pages_o0_burst4096_lifo", 0, 4096, true);
        self.bulk("alloc_pages_bulk_array_256");
    }

    /// Alloc and free in turn: together in one loop, and each half timed call by call.
    fn hot(&self, name: &str, gfp: Gfp, order: u8, ops: u64) {
        let order = order_of(order);
        self.each(name, ops, || {
            let page = self.alloc(gfp, order);
            self.free(page, order);
        });
        self.halves(name, |alloc, free| {
            for _ in 0..ops {
                let mut page = 0;
                alloc.time(|| page = self.alloc(gfp, order));
                free.time(|| self.free(page, order));
            }
        });
    }

    /// All allocated, then all freed, first first or last first.
    fn burst(&self, name: &str, order: u8, count: usize, lifo: bool) {
        let order = order_of(order);
        let slots = &self.slots[..count];
        let give = |slot: &AtomicU64| self.free(slot.load(Relaxed), order);
        self.in_bursts(name, count, || {
            let start = now();
            slots.iter().for_each(|slot| slot.store(self.alloc(Gfp::KERNEL, order), Relaxed));
            let middle = now();
            if lifo {
                slots.iter().rev().for_each(give)
            } else {
                slots.iter().for_each(give)
            }
            [start, middle, now()]
        });
    }

    /// The costs of the halves of a burst of `count`, and of both together. `burst` tells when it began, when all were
    /// allocated, and when all were free again.
    #[inline(always)]
    fn in_bursts(&self, name: &str, count: usize, mut burst: impl FnMut() -> [u64; 3]) {
        let mut sums = [0; RUNS];
        let mut run = 0;
        self.halves(name, |alloc, free| {
            let [start, middle, end] = burst();
            alloc.add(middle - start, count as u64);
            free.add(end - middle, count as u64);
            sums[run] = hundredths(end - start, count as u64);
            run += 1;
        });
        if self.wanted(name) {
            report(name, "", median(&mut sums));
        }
    }

    fn bulk(&self, name: &str) {
        const COUNT: usize = 256;
        self.halves(name, |alloc, free| {
            let mut pages = [0; COUNT];
            let start = now();
            let got = self.alloc_bulk(Gfp::KERNEL, &mut pages);
            alloc.add(now() - start, got as u64);
            let start = now();
            pages[..got].iter().for_each(|page| self.free(*page, Order::ZERO));
            free.add(now() - start, got as u64);
        });
        self.halves("release_pages_256", |alloc, free| {
            let mut pages = [0; COUNT];
            let start = now();
            let got = self.alloc_bulk(Gfp::KERNEL, &mut pages);
            alloc.add(now() - start, got as u64);
            let start = now();
            self.pages.release(&mut pages[..got]);
            free.add(now() - start, got as u64);
        });
    }

    /// A zone kept half full by blocks of random orders.
    fn mixed(&self, name: &str, order: fn(u64) -> u8) {
        if !self.wanted(name) {
            return;
        }
        let mut mix = Mixed { bench: self, order, random: Random(0x9e37_79b9_7f4a_7c15), held: 0, used: 0 };
        let half = self.pages.free_pages() / 2;
        let (mut fill, mut release) = (Time::default(), Time::default());
        let mut nothing = Time::default();
        while mix.used < half && mix.held < SLOTS {
            mix.take(&mut fill);
        }
        report(name, ".fill", fill.mean());
        let (mut allocs, mut frees, mut calls) = ([0; RUNS], [0; RUNS], [0; RUNS]);
        // The first run settles the workload and does not count.
        for run in 0..=RUNS {
            let (mut alloc, mut free) = (Time::default(), Time::default());
            for _ in 0..MIXED_STEPS {
                if mix.used < half && mix.held < SLOTS { mix.take(&mut alloc) } else { mix.give(&mut free) }
            }
            if let Some(run) = run.checked_sub(1) {
                (allocs[run], frees[run]) = (alloc.mean(), free.mean());
                alloc.add(free.total, free.ops);
                calls[run] = alloc.mean();
            }
        }
        report(name, ".alloc", median(&mut allocs));
        report(name, ".free", median(&mut frees));
        report(name, "", median(&mut calls));
        while mix.held > 0 {
            mix.give(if mix.held > 1 { &mut release } else { &mut nothing });
        }
        report(name, ".release", release.mean());
    }

    /// Commands as the host sends them, without the way to and from it: an empty one, and the operations of full ones.
    fn commands(&self) {
        const OPS: u32 = 1000;
        let nop = |_| Op::Nop;
        self.batch("command_empty", 0, nop);
        self.batch("command_nop", OPS, nop);
        self.batch("command_alloc_free", OPS, |op| {
            let handle = op / 2;
            let (gfp, placement) = (Gfp::KERNEL, Placement::Local);
            match op % 2 {
                0 => Op::AllocPages { gfp, order: Order::ZERO, placement, handle, count: 1 },
                _ => Op::FreePages { handle, count: 1 },
            }
        });
    }

    /// The median cost of an operation of a command, or of the command if it has none.
    fn batch(&self, name: &str, ops: u32, op: impl Fn(u32) -> Op) {
        let (message, reply) = self.slots.split_at(SLOTS / 2);
        let header = CommandHeader { nr_ops: ops, ..CommandHeader::default() };
        let mut words = message.iter();
        let mut append = |bytes: &[u8]| {
            for (word, slot) in bytes.as_chunks().0.iter().zip(&mut words) {
                slot.store(u64::from_le_bytes(*word), Relaxed);
            }
        };
        append(&header.to_bytes());
        (0..ops).for_each(|number| append(&op(number).encode().to_bytes()));
        let mut runs = [0; RUNS];
        if !self.wanted(name) {
            return;
        }
        for run in &mut runs {
            let start = now();
            self.pages.command(message, header.message_len() as usize, &reply[..BUFFER_BYTES / 8]);
            *run = hundredths(now() - start, u64::from(ops.max(1)));
        }
        report(name, "", median(&mut runs));
    }

    /// The median cost of `op` in a loop.
    #[inline(always)]
    fn each(&self, name: &str, ops: u64, mut op: impl FnMut()) {
        if !self.wanted(name) {
            return;
        }
        let mut runs = [0; RUNS];
        for run in &mut runs {
            let start = now();
            for _ in 0..black_box(ops) {
                op();
            }
            *run = hundredths(now() - start, ops);
        }
        report(name, "", median(&mut runs));
    }

    /// The median costs of the two halves that `body` times.
    fn halves(&self, name: &str, mut body: impl FnMut(&mut Time, &mut Time)) {
        if !self.wanted(name) {
            return;
        }
        let (mut allocs, mut frees) = ([0; RUNS], [0; RUNS]);
        for run in 0..RUNS {
            let (mut alloc, mut free) = (Time::default(), Time::default());
            body(&mut alloc, &mut free);
            (allocs[run], frees[run]) = (alloc.mean(), free.mean());
        }
        report(name, ".alloc", median(&mut allocs));
        report(name, ".free", median(&mut frees));
    }

    fn wanted(&self, name: &str) -> bool {
        self.names.split(',').any(|n| n == "all" || name.starts_with(n))
    }

    #[inline(never)]
    fn alloc(&self, gfp: Gfp, order: Order) -> u64 {
        self.pages.alloc(gfp, order)
    }

    #[inline(never)]
    fn free(&self, pfn: u64, order: Order) {
        self.pages.free(pfn, order);
    }

    #[inline(never)]
    fn alloc_bulk(&self, gfp: Gfp, pages: &mut [u64]) -> usize {
        self.pages.alloc_bulk(gfp, pages)
    }
}

/// The mixed workload's blocks: frame number and order in a word, `held` of them, `used` pages together.
struct Mixed<'a, P> {
    bench: &'a Bench<'a, P>,
    order: fn(u64) -> u8,
    random: Random,
    held: usize,
    used: u64,
}

impl<P: Pages> Mixed<'_, P> {
    /// Allocates a block of a random order.
    fn take(&mut self, time: &mut Time) {
        let order = order_of((self.order)(self.random.next()));
        let mut page = 0;
        time.time(|| page = self.bench.alloc(Gfp::KERNEL, order));
        if page != 0 {
            self.bench.slots[self.held].store(page << 4 | u64::from(order.raw()), Relaxed);
            self.held += 1;
            self.used += order.pages();
        }
    }

    /// Frees a random one.
    fn give(&mut self, time: &mut Time) {
        let victim = (self.random.next() % self.held as u64) as usize;
        let slots = self.bench.slots;
        let block = slots[victim].load(Relaxed);
        self.held -= 1;
        slots[victim].store(slots[self.held].load(Relaxed), Relaxed);
        let order = order_of((block & 15) as u8);
        self.used -= order.pages();
        time.time(|| self.bench.free(block >> 4, order));
    }
}

/// Instructions spent in operations that are timed one by one.
#[derive(Default)]
struct Time {
    total: u64,
    ops: u64,
}

impl Time {
    /// Times one operation; what two readings of the counter cost is not part of it.
    #[inline(always)]
    fn time(&mut self, op: impl FnOnce()) {
        let empty = now();
        let start = now();
        op();
        let end = now();
        self.add((end - start).saturating_sub(start - empty), 1);
    }

    fn add(&mut self, instructions: u64, ops: u64) {
        self.total += instructions;
        self.ops += ops;
    }

    fn mean(&self) -> u64 {
        hundredths(self.total, self.ops)
    }
}

/// Xorshift: the same sequence on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }
}

/// A point on the instruction axis.
#[inline(always)]
fn now() -> u64 {
    // SAFETY: RDTSC only reads a counter, and every x86-64 processor has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

fn hundredths(total: u64, ops: u64) -> u64 {
    (total * 100 + ops / 2).checked_div(ops).unwrap_or(0)
}

fn median(runs: &mut [u64; RUNS]) -> u64 {
    runs.sort_unstable();
    runs[RUNS / 2]
}

fn report(name: &str, part: &str, value: u64) {
    print(format_args!("bench {name}{part} {}.{:02}", value / 100, value % 100));
}

fn print(line: fmt::Arguments<'_>) {
    // The serial console takes everything.
    let _ = writeln!(Serial, "{line}");
}
