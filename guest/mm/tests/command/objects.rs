//! Slab caches, `kmalloc`, `vmalloc` and per-CPU memory by commands; workloads that use them.

use pagevisor_shared::command::workload::{Count, Kind, Params};
use pagevisor_shared::command::{MAX_HANDLE, MAX_OBJECTS, Mapping, ObjectOp, Objects, Op, OpError, OpResult, Text};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::{NodeId, Order};
use pagevisor_shared::vmstat::ZoneStat;

use crate::{Answer, Guest, complete, cpus, small};

const CACHE: u32 = 1;

fn some(handle: u32, count: u32) -> Objects {
    Objects { gfp: Gfp::KERNEL | Gfp::NOWARN, node: None, handle, count }
}

fn kmalloc(size: u64, handle: u32, count: u32) -> Op {
    Op::Object(ObjectOp::Kmalloc { size, objects: some(handle, count) })
}

fn from_cache(handle: u32, count: u32) -> Op {
    Op::Object(ObjectOp::CacheAlloc { cache: CACHE, objects: some(handle, count) })
}

fn vmalloc(size: u64, handle: u32) -> Op {
    Op::Object(ObjectOp::Vmalloc { size, mapping: Mapping::default(), objects: some(handle, 1) })
}

fn percpu(size: u32, handle: u32) -> Op {
    Op::Object(ObjectOp::AllocPercpu { size, align: 8, objects: some(handle, 1) })
}

fn create(name: &str, size: u32, flags: SlabFlags) -> (Op, Vec<u8>) {
    let text = Text { payload: 0, len: name.len() as u32 };
    (Op::Object(ObjectOp::CacheCreate { handle: CACHE, name: text, size, align: 0, flags }), name.as_bytes().to_vec())
}

fn send(guest: &Guest, (op, payload): (Op, Vec<u8>)) -> OpResult {
    let Answer { results, .. } = guest.send(&[op], &payload, 0);
    results[0]
}

fn tune(guest: &Guest, line: &str) -> OpResult {
    let text = Text { payload: 0, len: line.len() as u32 };
    send(guest, (Op::Object(ObjectOp::SetSlabinfo { line: text }), line.as_bytes().to_vec()))
}

/// Free pages once nothing is kept for later.
fn free_pages(guest: &Guest) -> u64 {
    guest.ok(Op::Object(ObjectOp::CacheShrink { handle: 0 }));
    let mm = guest.machine.mm();
    mm.drain_all_pages(None);
    mm.populated_zones().map(|(index, _)| mm.zone_page_state_snapshot(index, ZoneStat::NrFreePages)).sum()
}

#[test]
fn what_is_allocated_is_filled_checked_read_and_freed() {
    let guest = complete();
    assert_eq!(send(&guest, create("of-20-bytes", 20, SlabFlags::NONE)).error, None);
    let pairs = [
        (kmalloc(100, 10, 1), Op::Object(ObjectOp::Kfree { handle: 10, count: 1 }), 128),
        (kmalloc(100_000, 10, 1), Op::Object(ObjectOp::Kfree { handle: 10, count: 1 }), 128 << 10),
        (from_cache(10, 1), Op::Object(ObjectOp::CacheFree { cache: CACHE, handle: 10, count: 1 }), 20),
        (from_cache(10, 1), Op::Object(ObjectOp::Kfree { handle: 10, count: 1 }), 20),
        (vmalloc(9000, 10), Op::Object(ObjectOp::Vfree { handle: 10, count: 1 }), 12288),
        (percpu(24, 10), Op::Object(ObjectOp::FreePercpu { handle: 10, count: 1 }), 96),
    ];
    for (number, (alloc, free, len)) in pairs.into_iter().enumerate() {
        let seed = number as u64;
        assert_ne!(guest.ok(alloc), 0);
        guest.ok(Op::FillPattern { handle: 10, count: 1, seed });
        guest.ok(Op::CheckPattern { handle: 10, count: 1, seed });
        guest.fails(Op::CheckPattern { handle: 10, count: 1, seed: seed + 1 }, OpError::Mismatch);
        let answer = guest.send(&[Op::ReadPage { handle: 10, offset: len - 5, len: 5 }], &[], 0);
        let word = Op::pattern(seed, 0, (len - 1) / 8).to_le_bytes();
        assert_eq!(answer.payload[4], word[(len - 1) as usize % 8], "{alloc:?}");
        guest.fails(Op::ReadPage { handle: 10, offset: len - 5, len: 6 }, OpError::Invalid);
        let write = Op::WritePage { handle: 10, offset: len - 3, len: 3, payload: 0 };
        assert_eq!(guest.send(&[write], b"end", 0).results[0].error, None);
        let answer = guest.send(&[Op::ReadPage { handle: 10, offset: len - 4, len: 4 }], &[], 0);
        assert_eq!(&answer.payload[1..4], b"end");
        let wrong = guest.one(Op::CheckPattern { handle: 10, count: 1, seed });
        assert_eq!((wrong.error, wrong.value), (Some(OpError::Mismatch), (len - 3) & !7));
        guest.ok(free);
        guest.fails(free, OpError::BadHandle);
    }
    guest.ok(Op::FreePages { handle: CACHE, count: 1 });
    guest.assert_sound();
}

