//! Per-CPU memory on a live guest: every CPU works on its own instances, by single instructions.

use std::mem::offset_of;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use pagevisor::guest::Object;
use pagevisor_shared::percpu::PcpuRoot;
use pagevisor_shared::random::SplitMix64;
use pagevisor_tests::command::{Guest, run};
use pagevisor_tests::guest::{guest, sound};

/// Boots with `args`, has all CPUs try their variables, and gives the line in which the guest tells.
fn tried(args: &[&str]) -> (Guest, String) {
    let guest = Guest::keep("percpu", &[args, &["--append", "pagevisor.test=percpu"]].concat());
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let log = run(&mut guest.command(&["log", guest.name()])).success();
        if let Some(line) = log.lines().find(|line| line.contains("selftest: percpu ")) {
            return (guest, line.to_owned());
        }
        assert!(Instant::now() < deadline, "{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn check(args: &[&str], cpus: u64) {
    let (guest, line) = tried(args);
    assert!(line.ends_with(&format!("selftest: percpu ok on {cpus} CPUs")), "{line}");
    let verdict = run(&mut guest.command(&["verify", guest.name()])).success();
    assert!(verdict.starts_with("sound: "), "{verdict}");
    // Ten pages for each CPU, as nothing but the first chunk was needed.
    let meminfo = guest.show(&["meminfo"]);
    let percpu = meminfo.lines().find_map(|line| line.strip_prefix("Percpu:")).expect("the line is there");
    assert_eq!(percpu.trim(), format!("{} kB", 40 * cpus));
    assert_eq!(guest.stop().code(), 0);
}

#[test]
fn one_cpu() {
    check(&["--node", "dma32=64M,cpus=1"], 1);
}

#[test]
fn all_cpus_of_four_nodes() {
    let node = ["--node", "normal=64M,cpus=1"];
    check(&[node, node, ["--node", "normal=64M,cpus=2"], ["--node", "dma32=64M,cpus=0"]].concat(), 4);
}

#[test]
fn every_cpu_of_two_nodes() {
    check(&[], 2);
}

/// Pages of a machine that are free, of slabs, of page tables and of per-CPU memory, once nothing is kept for later.
fn pages(guest: &pagevisor::guest::Guest) -> Result<[u64; 4], Box<dyn std::error::Error>> {
    guest.shrink_caches()?;
    guest.drain_pages()?;
    let meminfo = guest.show("meminfo")?;
    Ok(["MemFree:", "Slab:", "PageTables:", "Percpu:"].map(|key| {
        let kib =
            meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_suffix("kB")?.trim().parse::<u64>().ok());
        kib.unwrap_or_else(|| panic!("no {key} in {meminfo}")) / 4
    }))
}

/// What a CPU writes to the start of what it took in a round.
fn tag(cpu: u32, round: u64) -> [u8; 4] {
    ((cpu << 24) | (round as u32 + 1)).to_le_bytes()
}

fn check_tag(object: &Object<'_>, tag: [u8; 4]) {
    let mut found = [0; 4];
    object.read(0, &mut found).expect("an answer");
    assert_eq!(found, tag, "somebody else writes to it");
}

