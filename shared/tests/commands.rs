//! Messages: what is written is what is read, and nothing that is read harms the reader.

use pagevisor_shared::command::workload::{Kind, MAX_IDS, Mark, Params, Part, Phase, Report, TraceRecord};
use pagevisor_shared::command::{
    BUFFER_BYTES, CommandHeader, Fault, Faulty, Isolate, MAX_OBJECTS, MAX_OPS, Mapping, ObjectOp, Objects, Op, OpCode,
    OpError, OpResult, Placement, RawOp, ReplyHeader, Setting, Status, Text,
};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::region::event::{EVENT_SLOTS, EVENT_WORDS, Event, EventKind, EventRead, EventRing};
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::{CpuId, CpuMask, MAX_ORDER, NodeId, NodeMask, Order, Pfn};
use proptest::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

fn order(raw: u32) -> Order {
    Order::new(raw).expect("an order")
}

fn every_op() -> Vec<Op> {
    let node = NodeId::new(5);
    vec![
        Op::Nop,
        Op::AllocPages {
            gfp: Gfp::KERNEL | Gfp::DMA32,
            order: order(3),
            placement: Placement::Interleave(NodeMask(6)),
            handle: 7,
            count: 8,
        },
        Op::FreePages { handle: 1, count: 2 },
        Op::SplitPage { handle: 1, into: 2 },
        Op::ReadPage { handle: 1, offset: 2, len: 3 },
        Op::WritePage { handle: 1, offset: 2, len: 3, payload: 4 },
        Op::FillPattern { handle: 1, count: 2, seed: 3 },
        Op::CheckPattern { handle: 1, count: 2, seed: u64::MAX },
        Op::DrainPages { all: true },
        Op::Set { setting: Setting::LowmemReserveRatio, index: 2, value: 32 },
        Op::Isolate {
            action: Isolate::Undo,
            start: Pfn::new(512),
            end: Pfn::new(1024),
            migratetype: MigrateType::Reclaimable,
        },
        Op::AllocContigRange {
            start: Pfn::new(512),
            end: Pfn::new(600),
            migratetype: MigrateType::Cma,
            gfp: Gfp::KERNEL,
            handle: 9,
        },
        Op::ReserveCma { pages: 4096, node },
        Op::ReserveCma { pages: 4096, node: None },
        Op::CmaAlloc { area: 1, pages: 2, align: order(4), handle: 3 },
        Op::Run { payload: 64, len: 128 },
        Op::ReleaseWorkload,
        Op::SetEvents { mask: EventKind::CmaRelease.bit() },
        Op::Barrier,
        Op::FailPageAlloc(Fault {
            probability: 50,
            interval: 3,
            times: -1,
            space: 7,
            min_order: 1,
            ignore_gfp_wait: true,
            ignore_gfp_highmem: false,
            cache_filter: false,
            gfp: Gfp::DMA,
            seed: 11,
        }),
        Op::Failslab(Fault {
            probability: 1,
            interval: 1,
            times: 2,
            space: 100,
            cache_filter: true,
            ..Fault::default()
        }),
        Op::FailNth { of: Faulty::Pages, nth: 1 << 40, this_cpu: true },
        Op::FailNth { of: Faulty::Objects, nth: 2, this_cpu: false },
        Op::Shutdown { code: 3 },
    ]
    .into_iter()
    .chain(object_ops().into_iter().map(Op::Object))
    .collect()
}

