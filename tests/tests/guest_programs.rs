//! Programs as the host shows them, next to what they know of themselves. The program is `tests/programs/mapped.c`: it and
//! its child sleep while they are looked at.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use pagevisor_tests::command::{Guest, run};
use pagevisor_tests::program::Program;

static PROGRAM: Program = Program::new("mapped", include_bytes!(concat!(env!("OUT_DIR"), "/mapped")));

/// Where the program has what, as in its source.
const UNTOUCHED: u64 = 0x1000_0000;
const COPIED: u64 = 0x2000_0000;
const NONE: u64 = 0x3000_0000;
const ZERO: u64 = 0x3800_0000;
const SHARED: u64 = 0x4000_0000;
const NODES: u64 = 0x5000_0000;
const PAGE: u64 = 0x1000;

/// Longest time until the program sleeps, where ring 0 is emulated and the machine busy.
const PATIENCE: Duration = Duration::from_secs(100);

/// A row of `ps`.
#[derive(Debug)]
struct Task {
    pid: u32,
    ppid: u32,
    state: String,
    rss: u64,
    name: String,
}

fn tasks(guest: &Guest) -> Vec<Task> {
    let text = run(&mut guest.command(&["ps", guest.name()])).success();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("      PID    PPID  CPU       TASK        ST  %MEM      VSZ      RSS  COMM"));
    let row = |line: &str| {
        let words: Vec<&str> = line.trim_start_matches(['>', ' ']).split_whitespace().collect();
        let [pid, ppid, cpu, task, state, share, vsz, rss, name] = *words.as_slice() else { panic!("{line}") };
        assert!(cpu.parse::<u32>().is_ok() && task.starts_with("ffff") && task.len() == 16, "{line}");
        assert!(share.parse::<f64>().is_ok() && vsz.parse::<u64>().is_ok(), "{line}");
        let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{line}"));
        Task { pid: number(pid), ppid: number(ppid), state: state.into(), rss: number(rss).into(), name: name.into() }
    };
    lines.map(row).collect()
}

