#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::command::workload::{Kind, Mark, Params, Phase};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::Table;
use pagevisor_shared::region::event::{EVENT_WORDS, EventRing, NO_NODE};
use pagevisor_shared::region::fault::{ErrorCode, PageFault, Resolution};
use proptest::prelude::*;

use super::*;
use crate::state::fake::FakeGuest;

fn cpu(number: u32) -> CpuId {
    CpuId::new(number as usize).unwrap()
}

fn write(guest: &FakeGuest, number: u32, events: impl IntoIterator<Item = Event>) {
    let region = guest.region();
    let ring: EventRing<'_> = region.events(cpu(number)).unwrap();
    events.into_iter().for_each(|event| ring.write(&event));
}

fn guest() -> FakeGuest {
    let guest = FakeGuest::new();
    let region = guest.region();
    region.header().tsc_entry.store(1_000, Relaxed);
    region.header().tsc_khz.store(1_000_000, Relaxed);
    region.header().roots.vmemmap.store(0xffff_ea00_0000_0000, Relaxed);
    guest
}

/// A time stamp of that many nanoseconds.
fn at(nanos: u64) -> u64 {
    1_000 + nanos
}

#[test]
fn lines_are_those_of_trace_pipe() {
    let guest = guest();
    let renderer = Renderer::new(&guest.region(), None);
    let event = |kind| Event { tsc: at(12_345_678_901), pfn: 0x1234, order: 2, migratetype: 1, ..Event::new(kind) };
    let line = |event: Event| renderer.line(&Item::Event(cpu(0), event));
    let head = "          <idle>-0       [000] .....    12.345678: ";
    let page = "page=ffffea0000024680 pfn=0x1234";
    assert_eq!(
        line(Event { gfp: Gfp::KERNEL, migratetype: 0, ..event(EventKind::MmPageAlloc) }),
        format!("{head}mm_page_alloc: {page} order=2 migratetype=0 gfp_flags=GFP_KERNEL\n"),
    );
    let failed = Event { pfn: 0, ..event(EventKind::MmPageAlloc) };
    assert!(line(failed).contains(": page=0000000000000000 pfn=0x0 order=2"), "{}", line(failed));
    let with_args = |kind, args| Event { args, ..event(kind) };
    let with = |kind, args| line(with_args(kind, args));
    for (text, expected) in [
        (line(event(EventKind::MmPageFree)), format!("mm_page_free: {page} order=2")),
        (line(event(EventKind::MmPageFreeBatched)), format!("mm_page_free_batched: {page} order=0")),
        (
            with(EventKind::MmPageAllocZoneLocked, [1, 0, 0]),
            format!("mm_page_alloc_zone_locked: {page} order=2 migratetype=1 percpu_refill=1"),
        ),
        (line(event(EventKind::MmPagePcpuDrain)), format!("mm_page_pcpu_drain: {page} order=2 migratetype=1")),
        (
            with(EventKind::MmPageAllocExtfrag, [5, 2, 1]),
            format!(
                "mm_page_alloc_extfrag: {page} alloc_order=2 fallback_order=5 pageblock_order=9 alloc_migratetype=1 \
                 fallback_migratetype=2 fragmenting=1 change_ownership=1"
            ),
        ),
        (
            line(Event { gfp: Gfp::ATOMIC_ALLOC, ..event(EventKind::MmVmscanWakeupKswapd) }),
            "mm_vmscan_wakeup_kswapd: nid=0 order=2 gfp_flags=GFP_ATOMIC".to_owned(),
        ),
        (
            with(EventKind::TestPagesIsolated, [512, 1024, 1023]),
            "test_pages_isolated: start_pfn=0x200 end_pfn=0x400 fin_pfn=0x3ff ret=fail".to_owned(),
        ),
        (
            line(Event {
                gfp: Gfp::KERNEL,
                ..with_args(EventKind::WorkloadMark, [1 << 24 | 1 << 16 | 3 << 8 | 3, 8, 5])
            }),
            "workload_mark: mark=end workload=fragment phase=probe lane=1 ops=8 order=2 seed=5 gfp_flags=GFP_KERNEL"
                .to_owned(),
        ),
        (with(EventKind::WorkloadMark, [u64::MAX, 8, 5]), "workload_mark: 0xffffffffffffffff 0x8 0x5".to_owned()),
        (line(event(EventKind::FailPageAlloc)), "fail_page_alloc: order=2 gfp_flags=none".to_owned()),
    ] {
        assert_eq!(text, format!("{head}{expected}\n"));
    }
    let cma = with(EventKind::CmaAllocFinish, [8, 3, 0]);
    assert!(cma.contains(" pfn=0x1234 page=ffffea0000024680 count=8 align=3\n"), "{cma}");
    assert_eq!(renderer.line(&Item::Lost(cpu(1), 12)), "CPU:1 [LOST 12 EVENTS]\n");
}

