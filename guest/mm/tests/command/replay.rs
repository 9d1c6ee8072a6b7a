//! Replays of traces: of any length, by many CPUs, in the order that is promised, and bad records named.

use pagevisor_shared::command::trace::{MAX_IDS, Part, TraceRecord};
use pagevisor_shared::command::workload::{Count, Kind, Params};
use pagevisor_shared::command::{Op, OpError, OpResult};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::random::SplitMix64;
use pagevisor_shared::units::CpuId;
use proptest::prelude::*;

use crate::workloads::{count, free_lists, free_pages, of, order};
use crate::{Guest, cpus, small, two_nodes};

/// Records of the largest message: behind head, operation and parameters.
const MESSAGE: usize = (64 << 10) / 8 - 4 - 4 - Params::WORDS;

fn cpu(number: usize) -> CpuId {
    CpuId::new(number).expect("a CPU")
}

fn alloc(number: usize, id: u32, raw: u32) -> TraceRecord {
    TraceRecord::Alloc { cpu: cpu(number), id, order: order(raw), gfp: Gfp::KERNEL | Gfp::NOWARN }
}

fn free(number: usize, id: u32) -> TraceRecord {
    TraceRecord::Free { cpu: cpu(number), id }
}

fn wait(number: usize, peer: usize, record: usize) -> TraceRecord {
    TraceRecord::Wait { cpu: cpu(number), peer: cpu(peer), record: record as u32 }
}

/// Replays a message's records; the result without the report.
fn part(guest: &Guest, params: &Params, part: Part, records: &[TraceRecord]) -> OpResult {
    let params = Params { part, records: records.len() as u32, ..*params };
    let words = params.encode().into_iter().chain(records.iter().map(|record| record.encode()));
    let payload: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    guest.send(&[Op::Run { payload: 0, len: payload.len() as u32 }], &payload, 0).results[0]
}

fn replay(lanes: &[usize]) -> Params {
    Params { ids: 1000, cpus: cpus(lanes), ..of(Kind::Replay) }
}

/// A made-up trace of at least `len` records, on `lanes` CPUs, that frees all it allocates, cut into messages with the
/// waits they need. Half of the frees are on other CPUs than the allocations.
fn made_up(seed: u64, len: usize, lanes: u64, ids: u32) -> Vec<Vec<TraceRecord>> {
    let mut random = SplitMix64::new(seed);
    let (mut unused, mut live): (Vec<u32>, Vec<u32>) = ((0..ids).collect(), Vec::new());
    // By id: in which message, where in it and by which CPU it was used last.
    let mut last = vec![(usize::MAX, 0, 0); ids as usize];
    let (mut messages, mut done) = (vec![Vec::new()], 0);
    while done < len || !live.is_empty() {
        let number = random.below(lanes) as usize;
        let grow = done < len && !unused.is_empty() && (live.is_empty() || random.below(2) == 0);
        let from = if grow { &mut unused } else { &mut live };
        let id = from.swap_remove(random.below(from.len() as u64) as usize);
        if grow {
            live.push(id)
        } else {
            unused.push(id)
        }
        if messages.last().is_none_or(|message| message.len() + 2 > MESSAGE) {
            messages.push(Vec::new());
        }
        let which = messages.len() - 1;
        let message = messages.last_mut().expect("a message");
        let (when, at, who) = last[id as usize];
        if when == which && who != number {
            message.push(wait(number, who, at));
        }
        last[id as usize] = (which, message.len(), number);
        message.push(if grow {
            alloc(number, id, random.below(16).saturating_sub(12) as u32)
        } else {
            free(number, id)
        });
        done += 1;
    }
    messages
}

/// Replays the messages of a trace; gives allocations, failures and frees.
fn run(guest: &Guest, params: &Params, messages: &[Vec<TraceRecord>]) -> [u64; 3] {
    let mut sums = [0; 3];
    for (records, index) in messages.iter().zip(0..) {
        let part = match (index, index + 1 == messages.len()) {
            (0, true) => Part::Whole,
            (0, false) => Part::First,
            (_, last) => [Part::Middle, Part::Last][usize::from(last)],
        };
        let words: Vec<u64> = records.iter().map(|record| record.encode()).collect();
        let report = guest.run(&Params { part, records: words.len() as u32, ..*params }, &words);
        for (sum, which) in sums.iter_mut().zip([Count::Allocs, Count::Failed, Count::Freed]) {
            *sum += count(&report, which);
        }
    }
    sums
}

