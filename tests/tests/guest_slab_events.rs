//! Objects of a running guest that are watched: events about them, and clearing them.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor::events::{Item, Kinds};
use pagevisor::guest::{Gfp, Guest, NodeId, SlabFlags};
use pagevisor_shared::region::event::{Event, EventKind, NO_NODE};
use pagevisor_tests::command;
use pagevisor_tests::guest::{guest, guest_appended};

const TWO_NODES: &str = "[[node]]\nmem = \"64M\"\ncpus = 2\n[[node]]\nmem = \"64M\"\ncpus = 2\n";
const ONE_NODE: &str = "[[node]]\nmem = \"64M\"\n";

/// The events of `kinds` that `work` makes.
fn recorded(
    guest: &Guest,
    kinds: &[EventKind],
    work: impl FnOnce() -> Result<(), pagevisor::guest::Error>,
) -> Result<Vec<Event>, pagevisor::guest::Error> {
    let mut events = guest.events(Kinds(kinds.iter().fold(0, |mask, kind| mask | kind.bit())))?;
    work()?;
    let items = events.read();
    let event = |item: &Item| match item {
        Item::Event(_, event) => *event,
        Item::Lost(..) => panic!("{items:?}"),
    };
    Ok(items.iter().map(event).collect())
}

#[test]
fn what_the_host_has_allocated_is_told() {
    guest(TWO_NODES, |guest| {
        let cpu = guest.cpu(1)?;
        let cache = cpu.kmem_cache_create("told", 100, 0, SlabFlags::HWCACHE_ALIGN)?;
        // Arrays, and the host's tables, are there then.
        cpu.kmem_cache_alloc(&cache, Gfp::KERNEL)?.free()?;
        cpu.kmalloc(50, Gfp::KERNEL)?.free()?;
        let kinds = [EventKind::Kmalloc, EventKind::Kfree, EventKind::KmemCacheAlloc, EventKind::KmemCacheFree];
        let mut addrs = [0; 3];
        let events = recorded(guest, &kinds, || {
            let (small, large) =
                (cpu.kmalloc(50, Gfp::KERNEL)?, cpu.kmalloc_node(50_000, Gfp::KERNEL, NodeId::default())?);
            let object = cpu.kmem_cache_alloc_node(&cache, Gfp::ATOMIC_ALLOC, NodeId::default())?;
            addrs = [small.addr().raw(), large.addr().raw(), object.addr().raw()];
            small.free()?;
            large.free()?;
            object.free()
        })?;
        let of_ours = events.iter().filter(|event| addrs.contains(&event.args[0]));
        let told: Vec<_> = of_ours.map(|event| (event.kind, event.args[0], event.gfp, event.node, event.cpu)).collect();
        let [small, large, object] = addrs;
        assert_eq!(
            told,
            [
                (EventKind::Kmalloc, small, Gfp::KERNEL, NO_NODE, 1),
                (EventKind::Kmalloc, large, Gfp::KERNEL, 0, 1),
                (EventKind::KmemCacheAlloc, object, Gfp::ATOMIC_ALLOC, NO_NODE, 1),
                (EventKind::Kfree, small, Gfp::NONE, 0, 1),
                (EventKind::Kfree, large, Gfp::NONE, 0, 1),
                (EventKind::KmemCacheFree, object, Gfp::NONE, 0, 1),
            ]
        );
        let first = events.iter().find(|event| event.args[0] == small).expect("an event");
        assert_eq!((first.args, first.caller != 0), ([small, 50, 64], true));
        let last = events.iter().rfind(|event| event.args[0] == object).expect("an event");
        assert!(last.text().starts_with(b"told\0"), "{last:?}");
        // Off, the short ways are back.
        let events = guest.view().region().header().event_mask.load(Relaxed);
        assert_eq!(events & kinds.iter().fold(0, |mask, kind| mask | kind.bit()), 0);
        Ok(())
    });
}

