//! Allocations that are made to fail, from the host: nothing leaks, nothing is damaged, and exactly those fail that are
//! to.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor::guest::{Error, ErrorKind, Fault, Gfp, Guest, NodeMask, OpError, Order, Pfn};
use pagevisor::workload::Workload;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_tests::guest::{ALWAYS, Outcome, guest, sound};

const TWO_NODES: &str = "[[node]]\nmem = \"64M\"\ncpus = 2\n[[node]]\nmem = \"64M\"\ncpus = 2\n";
const ONE_NODE: &str = "[[node]]\nmem = \"64M\"\n";
/// Failures are told in the log, which takes long where ring 0 is emulated.
const QUIET: Gfp = Gfp::KERNEL.with(Gfp::NOWARN);
/// No operation here allocates more often.
const MOST: u64 = 60;

fn order(raw: u32) -> Order {
    Order::new(raw).expect("an order")
}

/// Allocations that were made to fail so far.
fn injected(guest: &Guest) -> u64 {
    guest.view().region().sysctl().fail_page_alloc.failed.load(Relaxed)
}

/// Free pages once no pageset has any.
fn free(guest: &Guest) -> u64 {
    guest.drain_pages().expect("an answer");
    let state = guest.state();
    assert_eq!(state.cached_pages(), 0);
    state.free_pages()
}

/// Does `work` while the 1st, 2nd, ... allocation fails, until none is left to fail; `work` is told which, or 0 at the
/// end. What it allocates it frees. Gives how many allocations there are.
fn each_failure(
    guest: &Guest,
    what: &str,
    mut work: impl FnMut(u64) -> Outcome,
) -> Result<u64, Box<dyn std::error::Error>> {
    // The guest's own tables are there then.
    work(0)?;
    let before = free(guest);
    for nth in 1..MOST {
        let failed = injected(guest);
        guest.fail_nth(nth)?;
        work(nth).map_err(|error| format!("{what}, failure {nth}: {error}"))?;
        guest.fail_nth(0)?;
        assert_eq!(free(guest), before, "{what}: pages leak after failure {nth}");
        match injected(guest) - failed {
            0 => {
                sound(guest)?;
                return Ok(nth - 1);
            }
            failures => assert_eq!(failures, 1, "{what}"),
        }
    }
    Err(format!("{what}: there is no end of allocations").into())
}

fn is_no_memory<T>(result: &Result<T, Error>) -> bool {
    result.as_ref().err().and_then(Error::op) == Some(OpError::NoMemory)
}

#[test]
fn the_nth_allocation_of_an_operation_fails() {
    guest(TWO_NODES, |guest| {
        let cpu = guest.cpu(1)?;
        let both = NodeMask(0b11);
        for (what, cpu) in [("local", cpu), ("bound", cpu.bind(both)), ("in turn", cpu.interleave(both))] {
            for raw in [0, 3, 9] {
                let count = each_failure(guest, what, |nth| {
                    let pages = cpu.alloc_pages(QUIET, order(raw));
                    // Behind the only one there is nothing to fail.
                    assert_eq!(is_no_memory(&pages), nth == 1, "{what}, order {raw}: {:?}", pages.err());
                    Ok(())
                })?;
                assert_eq!(count, 1, "{what}, order {raw}");
            }
            let count = each_failure(guest, what, |nth| {
                let expected = if (1..=6).contains(&nth) { nth as usize - 1 } else { 6 };
                assert_eq!(cpu.alloc_many(QUIET, order(1), 6)?.len(), expected, "what there was until then stays");
                Ok(())
            })?;
            assert_eq!(count, 6, "{what}");
        }
        Ok(())
    });
}

#[test]
fn operations_that_take_pages_otherwise_survive_failures() {
    guest(ONE_NODE, |guest| {
        let cpu = guest.cpu(0)?;
        // Neither splitting nor taking what is free by its place allocates: the n-th failure is never reached, or it is
        // an error like others.
        let block = cpu.alloc_pages(QUIET, Order::MAX)?;
        let start = block.pfn();
        block.free()?;
        let split = each_failure(guest, "split", |nth| {
            match cpu.alloc_pages(QUIET, order(3)) {
                Ok(block) => assert_eq!(block.split()?.len(), 8),
                Err(error) => assert!(nth == 1, "{error}"),
            }
            Ok(())
        })?;
        assert_eq!(split, 1);
        each_failure(guest, "contiguous", |_| {
            let end = Pfn::new(start.raw() + 20);
            match cpu.alloc_contig_range(start, end, MigrateType::Movable, QUIET) {
                Err(error) if error.op() != Some(OpError::NoMemory) => Err(error.into()),
                _ => Ok(()),
            }
        })?;
        Ok(())
    });
}