/// A guest whose program, told `what` to do, sleeps, and the number of its child, which is called `child_name` and sleeps, too.
fn resting(what: &str, child_name: &str) -> (Guest, u32) {
    let guest = Guest::keep("programs", &["--init", PROGRAM.path(), "--", what]);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let tasks = tasks(&guest);
        let named = |name: &str| tasks.iter().find(|task| task.name == name && task.state == "IN");
        if let (Some(first), Some(child)) = (named("resting"), named(child_name)) {
            assert_eq!((first.pid, child.ppid), (1, 1), "{tasks:#?}");
            let child = child.pid;
            return (guest, child);
        }
        assert!(Instant::now() < deadline, "the programs do not get there: {tasks:#?}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// The words of pages that are there, by address.
fn pagemap(guest: &Guest, pid: u32) -> BTreeMap<u64, u64> {
    let text = guest.show(&[&format!("pid/{pid}/pagemap")]);
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap_or_else(|_| panic!("{text}"));
    text.lines().map(|line| line.split_once(' ').unwrap()).map(|(at, word)| (hex(at), hex(word))).collect()
}

/// Areas of `smaps` by their start: kB by name.
fn smaps(text: &str) -> BTreeMap<u64, BTreeMap<String, u64>> {
    let mut areas = BTreeMap::new();
    let mut start = 0;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some((from, _)) = words[0].split_once('-') {
            start = u64::from_str_radix(from, 16).unwrap();
            areas.insert(start, BTreeMap::new());
        } else if let [name, kib, "kB"] = *words.as_slice() {
            let area: &mut BTreeMap<String, u64> = areas.get_mut(&start).unwrap();
            area.insert(name.trim_end_matches(':').into(), kib.parse().unwrap());
        }
    }
    areas
}

/// What the program has printed, by the headings `== NAME`.
fn sections(text: &str) -> BTreeMap<&str, String> {
    let mut found = BTreeMap::<&str, String>::new();
    let mut name = "";
    for line in text.split_inclusive('\n') {
        if let Some(heading) = line.strip_prefix("== ") {
            name = heading.trim_end();
        } else {
            found.entry(name).or_default().push_str(line);
        }
    }
    found
}

#[track_caller]
fn has(area: &BTreeMap<String, u64>, expected: &[(&str, u64)]) {
    for (name, kib) in expected {
        assert_eq!(area.get(*name), Some(kib), "{name} in {area:#?}");
    }
}

const FRAME: u64 = (1 << 55) - 1;
const EXCLUSIVE: u64 = 1 << 56;
const FILE: u64 = 1 << 61;
const PRESENT: u64 = 1 << 63;

fn check_sizes(guest: &Guest, child: u32) {
    let areas = smaps(&guest.show(&["pid/1/smaps"]));
    has(&areas[&UNTOUCHED], &[("Size", 32), ("Rss", 0), ("Pss", 0), ("Referenced", 0)]);
    has(&areas[&NONE], &[("Size", 16), ("Rss", 0)]);
    has(&areas[&ZERO], &[("Rss", 0), ("Anonymous", 0)]);
    // The child has copied 4 pages of 16.
    let copied =
        [("Rss", 64), ("Pss", 40), ("Anonymous", 64), ("Shared_Dirty", 48), ("Private_Dirty", 16), ("Swap", 0)];
    has(&areas[&COPIED], &copied);
    let shared = [("Rss", 20), ("Pss", 16), ("Anonymous", 0), ("Shared_Dirty", 8), ("Private_Dirty", 12)];
    has(&areas[&SHARED], &shared);
    has(&areas[&NODES], &[("Rss", 64), ("Pss", 64), ("Private_Dirty", 64), ("Shared_Dirty", 0)]);
    let of_child = smaps(&guest.show(&[&format!("pid/{child}/smaps")]));
    has(&of_child[&COPIED], &copied);
    has(&of_child[&SHARED], &[("Rss", 8), ("Pss", 4), ("Shared_Dirty", 8)]);
    has(&of_child[&NODES], &[("Rss", 0)]);
    let sum = |name: &str| areas.values().map(|area| area[name]).sum::<u64>();
    let rollup = smaps(&guest.show(&["pid/1/smaps_rollup"]));
    let rollup = rollup.values().next().unwrap();
    for name in ["Rss", "Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty", "Referenced", "Anonymous"] {
        assert_eq!(rollup[name], sum(name), "{name}");
    }
    assert_eq!(rollup["Pss_Shmem"], 16);
    assert!(rollup["Pss"].abs_diff(rollup["Pss_Anon"] + rollup["Pss_File"] + rollup["Pss_Shmem"]) <= 2, "{rollup:#?}");
    let rss = tasks(guest).iter().find(|task| task.pid == 1).unwrap().rss;
    assert_eq!(rss, sum("Rss"), "ps shows another RSS");
    let statm = guest.show(&["pid/1/statm"]);
    let pages: Vec<u64> = statm.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!((pages[0] * 4, pages[1] * 4), (sum("Size"), sum("Rss")));
}

fn check_pages(guest: &Guest, child: u32) {
    let (pages, of_child) = (pagemap(guest, 1), pagemap(guest, child));
    let frame = |pages: &BTreeMap<u64, u64>, at: u64| pages[&at] & FRAME;
    for page in 0..16 {
        let at = COPIED + page * PAGE;
        assert_eq!(frame(&pages, at) == frame(&of_child, at), page >= 4, "page {page}");
        let exclusive = if page < 4 { EXCLUSIVE } else { 0 };
        assert_eq!(pages[&at] & (PRESENT | FILE | EXCLUSIVE), PRESENT | exclusive, "page {page}");
    }
    for page in 0..8 {
        let word = pages.get(&(SHARED + page * PAGE)).map(|word| word & (PRESENT | FILE | EXCLUSIVE));
        let exclusive = if page < 2 { 0 } else { EXCLUSIVE };
        assert_eq!(word, (page < 5).then_some(PRESENT | FILE | exclusive), "page {page}");
    }
    assert_eq!(frame(&pages, SHARED), frame(&of_child, SHARED));
    assert_eq!(frame(&pages, ZERO), frame(&pages, ZERO + PAGE), "there is one page of zeros");
    assert!(!pages.contains_key(&UNTOUCHED) && !pages.contains_key(&NONE) && !pages.contains_key(&(ZERO + 2 * PAGE)));
    // Each page counts once, however often it is mapped.
    let mut kinds = BTreeMap::new();
    for (_, word) in pages.iter().chain(&of_child).filter(|(at, _)| !(ZERO..ZERO + 4 * PAGE).contains(*at)) {
        kinds.insert(word & FRAME, word & FILE != 0);
    }
    let meminfo = guest.show(&["meminfo"]);
    let kib = |name: &str| {
        let line = meminfo.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let files = kinds.values().filter(|file| **file).count() as u64;
    assert_eq!((kib("AnonPages"), kib("Mapped")), ((kinds.len() as u64 - files) * 4, files * 4));
    assert_eq!(kib("KernelStack"), 16 * tasks(guest).len() as u64);
}

fn check_nodes(guest: &Guest) {
    let text = guest.show(&["pid/1/numa_maps"]);
    let line = |at: u64| text.lines().find(|line| line.starts_with(&format!("{at:08x} "))).unwrap();
    assert_eq!(line(NODES), "50000000 default anon=16 dirty=16 active=0 N0=8 N1=8 kernelpagesize_kB=4");
    assert_eq!(line(UNTOUCHED), "10000000 default");
    assert!(line(COPIED).starts_with("20000000 default anon=16 dirty=16 mapmax=2 active=0 N"), "{}", line(COPIED));
    assert!(line(SHARED).starts_with("40000000 default file=/dev/zero\\040(deleted) dirty=5 "), "{}", line(SHARED));
    assert!(text.contains(" stack anon=") && text.contains(" heap "), "{text}");
}

/// crash's views have the same pages at the same addresses.
fn check_crash(guest: &Guest) {
    let command = |args: &[&str]| run(&mut guest.command(args)).success();
    let pages = pagemap(guest, 1);
    let text = command(&["vm", guest.name(), "1"]);
    let mut lines = text.lines();
    let head = lines.next().unwrap();
    assert!(head.starts_with("PID: 1        TASK: ffff") && head.ends_with("COMMAND: \"resting\""), "{head}");
    assert_eq!(lines.next(), Some("       MM               PGD          RSS    TOTAL_VM"));
    let status = guest.show(&["pid/1/status"]);
    let kib =
        |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().nth(1).unwrap();
    let sizes: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(sizes[2..], [format!("{}k", kib("VmRSS:")), format!("{}k", kib("VmSize:"))]);
    assert_eq!(lines.next(), Some("      VMA           START       END     FLAGS FILE"));
    let areas: Vec<Vec<&str>> = lines.map(|line| line.split_whitespace().collect()).collect();
    let maps = guest.show(&["pid/1/maps"]);
    let bounds: Vec<String> = maps.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    let padded = |text: &str| format!("{text:0>8}");
    assert_eq!(areas.iter().map(|area| format!("{}-{}", padded(area[1]), padded(area[2]))).collect::<Vec<_>>(), bounds);
    let text = command(&["vm", "-p", guest.name(), "1"]);
    for (at, word) in &pages {
        let row = format!("{at:<10x}  {:>8x}", (word & FRAME) << 12);
        assert!(text.lines().any(|line| line.split_whitespace().eq(row.split_whitespace())), "no '{row}' in\n{text}");
    }
    assert!(text.contains("10000000    (not mapped)"), "{text}");
    let at = COPIED + 9 * PAGE + 0x123;
    let physical = (pages[&(COPIED + 9 * PAGE)] & FRAME) << 12;
    let text = command(&["vtop", guest.name(), "1", &format!("{at:#x}")]);
    let mut lines = text.lines();
    assert_eq!(lines.next().map(str::trim_end), Some("VIRTUAL     PHYSICAL"));
    assert_eq!(lines.next().map(str::trim_end), Some(&*format!("20009123    {:x}", physical + 0x123)));
    for level in ["PGD: ", "PUD: ", "PMD: ", "PTE: "] {
        assert!(text.lines().any(|line| line.trim_start().starts_with(level)), "{text}");
    }
    let page = format!("  PAGE: {physical:x}");
    assert!(text.lines().any(|line| line == page), "{text}");
    assert!(text.contains("(PRESENT|USER|ACCESSED|DIRTY|NX)"), "a page that two have cannot be written: {text}");
}

#[test]
fn programs_are_seen_from_outside_as_from_inside() {
    let (guest, child) = resting("rest", "mapped");
    let outside = |name: &str| guest.show(&[&format!("pid/1/{name}")]);
    let files = ["maps", "smaps", "smaps_rollup", "statm", "numa_maps"].map(|name| (name, outside(name)));
    let status = outside("status");
    let pages = pagemap(&guest, 1);
    check_sizes(&guest, child);
    check_pages(&guest, child);
    check_nodes(&guest);
    check_crash(&guest);
    let report = run(&mut guest.command(&["verify", guest.name()])).success();
    assert!(report.starts_with("sound: "), "{report}");
    let output = guest.stop();
    let inside = sections(&output.stdout);
    for (name, text) in files {
        assert_eq!(text, inside[name], "{name}");
    }
    // That the program sleeps, with another name, is new.
    let moved = ["Name:", "State:", "voluntary_ctxt", "nonvoluntary_ctxt"];
    assert_eq!(without(&status, &moved), without(&inside["status"], &moved));
    let frames: Vec<u64> = inside["frames"].lines().map(|line| u64::from_str_radix(line, 16).unwrap()).collect();
    assert_eq!(frames, [COPIED, COPIED + 9 * PAGE, ZERO, SHARED].map(|at| pages[&at]));
}

/// The lines of `text` that do not begin with one of `names`.
fn without<'t>(text: &'t str, names: &[&str]) -> Vec<&'t str> {
    text.lines().filter(|line| !names.iter().any(|name| line.starts_with(name))).collect()
}

