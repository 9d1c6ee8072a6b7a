//! Every way that allocates objects, with every allocation of pages on it made to fail in turn, and with many failing at
//! random: no leak, no damage.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor::guest::{CpuHandle, Error, Fault, Gfp, Guest, OpError, SlabFlags};
use pagevisor::workload::Workload;
use pagevisor_tests::guest::{Outcome, guest, sound};

const TWO_NODES: &str = "[[node]]\nmem = \"64M\"\ncpus = 2\n[[node]]\nmem = \"64M\"\ncpus = 2\n";
/// Failures are told in the log, which takes long where ring 0 is emulated.
const QUIET: Gfp = Gfp::KERNEL.with(Gfp::NOWARN);
/// No operation here allocates pages more often.
const MOST: u64 = 60;

fn injected(guest: &Guest) -> u64 {
    guest.view().region().sysctl().fail_page_alloc.failed.load(Relaxed)
}

/// Free pages once nothing is kept for later.
fn free(guest: &Guest) -> Result<u64, Error> {
    guest.shrink_caches()?;
    guest.drain_pages()?;
    Ok(guest.state().free_pages())
}

/// What `work` gives, where running out of memory is no failure of the test.
fn allowed<T>(what: &str, result: Result<T, Error>) -> Outcome {
    match result {
        Err(error) if error.op() != Some(OpError::NoMemory) => Err(format!("{what}: {error}").into()),
        _ => Ok(()),
    }
}

/// Does `work`, which frees what it allocates, while the 1st, 2nd, ... allocation of pages fails, until none is left to.
fn each_failure(guest: &Guest, what: &str, work: impl Fn(&CpuHandle<'_>) -> Outcome) -> Outcome {
    let cpu = guest.cpu(1)?;
    work(&cpu)?;
    let before = free(guest)?;
    for nth in 1..MOST {
        let failed = injected(guest);
        cpu.fail_nth(nth)?;
        work(&cpu)?;
        cpu.fail_nth(0)?;
        assert_eq!(free(guest)?, before, "{what}: pages leak after failure {nth}");
        if injected(guest) == failed {
            assert!(nth > 1, "{what}: nothing was made to fail");
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
            let before = free(guest)?;
            guest.fail_page_alloc(Fault { probability: 30, times: -1, seed: 5, ..Fault::default() })?;
            let report = run(2);
            guest.fail_page_alloc(Fault::default())?;
            // The workload's own tables and caches may fail, too.
            if let Ok(report) = report {
                assert_eq!((report.allocs, report.mismatches), (report.freed, 0), "{kind}: {report}");
            }
            assert_eq!(free(guest)?, before, "{kind}");
            sound(guest)?;
        }
        Ok(())
    });
}
