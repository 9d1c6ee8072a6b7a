//! Commands from other processes. Of the guest's operations they may use those that leave nothing behind that belongs to
//! them: without handles.

use pagevisor_shared::command::{CommandHeader, ObjectOp, Op, RawOp};

use super::protocol::from_hex;
use crate::devices::monitor::Waiting;
use crate::machine::Commander;

/// Sends the command in `digits` to the guest.
pub(super) fn submit(commander: &Commander, digits: &str) -> Result<Waiting, String> {
    let message = from_hex(digits).ok_or("the command is no bytes in hexadecimal digits")?;
    let (header, ops, payload) = parse(&message).ok_or("the command makes no sense")?;
    if let Some(op) = ops.iter().find(|op| !Op::decode(op).is_ok_and(|op| is_allowed(&op))) {
        return Err(format!("operation {} is not for other processes", op.code));
    }
    commander.submit(header, &ops, payload).map_err(|error| error.to_string())
}

fn parse(message: &[u8]) -> Option<(CommandHeader, Vec<RawOp>, &[u8])> {
    let header = CommandHeader::from_bytes(message.first_chunk()?, message.len())?;
    let (ops, payload) = message.split_at_checked(header.payload_offset())?;
    let ops = ops.get(CommandHeader::BYTES..)?.as_chunks().0.iter().map(RawOp::from_bytes).collect();
    Some((header, ops, payload.get(..header.payload_len as usize)?))
}

fn is_allowed(op: &Op) -> bool {
    matches!(
        op,
        Op::Nop
            | Op::DrainPages { .. }
            | Op::Set { .. }
            | Op::Run { .. }
            | Op::ReleaseWorkload
            | Op::SetEvents { .. }
            | Op::Barrier
            | Op::FailPageAlloc(_)
            | Op::Failslab(_)
            | Op::FailNth { .. }
            | Op::Shutdown { .. }
            | Op::Object(ObjectOp::SetSlabinfo { .. })
    )
}
