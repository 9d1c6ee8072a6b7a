//! Commands on their way to the guest, and who waits for their replies.
//!
//! ```text
//! requester                        monitor device                      guest
//! Monitor::submit   -> pending  -> a buffer of the command queue    -> executes
//! Waiting::wait     <- by tag   <- a buffer of the reply queue      <- replies
//! ```
//!
//! The host chooses the tags and uses none twice. A reply that nobody asked for is counted, and wakes nobody.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pagevisor_shared::command::{CommandHeader, OpResult, RawOp, ReplyHeader};

/// Why a command has no reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoReply {
    /// The message is longer than a buffer.
    #[error("the command is too long")]
    TooLong,
    /// The machine has ended.
    #[error("the guest has ended")]
    Ended,
    /// The driver has reset the device, or broken it.
    #[error("the guest's driver has reset the monitor device or broken its rules")]
    Reset,
    /// The reply makes no sense.
    #[error("the guest's reply makes no sense")]
    Malformed,
    /// It takes too long. The guest may execute the command yet.
    #[error("the guest did not reply in time")]
    TimedOut,
}

/// A reply, checked and taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    /// Its head.
    pub header: ReplyHeader,
    /// What each operation gave.
    pub results: Vec<OpResult>,
    /// Bytes that results refer to.
    pub payload: Vec<u8>,
}

impl Reply {
    /// The reply in `bytes`, if it is one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let header = ReplyHeader::from_bytes(bytes.first_chunk()?, bytes.len())?;
        // The head's check included these lengths.
        let body = bytes.get(ReplyHeader::BYTES..)?;
        let (results, payload) = body.split_at_checked(header.nr_results as usize * OpResult::BYTES)?;
        let results = results.as_chunks().0.iter().map(OpResult::from_bytes).collect::<Option<_>>()?;
        Some(Self { header, results, payload: payload.get(..header.payload_len as usize)?.to_vec() })
    }
}

impl Reply {
    /// As bytes again.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.header.to_bytes().to_vec();
        self.results.iter().for_each(|result| bytes.extend_from_slice(&result.to_bytes()));
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

type Answer = Result<Reply, NoReply>;

/// The bytes of a command. The tag in `header` does not matter.
pub fn encode(header: CommandHeader, ops: &[RawOp], payload: &[u8]) -> Vec<u8> {
    let header = CommandHeader { nr_ops: ops.len() as u32, payload_len: payload.len() as u32, ..header };
    let mut message = Vec::with_capacity(header.message_len() as usize);
    message.extend_from_slice(&header.to_bytes());
    ops.iter().for_each(|op| message.extend_from_slice(&op.to_bytes()));
    message.extend_from_slice(payload);
    message
}

/// A command that waits for a buffer.
pub(super) struct Letter {
    tag: u64,
    pub message: Vec<u8>,
}

struct Asker {
    answer: SyncSender<Answer>,
    /// The guest has the command.
    sent: bool,
}

/// How many messages came and went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// Commands that the guest was given.
    pub commands: u64,
    /// Replies that somebody waited for.
    pub replies: u64,
    /// Replies that came after their requester had given up.
    pub late: u64,
    /// Replies to no command, or that make no sense.
    pub strays: u64,
}

#[derive(Default)]
struct State {
    last_tag: u64,
    pending: VecDeque<Letter>,
    askers: HashMap<u64, Asker>,
    /// Set for good when the machine has ended.
    closed: bool,
    traffic: Traffic,
}