#[test]
fn handles_used_for_the_wrong_thing() {
    let guest = complete();
    assert_eq!(send(&guest, create("right", 64, SlabFlags::NONE)).error, None);
    let (kfree, vfree) = (ObjectOp::Kfree { handle: 10, count: 1 }, ObjectOp::Vfree { handle: 10, count: 1 });
    let free_percpu = ObjectOp::FreePercpu { handle: 10, count: 1 };
    let to_cache = ObjectOp::CacheFree { cache: CACHE, handle: 10, count: 1 };
    let destroy = ObjectOp::CacheDestroy { handle: 10 };
    let pages = crate::operations::alloc(10, 0, 1);
    let cases: [(Op, &[ObjectOp]); 5] = [
        (kmalloc(64, 10, 1), &[vfree, free_percpu, to_cache, destroy]),
        (from_cache(10, 1), &[vfree, free_percpu, destroy]),
        (vmalloc(64, 10), &[kfree, free_percpu, to_cache, destroy]),
        (percpu(64, 10), &[kfree, vfree, to_cache, destroy]),
        (pages, &[kfree, vfree, free_percpu, to_cache, destroy]),
    ];
    for (alloc, wrong) in cases {
        guest.ok(alloc);
        for op in wrong {
            guest.fails(Op::Object(*op), OpError::WrongKind);
        }
        guest.fails(Op::Object(ObjectOp::CacheAlloc { cache: 10, objects: some(11, 1) }), OpError::WrongKind);
        guest.fails(Op::Object(ObjectOp::CacheShrink { handle: 10 }), OpError::WrongKind);
        guest.ok(Op::FreePages { handle: 10, count: 1 });
    }
    for op in [kfree, vfree, free_percpu, to_cache, destroy] {
        guest.fails(Op::Object(op), OpError::BadHandle);
    }
    guest.fails(Op::ReadPage { handle: CACHE, offset: 0, len: 8 }, OpError::WrongKind);
    guest.fails(Op::FillPattern { handle: CACHE, count: 1, seed: 1 }, OpError::WrongKind);
    guest.fails(Op::Object(ObjectOp::CacheFree { cache: CACHE, handle: CACHE, count: 1 }), OpError::WrongKind);
    guest.fails(from_cache(CACHE, 1), OpError::HandleInUse);
    guest.ok(Op::Object(ObjectOp::CacheDestroy { handle: CACHE }));
    guest.fails(from_cache(10, 1), OpError::BadHandle);
    guest.assert_sound();
}