#[test]
fn contiguous_areas_survive_failures() {
    guest(ONE_NODE, |guest| {
        let cpu = guest.cpu(0)?;
        guest.fail_nth(1)?;
        let area = guest.reserve_cma(512, None);
        guest.fail_nth(0)?;
        let area = area.or_else(|_| guest.reserve_cma(512, None))?;
        each_failure(guest, "cma", |_| match cpu.cma_alloc(area, 12, order(2)) {
            Err(error) if error.op() != Some(OpError::NoMemory) => Err(error.into()),
            _ => Ok(()),
        })?;
        Ok(())
    });
}

/// Does a workload of a few steps while each of its allocations fails.
fn workload(guest: &Guest, text: &str) -> Outcome {
    let work: Workload = format!("{text},gfp=KERNEL|NOWARN").parse()?;
    let count = each_failure(guest, text, |nth| {
        match guest.run(&work) {
            // A table of its own that it did not get is a failure of the first kind, or of the second.
            Ok(report) => assert_eq!(report.allocs, report.freed, "{text}, failure {nth}: {report}"),
            Err(error) => assert!(matches!(error.kind(), ErrorKind::Op { error: OpError::NoMemory, .. }), "{error}"),
        }
        Ok(())
    })?;
    assert!(count >= 3, "{text}: {count} allocations");
    Ok(())
}

#[test]
fn workloads_of_one_cpu_survive_failures() {
    guest(TWO_NODES, |guest| {
        for text in ["sequential:ops=4,order=1", "random:ops=6,hold=3", "fragment:fill=50,hold=3,ops=1,keep=no"] {
            workload(guest, text)?;
        }
        workload(guest, "access:ops=4,fill=5,order=8")
    });
}

#[test]
fn workloads_of_several_cpus_survive_failures() {
    guest(TWO_NODES, |guest| {
        workload(guest, "producer-consumer:ops=3,cpus=0-1")?;
        workload(guest, "pcp-pingpong:ops=2,hold=2,cpus=1-2")
    });
}

/// Allocates and frees, in one message; `x` for each that failed.
fn attempts(guest: &Guest, gfp: Gfp, raw: u32, count: usize) -> Result<String, Error> {
    let mut batch = guest.cpu(1)?.batch();
    for _ in 0..count {
        let block = batch.alloc(gfp, order(raw));
        batch.free(block);
    }
    let outcome = batch.run()?;
    let results: Vec<_> = outcome.results().collect();
    Ok(results.iter().step_by(2).map(|result| if result.is_ok() { '.' } else { 'x' }).collect())
}

#[test]
fn attributes_choose_what_fails() {
    guest(TWO_NODES, |guest| {
        attempts(guest, QUIET, 0, 1)?;
        let before = free(guest);
        let user = Gfp::USER | Gfp::NOWARN;
        let cases = [
            (ALWAYS, QUIET, 0, "xxxxxx"),
            (Fault { interval: 3, ..ALWAYS }, QUIET, 0, "..x..x"),
            (Fault { times: 2, ..ALWAYS }, QUIET, 3, "xx...."),
            (Fault { interval: 2, times: 1, ..ALWAYS }, QUIET, 0, ".x...."),
            (Fault { min_order: 2, ..ALWAYS }, QUIET, 1, "......"),
            (Fault { min_order: 2, ..ALWAYS }, QUIET, 2, "xxxxxx"),
            (Fault { gfp: Gfp::HARDWALL, ..ALWAYS }, QUIET, 0, "......"),
            (Fault { gfp: Gfp::HARDWALL, ..ALWAYS }, user, 0, "xxxxxx"),
            (Fault { ignore_gfp_wait: true, ..ALWAYS }, QUIET, 0, "......"),
            (Fault { ignore_gfp_wait: true, ..ALWAYS }, Gfp::NOWAIT | Gfp::NOWARN, 0, "xxxxxx"),
            (Fault::default(), QUIET, 0, "......"),
        ];
        for (fault, gfp, raw, expected) in cases {
            guest.fail_page_alloc(fault)?;
            assert_eq!(attempts(guest, gfp, raw, 6)?, expected, "{fault:?}, {gfp}, order {raw}");
            assert_eq!(free(guest), before, "{fault:?}");
        }
        // By chance, and by the same chance again.
        let mut patterns = Vec::new();
        for seed in [7, 7, 8] {
            guest.fail_page_alloc(Fault { probability: 30, seed, ..ALWAYS })?;
            patterns.push(attempts(guest, QUIET, 0, 100)?);
        }
        guest.fail_page_alloc(Fault::default())?;
        let failed = patterns[0].matches('x').count();
        // Six standard deviations.
        assert!((3..=57).contains(&failed), "{failed} of 100 at 30 %");
        assert!(patterns[0] == patterns[1] && patterns[1] != patterns[2], "{patterns:?}");
        assert_eq!(free(guest), before);
        Ok(())
    });
}
