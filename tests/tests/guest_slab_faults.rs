//! Every way that allocates objects, with every allocation of pages and of objects on it made to fail in turn, and with
//! many failing at random: no leak, no damage.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor::guest::{CpuHandle, Error, Fault, Gfp, Guest, OpError, SlabCache, SlabFlags};
use pagevisor::workload::Workload;
use pagevisor_shared::command::Faulty;
use pagevisor_tests::guest::{ALWAYS, Outcome, guest, left, sound};

const TWO_NODES: &str = "[[node]]\nmem = \"64M\"\ncpus = 2\n[[node]]\nmem = \"64M\"\ncpus = 2\n";
/// Failures are told in the log, which takes long where ring 0 is emulated.
const QUIET: Gfp = Gfp::KERNEL.with(Gfp::NOWARN);
/// No operation here allocates pages more often.
const MOST: u64 = 60;

/// Allocations of pages, or of objects, that were made to fail so far.
fn injected(guest: &Guest, of: Faulty) -> u64 {
    let view = guest.view();
    let settings = view.region();
    let settings = settings.sysctl();
    match of {
        Faulty::Pages => settings.fail_page_alloc.failed.load(Relaxed),
        Faulty::Objects => settings.failslab.failed.load(Relaxed),
    }
}

/// What `work` gives, where running out of memory is no failure of the test.
fn allowed<T>(what: &str, result: Result<T, Error>) -> Outcome {
    match result {
        Err(error) if error.op() != Some(OpError::NoMemory) => Err(format!("{what}: {error}").into()),
        _ => Ok(()),
    }
}