#[test]
fn arguments_of_objects_out_of_range() {
    let guest = complete();
    let objects = some(10, 1);
    guest.fails(kmalloc(64, 10, 0), OpError::Invalid);
    guest.fails(kmalloc(64, 10, MAX_OBJECTS + 1), OpError::Invalid);
    guest.fails(kmalloc(64, MAX_HANDLE - 1, 2), OpError::Invalid);
    guest.fails(kmalloc((4 << 20) + 1, 10, 1), OpError::Invalid);
    guest.fails(kmalloc(u64::MAX, 10, 1), OpError::Invalid);
    guest.fails(vmalloc(0, 10), OpError::Invalid);
    guest.fails(vmalloc(u64::MAX, 10), OpError::Invalid);
    guest.fails(vmalloc(1 << 40, 10), OpError::NoMemory);
    guest.fails(percpu(0, 10), OpError::Invalid);
    let away = Objects { node: NodeId::new(7), ..objects };
    guest.fails(Op::Object(ObjectOp::Kmalloc { size: 64, objects: away }), OpError::Invalid);
    let nofail = Objects { gfp: Gfp::KERNEL | Gfp::NOFAIL, ..objects };
    guest.fails(Op::Object(ObjectOp::Kmalloc { size: 1 << 20, objects: nofail }), OpError::Invalid);
    for (name, size, flags) in [("", 8, SlabFlags::NONE), ("x", 0, SlabFlags::NONE), ("a b", 8, SlabFlags::NONE)] {
        assert_eq!(send(&guest, create(name, size, flags)).error, Some(OpError::Invalid));
    }
    assert_eq!(send(&guest, create("x", 8, SlabFlags::PANIC)).error, Some(OpError::Invalid));
    for line in ["", "kmalloc-64", "kmalloc-64 1 2", "nobody 12 6 0", "kmalloc-64 6 12 0", "kmalloc-64 0 0 0"] {
        assert_eq!(tune(&guest, line).error, Some(OpError::Invalid), "{line}");
    }
    guest.ok(kmalloc(0, 10, 1));
    guest.ok(Op::FillPattern { handle: 10, count: 1, seed: 1 });
    guest.ok(Op::FreePages { handle: 10, count: 1 });
    guest.assert_sound();
    // Without slab caches nothing of all that is to be had.
    let guest = small();
    guest.fails(kmalloc(64, 10, 1), OpError::NoMemory);
    assert_eq!(send(&guest, create("x", 8, SlabFlags::NONE)).error, Some(OpError::NoMemory));
}

#[test]
fn a_cache_in_use_cannot_be_destroyed() {
    let guest = complete();
    assert_eq!(send(&guest, create("busy", 200, SlabFlags::HWCACHE_ALIGN)).error, None);
    let answer = guest.send(&[from_cache(10, 100)], &[], 0);
    assert_eq!((answer.results[0].value, answer.payload.len()), (100, 800));
    guest.ok(Op::Object(ObjectOp::CacheFree { cache: CACHE, handle: 10, count: 99 }));
    guest.fails(Op::Object(ObjectOp::CacheDestroy { handle: CACHE }), OpError::Busy);
    guest.fails(Op::FreePages { handle: CACHE, count: 1 }, OpError::Busy);
    assert!(guest.machine.log_text().contains("cache `busy': Can't free all objects"));
    guest.ok(from_cache(10, 1));
    guest.ok(Op::FreePages { handle: 109, count: 1 });
    guest.ok(Op::FreePages { handle: 10, count: 1 });
    guest.ok(Op::Object(ObjectOp::CacheDestroy { handle: CACHE }));
    assert!(guest.machine.mm().kmem_cache_find("busy").is_none());
    guest.assert_sound();
}

#[test]
fn tunables_change() {
    let guest = complete();
    assert_eq!(tune(&guest, "kmalloc-64 30 15 2\n").error, None);
    let mm = guest.machine.mm();
    let record = mm.kmem_cache_record(mm.kmem_cache_find("kmalloc-64").expect("the cache"));
    let get = |word: &std::sync::atomic::AtomicU32| word.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((get(&record.limit), get(&record.batchcount), get(&record.shared)), (30, 15, 2));
}