#[test]
fn the_status_of_who_stands_still_is_the_same_from_both_sides() {
    let (guest, child) = resting("watch", "standing");
    let outside = guest.show(&[&format!("pid/{child}/status")]);
    let output = guest.stop();
    let inside = &sections(&output.stdout)["standing"];
    assert_eq!(outside.lines().collect::<Vec<_>>(), inside.lines().collect::<Vec<_>>());
    // What makes it more than a comparison of nothings.
    let expected = [
        "Threads:\t2".to_owned(),
        "FDSize:\t128".to_owned(),
        format!("NSpgid:\t{child}"),
        format!("NSsid:\t{child}"),
        "SigQ:\t0/123".to_owned(),
        "SigPnd:\t0000000000000200".to_owned(),
        "ShdPnd:\t0000000000000800".to_owned(),
        "SigBlk:\t0000000000000a00".to_owned(),
        "SigIgn:\t0000000000001000".to_owned(),
        "SigCgt:\t0000000000010000".to_owned(),
        "Cpus_allowed_list:\t1".to_owned(),
    ];
    for line in expected {
        assert!(inside.lines().any(|own| own == line), "no '{line}' in\n{inside}");
    }
}

#[test]
fn programs_that_never_sleep_can_be_paused_and_are_sound() {
    let guest = Guest::keep("busy", &["--init", PROGRAM.path(), "--", "busy"]);
    let deadline = Instant::now() + PATIENCE;
    while tasks(&guest).iter().filter(|task| task.name == "mapped").count() < 2 {
        assert!(Instant::now() < deadline, "the programs do not get there");
        thread::sleep(Duration::from_millis(100));
    }
    for _ in 0..5 {
        let report = run(&mut guest.command(&["verify", guest.name()])).success();
        assert!(report.starts_with("sound: "), "{report}");
        thread::sleep(Duration::from_millis(50));
    }
    let pids = |guest: &Guest| tasks(guest).iter().map(|task| task.pid).max();
    let before = pids(&guest);
    while pids(&guest) == before {
        assert!(Instant::now() < deadline, "the programs do not go on");
        thread::sleep(Duration::from_millis(10));
    }
    guest.stop();
}
