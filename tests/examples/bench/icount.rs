//! Under QEMU's `-icount` the guest's time stamp counter counts instructions.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use pagevisor::boot::Init;
use pagevisor_shared::device::cmdline::ZEROED;
use pagevisor_tests::command::run;

use crate::table::{Row, Table};

/// Most instructions an operation may take.
const BOUNDS: &[(&str, f64)] = &[
    ("pages_o0_hot", 120.0),
    ("pages_o0_burst4096", 200.0),
    ("pages_o3_hot", 250.0),
    ("pages_o9_hot", 1000.0),
    ("pages_o10_hot", 1500.0),
    ("mixed_o0-9_uniform", 500.0),
    ("vmalloc_1_pages", 1000.0),
    ("vmalloc_16_pages", 2500.0),
    ("vmalloc_256_pages", 12000.0),
    ("kmalloc_64_hot", 70.0),
    ("kmalloc_64_burst1024", 100.0),
    ("kmalloc_8192_hot", 250.0),
    ("kmalloc_8192_burst1024", 350.0),
    ("kmem_cache_256_hot", 60.0),
    ("kmem_cache_256_burst1024", 110.0),
    ("kmem_cache_256_bulk64", 15.0),
    ("mempool_slab256_hot", 80.0),
    ("percpu_8_hot", 400.0),
    ("percpu_512_hot", 1500.0),
];

/// Most instructions of user space's operations, as programs see them: from the access or `syscall` until it is over.
const USER_BOUNDS: &[(&str, f64)] = &[
    ("getppid", 110.0),
    ("anon_first_touch_write", 1300.0),
    (KNOWN_ZERO, 800.0),
    ("anon_read_zero_page", 500.0),
    ("cow_fault_copy", 1500.0),
    ("cow_fault_reuse", 500.0),
    ("tmpfs_read_fault_per_page", 250.0),
    ("munmap_touched_anon", 350.0),
    ("mmap_munmap_1page", 2500.0),
    ("mprotect_1page_own_vma", 900.0),
    ("mprotect_1page_mid_vma", 2800.0),
    ("fork_exit_wait_1MiB", 60_000.0),
    ("fork_exit_wait_256MiB", 7_000_000.0),
    ("brk_grow_1page_touch", 2000.0),
];
/// The first touch of memory that is known to be zero, which Linux clears like any other.
const KNOWN_ZERO: &str = "anon_first_touch_known_zero";
/// The program that measures them.
const USER_BENCH: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bench"));

/// Most instructions from entry to ready.
const BOOT_BOUND: f64 = 1_000_000.0;

/// Linux's figures by name.
pub fn reference(path: &Path) -> Result<BTreeMap<String, f64>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut figures = BTreeMap::new();
    for line in text.lines().filter(|l| !l.starts_with('#')).skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let figure = fields.get(2).and_then(|f| f.parse().ok());
        let figure = figure.ok_or_else(|| format!("{}: not a figure: '{line}'", path.display()))?;
        figures.insert(fields[0].to_owned(), figure);
    }
    Ok(figures)
}

/// Instructions per operation.
pub fn operations(elf: &Path, linux: &BTreeMap<String, f64>) -> Result<Table, String> {
    let machine = Machine { nodes: vec![1 << 30], cpus: 1 };
    let rows = machine
        .bench(elf, "all")?
        .into_iter()
        .filter(|(name, _)| name != "boot")
        .map(|(name, value)| Row {
            reference: linux.get(&name).copied(),
            bound: BOUNDS.iter().find(|(n, _)| *n == name).map(|(_, bound)| *bound),
            name,
            value,
        })
        .collect();
    let title = "Instructions per operation, one CPU, 1 GiB".to_owned();
    Ok(Table { title, unit: "instructions", reference: "Linux 6.1", rows })
}

