//! A soak: all allocators at once, on all CPUs, for long; then everything is freed, and all memory is there again.

use pagevisor::guest::{Error, Guest};
use pagevisor::workload::Workload;
use pagevisor_tests::guest::guest;

const FOUR_NODES: &str = "[[node]]\nmem = \"128M\"\n[[node]]\nmem = \"128M\"\n[[node]]\nmem = \"128M\"\n\
                          [[node]]\nmem = \"128M\"\n";

/// Operations of all CPUs together. Where ring 0 is emulated instruction by instruction each takes a millisecond.
fn operations() -> u64 {
    if std::env::var_os("PAGEVISOR_LAB").is_some() { 1_000_000 } else { 4_000 }
}

/// What is in use once nothing is kept for later: pages that are free or in slabs, and the objects in use of each cache.
/// Those of areas are never all free, as the kernel's stacks are areas: on how many slabs they lie is a matter of chance.
fn free(guest: &Guest) -> Result<(u64, Vec<(String, u64)>), Error> {
    guest.shrink_caches()?;
    guest.drain_pages()?;
    let slabinfo = guest.show("slabinfo")?;
    let caches = slabinfo.lines().skip(2).map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |index: usize| words[index].parse::<u64>().expect("a number");
        // name active_objs num_objs objsize objperslab pagesperslab : tunables 3 : slabdata active_slabs num_slabs
        (words[0].to_owned(), number(1), number(14) * number(5))
    });
    let caches: Vec<_> = caches.collect();
    let slabs: u64 = caches.iter().map(|(.., pages)| pages).sum();
    let objects = caches.into_iter().map(|(name, active, _)| (name, active)).collect();
    Ok((guest.state().free_pages() + slabs, objects))
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
        let before = free(guest)?;
        run(operations(), 2)?;
        assert_eq!(free(guest)?, before);
        Ok(())
    });
}