fn object_ops() -> [ObjectOp; 15] {
    let objects = Objects { gfp: Gfp::KERNEL | Gfp::ZERO, node: NodeId::new(63), handle: 7, count: MAX_OBJECTS };
    let text = Text { payload: 3, len: 40 };
    let flags = SlabFlags::HWCACHE_ALIGN;
    [
        ObjectOp::CacheCreate { handle: 4, name: text, size: 4000, align: 64, flags },
        ObjectOp::CacheDestroy { handle: 4 },
        ObjectOp::CacheAlloc { cache: 4, objects },
        ObjectOp::CacheFree { cache: 4, handle: 7, count: 8 },
        ObjectOp::CacheShrink { handle: 4 },
        ObjectOp::Kmalloc { size: 1 << 40, objects: Objects { node: None, ..objects } },
        ObjectOp::Kfree { handle: 7, count: 8 },
        ObjectOp::Vmalloc { size: 1 << 33, mapping: Mapping { user: true, huge: true }, objects },
        ObjectOp::Vfree { handle: 7, count: 8 },
        ObjectOp::AllocPercpu { size: 512, align: 64, objects },
        ObjectOp::FreePercpu { handle: 7, count: 8 },
        ObjectOp::SetSlabinfo { line: text },
        ObjectOp::SetFailslab { name: text, on: true },
        ObjectOp::RegisterShrinker { handle: 9, cache: 4, objects: 1000, seeks: 2, batch: 64 },
        ObjectOp::UnregisterShrinker { handle: 9 },
    ]
}

#[test]
fn every_operation_comes_back_as_it_went() {
    let ops = every_op();
    for op in &ops {
        let raw = RawOp::from_bytes(&op.encode().to_bytes());
        assert_eq!(Op::decode(&raw), Ok(*op));
    }
    for code in OpCode::ALL {
        assert_eq!(OpCode::new(code as u16), Some(code));
        assert!(ops.iter().any(|op| op.encode().code == code as u16), "{code:?} is not among the operations tried");
    }
}

#[test]
fn one_block_is_short_and_several_are_not() {
    let alloc = |placement, count| Op::AllocPages { gfp: Gfp::KERNEL, order: order(1), placement, handle: 7, count };
    let free = |count| Op::FreePages { handle: 7, count };
    let [local, bound] = [Placement::Local, Placement::Bind(NodeMask(6))];
    for op in [Op::Nop, alloc(local, 1), alloc(bound, 1), free(1)] {
        assert_eq!(Op::decode_short(&op.encode()), Some(op));
    }
    let many = [alloc(local, 0), alloc(local, 2), free(0), free(2)];
    for op in every_op().iter().filter(|op| **op != Op::Nop).chain(&many) {
        assert_eq!(Op::decode_short(&op.encode()), None, "{op:?}");
    }
    let raw = alloc(local, 1).encode();
    for bad in [RawOp { order: 11, ..raw }, RawOp { gfp: u32::MAX, ..raw }, RawOp { small: 4, ..raw }] {
        assert_eq!((Op::decode_short(&bad), Op::decode(&bad)), (None, Err(OpError::Invalid)));
    }
}

#[test]
fn arguments_that_mean_nothing_are_refused() {
    let code = |code: OpCode| RawOp { code: code as u16, ..RawOp::default() };
    let cases = [
        (RawOp { code: OpCode::ALL.len() as u16, ..RawOp::default() }, OpError::Unknown),
        (RawOp { order: 11, ..code(OpCode::AllocPages) }, OpError::Invalid),
        (RawOp { gfp: u32::MAX, ..code(OpCode::AllocPages) }, OpError::Invalid),
        (RawOp { small: 2, a: 0, ..code(OpCode::AllocPages) }, OpError::Invalid),
        (RawOp { small: 1, a: 64, ..code(OpCode::AllocPages) }, OpError::Invalid),
        (RawOp { small: 4, a: 1, ..code(OpCode::AllocPages) }, OpError::Invalid),
        (RawOp { small: Setting::ALL.len() as u8, ..code(OpCode::Set) }, OpError::Invalid),
        (RawOp { order: 6, ..code(OpCode::Isolate) }, OpError::Invalid),
        (RawOp { b: 64, ..code(OpCode::ReserveCma) }, OpError::Invalid),
        (RawOp { b: 1 << 32, ..code(OpCode::WritePage) }, OpError::Invalid),
        (RawOp { count: 1 << 16, ..code(OpCode::Shutdown) }, OpError::Invalid),
        (RawOp { order: 64, ..code(OpCode::Kmalloc) }, OpError::Invalid),
        (RawOp { small: 4, ..code(OpCode::Vmalloc) }, OpError::Invalid),
        (RawOp { gfp: u32::MAX, ..code(OpCode::KmemCacheCreate) }, OpError::Invalid),
        (RawOp { a: 1 << 32, ..code(OpCode::KmemCacheAlloc) }, OpError::Invalid),
    ];
    for (raw, error) in cases {
        assert_eq!(Op::decode(&raw), Err(error), "{raw:?}");
    }
}

