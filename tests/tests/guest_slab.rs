//! Slab caches of a running guest, as the host sees them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use pagevisor_tests::command::{Guest, run, unique};

/// Linux's first two lines.
const HEADER: &str = "slabinfo - version: 2.1\n# name            <active_objs> <num_objs> <objsize> <objperslab> \
                      <pagesperslab> : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> \
                      <num_slabs> <sharedavail>\n";

/// A line of slabinfo.
#[derive(Debug)]
struct Line {
    name: String,
    active_objs: u64,
    num_objs: u64,
    objsize: u64,
    objperslab: u64,
    pagesperslab: u64,
    tunables: [u64; 3],
    active_slabs: u64,
    num_slabs: u64,
}

/// Reads slabinfo by the rules of procps's library, which splits at white space and counts fields.
fn slabinfo(text: &str) -> Vec<Line> {
    let body = text.strip_prefix(HEADER).unwrap_or_else(|| panic!("another header: {text}"));
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, .., _] = *words.as_slice() else { panic!("{line}") };
        assert_eq!((words.len(), words[6], words[7], words[11], words[12]), (16, ":", "tunables", ":", "slabdata"));
        let number = |position: usize| words[position].parse().unwrap_or_else(|_| panic!("{line}"));
        Line {
            name: name.to_owned(),
            active_objs: number(1),
            num_objs: number(2),
            objsize: number(3),
            objperslab: number(4),
            pagesperslab: number(5),
            tunables: [number(8), number(9), number(10)],
            active_slabs: number(13),
            num_slabs: number(14),
        }
    };
    body.lines().map(line).collect()
}

/// The number behind a key of meminfo, in KiB.
fn kib(meminfo: &str, key: &str) -> u64 {
    let line = meminfo.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("no {key}"));
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn slabinfo_has_linux_s_caches() {
    let guest = Guest::keep("slabinfo", &[]);
    let lines = slabinfo(&guest.show(&["slabinfo"]));
    let names: Vec<&str> = lines.iter().map(|line| line.name.as_str()).collect();
    assert_eq!(names.last(), Some(&"kmem_cache"), "the first cache of all comes last");
    for size in ["8", "16", "32", "64", "96", "128", "192", "256", "512", "1k", "2k", "4k", "8k"] {
        for kind in ["kmalloc-", "kmalloc-rcl-", "dma-kmalloc-"] {
            assert!(names.contains(&format!("{kind}{size}").as_str()), "{kind}{size} is not in {names:?}");
        }
    }
    for line in &lines {
        assert_eq!(line.num_objs, line.num_slabs * line.objperslab, "{line:?}");
        assert!(line.active_objs <= line.num_objs && line.active_slabs <= line.num_slabs, "{line:?}");
        assert!(line.objperslab * line.objsize <= line.pagesperslab * 4096, "{line:?}");
        let [limit, batch, shared] = line.tunables;
        // `enable_cpucache`.
        let expected = match line.objsize {
            131_073.. => [1, 1, 0],
            4097.. => [8, 4, 0],
            1025.. => [24, 12, 8],
            257.. => [54, 27, 8],
            _ => [120, 60, 8],
        };
        assert_eq!([limit, batch], expected[..2], "{line:?}");
        assert!(shared == expected[2] || shared == 0, "{line:?}");
    }
    let pages: u64 = lines.iter().map(|line| line.num_slabs * line.pagesperslab).sum();
    let meminfo = guest.show(&["meminfo"]);
    assert_eq!(kib(&meminfo, "Slab:"), pages * 4);
    assert_eq!(kib(&meminfo, "SReclaimable:") + kib(&meminfo, "SUnreclaim:"), pages * 4);
    let used = guest.show(&["kmem", "-i"]);
    assert!(used.contains(&format!("         SLAB  {pages:>7}  ")), "{used}");
    guest.stop();
}

/// Every descriptor is an object of the cache of caches.
#[test]
fn descriptors_are_objects() {
    let guest = Guest::keep("kmem-s", &["--node", "dma=16M,dma32=64M,cpus=2", "--node", "normal=64M,cpus=1"]);
    let list = guest.show(&["kmem", "-s"]);
    let mut rows = list.lines();
    assert_eq!(rows.next(), Some("CACHE             OBJSIZE  ALLOCATED     TOTAL  SLABS  SSIZE  NAME"));
    let caches: BTreeSet<&str> = rows.filter_map(|row| row.split_whitespace().next()).collect();
    let lines = slabinfo(&guest.show(&["slabinfo"]));
    assert_eq!(caches.len(), lines.len());
    let all = guest.show(&["kmem", "-S", "kmem_cache"]);
    let in_use = all.lines().filter_map(|line| line.trim().strip_prefix('[')?.strip_suffix(']'));
    assert_eq!(in_use.collect::<BTreeSet<_>>(), caches, "{all}");
    let objects = all.lines().filter(|line| line.starts_with("   ") || line.starts_with("  [")).count() as u64;
    let kmem_cache = lines.iter().find(|line| line.name == "kmem_cache").expect("the cache of caches");
    assert_eq!(objects, kmem_cache.num_objs, "{all}");

    let cache = caches.first().expect("a cache");
    let inside = format!("{:x}", u64::from_str_radix(cache, 16).expect("an address") + 9);
    let found = guest.show(&["kmem", &inside]);
    assert!(found.contains("  kmem_cache\n") && found.contains(&format!("  [{cache}]\n")), "{found}");
    assert!(found.lines().last().is_some_and(|page| page.contains(" slab")), "{found}");
    // The page tables lead to where the direct map says.
    let walk = guest.show(&["vtop", &inside]);
    let physical = u64::from_str_radix(&inside, 16).expect("an address") - 0xffff_8880_0000_0000;
    assert!(walk.contains(&format!("\n{inside}  {physical:<16x}\n")), "{walk}");
    assert!(walk.contains("(PRESENT|RW|ACCESSED|DIRTY|") && walk.contains("|NX)\n"), "{walk}");
    // Kernel text is another mapping.
    let text = guest.show(&["vtop", "ffffffff81000000"]);
    assert!(text.contains("\nffffffff81000000  1000000 "), "{text}");
    let free = guest.show(&["kmem", "4800000"]);
    assert!(free.contains("AREA    SIZE  FREE_AREA_STRUCT\n"), "{free}");
    guest.stop();
}

