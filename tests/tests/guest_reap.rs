//! What nobody uses of a slab cache goes back in time, while its CPU is awake.

use std::time::{Duration, Instant};

use pagevisor::guest::{Error, Gfp, Guest};
use pagevisor_tests::guest::guest;

/// A CPU looks every two seconds, at lists every four; hosts may be busy.
const LONG: Duration = Duration::from_secs(120);

/// Objects in use and in arrays, and slabs, of a cache.
fn held(guest: &Guest, cache: &str) -> Result<(u64, u64), Error> {
    let slabinfo = guest.show("slabinfo")?;
    let line = slabinfo.lines().find(|line| line.split(' ').next() == Some(cache));
    let words: Vec<&str> = line.unwrap_or_else(|| panic!("no {cache}")).split_ascii_whitespace().collect();
    let number = |index: usize| words[index].parse().expect("a number");
    Ok((number(1), number(14)))
}

#[test]
fn slabs_of_a_cache_that_nobody_uses_go_back() {
    guest("[[node]]\nmem = \"64M\"\ncpus = 1\n", |guest| {
        let cpu = guest.cpu(0)?;
        guest.shrink_caches()?;
        let before = held(guest, "kmalloc-8k")?;
        let objects = (0..32).map(|_| cpu.kmalloc(8192, Gfp::KERNEL)).collect::<Result<Vec<_>, _>>()?;
        drop(objects);
        let (_, slabs) = held(guest, "kmalloc-8k")?;
        assert!(slabs >= before.1 + 8, "{slabs} slabs");
        // Nothing of this has to do with the cache; but each wakes its CPU.
        let start = Instant::now();
        while held(guest, "kmalloc-8k")? != before {
            assert!(start.elapsed() < LONG, "still {:?}", held(guest, "kmalloc-8k")?);
            cpu.nop()?;
        }
        assert!(start.elapsed() > Duration::from_secs(4), "all at once");
        Ok(())
    });
}