#[test]
fn percpu_memory_is_told() {
    guest(TWO_NODES, |guest| {
        let cpu = guest.cpu(2)?;
        let mut addr = 0;
        let events = recorded(guest, &[EventKind::PercpuAllocPercpu, EventKind::PercpuFreePercpu], || {
            let memory = cpu.alloc_percpu(24, 8)?;
            addr = memory.addr().raw();
            memory.free()
        })?;
        let [alloc, free] = *events.as_slice() else { panic!("{events:?}") };
        assert_eq!((alloc.kind, free.kind), (EventKind::PercpuAllocPercpu, EventKind::PercpuFreePercpu));
        // For all of four CPUs; aligned to eight.
        assert_eq!((alloc.args[0], alloc.args[1] & 0xffff_ffff, alloc.args[2], alloc.order), (addr, 24, 96, 3));
        assert_eq!((free.args[0], free.pfn, free.args[1]), (addr, alloc.pfn, alloc.args[1] >> 32));
        Ok(())
    });
}

#[test]
fn the_command_prints_them_as_trace_pipe_does() {
    let guest = command::Guest::keep(
        "slab-events",
        &["--append", "trace_event=kmem:kmalloc,kfree,kmem_cache_free", "--workload", "slab-mix:ops=20"],
    );
    let text = |kinds: &str| command::run(&mut guest.command(&["events", guest.name(), "--kinds", kinds])).success();
    let begin = std::time::Instant::now();
    let kinds = ["kmalloc", "kfree", "kmem_cache_free"];
    let output = loop {
        let output = text(&kinds.join(","));
        if kinds.iter().all(|kind| output.contains(&format!(": {kind}: "))) || begin.elapsed().as_secs() >= 10 {
            break output;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    let lines = |start: &str, parts: &[&str]| {
        let of_kind: Vec<_> = output.lines().filter(|line| line.contains(start)).collect();
        assert!(!of_kind.is_empty(), "no {start} in {output}");
        for line in of_kind {
            assert!(line.contains("+0x"), "nobody called: {line}");
            parts.iter().for_each(|part| assert!(line.contains(part), "{line}"));
        }
    };
    lines(": kmalloc: call_site=", &[" ptr=ffff8", " bytes_req=", " bytes_alloc=", " gfp_flags=", " accounted=false"]);
    lines(": kfree: call_site=", &[" ptr=ffff8"]);
    lines(": kmem_cache_free: call_site=", &[" ptr=ffff8", " name="]);
    guest.stop();
}

/// The first bytes of an object.
fn content(object: &pagevisor::guest::Object<'_>) -> Result<[u8; 40], pagevisor::guest::Error> {
    let mut bytes = [1; 40];
    object.read(0, &mut bytes).map(|()| bytes)
}

#[test]
fn objects_are_cleared_where_the_command_line_says_so() {
    for (words, clears) in [("", false), ("init_on_alloc=1", true), ("init_on_free=1", true)] {
        guest_appended(ONE_NODE, words, |guest| {
            let cpu = guest.cpu(0)?;
            let plain = cpu.kmem_cache_create("plain", 40, 0, SlabFlags::NONE)?;
            let poisoned = cpu.kmem_cache_create("poisoned", 40, 0, SlabFlags::POISON)?;
            // It keeps the slab.
            let _other = cpu.kmem_cache_alloc(&plain, Gfp::KERNEL)?;
            let object = cpu.kmem_cache_alloc(&plain, Gfp::KERNEL)?;
            let addr = object.addr();
            object.write(0, &[9; 40])?;
            object.free()?;
            let object = cpu.kmem_cache_alloc(&plain, Gfp::KERNEL)?;
            assert_eq!(object.addr(), addr, "the last is the first");
            assert_eq!(content(&object)?, if clears { [0; 40] } else { [9; 40] }, "{words}");
            let object = cpu.kmem_cache_alloc(&poisoned, Gfp::KERNEL)?;
            assert_eq!(content(&object)?[..39], [0x5a; 39], "{words}: a pattern is no dirt");
            let memory = cpu.kmalloc(40, Gfp::KERNEL)?;
            memory.write(0, &[7; 40])?;
            let addr = memory.addr();
            memory.free()?;
            let memory = cpu.kmalloc(40, Gfp::KERNEL)?;
            assert_eq!((memory.addr(), content(&memory)?), (addr, if clears { [0; 40] } else { [7; 40] }), "{words}");
            Ok(())
        });
    }
}