#[test]
fn a_dump_shows_the_same_slabs() {
    let guest = Guest::keep("slab-dump", &[]);
    let core = std::env::temp_dir().join(unique("pagevisor-slabs"));
    let file = core.to_str().expect("a path of text");
    run(&mut guest.command(&["dump", guest.name(), file])).success();
    for view in [&["slabinfo"][..], &["kmem", "-S"], &["kmem", "-s", "--json"], &["kmem", "-i"]] {
        let of_dump = run(guest.command(&["show", file]).args(view)).success();
        assert_eq!(of_dump, guest.show(view), "{view:?}");
    }
    let once = |target: &str| run(&mut guest.command(&["slabtop", target, "-o", "-s", "n"])).success();
    assert_eq!(once(file), once(guest.name()));
    guest.stop();
    fs::remove_file(core).expect("the dump");
}

/// Whether a command is installed here.
fn has(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()))
}

/// What Debian's tool prints when the guest's files stand for this machine's; `None` where that cannot be.
fn tool(files: &Path, program: &str, args: &str) -> Option<String> {
    let text = format!("mount --bind {}/proc/slabinfo /proc/slabinfo && exec {program} {args}", files.display());
    if !has("unshare") || !has(program) || !Path::new("/proc/slabinfo").exists() {
        return None;
    }
    // Only whether a mount can be made says whether one may be made.
    let may = |text: &str| run(Command::new("unshare").args(["-m", "sh", "-c", text]));
    let probe = may("mount --bind /proc/version /proc/slabinfo");
    (probe.code() == 0).then(|| may(&text).success())
}

#[test]
fn debian_s_tools_read_the_files() {
    let folder = std::env::temp_dir().join(unique("pagevisor-slab-proc"));
    fs::create_dir_all(&folder).expect("a directory");
    let guest = Guest::keep("slab-proc", &["--proc-dir", folder.to_str().expect("a path of text")]);
    let file = fs::read_to_string(folder.join("proc/slabinfo")).expect("slabinfo");
    assert_eq!(file, guest.show(&["slabinfo"]));
    let lines = slabinfo(&file);
    for letter in ["a", "b", "c", "l", "v", "o", "p", "s", "u"] {
        let ours = run(&mut guest.command(&["slabtop", guest.name(), "--once", "--sort", letter])).success();
        assert_eq!(ours.lines().count(), 7 + lines.len());
        if let Some(theirs) = tool(&folder, "slabtop", &format!("--once --sort={letter}")) {
            assert_eq!(ours, theirs, "{letter}");
        }
    }
    if let Some(vmstat) = tool(&folder, "vmstat", "-m") {
        for line in &lines {
            let row = vmstat.lines().find(|row| row.split_whitespace().next() == Some(&line.name));
            let row: Vec<_> = row.unwrap_or_else(|| panic!("{line:?} in {vmstat}")).split_whitespace().collect();
            let numbers = [line.active_objs, line.num_objs, line.objsize, line.objperslab].map(|n| n.to_string());
            assert_eq!(row[1..], numbers, "{line:?}");
        }
    }
    let failed = run(&mut guest.command(&["slabtop", guest.name()]));
    assert_eq!(failed.code(), 2, "{failed:?}");
    assert!(failed.stderr.contains("not a terminal"), "{failed:?}");
    guest.stop();
    fs::remove_dir(&folder).expect("an empty directory");
}

/// The monitor device is reached through an area of its own.
#[test]
fn the_monitor_device_is_in_vmallocinfo() {
    let guest = Guest::keep("vmallocinfo", &[]);
    let text = guest.show(&["vmallocinfo"]);
    let line = text.lines().find(|line| line.contains(" phys=0x00000000d0000000 ioremap")).expect(&text);
    let (range, rest) = line.split_once(' ').expect(line);
    let (start, end) = range.split_once('-').expect(range);
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("an address");
    assert_eq!(rest.split_whitespace().next().and_then(|size| size.parse().ok()), Some(number(end) - number(start)));
    let caller = rest.split_whitespace().nth(1).expect(line);
    assert!(!caller.starts_with("0x") && caller.contains("+0x"), "nobody has mapped it: {line}");
    let list = guest.show(&["kmem", "-v"]);
    let row = list.lines().find(|row| row.contains(&start[2..])).expect(&list);
    let found = guest.show(&["kmem", &start[2..]]);
    assert!(found.contains(row), "{found}");
    let walk = guest.show(&["vtop", &start[2..]]);
    assert!(walk.contains("\n   PTE: ") && walk.contains("\n  PAGE: d0000000\n") && walk.contains("PCD"), "{walk}");
    let meminfo = guest.show(&["meminfo"]);
    assert_eq!(kib(&meminfo, "VmallocTotal:"), (32 << 30) - 1);
    assert!(kib(&meminfo, "Percpu:") > 0, "{meminfo}");
    guest.stop();
}