/// Does `work`, which frees what it allocates, while the 1st, 2nd, ... allocation of pages fails, and then of objects,
/// until none is left to.
fn each_failure(guest: &Guest, what: &str, work: impl Fn(&CpuHandle<'_>) -> Outcome) -> Outcome {
    for of in [Faulty::Pages, Faulty::Objects] {
        each_failure_of(guest, of, what, &work)?;
    }
    Ok(())
}

fn each_failure_of(guest: &Guest, of: Faulty, what: &str, work: &impl Fn(&CpuHandle<'_>) -> Outcome) -> Outcome {
    let cpu = guest.cpu(1)?;
    work(&cpu)?;
    let before = left(guest)?;
    let set = |nth| match of {
        Faulty::Pages => cpu.fail_nth(nth),
        Faulty::Objects => cpu.failslab_nth(nth),
    };
    for nth in 1..MOST {
        let failed = injected(guest, of);
        set(nth)?;
        work(&cpu)?;
        set(0)?;
        assert_eq!(left(guest)?, before, "{what}: pages leak after failure {nth} of {of:?}");
        if injected(guest, of) == failed {
            // Large blocks are no objects.
            assert!(nth > 1 || what == "large kmalloc" && of == Faulty::Objects, "{what}: nothing was made to fail");
            return Ok(sound(guest)?);
        }
    }
    Err(format!("{what}: there is no end of allocations").into())
}

#[test]
fn every_allocation_of_objects_survives_failures() {
    guest(TWO_NODES, |guest| {
        each_failure(guest, "kmalloc", |cpu| allowed("kmalloc", cpu.kmalloc(700, QUIET)))?;
        each_failure(guest, "large kmalloc", |cpu| allowed("kmalloc", cpu.kmalloc(50_000, QUIET)))?;
        each_failure(guest, "vmalloc", |cpu| allowed("vmalloc", cpu.vmalloc(5 * 4096, QUIET)))?;
        each_failure(guest, "a cache", |cpu| {
            let cache = match cpu.kmem_cache_create("failing", 2000, 0, SlabFlags::NONE) {
                Err(error) if error.op() == Some(OpError::NoMemory) => return Ok(()),
                cache => cache?,
            };
            allowed("kmem_cache_alloc", cpu.kmem_cache_alloc(&cache, QUIET))
        })
    });
}

/// Allocates and frees objects; `x` for each that failed.
fn attempts(cpu: &CpuHandle<'_>, cache: &SlabCache<'_>, gfp: Gfp, count: usize) -> Result<String, Error> {
    let one = |_| match cpu.kmem_cache_alloc(cache, gfp) {
        Ok(object) => object.free().map(|()| '.'),
        Err(error) if error.op() == Some(OpError::NoMemory) => Ok('x'),
        Err(error) => Err(error),
    };
    (0..count).map(one).collect()
}

#[test]
fn attributes_choose_which_objects_fail() {
    guest(TWO_NODES, |guest| {
        let cpu = guest.cpu(2)?;
        let [ours, others] = [
            cpu.kmem_cache_create("ours", 100, 0, SlabFlags::NONE)?,
            cpu.kmem_cache_create("others", 100, 0, SlabFlags::NONE)?,
        ];
        attempts(&cpu, &ours, QUIET, 1)?;
        let cases = [
            (ALWAYS, QUIET, "xxxx"),
            (Fault { interval: 3, ..ALWAYS }, QUIET, "..x."),
            (Fault { times: 2, ..ALWAYS }, QUIET, "xx.."),
            (Fault { space: 250, ..ALWAYS }, QUIET, "..xx"),
            (Fault { gfp: Gfp::HARDWALL, ..ALWAYS }, QUIET, "...."),
            (Fault { ignore_gfp_wait: true, ..ALWAYS }, QUIET, "...."),
            (Fault { ignore_gfp_wait: true, ..ALWAYS }, Gfp::NOWAIT | Gfp::NOWARN, "xxxx"),
            (Fault { cache_filter: true, ..ALWAYS }, QUIET, "...."),
        ];
        for (fault, gfp, expected) in cases {
            guest.failslab(fault)?;
            assert_eq!(attempts(&cpu, &ours, gfp, 4)?, expected, "{fault:?}, {gfp}");
        }
        guest.failslab_cache("ours", true)?;
        assert_eq!(attempts(&cpu, &ours, QUIET, 2)?, "xx");
        assert_eq!(attempts(&cpu, &others, QUIET, 2)?, "..");
        let text = guest.show("failslab")?;
        assert!(text.starts_with("cache-filter       Y\nignore-gfp-wait    N\n"), "{text}");
        assert!(text.contains("\nprobability        100\n"), "{text}");
        guest.failslab(Fault::default())?;
        guest.failslab_nth(3)?;
        assert_eq!(attempts(&cpu, &others, QUIET, 4)?, "..x.");
        let bad = guest.failslab_cache("nobody's", true).expect_err("there is no such cache");
        assert_eq!(bad.op(), Some(OpError::Invalid));
        Ok(())
    });
}

#[test]
fn mixes_survive_random_failures() {
    guest(TWO_NODES, |guest| {
        for kind in [
            "slab-mix:ops=400",
            "vmalloc-mix:ops=100",
            "memory-mix:ops=400",
            "scull:hold=12,ops=4",
            "scullv:hold=12,ops=4",
        ] {
            let run = |seed: u64| -> Result<_, Box<dyn std::error::Error>> {
                let workload: Workload = format!("{kind},seed={seed},cpus=0+2,gfp=KERNEL|__GFP_NOWARN").parse()?;
                Ok(guest.run(&workload)?)
            };
            run(1)?;
            let before = left(guest)?;
            let fault = Fault { probability: 30, times: -1, seed: 5, ..Fault::default() };
            for of in [Faulty::Pages, Faulty::Objects] {
                let set = |fault| match of {
                    Faulty::Pages => guest.fail_page_alloc(fault),
                    Faulty::Objects => guest.failslab(fault),
                };
                let failed = injected(guest, of);
                set(fault)?;
                let report = run(2);
                set(Fault::default())?;
                // The workload's own tables and caches may fail, too.
                if let Ok(report) = report {
                    assert_eq!((report.allocs, report.mismatches), (report.freed, 0), "{kind}: {report}");
                }
                assert_eq!(left(guest)?, before, "{kind} without some {of:?}");
                assert!(injected(guest, of) > failed, "{kind}: no {of:?} failed");
                sound(guest)?;
            }
        }
        Ok(())
    });
}