#[test]
fn lines_of_objects_are_those_of_trace_pipe() {
    let guest = guest();
    let renderer = Renderer::new(&guest.region(), None);
    let with_args = |kind, args| Event { tsc: at(12_345_678_901), order: 2, args, ..Event::new(kind) };
    let line = |event: Event| renderer.line(&Item::Event(cpu(0), event));
    let with = |kind, args| line(with_args(kind, args));
    let word = |text: &str| text.bytes().rev().fold(0, |word, byte| word << 8 | u64::from(byte));
    let head = "          <idle>-0       [000] .....    12.345678: ";
    for (text, expected) in [
        (
            with(EventKind::Kmalloc, [0xffff_8880_0000_1000, 50, 64]),
            "kmalloc: call_site=0x0 ptr=ffff888000001000 bytes_req=50 bytes_alloc=64 gfp_flags=none node=0 \
             accounted=false",
        ),
        (
            line(Event {
                node: NO_NODE,
                caller: 0xff,
                gfp: Gfp::KERNEL,
                ..with_args(EventKind::KmemCacheAlloc, [0, 100, 128])
            }),
            "kmem_cache_alloc: call_site=0x00000000000000ff ptr=0000000000000000 bytes_req=100 bytes_alloc=128 \
             gfp_flags=GFP_KERNEL node=-1 accounted=false",
        ),
        (with(EventKind::Kfree, [0x1000, 0, 0]), "kfree: call_site=0x0 ptr=0000000000001000"),
        (
            line(with_args(EventKind::KmemCacheFree, [0x1000, 0, 0]).with_text(["a cache=", "-64", "x"].map(word))),
            "kmem_cache_free: call_site=0x0 ptr=0000000000001000 name=a?cache?-64",
        ),
        (
            line(Event {
                zone: 2,
                pfn: 0x9000,
                ..with_args(EventKind::PercpuAllocPercpu, [0x500, 24 | 0x40 << 32, 48])
            }),
            "percpu_alloc_percpu: call_site=0x0 reserved=0 is_atomic=1 size=24 align=4 base_addr=0000000000009000 off=64 \
             ptr=0000000000000500 bytes_alloc=48 gfp_flags=none",
        ),
        (
            line(Event { pfn: 0x9000, ..with_args(EventKind::PercpuFreePercpu, [0x500, 64, 0]) }),
            "percpu_free_percpu: base_addr=0000000000009000 off=64 ptr=0000000000000500",
        ),
        (
            line(Event {
                pfn: 7,
                migratetype: 3,
                gfp: Gfp::KERNEL,
                caller: 0xff,
                ..with_args(EventKind::MmShrinkSlabStart, [1000, 20, 27])
            }),
            "mm_shrink_slab_start: 0x00000000000000ff 0000000000000003: nid: 0 objects to shrink 7 gfp_flags GFP_KERNEL \
             cache items 1000 delta 20 total_scan 27 priority 2",
        ),
        (
            line(Event { pfn: 7, migratetype: 3, ..with_args(EventKind::MmShrinkSlabEnd, [9, 8, 128]) }),
            "mm_shrink_slab_end: 0x0 0000000000000003: nid: 0 unused scan count 7 new scan count 9 total_scan 8 \
             last shrinker return val 128",
        ),
        (with(EventKind::Failslab, [100, 0, 0]), "failslab: size=100 gfp_flags=none"),
    ] {
        assert_eq!(text, format!("{head}{expected}\n"));
    }
}

fn fault() -> Event {
    let fault = PageFault {
        user: true,
        address: 0x7fff_1000,
        error: ErrorCode(6),
        ip: 0x40_1000,
        pid: 7,
        resolution: Resolution::CowReuse,
        major: false,
        ticks: 512,
    };
    assert_eq!(PageFault::decode(&fault.encode()), Some(fault));
    Event { tsc: at(1_500_000_000), ..fault.encode() }
}

#[test]
fn lines_of_faults_begin_as_trace_pipe_s() {
    let guest = guest();
    let renderer = Renderer::new(&guest.region(), None);
    let line = renderer.line(&Item::Event(cpu(0), fault()));
    let fields = "address=0x7fff1000 ip=0x401000 error_code=0x6 pid=7 kind=cow-reuse major=0 ticks=512\n";
    assert!(line.ends_with(&format!(": page_fault_user: {fields}")), "{line}");
    let damaged = renderer.line(&Item::Event(cpu(0), Event { order: 77, ..fault() }));
    assert!(damaged.ends_with("page_fault_user: 0x7fff1000 0x700000006 0x200\n"), "{damaged}");
}

