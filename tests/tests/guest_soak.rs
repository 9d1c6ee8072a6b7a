//! A soak: all allocators at once, on all CPUs, for long; then everything is freed, and all memory is there again.

use pagevisor::workload::Workload;
use pagevisor_tests::guest::{guest, left};

const FOUR_NODES: &str = "[[node]]\nmem = \"128M\"\n[[node]]\nmem = \"128M\"\n[[node]]\nmem = \"128M\"\n\
                          [[node]]\nmem = \"128M\"\n";

/// Operations of all CPUs together. Where ring 0 is emulated instruction by instruction each takes a millisecond.
fn operations() -> u64 {
    if std::env::var_os("PAGEVISOR_LAB").is_some() { 1_000_000 } else { 4_000 }
}

#[test]
fn after_a_million_operations_free_memory_equals_the_start_to_the_page() {
    guest(FOUR_NODES, |guest| {
        let run = |ops: u64, seed: u64| -> Result<(), Box<dyn std::error::Error>> {
            let workload: Workload = format!("memory-mix:ops={ops},seed={seed},cpus=0-3,hold=400").parse()?;
            let report = guest.run(&workload)?;
            assert_eq!((report.allocs, report.mismatches), (report.freed, 0), "{report}");
            // Now and then a lane has nothing to free, or too much.
            assert!(report.allocs > ops / 4 && report.failed < ops / 20, "{report}");
            Ok(())
        };
        // What is made once and stays, such as page tables of tables and each CPU's array of each cache, is there then.
        run(operations() / 20, 1)?;
        let before = left(guest)?;
        run(operations(), 2)?;
        assert_eq!(left(guest)?, before);
        Ok(())
    });
}
