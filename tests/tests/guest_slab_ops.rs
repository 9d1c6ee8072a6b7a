//! Slab caches, `kmalloc`, `vmalloc` and per-CPU memory of live guests, by the host's hand.

use pagevisor::guest::{Error, Gfp, NodeId, OpError, SlabFlags};
use pagevisor::workload::Workload;
use pagevisor_tests::guest::{guest, left};

const TWO_NODES: &str = "[[node]]\nmem = \"64M\"\ncpus = 2\n[[node]]\nmem = \"64M\"\ncpus = 2\n";

fn op<T>(result: Result<T, Error>) -> Option<OpError> {
    result.err().and_then(|error| error.op())
}

fn node(number: usize) -> NodeId {
    NodeId::new(number).expect("a node")
}

#[test]
fn kmalloc_gives_what_is_asked_for_where_it_is_asked_for() {
    guest(TWO_NODES, |guest| {
        let cpus = [guest.cpu(0)?, guest.cpu(2)?];
        drop(cpus[0].kmalloc(8, Gfp::KERNEL)?);
        let before = left(guest)?;
        for size in [0, 1, 8, 90, 192, 4000, 8192, 8193, 100_000, 4 << 20] {
            for (cpu, home) in cpus.iter().zip(0..) {
                let object = cpu.kmalloc(size, Gfp::KERNEL)?;
                if size == 0 {
                    assert_eq!(object.addr().raw(), 16);
                    continue;
                }
                assert_eq!(object.node()?, node(home), "{size} bytes");
                assert!(object.addr().raw().is_multiple_of(if size.is_power_of_two() { size.min(4096) } else { 8 }));
                if size <= 192 {
                    object.fill(size)?;
                    object.check(size)?;
                }
                let mut word = [0; 8];
                object.write(0, b"kmalloc.")?;
                object.read(0, &mut word)?;
                assert_eq!(&word, b"kmalloc.");
                object.free_on(&cpus[1 - home])?;
            }
        }
        assert_eq!(cpus[0].kmalloc_node(64, Gfp::KERNEL, node(1))?.node()?, node(1));
        assert_eq!(op(cpus[0].kmalloc((4 << 20) + 1, Gfp::KERNEL)), Some(OpError::Invalid));
        assert_eq!(op(cpus[0].kmalloc_node(64, Gfp::KERNEL, node(5))), Some(OpError::Invalid));
        assert_eq!(left(guest)?, before);
        Ok(())
    });
}

#[test]
fn caches_live_and_die() {
    guest(TWO_NODES, |guest| {
        let cpu = guest.cpu(1)?;
        // Descriptors' memory stays theirs.
        drop(cpu.kmem_cache_create("first", 300, 0, SlabFlags::NONE)?);
        let before = left(guest)?;
        let mut cache = cpu.kmem_cache_create("of-the-test", 300, 0, SlabFlags::HWCACHE_ALIGN)?;
        assert!(guest.show("slabinfo")?.contains("\nof-the-test "));
        let object = cpu.kmem_cache_alloc(&cache, Gfp::KERNEL)?;
        assert!(object.addr().raw().is_multiple_of(64));
        assert_eq!(object.node()?, node(0));
        assert_eq!(cpu.kmem_cache_alloc_node(&cache, Gfp::KERNEL, node(1))?.node()?, node(1));
        object.fill(7)?;
        object.check(7)?;
        // It is in use: that is reported in Linux's words, and it goes on.
        assert_eq!(op(cache.destroy()), Some(OpError::Busy));
        let report = "slab error in kmem_cache_destroy(): cache `of-the-test': Can't free all objects";
        let log = guest.log();
        let at = log.iter().position(|line| line.contains(report)).expect("the report");
        assert!(log[at..].iter().any(|line| line.contains("Call Trace")), "{log:#?}");
        object.check(7)?;
        drop(cpu.kmem_cache_alloc(&cache, Gfp::KERNEL)?);
        object.free()?;
        assert!(!cache.shrink()?);
        cache.destroy()?;
        drop(cache);
        assert!(!guest.show("slabinfo")?.contains("of-the-test"));
        assert_eq!(op(cpu.kmem_cache_create("", 300, 0, SlabFlags::NONE)), Some(OpError::Invalid));
        assert_eq!(op(cpu.kmem_cache_create("x", 300, 3, SlabFlags::NONE)), Some(OpError::Invalid));
        assert_eq!(left(guest)?, before);
        Ok(())
    });
}

#[test]
fn tunables_are_written_as_to_slabinfo() {
    guest(TWO_NODES, |guest| {
        guest.set_slabinfo("kmalloc-256 20 10 4\n")?;
        let text = guest.show("slabinfo")?;
        let line = text.lines().find(|line| line.starts_with("kmalloc-256 ")).expect("the cache");
        assert!(line.contains(": tunables   20   10    4 :"), "{line}");
        for line in ["kmalloc-256", "kmalloc-256 10 20 0", "kmalloc-256 0 0 0", "nobody 20 10 0"] {
            assert_eq!(op(guest.set_slabinfo(line)), Some(OpError::Invalid), "{line}");
        }
        Ok(())
    });
}

#[test]
fn vmalloc_and_per_cpu_memory_hold_what_is_written() {
    guest(TWO_NODES, |guest| {
        let cpu = guest.cpu(3)?;
        drop((cpu.vmalloc(1, Gfp::KERNEL)?, cpu.alloc_percpu(8, 8)?));
        let before = left(guest)?;
        let area = cpu.vmalloc(3 * 4096 + 1, Gfp::KERNEL)?;
        area.fill(1)?;
        // Through the page tables of another CPU.
        let mut end = [0; 3];
        area.write(4 * 4096 - 3, b"end")?;
        area.read(4 * 4096 - 3, &mut end)?;
        assert_eq!(&end, b"end");
        assert_eq!(op(area.write(4 * 4096 - 3, b"ends")), Some(OpError::Invalid));
        assert_eq!(op(area.check(1)), Some(OpError::Mismatch));
        let each = cpu.alloc_percpu(24, 8)?;
        each.fill(2)?;
        each.check(2)?;
        assert_eq!(op(each.read(4 * 24, &mut [0])), Some(OpError::Invalid));
        drop((area, each));
        assert_eq!(left(guest)?, before);
        Ok(())
    });
}

#[test]
fn scull_devices_give_back_what_was_written() {
    guest(TWO_NODES, |guest| {
        for kind in ["scull", "scullc", "scullp", "scullv"] {
            let run = |seed: u32| {
                let workload: Workload = format!("{kind}:hold=12,ops=20,order=1,cpus=0+3,seed={seed}").parse()?;
                let report = guest.run(&workload)?;
                // Two devices of 12 KiB.
                let quanta = if kind == "scullp" || kind == "scullv" { 4 } else { 8 };
                assert_eq!((report.allocs, report.freed, report.failed), (quanta, quanta, 0), "{kind}");
                assert_eq!((report.tries, report.hits, report.mismatches), (20, 20, 0), "{kind}");
                Ok::<_, Box<dyn std::error::Error>>(())
            };
            run(1)?;
            let before = left(guest)?;
            run(2)?;
            assert_eq!(left(guest)?, before, "{kind}");
        }
        Ok(())
    });
}