#[test]
fn heads_of_messages_come_back_and_lies_about_their_length_do_not() {
    let command = CommandHeader { tag: 9, cpu: 3, nr_ops: MAX_OPS as u32, flags: 1, payload_len: 0 };
    assert!(command.message_len() <= BUFFER_BYTES as u64 && MAX_OPS > 2000);
    assert_eq!(CommandHeader::from_bytes(&command.to_bytes(), BUFFER_BYTES), Some(command));
    let longer = CommandHeader { payload_len: u32::MAX, ..command };
    assert_eq!(CommandHeader::from_bytes(&longer.to_bytes(), BUFFER_BYTES), None);
    let reply = ReplyHeader {
        tag: 9,
        status: Status::Stopped,
        cpu: 2,
        nr_results: 10,
        payload_len: 20,
        tsc_start: 5,
        tsc_end: 6,
    };
    assert_eq!(ReplyHeader::from_bytes(&reply.to_bytes(), 64 + 160 + 20), Some(reply));
    assert_eq!(ReplyHeader::from_bytes(&reply.to_bytes(), 64 + 160 + 19), None);
    for result in [OpResult::ok(7), OpResult::err(OpError::Mismatch), OpResult { aux: 3, ..OpResult::ok(1) }] {
        assert_eq!(OpResult::from_bytes(&result.to_bytes()), Some(result));
    }
    let mut unknown = OpResult::ok(0).to_bytes();
    unknown[0] = 200;
    assert_eq!(OpResult::from_bytes(&unknown), None);
}

#[test]
fn names_lead_back_to_what_they_name() {
    for kind in Kind::ALL {
        assert_eq!(Kind::named(kind.name()), Some(kind));
    }
    for setting in Setting::ALL {
        assert_eq!(Setting::named(setting.name()), Some(setting));
    }
    for kind in EventKind::ALL {
        assert_eq!((EventKind::named(kind.name()), EventKind::new(kind as u8)), (Some(kind), Some(kind)));
    }
}

#[test]
fn the_parts_of_a_report_follow_each_other() {
    for nodes in [1, 2, 64] {
        assert!(Report::placement() < Report::accesses(nodes) && Report::accesses(nodes) < Report::min_free(nodes));
        assert!(Report::words(nodes) * 8 + ReplyHeader::BYTES + OpResult::BYTES <= BUFFER_BYTES);
    }
}

#[test]
fn a_pattern_differs_by_seed_block_and_word() {
    let mut seen: Vec<u64> = (0..4)
        .flat_map(|seed| (0..8).flat_map(move |block| (0..512).map(move |word| Op::pattern(seed, block, word))))
        .collect();
    let all = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), all);
}

fn ring(slots: usize) -> (AtomicU64, Vec<AtomicU64>) {
    (AtomicU64::new(0), (0..slots * EVENT_WORDS).map(|_| AtomicU64::new(0)).collect())
}

#[test]
fn what_a_ring_overwrote_is_counted_as_lost() {
    let (head, words) = ring(4);
    let ring = EventRing::new(&head, &words);
    assert_eq!(ring.read(0), EventRead::End);
    for pfn in 0..10 {
        ring.write(&Event { pfn, order: 3, ..Event::new(EventKind::MmPageAlloc) });
    }
    // Slot 10 % 4 may be being overwritten, so three of the four can be read.
    assert_eq!((ring.oldest(), ring.read(0), ring.read(6)), (7, EventRead::Lost(7), EventRead::Lost(7)));
    for pfn in 7..10 {
        assert_eq!(ring.read(pfn), EventRead::Event(Event { pfn, order: 3, ..Event::new(EventKind::MmPageAlloc) }));
    }
    assert_eq!(ring.read(10), EventRead::End);
}

