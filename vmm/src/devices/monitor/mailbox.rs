//! Commands on their way to the guest, and who waits for their replies.
//!
//! ```text
//! requester                        monitor device                      guest
//! Monitor::submit   -> pending  -> a buffer of the command queue    -> executes
//! Waiting::wait     <- by tag   <- a buffer of the reply queue      <- replies
//! ```
//!
//! The host chooses the tags and uses none twice. A reply that nobody asked for is counted, and wakes nobody.
//!
//! Who stops waiting may leave an [`Heir`]: the guest may execute the command yet, and what it did then must be undone
//! by somebody. The heir is told the reply when it comes, however late, and may send a command in turn. There are at most
//! [`MAX_HEIRS`]; of a guest that takes commands and never replies, the oldest are forgotten.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pagevisor_shared::command::{CommandHeader, OpResult, RawOp, ReplyHeader};
use pagevisor_shared::device::monitor;

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

/// Most commands that nobody waits for, and that have an heir: no queue has more buffers.
pub const MAX_HEIRS: usize = monitor::QUEUE_MAX as usize;

/// What became of a command that nobody waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    /// The guest was never given it, and will not be.
    Unsent,
    /// Its reply came.
    Answered(Reply),
    /// There will be no reply. Whether the guest executes it is not known.
    Unknown(NoReply),
}

impl From<Answer> for Fate {
    fn from(answer: Answer) -> Self {
        answer.map_or_else(Self::Unknown, Self::Answered)
    }
}

/// Who is told what becomes of a command that nobody waits for.
pub trait Heir: Send {
    /// Is told, by the device's thread or by who gave up. What it gives is sent to the guest, except when there will be
    /// no more replies.
    fn learn(self: Box<Self>, fate: Fate) -> Option<Bequest>;
}

/// A command that nobody waits for, from the start.
pub struct Bequest {
    /// The command, as from [`encode`].
    pub message: Vec<u8>,
    /// Who is told its fate.
    pub heir: Box<dyn Heir>,
}

impl fmt::Debug for Bequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bequest").field("bytes", &self.message.len()).finish_non_exhaustive()
    }
}

enum Who {
    Waits(SyncSender<Answer>),
    Left(Box<dyn Heir>),
}

struct Asker {
    who: Who,
    /// The guest has the command, or is being given it.
    sent: bool,
    /// Somebody has waited for it, and has given up.
    given_up: bool,
}

impl Asker {
    fn is_heir(&self) -> bool {
        matches!(self.who, Who::Left(_))
    }

    /// Tells who asked. Nothing may be locked.
    fn tell(self, answer: Answer) -> Option<Bequest> {
        match self.who {
            Who::Waits(sender) => {
                // The channel is empty: a tag has one answer. Who asked may be gone.
                let _ = sender.try_send(answer);
                None
            }
            Who::Left(heir) => heir.learn(answer.into()),
        }
    }
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
        let askers: Vec<Asker> = state.askers.drain().map(|(_, asker)| asker).collect();
        drop(state);
        answer_all(askers, NoReply::Ended);
    }

    /// The driver has forgotten what it was given.
    pub(super) fn forget_sent(&self) {
        let mut state = self.lock();
        let sent: Vec<u64> = state.askers.iter().filter(|(_, asker)| asker.sent).map(|(&tag, _)| tag).collect();
        let askers = sent.iter().filter_map(|tag| state.askers.remove(tag)).collect();
        drop(state);
        answer_all(askers, NoReply::Reset);
    }

    /// Queues a message behind those that are there. The tag is written into it.
    pub(super) fn post(self: &Arc<Self>, message: Vec<u8>) -> Result<Waiting, NoReply> {
        let (sender, receiver) = sync_channel(1);
        let tag = self.lock().post(message, Who::Waits(sender))?;
        Ok(Waiting { mailbox: self.clone(), tag, receiver })
    }

    /// As [`Self::post`], with an heir instead of somebody who waits.
    pub(super) fn bequeath(&self, bequest: Bequest) {
        let mut state = self.lock();
        // A message without a head, or of a machine that has ended, has nobody left to tell.
        let posted = state.post(bequest.message, Who::Left(bequest.heir));
        let forgotten = posted.ok().and_then(|_| state.forget_oldest());
        drop(state);
        drop(forgotten.and_then(|asker| asker.tell(Err(NoReply::TimedOut))));
    }

    pub(super) fn has_pending(&self) -> bool {
        !self.lock().pending.is_empty()
    }

    /// The next message to send.
    pub(super) fn take(&self) -> Option<Letter> {
        let mut state = self.lock();
        let letter = state.pending.pop_front()?;
        // From here on it cannot be withdrawn.
        if let Some(asker) = state.askers.get_mut(&letter.tag) {
            asker.sent = true;
        }
        Some(letter)
    }

    /// There was no buffer for it, after all.
    pub(super) fn put_back(&self, letter: Letter) {
        let mut state = self.lock();
        if let Some(asker) = state.askers.get_mut(&letter.tag) {
            asker.sent = false;
            state.pending.push_front(letter);
        }
    }

    /// The guest has a command more.
    pub(super) fn sent(&self) {
        self.lock().traffic.commands += 1;
    }

    /// Hands a reply to who waits for it. Whether it answers a command.
    pub(super) fn deliver(&self, bytes: &[u8]) -> bool {
        // The tag's place is the same in a reply whose rest makes no sense.
        let tag = bytes.get(8..16).and_then(|tag| tag.first_chunk()).map_or(0, |&tag| u64::from_le_bytes(tag));
        let reply = Reply::decode(bytes);
        let mut state = self.lock();
        let asked = state.askers.get(&tag).is_some_and(|asker| asker.sent);
        if asked && let Some(asker) = state.askers.remove(&tag) {
            match asker.given_up {
                true => state.traffic.late += 1,
                false => state.traffic.replies += 1,
            }
            drop(state);
            if let Some(bequest) = asker.tell(reply.ok_or(NoReply::Malformed)) {
                self.bequeath(bequest);
            }
        } else if tag != 0 && tag <= state.last_tag && reply.is_some() && !state.askers.contains_key(&tag) {
            state.traffic.late += 1;
        } else {
            state.traffic.strays += 1;
            return false;
        }
        true
    }
}

