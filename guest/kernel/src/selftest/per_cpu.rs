//! Per-CPU variables: every CPU does the same to its instances, and each must hold what came of it on that CPU alone.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pagevisor_mm::percpu::PerCpuPtr;
use pagevisor_shared::units::{CpuMask, Pfn};

use crate::arch::percpu::{self, THIS_CPU_OFF};
use crate::arch::this_cpu::{dynamic, percpu};
use crate::log::{pr_err, pr_info};
use crate::{platform, smp};

percpu! {
    /// Not zero at first.
    SMALL: u32 = 0x1234_5678;
    /// As wide as a register.
    LARGE: u64 = 0x0123_4567_89ab_cdef;
}

/// The dynamic word.
static WORD: AtomicU64 = AtomicU64::new(0);
/// CPUs that found something wrong, a bit each.
static WRONG: AtomicU64 = AtomicU64::new(0);

/// Runs [`work`] on every CPU, then looks at what it left from this one.
#[inline(never)]
pub fn run() {
    let Some(mm) = platform::mm() else { return };
    let Some(word) = mm.alloc_percpu(8, 8) else { return pr_err!("selftest: percpu failed: no memory") };
    WORD.store(word.raw(), Relaxed);
    let all = smp::online();
    smp::call_function(all, |_| work(), 0);
    work();
    for cpu in all.iter() {
        let (number, unit) = (cpu.index() as u64, mm.per_cpu_ptr(PerCpuPtr::new(0), cpu).raw());
        let small = SMALL.of(cpu).map(|small| small.load(Relaxed));
        let large = LARGE.of(cpu).map(|large| large.load(Relaxed));
        let node = mm.phys(mm.per_cpu_ptr(word, cpu)).and_then(|addr| mm.page_to_nid(Pfn::containing(addr)));
        let home = mm.region().cpus().get(cpu.index()).map(|state| state.node.load(Relaxed) as usize);
        if small != Some(100 + number as u32)
            || large != Some(1000 + number)
            || THIS_CPU_OFF.of(cpu).map(|off| off.load(Relaxed)) != Some(unit)
            || node.map(|node| node.index()) != home
        {
            WRONG.fetch_or(1 << number, Relaxed);
        }
    }
    mm.free_percpu(word);
    match CpuMask(WRONG.load(Relaxed)) {
        CpuMask(0) => pr_info!("selftest: percpu ok on {} CPUs", all.weight()),
        wrong => pr_err!("selftest: percpu failed on CPUs {wrong}"),
    }
}

/// Every operation, each checked by what the next one finds; leaves 100 and 1000 plus the CPU's number.
fn work() {
    let number = percpu::cpu_number();
    let word = PerCpuPtr::new(WORD.load(Relaxed));
    let small = [SMALL.read() == 0x1234_5678, SMALL.xchg(7) == 0x1234_5678, SMALL.fetch_add(u32::MAX) == 7, {
        SMALL.inc();
        SMALL.add(10);
        SMALL.sub(2);
        SMALL.dec();
        SMALL.or(0xf0);
        SMALL.and(0xfe);
        SMALL.cmpxchg(0xfe, 90) == 0xfe
    }];
    let large = [LARGE.xchg(7) == 0x0123_4567_89ab_cdef, LARGE.fetch_add(u64::MAX) == 7, {
        LARGE.inc();
        LARGE.add(1 << 40);
        LARGE.sub(2);
        LARGE.dec();
        LARGE.or(0xf0);
        LARGE.and(!0xf);
        LARGE.cmpxchg(0, 1) == 1 << 40 | 0xf0
    }];
    SMALL.write(100 + number);
    LARGE.write(1000 + u64::from(number));
    // SAFETY: the word is allocated as long as this runs.
    let dynamic = unsafe {
        let fresh = dynamic::read(word) == 0;
        dynamic::inc(word);
        dynamic::add(word, 41);
        let exchanged = dynamic::xchg(word, 5) == 42 && dynamic::cmpxchg(word, 5, 6) == 5;
        let kept = dynamic::cmpxchg(word, 5, 7) == 6;
        dynamic::write(word, u64::from(number));
        [fresh, exchanged, kept, dynamic::read(word) == u64::from(number)]
    };
    if small.contains(&false) || large.contains(&false) || dynamic.contains(&false) {
        WRONG.fetch_or(1 << number, Relaxed);
    }
}
