//! Random messages, sensible and not: there is always a reply, and the allocator stays whole.

use pagevisor_shared::command::{Op, RawOp};
use proptest::prelude::*;

use crate::{complete, message, two_nodes};

/// An operation with arguments that often mean something.
fn op() -> impl Strategy<Value = RawOp> {
    let code =
        prop_oneof![6 => Just(1u16), 4 => Just(2u16), 6 => 0u16..13, 1 => 15u16..20, 6 => 21u16..33, 1 => any::<u16>()];
    let order = prop_oneof![8 => 0u8..4, 1 => 0u8..11, 1 => any::<u8>()];
    let small = prop_oneof![8 => 0u8..4, 1 => any::<u8>()];
    let gfp = prop_oneof![8 => Just(0x2cc0u32), 2 => Just(0x2ccau32), 1 => 0u32..1 << 23, 1 => any::<u32>()];
    let handle = prop_oneof![12 => 0u32..24, 1 => any::<u32>()];
    let count = prop_oneof![8 => 1u32..5, 2 => 0u32..2000, 1 => any::<u32>()];
    let a = prop_oneof![4 => 0u64..4, 4 => 0u64..8192, 3 => (0u64..0x90).prop_map(|b| b * 512), 1 => any::<u64>()];
    let b = prop_oneof![4 => 0u64..64, 3 => (0u64..0x90).prop_map(|b| b * 512), 1 => any::<u64>()];
    (code, order, small, gfp, handle, count, a, b).prop_map(|(code, order, small, gfp, handle, count, a, b)| {
        let raw = RawOp { code, order, small, gfp, handle, count, a, b };
        // Settings may leave no memory to allocate, and these tests then test nothing.
        if matches!(Op::decode(&raw), Ok(Op::Set { .. })) { Op::Nop.encode() } else { raw }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn batches(batches in proptest::collection::vec(proptest::collection::vec(op(), 1..120), 1..6)) {
        let guest = two_nodes();
        for ops in &batches {
            let answer = guest.raw(&message(ops, &[0xa5; 256], 0));
            prop_assert_eq!(answer.results.len(), ops.len());
        }
        guest.assert_sound();
    }

    #[test]
    fn batches_with_objects(batches in proptest::collection::vec(proptest::collection::vec(op(), 1..120), 1..6)) {
        let guest = complete();
        for ops in &batches {
            let answer = guest.raw(&message(ops, b"a-cache kmalloc-64 12 6 2 another", 0));
            prop_assert_eq!(answer.results.len(), ops.len());
        }
        guest.assert_sound();
    }

    #[test]
    fn garbage(bytes in proptest::collection::vec(any::<u8>(), 0..400), head in any::<bool>()) {
        let guest = two_nodes();
        let mut message = message(&[RawOp::default(); 4], &bytes, 0);
        if head {
            let len = bytes.len().min(message.len() - 32);
            message[32..32 + len].copy_from_slice(&bytes[..len]);
            guest.raw(&message);
        } else {
            guest.raw(&bytes);
        }
        guest.assert_sound();
    }
}