#[test]
fn a_ring_without_sense_is_corrupt_and_no_more() {
    let (head, words) = ring(4);
    words[1].store(0xff, Relaxed);
    head.store(1, Relaxed);
    assert_eq!(EventRing::new(&head, &words).read(0), EventRead::Corrupt);
    head.store(u64::MAX, Relaxed);
    let ring = EventRing::new(&head, &words);
    assert!(matches!(ring.read(0), EventRead::Lost(at) if at > 1 << 60));
    assert!(matches!(ring.read(ring.oldest()), EventRead::Lost(_) | EventRead::Corrupt | EventRead::Event(_)));
    assert!(EVENT_SLOTS.is_power_of_two());
}

proptest! {
    #[test]
    fn any_operation_decodes_or_is_refused(bytes in any::<[u8; 32]>()) {
        let raw = RawOp::from_bytes(&bytes);
        if let Some(op) = Op::decode_short(&raw) {
            prop_assert_eq!(Op::decode(&raw), Ok(op));
        }
        if let Ok(op) = Op::decode(&raw) {
            prop_assert_eq!(Op::decode(&op.encode()), Ok(op));
        }
    }

    #[test]
    fn parameters_come_back(
        kind in 0..Kind::ALL.len(), raw in any::<[u64; 4]>(), small in any::<[u32; 5]>(), mix in any::<[u16; MAX_ORDER]>(),
    ) {
        let params = Params {
            seed: raw[0], ops: raw[1], cpus: CpuMask(raw[2]), placement: Placement::Bind(NodeMask(raw[3] | 1)),
            order: order(small[0] % 11), nth: small[1], fill: small[2], hold: small[3], touch: small[4], mix,
            keep: small[0] & 1 != 0, records: small[1], ids: small[2],
            part: Part::ALL[small[3] as usize % 4], ..Params::new(Kind::ALL[kind])
        };
        prop_assert_eq!(Params::decode(&params.encode()), Ok(params));
        let mark = Mark::new(&params, Phase::ALL[raw[0] as usize % 6], raw[1] & 1 != 0, small[0] as u8);
        prop_assert_eq!(Mark::decode(&mark.encode()), Some(mark));
        prop_assert_eq!(Event::decode(&mark.encode().encode()), Some(mark.encode()));
    }

    #[test]
    fn any_parameters_decode_or_are_refused(words in any::<[u64; Params::WORDS]>()) {
        if let Ok(params) = Params::decode(&words) {
            prop_assert_eq!(Params::decode(&params.encode()), Ok(params));
        }
    }

    #[test]
    fn any_trace_record_decodes_or_is_refused(word in any::<u64>()) {
        if let Ok(record) = TraceRecord::decode(word) {
            prop_assert_eq!(TraceRecord::decode(record.encode()), Ok(record));
        }
    }

    #[test]
    fn trace_records_come_back(cpu in 0..64usize, id in 0..MAX_IDS, raw in 0u32..11, bits in 0u32..1 << 23) {
        let (at, peer) = (CpuId::new(cpu).unwrap(), CpuId::new(63 - cpu).unwrap());
        let gfp = Gfp::from_bits(bits).unwrap();
        for record in [
            TraceRecord::Alloc { cpu: at, id, order: order(raw), gfp },
            TraceRecord::Free { cpu: at, id },
            TraceRecord::Wait { cpu: at, peer, record: id },
        ] {
            prop_assert_eq!(TraceRecord::decode(record.encode()), Ok(record));
            prop_assert_eq!(TraceRecord::cpu_of(record.encode()), cpu);
        }
    }

    #[test]
    fn events_come_back(words in any::<[u64; EVENT_WORDS]>(), kind in 0..EventKind::ALL.len() as u64) {
        let mut words = words;
        words[1] = words[1] & 0x0000_ffff_ffff_ff00 | kind;
        words[2] &= 0xfff;
        let event = Event::decode(&words).expect("an event");
        prop_assert_eq!(event.encode(), words);
    }
}
