//! Every interleaving of the region's protocols: run with `RUSTFLAGS="--cfg loom"`.
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use loom::thread;
use pagevisor_shared::region::event::{EVENT_WORDS, Event, EventKind, EventRead, EventRing};
use pagevisor_shared::region::log::{LOG_LINE_MAX, LogHeader, LogRead, LogRing};
use pagevisor_shared::region::seq;

#[test]
fn a_reader_of_the_sequence_counter_never_sees_half_a_change() {
    loom::model(|| {
        let shared = Arc::new((AtomicU32::new(0), AtomicU64::new(0), AtomicU64::new(0)));
        let writer = {
            let shared = shared.clone();
            thread::spawn(move || {
                for value in 1..=2 {
                    seq::write_begin(&shared.0);
                    shared.1.store(value, Relaxed);
                    shared.2.store(value, Relaxed);
                    seq::write_end(&shared.0);
                }
            })
        };
        if let Some(start) = seq::read_begin(&shared.0) {
            let pair = (shared.1.load(Relaxed), shared.2.load(Relaxed));
            if !seq::read_retry(&shared.0, start) {
                assert_eq!(pair.0, pair.1);
                assert_eq!(pair.0 * 2, u64::from(start));
            }
        }
        writer.join().unwrap();
    });
}

#[test]
fn a_reader_of_the_log_gets_whole_records_or_is_told_it_lost_them() {
    loom::model(|| {
        // Room for two records of three words, so that the third one overwrites.
        let header = Arc::new(LogHeader { head: AtomicU64::new(0), tail: AtomicU64::new(0) });
        let words: Arc<Vec<AtomicU64>> = Arc::new((0..6).map(|_| AtomicU64::new(0)).collect());
        LogRing::new(&header, &words).write(6, 0, 0, b"0");
        let writer = {
            let (header, words) = (header.clone(), words.clone());
            thread::spawn(move || {
                let ring = LogRing::new(&header, &words);
                ring.write(6, 1, 11, b"1");
                ring.write(6, 2, 22, b"2");
            })
        };
        let ring = LogRing::new(&header, &words);
        let mut text = [0; LOG_LINE_MAX];
        match ring.read(0, &mut text) {
            LogRead::Record(record, next) => {
                assert_eq!((record.cpu, record.nanos, record.text, next), (0, 0, &b"0"[..], 3));
            }
            LogRead::Lost(oldest) => assert_eq!(oldest, 3),
            other => panic!("{other:?}"),
        }
        writer.join().unwrap();
        match ring.read(3, &mut text) {
            LogRead::Record(record, 6) => assert_eq!((record.cpu, record.nanos, record.text), (1, 11, &b"1"[..])),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_reader_of_events_gets_whole_records_or_is_told_it_lost_them() {
    let mut model = loom::model::Builder::new();
    // Sixteen words in each order that a few switches make.
    model.preemption_bound = Some(2);
    model.check(|| {
        let event = |number: u64| Event { tsc: number, pfn: number, ..Event::new(EventKind::MmPageFree) };
        // Two records; the third overwrites the first.
        let ring: Arc<(AtomicU64, Vec<AtomicU64>)> =
            Arc::new((AtomicU64::new(0), (0..2 * EVENT_WORDS).map(|_| AtomicU64::new(0)).collect()));
        EventRing::new(&ring.0, &ring.1).write(&event(1));
        EventRing::new(&ring.0, &ring.1).write(&event(2));
        let writer = {
            let ring = ring.clone();
            thread::spawn(move || {
                EventRing::new(&ring.0, &ring.1).write(&event(3));
            })
        };
        let reader = EventRing::new(&ring.0, &ring.1);
        match reader.read(0) {
            EventRead::Event(found) => assert_eq!(found, event(1)),
            EventRead::Lost(oldest) => assert!(oldest == 1 || oldest == 2),
            other => panic!("{other:?}"),
        }
        writer.join().unwrap();
        assert_eq!(reader.read(0), EventRead::Lost(2));
        assert_eq!(reader.read(2), EventRead::Event(event(3)));
    });
}