#[test]
fn a_long_trace_on_four_cpus_leaves_nothing() {
    let guest = two_nodes();
    let before = free_pages(&guest);
    let messages = made_up(1, 50_000, 4, 1000);
    assert!(messages.len() > 6);
    let waits = messages.iter().flatten().filter(|record| matches!(record, TraceRecord::Wait { .. })).count();
    assert!(waits > 5_000, "{waits}");
    let [allocs, failed, freed] = run(&guest, &replay(&[0, 1, 2, 3]), &messages);
    assert_eq!((failed, allocs), (0, freed));
    assert!(allocs + freed >= 50_000);
    assert_eq!(free_pages(&guest), before);
    guest.assert_sound();
}

#[test]
fn one_cpu_and_the_same_trace_leave_the_same_free_lists() {
    let leave = |seed| {
        let guest = small();
        let mut messages = made_up(seed, 20_000, 1, 500);
        // What was never freed is kept.
        messages.last_mut().expect("a message").extend((0..100).map(|id| alloc(0, id, id % 3)));
        let [allocs, failed, freed] = run(&guest, &Params { keep: true, ..replay(&[0]) }, &messages);
        assert_eq!((failed, allocs), (0, freed + 100));
        guest.assert_sound();
        let lists = free_lists(&guest);
        assert_eq!(guest.ok(Op::ReleaseWorkload), 100);
        lists
    };
    let first = leave(1);
    assert_eq!(first, leave(1));
    assert_ne!(first, leave(2));
}

#[test]
fn each_operation_is_on_the_cpu_that_its_record_names() {
    let guest = two_nodes();
    // CPUs 0 and 1 are of node 0, 2 and 3 of node 1; the memory is their own node's.
    let records = [alloc(1, 0, 0), alloc(3, 1, 3), alloc(2, 2, 1)];
    let words: Vec<u64> = records.iter().map(|record| record.encode()).collect();
    let report = guest.run(&Params { records: 3, ..replay(&[1, 2, 3]) }, &words);
    let table = &report[pagevisor_shared::command::workload::Report::placement()..];
    assert_eq!(table[..5].iter().sum::<u64>(), 1);
    assert_eq!(table[5..10].iter().sum::<u64>(), 8 + 2);
}

#[test]
fn a_block_goes_from_cpu_to_cpu_in_the_order_of_the_trace() {
    let guest = two_nodes();
    let before = free_pages(&guest);
    let mut records = vec![alloc(0, 0, 1)];
    for round in 1..1000 {
        let (last, next) = ((round - 1) % 4, round % 4);
        records.push(wait(next, last, records.len() - 1));
        // Out of turn, an id would be freed that stands for nothing, or allocated that stands for something.
        records.push(if round % 2 == 0 { alloc(next, 0, 1) } else { free(next, 0) });
    }
    assert_eq!(run(&guest, &replay(&[0, 1, 2, 3]), &[records]), [500, 0, 500]);
    assert_eq!(free_pages(&guest), before);
}

#[test]
fn bad_records_are_named_and_leave_nothing() {
    let guest = two_nodes();
    let before = free_pages(&guest);
    let good = [alloc(0, 7, 2), alloc(1, 8, 0), alloc(0, 9, 0)];
    let too_large = 1 | 11 << 2 | 5 << 36;
    assert_eq!(TraceRecord::decode(too_large), Err(OpError::Invalid));
    let nofail = TraceRecord::Alloc { cpu: cpu(1), id: 3, order: order(0), gfp: Gfp::KERNEL | Gfp::NOFAIL };
    for (bad, error) in [
        (free(1, 3).encode(), OpError::BadHandle),
        (alloc(0, 7, 0).encode(), OpError::HandleInUse),
        (alloc(1, 1000, 0).encode(), OpError::Invalid),
        (free(0, MAX_IDS - 1).encode(), OpError::Invalid),
        (alloc(2, 3, 0).encode(), OpError::NoSuchCpu),
        (free(63, 7).encode(), OpError::NoSuchCpu),
        (wait(1, 2, 0).encode(), OpError::NoSuchCpu),
        (wait(1, 0, 3).encode(), OpError::Invalid),
        (nofail.encode(), OpError::Invalid),
        (too_large, OpError::Invalid),
        (0, OpError::Invalid),
        (u64::MAX >> 12 << 12 | 1 << 6, OpError::Invalid),
    ] {
        // Whoever comes to what is behind the bad record does no harm, and is not the one that is named.
        let records = good.iter().map(|record| record.encode()).chain([bad, free(1, 99).encode(), bad]);
        let params = Params { records: 6, ..replay(&[0, 1]) };
        let words = params.encode().into_iter().chain(records);
        let payload: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        let answer = guest.send(&[Op::Run { payload: 0, len: payload.len() as u32 }], &payload, 0);
        let expected = OpResult { error: Some(OpError::BadRecord), aux: error as u32, value: 3 };
        assert_eq!((answer.results[0], answer.payload.len()), (expected, 0), "{bad:#x}");
        assert_eq!(free_pages(&guest), before, "{bad:#x}");
    }
    guest.assert_sound();
}