#[test]
fn faults_are_a_table_of_their_own() {
    let guest = guest();
    let lines =
        |pid, items: &[Item], json| FaultRenderer::new(Renderer::new(&guest.region(), None), pid).lines(items, json);
    let other = Event::new(EventKind::MmPageFree);
    let items = [Item::Lost(cpu(1), 3), Item::Event(cpu(1), fault()), Item::Event(cpu(0), other)];
    let row = "  1.500000   1     7 user   000000007fff1000 0000000000401000 W|U      cow-reuse      512\n";
    assert_eq!(lines(None, &items, false), format!("CPU:1 [LOST 3 EVENTS]\n{row}"));
    assert_eq!(lines(Some(8), &items[1..], false), "");
    let json: serde_json::Value = serde_json::from_str(&lines(Some(7), &items[1..], true)).unwrap();
    let expected = serde_json::json!({
        "time_ns": 1_500_000_000, "cpu": 1, "pid": 7, "from": "user", "address": "0x7fff1000", "ip": "0x401000",
        "error_code": 6, "error": ["W", "U"], "kind": "cow-reuse", "major": false, "cycles": 512,
    });
    assert_eq!(json, expected);
    for (code, text) in
        [(0, "-"), (1, "P"), (4, "U"), (7, "P|W|U"), (0x14, "U|I"), (0x1d, "P|U|RSVD|I"), (0x24, "U|0x20")]
    {
        assert_eq!(ErrorCode(code).to_string(), text);
    }
}

#[test]
fn json_has_numbers_for_numbers() {
    let guest = guest();
    let renderer = Renderer::new(&guest.region(), None);
    let event =
        Event { tsc: at(7), pfn: 16, order: 3, gfp: Gfp::KERNEL, caller: 0xff, ..Event::new(EventKind::MmPageAlloc) };
    let line = renderer.json_line(&Item::Event(cpu(1), event));
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    let expected = serde_json::json!({
        "time_ns": 7, "cpu": 1, "event": "mm_page_alloc", "caller": "0x00000000000000ff",
        "page": "ffffea0000000200", "pfn": 16, "order": 3, "migratetype": 0, "gfp_flags": "GFP_KERNEL",
    });
    assert_eq!(value, expected);
    assert_eq!(renderer.json_line(&Item::Lost(cpu(0), 3)), "{\"cpu\":0,\"lost\":3}\n");
}

#[test]
fn json_of_objects_has_their_fields_and_the_caller_once() {
    let guest = guest();
    let renderer = Renderer::new(&guest.region(), None);
    let event =
        Event { tsc: at(7), node: NO_NODE, caller: 0xff, args: [0x1000, 5, 8], ..Event::new(EventKind::Kmalloc) };
    let value = |event| -> serde_json::Value {
        serde_json::from_str(&renderer.json_line(&Item::Event(cpu(1), event))).unwrap()
    };
    let expected = serde_json::json!({
        "time_ns": 7, "cpu": 1, "event": "kmalloc", "caller": "0x00000000000000ff", "ptr": "0000000000001000",
        "bytes_req": 5, "bytes_alloc": 8, "gfp_flags": "none", "node": -1, "accounted": "false",
    });
    assert_eq!(value(event), expected);
    let event = Event { kind: EventKind::MmShrinkSlabEnd, tsc: at(7), pfn: 3, args: [1, 2, 4], ..event };
    let expected = serde_json::json!({
        "time_ns": 7, "cpu": 1, "event": "mm_shrink_slab_end", "caller": "0x00000000000000ff", "shrinker": 0,
        "nid": 255, "unused_scan": 3, "new_scan": 1, "total_scan": 2, "retval": 4,
    });
    assert_eq!(value(event), expected);
}

#[test]
fn cpus_are_merged_by_time_and_what_was_overwritten_is_counted() {
    let guest = guest();
    let region = guest.region();
    let mut reader = EventReader::from_now(&region, Kinds(EventKind::MmPageFree.bit()));
    let event = |tsc| Event { tsc, ..Event::new(EventKind::MmPageFree) };
    write(&guest, 0, [event(1), event(4), Event { tsc: 2, ..Event::new(EventKind::MmPageAlloc) }]);
    write(&guest, 1, [event(2), event(3)]);
    let times = |items: &[Item]| -> Vec<u64> {
        items.iter().filter_map(|item| if let Item::Event(_, event) = item { Some(event.tsc) } else { None }).collect()
    };
    assert_eq!(times(&reader.read(&region)), [1, 2, 3, 4]);
    assert_eq!(reader.read(&region), []);
    write(&guest, 1, (0..EVENT_SLOTS as u64 + 9).map(event));
    let items = reader.read(&region);
    assert_eq!(items[0], Item::Lost(cpu(1), 10));
    assert_eq!((items.len(), reader.lost(cpu(0)), reader.lost(cpu(1))), (EVENT_SLOTS, 0, 10));
}