/// All CPUs at once take per-CPU memory of all sizes, check that nobody else writes to it, and free it, in any order.
fn soak(guest: &pagevisor::guest::Guest, rounds: u64) {
    std::thread::scope(|scope| {
        for cpu in 0..4 {
            scope.spawn(move || {
                let mut random = SplitMix64::new(cpu as u64 + 1);
                let on = guest.cpu(cpu).expect("there are four");
                let mut held: Vec<(Object<'_>, u64)> = Vec::new();
                for round in 0..rounds {
                    let most = [64, 900, 5000, 32 << 10][random.below(4) as usize];
                    let object =
                        on.alloc_percpu(4 + random.below(most - 3) as u32, 1 << random.below(13)).expect("memory");
                    // A word only: where ring 0 is emulated, filling all instances takes minutes.
                    object.write(0, &tag(cpu, round)).expect("an answer");
                    held.push((object, round));
                    while held.len() > 12 {
                        let (object, seed) = held.swap_remove(random.below(held.len() as u64) as usize);
                        check_tag(&object, tag(cpu, seed));
                        object.free().expect("it is allocated");
                    }
                }
                for (object, seed) in held {
                    check_tag(&object, tag(cpu, seed));
                    object.free().expect("it is allocated");
                }
            });
        }
    });
}

#[test]
fn after_many_sizes_on_all_cpus_all_memory_is_there_again() {
    let nodes = "[[node]]\nmem = \"64M\"\ncpus = 1\n[[node]]\nmem = \"64M\"\ncpus = 3\n";
    let rounds = if std::env::var_os("PAGEVISOR_LAB").is_some() { 200 } else { 30 };
    guest(nodes, |guest| {
        let [_, _, _, booted] = pages(guest)?;
        // What is made once and stays is there then.
        soak(guest, 20);
        let before = pages(guest)?;
        let grown = guest.cpu(0)?.alloc_percpu(32 << 10, 8)?;
        assert!(pages(guest)?[3] > booted, "that is more than the first chunk has");
        sound(guest)?;
        grown.free()?;
        soak(guest, rounds);
        let after = pages(guest)?;
        assert_eq!(after.iter().sum::<u64>(), before.iter().sum::<u64>(), "{after:?}, and before {before:?}");
        // One chunk is kept, with the memory that it has when the last of it is freed.
        let unit = booted / 4;
        assert!(after[3] >= booted && after[3] <= booted + 4 * unit, "{} pages, {booted} at first", after[3]);
        Ok(())
    });
}

/// The row about per-CPU memory that `kmem ADDRESS` prints: chunk, CPU, unit, offset, object, size, status, variable.
fn row(text: &str) -> Vec<&str> {
    let line = text.lines().skip_while(|line| !line.starts_with("PERCPU_CHUNK ")).nth(1);
    line.unwrap_or_else(|| panic!("no per-CPU memory in {text}")).split_whitespace().collect()
}

#[test]
fn addresses_tell_their_cpu_and_allocation() {
    guest("[[node]]\nmem = \"64M\"\ncpus = 2\n[[node]]\nmem = \"64M\"\ncpus = 2\n", |guest| {
        let view = guest.view();
        let root = view.region().header().roots.percpu.load(Relaxed);
        let word = |offset: usize| {
            let mut bytes = [0; 8];
            assert!(view.read_virtual(root + offset as u64, &mut bytes).is_ok_and(|mapped| mapped));
            u64::from_le_bytes(bytes)
        };
        let base = |cpu: usize| {
            let unit = word(offset_of!(PcpuRoot, unit_off) + cpu * 8);
            word(offset_of!(PcpuRoot, base_addr)).wrapping_add(unit)
        };
        let mut chunks = Vec::new();
        let mut objects = Vec::new();
        // The first chunk, and then as many more as it takes.
        for size in [24, 30_000, 30_000, 30_000, 30_000, 30_000, 30_000, 30_000, 30_000] {
            let object = guest.cpu(3)?.alloc_percpu(size, 8)?;
            for cpu in 0..4 {
                let address = object.addr().raw().wrapping_add(base(cpu));
                let text = guest.show(&format!("kmem {:x}", address + 17))?;
                let [chunk, of, unit, offset, start, bytes, status] = row(&text)[..] else { panic!("{text}") };
                assert_eq!((of, status, bytes), (&*cpu.to_string(), "allocated", &*size.to_string()), "{text}");
                assert_eq!(start, format!("{address:x}"), "{text}");
                let number = |text: &str| u64::from_str_radix(text, 16).expect("a number");
                assert_eq!(number(unit) + number(offset), address + 17);
                // Behind it comes the page, and before it the area of a chunk that is not the first.
                assert!(text.contains("\n      PAGE "), "{text}");
                assert_eq!(text.contains("VMAP_AREA"), address >= pagevisor_shared::layout::VMALLOC_START, "{text}");
                chunks.push(chunk.to_owned());
            }
            objects.push(object);
        }
        chunks.sort();
        chunks.dedup();
        assert!(chunks.len() >= 3, "{chunks:?}");
        sound(guest)?;
        let first = objects.swap_remove(0);
        let freed = first.addr().raw().wrapping_add(base(1));
        first.free()?;
        let text = guest.show(&format!("kmem {freed:x}"))?;
        assert_eq!(row(&text)[6], "free", "{text}");
        let text = guest.show(&format!("kmem {:x}", base(2)))?;
        assert_eq!((row(&text)[0..3].join(" "), row(&text)[7]), ("(first chunk) 2".to_owned(), "static"), "{text}");
        assert!(row(&text)[8].starts_with("per_cpu("), "{text}");
        Ok(())
    });
}
