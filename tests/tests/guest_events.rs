//! Events of a running guest, followed from outside.

use std::fs;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use pagevisor::events::{Item, Kinds};
use pagevisor::workload::Workload;
use pagevisor_shared::command::workload::{Kind, Mark, Phase};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::event::{EVENT_SLOTS, EventKind};
use pagevisor_shared::units::Order;
use pagevisor_tests::command::{Guest, run};
use serde_json::Value;

/// A guest that records from boot, and has allocated: waking its workers does.
fn recording(name: &str, kinds: &str) -> Guest {
    Guest::keep(name, &["--append", &format!("trace_event={kinds}"), "--workload", "random:ops=200"])
}

#[test]
fn what_is_recorded_from_boot_is_printed_as_trace_pipe_prints_it() {
    let guest = recording("events-text", "mm_page_alloc,kmem:mm_page_free,workload_mark");
    // The workload begins when the guest is ready.
    let begin = Instant::now();
    let output = loop {
        let output = run(&mut guest.command(&["events", guest.name()])).success();
        if output.lines().count() > 100 || begin.elapsed() > Duration::from_secs(10) {
            break output;
        }
        thread::sleep(Duration::from_millis(50));
    };
    let lines: Vec<&str> = output.lines().filter(|line| !line.starts_with("CPU:")).collect();
    assert!(lines.len() > 100, "{output}");
    let mut last = 0.0;
    for line in &lines {
        let (head, event) = line.split_at(51);
        assert!(head.starts_with("          <idle>-0       [0"), "{line}");
        assert!(head.contains("] ..... ") && head.ends_with(": "), "{line}");
        let time: f64 = head[37..49].trim().parse().expect("a time");
        assert!(time >= last, "{line}");
        last = time;
        let known = ["mm_page_alloc: page=ffff", "mm_page_free: page=ffff", "workload_mark: mark="];
        assert!(known.iter().any(|start| event.starts_with(start)), "{line}");
    }
    assert!(lines.iter().any(|line| line.contains(" gfp_flags=GFP_")));
    let json = run(&mut guest.command(&["events", guest.name(), "--kinds", "mm_page_alloc", "--json"])).success();
    let first: Value =
        serde_json::from_str(json.lines().find(|line| line.contains("event")).expect("an event")).expect("JSON");
    assert_eq!(first["event"], "mm_page_alloc");
    let caller = first["caller"].as_str().expect("a caller");
    assert!(caller.contains('+'), "{caller}");
    // Who asked is told: which workload, not merely that a CPU was at work.
    assert!(json.lines().any(|line| line.contains("random_steps+")), "{json}");
    let unknown = run(&mut guest.command(&["events", guest.name(), "--kinds", "mm_page_alloc,bogus"]));
    assert_eq!(unknown.code(), 2, "{}", unknown.stderr);
    assert!(unknown.stderr.contains("mm_page_free_batched"), "{}", unknown.stderr);
    let file = guest.directory().join("trace.pb");
    run(&mut guest.command(&["events", guest.name(), "--perfetto", file.to_str().expect("a path")])).success();
    let trace = fs::read(&file).expect("a trace");
    // The first packet is field 1, and the names of tracks and events are in there.
    assert_eq!(trace[0], 0x0a);
    for name in ["CPU 0", "nr_free_pages node 0", "mm_page_alloc", "random"] {
        assert!(trace.windows(name.len()).any(|part| part == name.as_bytes()), "{name}");
    }
    guest.stop();
}

#[test]
fn kinds_are_on_while_somebody_follows_and_following_ends_with_the_guest() {
    let guest = Guest::keep("events-follow", &[]);
    let name = guest.name().to_owned();
    // Nothing is recorded, and asking what was does not change that.
    assert_eq!(run(&mut guest.command(&["events", &name])).success(), "");
    let timed = ["events", &name, "--kinds", "mm_page_alloc", "--duration", "200ms"];
    run(&mut guest.command(&timed)).success();
    let mut command = guest.command(&["events", &name, "--kinds", "mm_page_free", "--follow"]);
    let follower = thread::spawn(move || run(&mut command));
    thread::sleep(Duration::from_millis(300));
    guest.stop();
    assert_eq!(follower.join().expect("it ends").code(), 0);
}

