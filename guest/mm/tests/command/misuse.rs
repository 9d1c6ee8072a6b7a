//! What must be refused.

use pagevisor_shared::command::{
    CommandHeader, Isolate, MAX_HANDLE, Op, OpError, Placement, RawOp, STOP_ON_ERROR, Status,
};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::units::{Order, Pfn};

use crate::operations::alloc;
use crate::{message, small};

#[test]
fn handles_used_wrongly() {
    let guest = small();
    guest.ok(alloc(1, 0, 1));
    guest.fails(alloc(1, 0, 1), OpError::HandleInUse);
    guest.fails(alloc(MAX_HANDLE, 0, 1), OpError::BadHandle);
    guest.fails(Op::FreePages { handle: 2, count: 1 }, OpError::BadHandle);
    guest.fails(Op::FreePages { handle: 1, count: u32::MAX }, OpError::BadHandle);
    let freed = guest.one(Op::FreePages { handle: 1, count: 2 });
    assert_eq!((freed.error, freed.value), (Some(OpError::BadHandle), 1));
    guest.fails(Op::FreePages { handle: 1, count: 1 }, OpError::BadHandle);
    guest.fails(Op::ReadPage { handle: 1, offset: 0, len: 1 }, OpError::BadHandle);
    guest.fails(Op::SplitPage { handle: 1, into: 1 }, OpError::BadHandle);
    guest.assert_sound();
}

#[test]
fn arguments_out_of_range() {
    let guest = small();
    guest.ok(alloc(1, 0, 1));
    guest.fails(alloc(2, 0, 0), OpError::Invalid);
    guest.fails(alloc(2, 0, 8193), OpError::Invalid);
    guest.fails(Op::ReadPage { handle: 1, offset: 4000, len: 97 }, OpError::Invalid);
    guest.fails(Op::ReadPage { handle: 1, offset: u64::MAX, len: 1 }, OpError::Invalid);
    guest.fails(Op::ReadPage { handle: 1, offset: 0, len: 1 << 20 }, OpError::NoRoom);
    guest.fails(Op::WritePage { handle: 1, offset: 0, len: 1, payload: 0 }, OpError::Invalid);
    guest.fails(Op::Run { payload: 0, len: 8 }, OpError::Invalid);
    guest.fails(Op::SetEvents { mask: u64::MAX }, OpError::Invalid);
    guest.fails(Op::ReserveCma { pages: u64::MAX, node: None }, OpError::Invalid);
    guest.fails(Op::ReserveCma { pages: 1 << 20, node: None }, OpError::Busy);
    let nofail = Gfp::KERNEL | Gfp::NOFAIL;
    let order = Order::MAX;
    guest.fails(
        Op::AllocPages { gfp: nofail, order, placement: Placement::Local, handle: 2, count: 1 },
        OpError::Invalid,
    );
    for (start, end) in [(0, u64::MAX), (u64::MAX, 0), (0x4001, 0x4200), (0x4000, 0x4000), (1 << 40, (1 << 40) + 512)] {
        let (start, end) = (Pfn::new(start), Pfn::new(end));
        let migratetype = MigrateType::Movable;
        guest.fails(Op::Isolate { action: Isolate::Start, start, end, migratetype }, OpError::Invalid);
    }
}

#[test]
fn compound_blocks_stay_whole() {
    let guest = small();
    let gfp = Gfp::KERNEL | Gfp::COMP;
    let order = Order::new(2).expect("an order");
    guest.ok(Op::AllocPages { gfp, order, placement: Placement::Local, handle: 1, count: 1 });
    guest.fails(Op::SplitPage { handle: 1, into: 1 }, OpError::WrongKind);
    guest.ok(Op::FreePages { handle: 1, count: 1 });
    guest.assert_sound();
}

#[test]
fn messages_that_are_none() {
    let guest = small();
    let good = message(&[Op::Nop.encode()], &[], 0);
    assert_eq!(guest.raw(&good).head.status, Status::Done);
    for len in 0..good.len() {
        assert_eq!(guest.raw(&good[..len]).head.status, Status::Malformed);
    }
    let mut wrong = good.clone();
    wrong[0] ^= 1;
    assert_eq!(guest.raw(&wrong).head.status, Status::Malformed);
    let huge = CommandHeader { nr_ops: u32::MAX, payload_len: u32::MAX, ..CommandHeader::default() };
    assert_eq!(guest.raw(&huge.to_bytes()).head.status, Status::Malformed);
    let unknown = RawOp { code: 999, ..RawOp::default() };
    let answer = guest.raw(&message(&[unknown, Op::Nop.encode()], &[], 0));
    assert_eq!(answer.results.iter().map(|result| result.error).collect::<Vec<_>>(), [Some(OpError::Unknown), None]);
}

#[test]
fn a_command_ends_at_a_failure_if_asked_to() {
    let guest = small();
    let ops = [alloc(1, 0, 3), Op::FreePages { handle: 9, count: 1 }, Op::Nop, Op::Nop];
    let answer = guest.send(&ops, &[], STOP_ON_ERROR);
    assert_eq!((answer.head.status, answer.results.len(), answer.payload.len()), (Status::Stopped, 2, 16));
    assert_ne!(answer.payload[..4], [0; 4]);
}