impl State {
    fn post(&mut self, mut message: Vec<u8>, who: Who) -> Result<u64, NoReply> {
        if self.closed {
            return Err(NoReply::Ended);
        }
        let tag = self.last_tag + 1;
        message.get_mut(8..16).ok_or(NoReply::Malformed)?.copy_from_slice(&tag.to_le_bytes());
        self.last_tag = tag;
        self.askers.insert(tag, Asker { who, sent: false, given_up: false });
        self.pending.push_back(Letter { tag, message });
        Ok(tag)
    }

    /// Nobody wants a reply with this tag.
    fn withdraw(&mut self, tag: u64) {
        if self.askers.remove(&tag).is_some_and(|asker| !asker.sent) {
            self.pending.retain(|letter| letter.tag != tag);
        }
    }

    /// Takes out the oldest heir, if there are too many.
    fn forget_oldest(&mut self) -> Option<Asker> {
        let heirs = || self.askers.iter().filter(|(_, asker)| asker.is_heir()).map(|(&tag, _)| tag);
        let oldest = if heirs().count() > MAX_HEIRS { heirs().min() } else { None }?;
        self.pending.retain(|letter| letter.tag != oldest);
        self.askers.remove(&oldest)
    }
}

/// There will be no replies: nothing is sent in turn.
fn answer_all(askers: Vec<Asker>, why: NoReply) {
    for asker in askers {
        drop(asker.tell(Err(why)));
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

    /// Stops waiting, unless the reply has just come: then it is given here, and the heir is not needed. A command that
    /// the guest does not have yet is not sent.
    pub fn leave(mut self, heir: Box<dyn Heir>) -> Option<Result<Reply, NoReply>> {
        let mut state = self.mailbox.lock();
        let tag = std::mem::take(&mut self.tag);
        let forgotten = match state.askers.get_mut(&tag) {
            None => {
                drop(state);
                return self.poll(Duration::ZERO).or(Some(Err(NoReply::Ended)));
            }
            Some(asker) if asker.sent => {
                (asker.who, asker.given_up) = (Who::Left(heir), true);
                state.forget_oldest()
            }
            Some(_) => {
                state.withdraw(tag);
                drop(state);
                if let Some(bequest) = heir.learn(Fate::Unsent) {
                    self.mailbox.bequeath(bequest);
                }
                return None;
            }
        };
        drop(state);
        drop(forgotten.and_then(|asker| asker.tell(Err(NoReply::TimedOut))));
        None
    }
}

/// Nobody waits any more. A command that the guest does not have yet is not sent.
impl Drop for Waiting {
    fn drop(&mut self) {
        self.mailbox.lock().withdraw(self.tag);
    }
}