#[test]
fn a_program_reads_what_it_makes_the_guest_do() {
    let guest = pagevisor::machine::Machine::builder().boot().expect("a guest");
    let kinds = Kinds(EventKind::MmPageAlloc.bit() | EventKind::MmPageFree.bit());
    let mut events = guest.events(kinds).expect("they are switched on");
    let order = Order::new(3).expect("an order");
    let pages = guest.cpu(0).expect("CPU 0").alloc_pages(Gfp::KERNEL, order).expect("a block");
    let pfn = pages.pfn().raw();
    pages.free().expect("it is freed");
    let items = events.read();
    let of_block = items.iter().filter_map(|item| match item {
        Item::Event(_, event) if event.pfn == pfn && event.order == 3 => Some((event.kind, event.gfp)),
        _ => None,
    });
    let expected = [(EventKind::MmPageAlloc, Gfp::KERNEL), (EventKind::MmPageFree, Gfp::NONE)];
    assert_eq!(of_block.collect::<Vec<_>>(), expected, "{items:?}");
    drop(events);
    assert_eq!(guest.view().region().header().event_mask.load(Relaxed), 0);
}

#[test]
fn a_workload_is_marked_with_its_phases_around_what_it_does() {
    let guest = pagevisor::machine::Machine::builder().boot().expect("a guest");
    let kinds = Kinds(EventKind::WorkloadMark.bit() | EventKind::MmPageAlloc.bit());
    let mut events = guest.events(kinds).expect("they are switched on");
    let workload: Workload = "fragment:order=1,ops=2,hold=20,seed=7,keep=0".parse().expect("a workload");
    guest.run(&workload).expect("it runs");
    let items = events.read();
    let (mut parts, mut allocated) = (Vec::new(), 0);
    for item in &items {
        let Item::Event(_, event) = item else { panic!("{item:?}") };
        match Mark::decode(event).filter(|_| event.kind == EventKind::WorkloadMark) {
            Some(mark) => {
                assert_eq!((mark.kind, mark.seed, mark.ops, mark.order.raw()), (Kind::Fragment, 7, 2, 1));
                parts.push((mark.phase, mark.end));
            }
            None => allocated += usize::from(parts.last() == Some(&(Phase::Fill, false))),
        }
    }
    let inner = [Phase::Fill, Phase::Thin, Phase::Probe, Phase::Release].map(|phase| [(phase, false), (phase, true)]);
    let expected = [&[(Phase::Whole, false)], inner.as_flattened(), &[(Phase::Whole, true)]].concat();
    assert_eq!((parts, allocated), (expected, 20));
}

#[test]
fn what_a_reader_comes_too_late_for_is_counted_as_lost() {
    let guest = pagevisor::machine::Machine::builder().boot().expect("a guest");
    let kinds = Kinds(EventKind::MmPageAllocZoneLocked.bit() | EventKind::MmPageFreeBatched.bit());
    let mut events = guest.events(kinds).expect("they are switched on");
    // As few as overflow a ring, and of kinds that leave the short ways open: ring 0 may be slow.
    let pages = EVENT_SLOTS as u32 / 2 + 50;
    let many = guest.cpu(0).expect("CPU 0").alloc_many(Gfp::KERNEL, Order::ZERO, pages).expect("pages");
    many.free().expect("they are freed");
    let items = events.read();
    let lost: Vec<_> = items
        .iter()
        .filter_map(|item| if let Item::Lost(cpu, count) = item { Some((cpu.index(), *count)) } else { None })
        .collect();
    let [(0, lost)] = lost[..] else { panic!("{lost:?}") };
    let found = items.iter().filter(|item| matches!(item, Item::Event(cpu, _) if cpu.index() == 0)).count();
    // One slot is the writer's.
    assert_eq!(found, EVENT_SLOTS - 1);
    assert!(lost + found as u64 >= 2 * u64::from(pages) && lost >= 100, "{lost} and {found}");
}
