//! Per-CPU memory on a live guest: every CPU works on its own instances, by single instructions.

use std::mem::offset_of;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use pagevisor_shared::percpu::PcpuRoot;
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