#[test]
fn names_of_kinds_are_read_and_unknown_ones_listed() {
    let kinds: Kinds = "mm_page_alloc,kmem:mm_page_free".parse().unwrap();
    assert_eq!(kinds, Kinds(3));
    let error = "mm_page_alloc,bogus".parse::<Kinds>().unwrap_err().to_string();
    assert!(error.starts_with("there is no event 'bogus'; there are mm_page_alloc, mm_page_free,"), "{error}");
}

/// The fields of a protobuf message: numbers, and bytes.
fn decode(mut bytes: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let (first, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            shift += 7;
            if first & 0x80 == 0 {
                return value;
            }
        }
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = varint(&mut bytes);
        match key & 7 {
            0 => fields.push((key >> 3, value, Vec::new())),
            2 => {
                let (content, rest) = bytes.split_at(usize::try_from(value).unwrap());
                fields.push((key >> 3, value, content.to_vec()));
                bytes = rest;
            }
            other => panic!("wire type {other}"),
        }
    }
    fields
}

fn field(message: &[(u64, u64, Vec<u8>)], number: u64) -> Option<&(u64, u64, Vec<u8>)> {
    message.iter().find(|(field, ..)| *field == number)
}

#[test]
fn a_perfetto_trace_has_a_track_per_cpu_and_counters_per_zone() {
    let guest = guest();
    let region = guest.region();
    let renderer = Renderer::new(&region, None);
    let mut perfetto = Perfetto::default();
    let begin = decode(&perfetto.begin(&region));
    let names: Vec<String> = begin
        .iter()
        .map(|(number, _, packet)| {
            assert_eq!(*number, 1);
            let packet = decode(packet);
            let track = decode(&field(&packet, 60).unwrap().2);
            String::from_utf8(field(&track, 2).unwrap().2.clone()).unwrap()
        })
        .collect();
    assert_eq!(names.iter().filter(|name| name.starts_with("CPU ")).count(), region.nr_cpus());
    assert!(names.iter().any(|name| name.starts_with("nr_free_pages node 0 ")), "{names:?}");
    let event = Event { tsc: at(500), pfn: 7, ..Event::new(EventKind::MmPageFree) };
    let trace = decode(&perfetto.append(&region, &renderer, &[Item::Event(cpu(1), event), Item::Lost(cpu(0), 4)]));
    let packets: Vec<_> = trace.iter().map(|(_, _, packet)| decode(packet)).collect();
    let events: Vec<_> = packets.iter().map(|packet| decode(&field(packet, 11).unwrap().2)).collect();
    assert_eq!(field(&packets[0], 8).unwrap().1, 500);
    assert_eq!(field(&events[0], 23).unwrap().2, b"mm_page_free");
    assert_eq!((field(&events[0], 9).unwrap().1, field(&events[0], 11).unwrap().1), (3, 0x1001));
    assert_eq!(field(&events[1], 23).unwrap().2, b"LOST 4 EVENTS");
    let counters = events.iter().filter(|event| field(event, 9).unwrap().1 == 4).count();
    assert_eq!(counters, names.len() - region.nr_cpus());
    // Counters that did not change are not told again.
    assert_eq!(perfetto.append(&region, &renderer, &[]), b"");
}

/// The slices of a CPU's track, as they begin, with their names, and end, with the time of each.
fn slices(trace: &[u8], track: u64) -> Vec<(u64, Option<String>)> {
    let packets = decode(trace);
    let events = packets.iter().map(|(_, _, packet)| decode(packet));
    let slices = events.filter_map(|packet| {
        let event = decode(&field(&packet, 11)?.2);
        let (kind, time) = (field(&event, 9)?.1, field(&packet, 8)?.1);
        let name = || String::from_utf8(field(&event, 23).unwrap().2.clone()).unwrap();
        (field(&event, 11)?.1 == track && kind < 3).then(|| (time, (kind == 1).then(name)))
    });
    slices.collect()
}

/// A mark of a workload of `kind`.
fn mark(kind: Kind, phase: Phase, end: bool, time: u64) -> Event {
    Event { tsc: at(time), ..Mark::new(&Params::new(kind), phase, end, 0).encode() }
}