/// Instructions per operation of a program (`tests/programs/bench.c`), in user mode and in the kernel together, as in Linux's
/// figures.
pub fn user(elf: &Path, linux: &BTreeMap<String, f64>) -> Result<Table, String> {
    let init = Init { path: "/bin/bench".into(), program: Some(USER_BENCH.to_vec()), arguments: Vec::new() };
    let archive = std::env::temp_dir().join(format!("pagevisor-bench-{}.cpio", std::process::id()));
    std::fs::write(&archive, init.archive()).map_err(|e| format!("{}: {e}", archive.display()))?;
    let mut qemu = Machine { nodes: vec![1 << 30], cpus: 1 }.qemu(elf);
    qemu.arg("-initrd").arg(&archive).args(["-append", &format!("{ZEROED} loglevel=0 rdinit={}", init.path)]);
    let figures = figures(&mut qemu);
    let _ = std::fs::remove_file(&archive);
    let rows = figures?
        .into_iter()
        .map(|(name, value)| Row {
            reference: linux.get(if name == KNOWN_ZERO { "anon_first_touch_write" } else { &name }).copied(),
            bound: USER_BOUNDS.iter().find(|(n, _)| *n == name).map(|(_, bound)| *bound),
            name,
            value,
        })
        .collect();
    let title = "Instructions per operation of a program, kernel and program together, one CPU, 1 GiB".to_owned();
    Ok(Table { title, unit: "instructions", reference: "Linux 6.1", rows })
}

/// Benchmarks that show what instrumentation costs, and how many more instructions each may take because of
/// instrumentation that is off: for the short ways, at most a load and a branch in each half of a pair. For the long
/// ways, where each kind of event and each hook has a place of its own, it is only shown.
const WATCHED: &[(&str, Option<f64>)] = &[
    ("pages_o0_hot", Some(HALVES * LOAD_AND_BRANCH)),
    ("pages_o3_hot", Some(HALVES * LOAD_AND_BRANCH)),
    ("pages_o0_burst4096", Some(HALVES * LOAD_AND_BRANCH)),
    ("pages_o9_hot", None),
    ("pages_o10_hot", None),
    ("mixed_o0-9_uniform", None),
];
/// Allocating and freeing.
const HALVES: f64 = 2.0;
/// Instructions: a comparison with memory, and a jump.
const LOAD_AND_BRANCH: f64 = 2.0;
/// Those of them that are measured with events on as well.
const RECORDED: &[&str] = &["pages_o0_hot", "pages_o3_hot", "pages_o0_burst4096"];
/// What is recorded then.
const EVENTS: &str = "trace_event=mm_page_alloc,mm_page_free";

/// What instrumentation costs: compiled in and off, against `bare`, the same kernel compiled without it; then on.
pub fn instrumentation(elf: &Path, bare: &Path) -> Result<Table, String> {
    let machine = Machine { nodes: vec![1 << 30], cpus: 1 };
    let names = WATCHED.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(",");
    let figures = |elf, append| machine.bench_with(elf, &names, append).map(BTreeMap::from_iter);
    let (off, floor): (BTreeMap<_, _>, BTreeMap<_, _>) = (figures(elf, "")?, figures(bare, "")?);
    let on: BTreeMap<_, _> = figures(elf, EVENTS)?;
    let of = |figures: &BTreeMap<String, f64>, name: &str| {
        figures.get(name).copied().ok_or_else(|| format!("the guest gave no figure for {name}"))
    };
    let row = |figures, name: &str, what: &str, more: Option<f64>| -> Result<Row, String> {
        let reference = of(&floor, name)?;
        let bound = more.map(|more| reference + more);
        Ok(Row { reference: Some(reference), bound, ..Row::new(format!("{name}, {what}"), of(figures, name)?) })
    };
    let mut rows = Vec::new();
    for (name, more) in WATCHED {
        rows.push(row(&off, name, "off", *more)?);
        if RECORDED.contains(name) {
            rows.push(row(&on, name, "events on", None)?);
        }
    }
    let title = "Instrumentation, off and with mm_page_alloc and mm_page_free recorded".to_owned();
    Ok(Table { title, unit: "instructions", reference: "compiled out", rows })
}