/// Commands on their way, and who waits.
#[derive(Default)]
pub struct Mailbox(Mutex<State>);

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("traffic", &self.traffic()).finish_non_exhaustive()
    }
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many messages came and went.
    pub fn traffic(&self) -> Traffic {
        self.lock().traffic
    }

    /// The machine has ended: nobody gets a reply any more.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.pending.clear();
        answer_all(state.askers.drain().map(|(_, asker)| asker), NoReply::Ended);
    }

    /// The driver has forgotten what it was given.
    pub(super) fn forget_sent(&self) {
        let mut state = self.lock();
        let sent: Vec<u64> = state.askers.iter().filter(|(_, asker)| asker.sent).map(|(&tag, _)| tag).collect();
        let askers: Vec<Asker> = sent.iter().filter_map(|tag| state.askers.remove(tag)).collect();
        answer_all(askers.into_iter(), NoReply::Reset);
    }

    /// Queues a message behind those that are there. The tag is written into it.
    pub(super) fn post(self: &Arc<Self>, mut message: Vec<u8>) -> Result<Waiting, NoReply> {
        let mut state = self.lock();
        if state.closed {
            return Err(NoReply::Ended);
        }
        state.last_tag += 1;
        let tag = state.last_tag;
        message.get_mut(8..16).ok_or(NoReply::Malformed)?.copy_from_slice(&tag.to_le_bytes());
        let (sender, receiver) = sync_channel(1);
        state.askers.insert(tag, Asker { answer: sender, sent: false });
        state.pending.push_back(Letter { tag, message });
        Ok(Waiting { mailbox: self.clone(), tag, receiver })
    }

    pub(super) fn has_pending(&self) -> bool {
        !self.lock().pending.is_empty()
    }

    /// The next message to send.
    pub(super) fn take(&self) -> Option<Letter> {
        self.lock().pending.pop_front()
    }

    /// There was no buffer for it, after all.
    pub(super) fn put_back(&self, letter: Letter) {
        let mut state = self.lock();
        if !state.closed {
            state.pending.push_front(letter);
        }
    }

    /// The guest has it.
    pub(super) fn sent(&self, letter: &Letter) {
        let mut state = self.lock();
        state.traffic.commands += 1;
        if let Some(asker) = state.askers.get_mut(&letter.tag) {
            asker.sent = true;
        }
    }

    /// Hands a reply to who waits for it. Whether it answers a command.
    pub(super) fn deliver(&self, bytes: &[u8]) -> bool {
        // The tag's place is the same in a reply whose rest makes no sense.
        let tag = bytes.get(8..16).and_then(|tag| tag.first_chunk()).map_or(0, |&tag| u64::from_le_bytes(tag));
        let reply = Reply::decode(bytes);
        let mut state = self.lock();
        let asked = state.askers.get(&tag).is_some_and(|asker| asker.sent);
        if asked && let Some(asker) = state.askers.remove(&tag) {
            state.traffic.replies += 1;
            // The channel is empty: a tag has one answer. Who asked may be gone.
            let _ = asker.answer.try_send(reply.ok_or(NoReply::Malformed));
        } else if tag != 0 && tag <= state.last_tag && reply.is_some() && !state.askers.contains_key(&tag) {
            state.traffic.late += 1;
        } else {
            state.traffic.strays += 1;
            return false;
        }
        true
    }
}

fn answer_all(askers: impl Iterator<Item = Asker>, why: NoReply) {
    for asker in askers {
        let _ = asker.answer.try_send(Err(why));
    }
}

/// Somebody who waits for a reply.
#[derive(Debug)]
pub struct Waiting {
    mailbox: Arc<Mailbox>,
    tag: u64,
    receiver: Receiver<Answer>,
}

impl Waiting {
    /// Waits for the reply, at most for `timeout`; `None` if there is none yet.
    pub fn poll(&self, timeout: Duration) -> Option<Result<Reply, NoReply>> {
        match self.receiver.recv_timeout(timeout) {
            Ok(answer) => Some(answer),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err(NoReply::Ended)),
        }
    }

    /// Waits for the reply, at most for `timeout`.
    ///
    /// # Errors
    /// Why there is none.
    pub fn wait(self, timeout: Duration) -> Result<Reply, NoReply> {
        self.poll(timeout).unwrap_or(Err(NoReply::TimedOut))
    }
}

/// Nobody waits any more. A command that the guest does not have yet is not sent.
impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.mailbox.lock();
        if state.askers.remove(&self.tag).is_some_and(|asker| !asker.sent) {
            let tag = self.tag;
            state.pending.retain(|letter| letter.tag != tag);
        }
    }
}
