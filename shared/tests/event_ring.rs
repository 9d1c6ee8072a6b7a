//! A CPU's ring of events: what a reader gets, and what it learns about what it does not get.
#![cfg(not(loom))]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::event::{EVENT_WORDS, Event, EventKind, EventRead, EventRing};
use proptest::prelude::*;

/// A ring of `slots` records.
fn words(slots: usize) -> Vec<AtomicU64> {
    (0..slots * EVENT_WORDS).map(|_| AtomicU64::new(0)).collect()
}

fn numbered(number: u64) -> Event {
    Event { tsc: number, pfn: number, gfp: Gfp::KERNEL, ..Event::new(EventKind::MmPageAlloc) }
}

#[test]
fn names_and_numbers_of_kinds_find_them() {
    for (number, kind) in EventKind::ALL.into_iter().enumerate() {
        assert_eq!(EventKind::new(number as u8), Some(kind));
        assert_eq!(EventKind::named(kind.name()), Some(kind));
        assert_eq!(kind.bit(), 1 << number);
    }
    assert_eq!((EventKind::new(EventKind::ALL.len() as u8), EventKind::named("mm_page_allo")), (None, None));
}

#[test]
fn records_are_read_in_order_until_there_are_no_more() {
    let (head, words) = (AtomicU64::new(0), words(4));
    let ring = EventRing::new(&head, &words);
    assert_eq!((ring.head(), ring.oldest(), ring.read(0)), (0, 0, EventRead::End));
    (0..3).for_each(|number| ring.write(&numbered(number)));
    for number in 0..3 {
        assert_eq!(ring.read(number), EventRead::Event(numbered(number)));
    }
    assert_eq!(ring.read(3), EventRead::End);
    assert_eq!(ring.read(u64::MAX), EventRead::End);
}

#[test]
fn what_was_overwritten_is_lost_and_counted() {
    let (head, words) = (AtomicU64::new(0), words(4));
    let ring = EventRing::new(&head, &words);
    (0..10).for_each(|number| ring.write(&numbered(number)));
    // The writer may be at the slot of record 6 already.
    assert_eq!(ring.oldest(), 7);
    for position in 0..7 {
        assert_eq!(ring.read(position), EventRead::Lost(7));
    }
    assert_eq!(ring.read(7), EventRead::Event(numbered(7)));
    assert_eq!(ring.read(9), EventRead::Event(numbered(9)));
}

#[test]
fn a_slot_without_an_event_is_corrupt() {
    let (head, words) = (AtomicU64::new(0), words(4));
    let ring = EventRing::new(&head, &words);
    ring.write(&numbered(0));
    words[1].store(0xff, Relaxed);
    assert_eq!(ring.read(0), EventRead::Corrupt);
    words[1].store(0, Relaxed);
    words[2].store(1 << 40, Relaxed);
    assert_eq!(ring.read(0), EventRead::Corrupt);
}

proptest! {
    #[test]
    fn any_words_are_no_event_or_one_that_encodes_to_them(
        small in any::<[u8; 6]>(), gfp in any::<u32>(), rest in any::<[u64; 6]>(), garbage in any::<[u64; 8]>(),
    ) {
        let [kind, cpu, node, zone, order, migratetype] = small;
        let first = u64::from_le_bytes([kind, cpu, node, zone, order, migratetype, 0, 0]);
        let words = [rest[0], first, u64::from(gfp), rest[1], rest[2], rest[3], rest[4], rest[5]];
        if let Some(event) = Event::decode(&words) {
            prop_assert_eq!(event.encode(), words);
        }
        let _ = Event::decode(&garbage);
    }

    #[test]
    fn a_reader_of_any_bytes_goes_forward_or_stops(
        head in prop_oneof![any::<u64>(), 0..20u64], at in prop_oneof![any::<u64>(), 0..20u64],
        content in proptest::collection::vec(any::<u64>(), 4 * EVENT_WORDS),
    ) {
        let words: Vec<AtomicU64> = content.into_iter().map(AtomicU64::new).collect();
        let head = AtomicU64::new(head);
        if let EventRead::Lost(oldest) = EventRing::new(&head, &words).read(at) {
            prop_assert!(oldest > at);
        }
        let _ = EventRing::new(&head, &words).oldest();
    }
}