#[test]
fn workloads_are_slices_with_their_phases_inside() {
    let guest = guest();
    let region = guest.region();
    let renderer = Renderer::new(&region, None);
    let mut perfetto = Perfetto::default();
    let fragment = |phase, end, time| Item::Event(cpu(1), mark(Kind::Fragment, phase, end, time));
    let mut trace = perfetto.append(
        &region,
        &renderer,
        &[fragment(Phase::Whole, false, 10), fragment(Phase::Fill, false, 11), fragment(Phase::Fill, true, 20)],
    );
    // Parts that were open are so still when the next piece comes.
    trace.extend(perfetto.append(
        &region,
        &renderer,
        &[
            fragment(Phase::Probe, false, 21),
            Item::Lost(cpu(1), 3),
            // The end of the phase was lost.
            fragment(Phase::Whole, true, 40),
            // Its begin was.
            fragment(Phase::Release, true, 41),
            Item::Event(cpu(1), mark(Kind::Random, Phase::Whole, false, 50)),
            Item::Event(cpu(0), mark(Kind::Access, Phase::Whole, false, 60)),
        ],
    ));
    trace.extend(perfetto.finish());
    let name = |name: &str| Some(name.to_owned());
    let expected = [
        (10, name("fragment")),
        (11, name("fill")),
        (20, None),
        (21, name("probe")),
        (40, None),
        (40, None),
        (50, name("random")),
        (60, None),
    ];
    assert_eq!(slices(&trace, 0x1001), expected);
    assert_eq!(slices(&trace, 0x1000), [(60, name("access")), (60, None)]);
    // An end without a begin is an instant.
    let instants = decode(&trace).into_iter().filter(|(_, _, packet)| {
        let packet = decode(packet);
        field(&packet, 11).is_some_and(|event| {
            let event = decode(&event.2);
            field(&event, 9).unwrap().1 == 3 && field(&event, 23).unwrap().2 == b"workload_mark"
        })
    });
    assert_eq!(instants.count(), 1);
    assert_eq!(perfetto.finish(), b"");
}

proptest! {
    #[test]
    fn slices_are_pairs_in_order_of_time_whatever_the_marks(
        marks in proptest::collection::vec((0..3usize, 0..6usize, any::<bool>(), 0..100u64), 0..60), cut in 0..60usize,
    ) {
        let guest = guest();
        let region = guest.region();
        let renderer = Renderer::new(&region, None);
        let items: Vec<_> = marks
            .iter()
            .map(|&(kind, phase, end, time)| Item::Event(cpu(0), mark(Kind::ALL[kind], Phase::ALL[phase], end, time)))
            .collect();
        let (first, second) = items.split_at(cut.min(items.len()));
        let mut perfetto = Perfetto::default();
        let mut trace = perfetto.append(&region, &renderer, first);
        trace.extend(perfetto.append(&region, &renderer, second));
        trace.extend(perfetto.finish());
        let (mut open, mut last) = (0, 0);
        for (time, begins) in slices(&trace, 0x1000) {
            prop_assert!(time >= last);
            last = time;
            open += if begins.is_some() { 1 } else { -1 };
            prop_assert!((0..=2).contains(&open));
        }
        prop_assert_eq!(open, 0);
    }

    #[test]
    fn any_rings_are_read_in_bounded_time(
        head in prop_oneof![any::<u64>(), 0..5000u64],
        again in any::<u64>(),
        content in proptest::collection::vec(any::<u64>(), EVENT_WORDS * 16),
        small in any::<bool>(),
    ) {
        let guest = guest();
        let region = guest.region();
        let ring = region.header().tables[Table::Event as usize].offset.load(Relaxed);
        let words = content.iter().cycle().take(EVENT_SLOTS * EVENT_WORDS);
        let bytes: Vec<u8> = words.flat_map(|word| (if small { word & 0xf } else { *word }).to_le_bytes()).collect();
        guest.file.write_all_at(&bytes, ring + 64).unwrap();
        let mut reader = EventReader::from_oldest(&region, Kinds::ALL);
        guest.file.write_all_at(&head.to_le_bytes(), ring).unwrap();
        let renderer = Renderer::new(&region, None);
        let items = reader.read(&region);
        prop_assert!(items.len() <= EVENT_SLOTS + region.nr_cpus());
        renderer.lines(&items, false);
        renderer.lines(&items, true);
        Perfetto::default().append(&region, &renderer, &items);
        guest.file.write_all_at(&again.to_le_bytes(), ring).unwrap();
        prop_assert!(reader.read(&region).len() <= EVENT_SLOTS + region.nr_cpus());
    }
}
