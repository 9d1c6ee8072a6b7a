//! Replies that a guest has made up.

use pagevisor_shared::command::workload::Report;
use pagevisor_shared::command::{OpResult, ReplyHeader, Status};

use super::cases;
use crate::devices::monitor::Reply;
use crate::workload::WorkloadReport;

#[test]
fn made_up_replies() {
    let header = ReplyHeader {
        tag: 7,
        status: Status::Done,
        cpu: 0,
        nr_results: 3,
        payload_len: (Report::words(2) * 8) as u32,
        tsc_start: 1,
        tsc_end: 2,
    };
    let payload = vec![0; Report::words(2) * 8];
    let good = Reply { header, results: vec![OpResult::ok(1); 3], payload }.to_bytes();
    assert!(Reply::decode(&good).is_some());
    cases("made-up replies", |random| {
        let mut bytes = good.clone();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len() as u64 / 8) as usize * 8;
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            bytes[at..at + 8].copy_from_slice(&random.edge(u64::from_le_bytes(word)).to_le_bytes());
        }
        if random.below(4) == 0 {
            bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
        }
        let Some(reply) = Reply::decode(&bytes) else { return };
        let (words, _) = reply.payload.as_chunks::<8>();
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        if let Ok(report) = WorkloadReport::from_words(&words, 2) {
            assert_eq!((report.placement.len(), report.accesses.len(), report.min_free.len()), (2, 2, 2));
        }
    });
}