#[test]
fn workloads_of_objects_leave_nothing_behind_and_find_what_they_wrote() {
    let guest = complete();
    // A program's faults need a guest that runs programs.
    for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_of_pages() && *kind != Kind::Fault) {
        let params = Params { gfp: Gfp::KERNEL | Gfp::NOWARN, ops: 6_000, ..Params::new(kind) };
        for (lanes, seed) in [(cpus(&[0, 1, 2, 3]), 1), (cpus(&[]), 2), (cpus(&[1, 2]), 3), (cpus(&[0, 1, 2, 3]), 4)] {
            let params = Params { cpus: lanes, seed, order: Order::new(1).expect("an order"), ..params };
            let before = free_pages(&guest);
            let report = guest.run(&params, &[]);
            let count = |which: Count| report[which as usize];
            assert_eq!(count(Count::Allocs), count(Count::Freed), "{kind:?} {lanes}");
            assert!(count(Count::Allocs) > 5, "{kind:?} {lanes}");
            assert_eq!(count(Count::Mismatches), 0, "{kind:?} {lanes}");
            assert_eq!(count(Count::Tries), count(Count::Hits), "{kind:?} {lanes}");
            let after = free_pages(&guest);
            // Tables that are made once stay.
            assert!(seed == 1 || after == before, "{kind:?} {lanes}: {before} pages before, {after} after");
        }
        guest.assert_sound();
    }
    let keep = Params { keep: true, ..Params::new(Kind::Scull) };
    let payload: Vec<u8> = keep.encode().iter().flat_map(|word| word.to_le_bytes()).collect();
    let run = Op::Run { payload: 0, len: payload.len() as u32 };
    assert_eq!(guest.send(&[run], &payload, 0).results[0].error, Some(OpError::Invalid));
}

fn shrinker(handle: u32, objects: u32, seeks: u32, batch: u32) -> Op {
    Op::Object(ObjectOp::RegisterShrinker { handle, cache: CACHE, objects, seeks, batch })
}

fn unregister(handle: u32) -> Op {
    Op::Object(ObjectOp::UnregisterShrinker { handle })
}

#[test]
fn shrinkers_of_the_host_free_their_objects() {
    let guest = complete();
    let mm = guest.machine.mm();
    assert_eq!(send(&guest, create("spare", 192, SlabFlags::RECLAIM_ACCOUNT)).error, None);
    // The shrinkers' records stay records.
    guest.ok(shrinker(10, 1, 2, 0));
    assert_eq!(guest.ok(unregister(10)), 1);
    let before = free_pages(&guest);
    guest.fails(shrinker(CACHE, 10, 2, 0), OpError::HandleInUse);
    guest.fails(unregister(CACHE), OpError::WrongKind);
    assert_eq!(guest.ok(shrinker(10, 5000, 2, 0)), 5000);
    guest.fails(shrinker(10, 10, 2, 0), OpError::HandleInUse);
    guest.fails(Op::ReadPage { handle: 10, offset: 0, len: 1 }, OpError::WrongKind);
    guest.fails(Op::Object(ObjectOp::CacheDestroy { handle: CACHE }), OpError::Busy);
    let node = NodeId::default();
    // Priority 4: a sixteenth, four times of which go for one seek, so twice for two; in whole batches of 128.
    assert_eq!(mm.shrink_slab(Gfp::KERNEL, node, 4), 5000 / 16 * 4 / 2 / 128 * 128);
    mm.drop_slab();
    assert_eq!(guest.ok(unregister(10)), 0);
    guest.fails(unregister(10), OpError::BadHandle);
    assert_eq!(free_pages(&guest), before);
    // What is freed as any other handle is unregistered, too; and what was left is freed.
    assert_eq!(guest.ok(shrinker(11, 300, 0, 8)), 300);
    assert_eq!(mm.shrink_slab(Gfp::KERNEL, node, 12), 150 / 8 * 8, "what costs nothing goes by halves");
    assert_eq!(guest.ok(shrinker(12, 100, 2, 0)), 100);
    assert_eq!(guest.ok(unregister(11)), 300 - 144);
    guest.ok(Op::FreePages { handle: 12, count: 1 });
    assert_eq!(mm.shrink_slab(Gfp::KERNEL, node, 0), 0);
    assert_eq!(free_pages(&guest), before);
    guest.ok(Op::Object(ObjectOp::CacheDestroy { handle: CACHE }));
}

#[test]
fn a_shrinker_that_memory_does_not_suffice_for_leaves_nothing() {
    let guest = complete();
    assert_eq!(send(&guest, create("spare", 4000, SlabFlags::NONE)).error, None);
    guest.ok(shrinker(10, 1, 2, 0));
    guest.ok(unregister(10));
    let before = free_pages(&guest);
    guest.fails(shrinker(10, u32::MAX, 2, 0), OpError::NoMemory);
    assert_eq!(free_pages(&guest), before);
    guest.fails(unregister(10), OpError::BadHandle);
}
