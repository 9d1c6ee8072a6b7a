//! Events of a running guest, followed from outside.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use pagevisor::events::{Item, Kinds};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::event::EventKind;
use pagevisor_shared::units::Order;
use pagevisor_tests::command::{Guest, run};
use serde_json::Value;

/// A guest that records from boot, and has allocated: waking its workers does.
fn recording(name: &str, kinds: &str) -> Guest {
    Guest::keep(name, &["--append", &format!("trace_event={kinds}"), "--workload", "random:ops=200"])
}

#[test]
fn what_is_recorded_from_boot_is_printed_as_trace_pipe_prints_it() {
    let guest = recording("events-text", "mm_page_alloc,kmem:mm_page_free");
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
        let known = ["mm_page_alloc: page=ffff", "mm_page_free: page=ffff"];
        assert!(known.iter().any(|start| event.starts_with(start)), "{line}");
    }
    assert!(lines.iter().any(|line| line.contains(" gfp_flags=GFP_")));
    let json = run(&mut guest.command(&["events", guest.name(), "--kinds", "mm_page_alloc", "--json"])).success();
    let first: Value =
        serde_json::from_str(json.lines().find(|line| line.contains("event")).expect("an event")).expect("JSON");
    assert_eq!(first["event"], "mm_page_alloc");
    let caller = first["caller"].as_str().expect("a caller");
    assert!(caller.contains('+'), "{caller}");
    let unknown = run(&mut guest.command(&["events", guest.name(), "--kinds", "mm_page_alloc,bogus"]));
    assert_eq!(unknown.code(), 2, "{}", unknown.stderr);
    assert!(unknown.stderr.contains("mm_page_free_batched"), "{}", unknown.stderr);
    let file = guest.directory().join("trace.pb");
    run(&mut guest.command(&["events", guest.name(), "--perfetto", file.to_str().expect("a path")])).success();
    let trace = fs::read(&file).expect("a trace");
    // The first packet is field 1, and the names of tracks and events are in there.
    assert_eq!(trace[0], 0x0a);
    for name in ["CPU 0", "nr_free_pages node 0", "mm_page_alloc"] {
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
    // More events than a ring holds take millions of instructions, which an emulated ring 0 has no time for.
    if std::env::var_os("PAGEVISOR_LAB").is_some() {
        return;
    }
    // What is lost is counted.
    let mut events = guest.events(kinds).expect("they are switched on");
    for _ in 0..2 {
        let many = guest.cpu(0).expect("CPU 0").alloc_many(Gfp::KERNEL, Order::ZERO, 600).expect("pages");
        many.free().expect("they are freed");
    }
    let items = events.read();
    let lost: u64 = items.iter().map(|&item| if let Item::Lost(_, count) = item { count } else { 0 }).sum();
    assert!(lost + items.len() as u64 > 2400 && lost > 300, "{lost} of {}", items.len());
    drop(events);
    assert_eq!(guest.view().region().header().event_mask.load(std::sync::atomic::Ordering::Relaxed), 0);
}