#[test]
fn the_messages_of_a_trace_belong_together() {
    let guest = small();
    let before = free_pages(&guest);
    let params = replay(&[]);
    let failed = |which, records: &[TraceRecord]| part(&guest, &params, which, records).error;
    for which in [Part::Middle, Part::Last] {
        assert_eq!(failed(which, &[alloc(0, 1, 0)]), Some(OpError::Unavailable));
    }
    assert_eq!(failed(Part::First, &[alloc(0, 1, 0), alloc(0, 2, 0)]), None);
    assert_eq!(failed(Part::First, &[]), Some(OpError::Busy));
    // One that is a message of its own can be had at any time.
    assert_eq!(failed(Part::Whole, &[alloc(0, 1, 0), free(0, 1)]), None);
    assert_eq!(failed(Part::Middle, &[free(0, 1)]), None);
    // A wrong parameter is no end of the trace.
    assert_eq!(part(&guest, &replay(&[5]), Part::Last, &[]).error, Some(OpError::Invalid));
    assert_eq!(failed(Part::Last, &[free(0, 2)]), None);
    assert_eq!(failed(Part::Middle, &[]), Some(OpError::Unavailable));
    assert_eq!(free_pages(&guest), before);
    // A bad record is.
    assert_eq!(failed(Part::First, &[alloc(0, 1, 0)]), None);
    assert_eq!(failed(Part::Middle, &[free(0, 2)]), Some(OpError::BadRecord));
    assert_eq!(failed(Part::Last, &[]), Some(OpError::Unavailable));
    assert_eq!(free_pages(&guest), before);
    // So is giving up.
    assert_eq!(failed(Part::First, &[alloc(0, 1, 0), alloc(0, 600, 3)]), None);
    assert_eq!(guest.ok(Op::ReleaseWorkload), 2);
    assert_eq!(failed(Part::Last, &[]), Some(OpError::Unavailable));
    assert_eq!(free_pages(&guest), before);
    guest.assert_sound();
}

#[test]
fn memory_for_ids_is_bounded_and_may_be_short() {
    let guest = small();
    let before = free_pages(&guest);
    let tried = |ids| part(&guest, &Params { ids, ..replay(&[]) }, Part::Whole, &[]).error;
    assert_eq!(tried(MAX_IDS + 1), Some(OpError::Invalid));
    assert_eq!(tried(MAX_IDS), Some(OpError::NoMemory), "128 MiB of 64");
    assert_eq!(tried(MAX_IDS / 8), None);
    assert_eq!(free_pages(&guest), before);
}

#[test]
fn an_allocation_that_fails_is_freed_without_a_word() {
    let guest = small();
    let before = free_pages(&guest);
    let all: Vec<_> = (0..20).map(|id| alloc(0, id, 10)).chain((0..20).map(|id| free(0, id))).collect();
    let [allocs, failed, freed] = run(&guest, &replay(&[]), &[all]);
    assert!(allocs == freed && failed > 0 && allocs + failed == 20, "{allocs} {failed} {freed}");
    assert_eq!(free_pages(&guest), before);
}

/// A record that often means something.
fn record() -> impl Strategy<Value = u64> {
    let sensible = (0usize..5, 0u32..12, 0u32..3, 0usize..5, 0u32..40, 0u8..6).prop_map(
        |(number, id, raw, peer, record, what)| {
            let record = match what {
                0 | 1 => alloc(number, id, raw),
                2 | 3 => free(number, id),
                _ => wait(number, peer, record as usize),
            };
            record.encode()
        },
    );
    prop_oneof![30 => sensible, 1 => any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Waits that are missing, wrong or crossed: nobody hangs, nothing is lost or freed twice.
    #[test]
    fn any_records(messages in proptest::collection::vec((proptest::collection::vec(record(), 0..60), 0usize..4), 1..8)) {
        let guest = two_nodes();
        let before = free_pages(&guest);
        for (records, which) in &messages {
            let params = Params { part: Part::ALL[*which], records: records.len() as u32, ids: 10, ..replay(&[0, 1, 2, 3]) };
            let words = params.encode().into_iter().chain(records.iter().copied());
            let payload: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
            guest.send(&[Op::Run { payload: 0, len: payload.len() as u32 }], &payload, 0);
        }
        guest.ok(Op::ReleaseWorkload);
        prop_assert_eq!(free_pages(&guest), before);
        guest.assert_sound();
    }
}