/// Instructions from the kernel's entry to ready, of all CPUs together; waiting for each other is not among them.
pub fn boots(elf: &Path) -> Result<Table, String> {
    let boot = |nodes: Vec<u64>, cpus: usize| -> Result<f64, String> {
        let figures = Machine { nodes, cpus }.bench(elf, "boot")?;
        figures.into_iter().find(|(n, _)| n == "boot").map(|(_, v)| v).ok_or("the guest gave no boot figure".to_owned())
    };
    let one = boot(vec![1 << 30], 1)?;
    let large = boot(vec![64 << 30], 1)?;
    let two = boot(vec![256 << 20; 2], 2)?;
    let eight = boot(vec![256 << 20; 8], 8)?;
    let bounded = |name: &str, value, bound| Row { bound: Some(bound), ..Row::new(name, value) };
    let rows = vec![
        bounded("1 node, 1 CPU, 1 GiB", one, BOOT_BOUND),
        bounded("1 node, 1 CPU, 64 GiB", large, one * 1.2),
        bounded("2 nodes, 2 CPUs, 512 MiB", two, BOOT_BOUND),
        bounded("8 nodes, 8 CPUs, 2 GiB", eight, two * 4.0),
    ];
    let title = "Boot, from the kernel's entry to ready, all CPUs together".to_owned();
    Ok(Table { title, unit: "instructions", reference: "", rows })
}

/// A machine with this many bytes in each node, and a CPU in each of the first nodes.
struct Machine {
    nodes: Vec<u64>,
    cpus: usize,
}

impl Machine {
    /// Boots under QEMU with `bench=names`; the figures, in the guest's order.
    fn bench(&self, elf: &Path, names: &str) -> Result<Vec<(String, f64)>, String> {
        self.bench_with(elf, names, "")
    }

    /// As [`Self::bench`], with more words on the command line.
    fn bench_with(&self, elf: &Path, names: &str, append: &str) -> Result<Vec<(String, f64)>, String> {
        let mut qemu = self.qemu(elf);
        // QEMU's RAM starts as zeros, as our own VMM's does; the guest has to be told. And its log would go out byte
        // by byte here.
        qemu.args(["-append", &format!("{ZEROED} loglevel=0 bench={names} {append}")]);
        figures(&mut qemu)
    }

    /// QEMU, with everything but the command line.
    fn qemu(&self, elf: &Path) -> Command {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args("-nodefaults -no-user-config -display none -no-reboot -serial stdio -accel tcg".split(' '))
            .args("-icount shift=0,sleep=off -cpu qemu64,+rdrand".split(' '))
            .args(["-smp", &self.cpus.to_string(), "-m", &format!("{}M", self.nodes.iter().sum::<u64>() >> 20)]);
        for (node, bytes) in self.nodes.iter().enumerate() {
            let backend = format!("memory-backend-ram,id=m{node},size={}M,reserve=off", bytes >> 20);
            let cpus = if node < self.cpus { format!(",cpus={node}") } else { String::new() };
            qemu.args(["-object", &backend, "-numa", &format!("node,nodeid={node},memdev=m{node}{cpus}")]);
        }
        qemu.arg("-kernel").arg(elf);
        qemu
    }
}

/// The figures that a guest prints, in its order.
fn figures(qemu: &mut Command) -> Result<Vec<(String, f64)>, String> {
    let output = run(qemu);
    if output.code() != 0 {
        return Err(format!("QEMU ended with {}: {}{}", output.code(), output.stdout, output.stderr));
    }
    let figures: Vec<_> = output.stdout.lines().filter_map(figure).collect();
    if figures.is_empty() {
        return Err(format!("the guest printed no figures: {}{}", output.stdout, output.stderr));
    }
    Ok(figures)
}

/// `bench NAME VALUE`
fn figure(line: &str) -> Option<(String, f64)> {
    let mut words = line.trim().strip_prefix("bench ")?.split(' ');
    Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
}
