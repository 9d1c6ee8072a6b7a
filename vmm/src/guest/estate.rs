//! Handles: which are free, and what becomes of those whose owner did not wait for the guest to answer.
//!
//! Whoever sends a command says what it does to handles ([`Claim`]). If he gives up waiting, the claims go to an heir
//! ([`Abandoned`]) that is told the late reply: what the command has allocated is owed to the guest, and is freed by a
//! command that nobody waits for; the handles are free when that one is answered. While the guest owes an answer, what is
//! dropped is owed too instead of waited for. All of it is ranges of handles, so there is an end to it also when the
//! answers never come.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pagevisor_shared::command::{CommandHeader, MAX_OPS, Op, OpError, OpResult};

use super::handles::Handles;
use crate::devices::monitor::{Bequest, Fate, Heir, Reply, encode};

/// What a command does to handles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    /// The first one.
    pub handle: u32,
    /// How many.
    pub count: u32,
    /// The operation by which they come to stand for something; `None` if they do already.
    pub given: Option<usize>,
    /// The operation after which they stand for nothing.
    pub taken: Option<usize>,
}

impl Claim {
    /// Operation 0 allocates.
    pub(super) fn given(handle: u32, count: u32) -> Self {
        Self { handle, count, given: Some(0), taken: None }
    }

    /// Operation 0 frees.
    pub(super) fn taken(handle: u32, count: u32) -> Self {
        Self { handle, count, given: None, taken: Some(0) }
    }

    /// How many of the handles an operation got through.
    fn through(&self, results: &[OpResult], op: usize) -> u32 {
        match results.get(op) {
            Some(OpResult { error: None, .. }) => self.count,
            Some(result) => u32::try_from(result.value).unwrap_or(u32::MAX).min(self.count),
            None => 0,
        }
    }
}

/// The books of a guest's handles.
#[derive(Debug)]
pub(super) struct Book(Mutex<Accounts>);

#[derive(Debug)]
struct Accounts {
    free: Handles,
    /// Handles that stand for something which nobody owns any more.
    owed: Handles,
    /// Commands that nobody waits for, and that the guest has not answered.
    unanswered: u32,
    /// A command that frees what is owed is on its way.
    freeing: bool,
}

impl Default for Book {
    fn default() -> Self {
        let (free, owed) = (Handles::default(), Handles::none());
        Self(Mutex::new(Accounts { free, owed, unanswered: 0, freeing: false }))
    }
}

impl Book {
    fn lock(&self) -> MutexGuard<'_, Accounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `count` handles in a row.
    pub(super) fn take(&self, count: u32) -> Option<u32> {
        self.lock().free.take(count)
    }

    /// Handles that stand for nothing are free.
    pub(super) fn give(&self, start: u32, count: u32) {
        self.lock().free.give(start, count);
    }

    /// Takes over what handles stand for, if the guest owes answers.
    pub(super) fn owe_if_silent(&self, start: u32, count: u32) -> bool {
        let mut accounts = self.lock();
        let silent = accounts.unanswered != 0;
        if silent {
            accounts.owed.give(start, count);
        }
        silent
    }

    /// Who is told when the command that does this is answered after all.
    pub(super) fn heir(self: &Arc<Self>, cpu: u32, claims: &[Claim]) -> Box<dyn Heir> {
        self.lock().unanswered += 1;
        Box::new(Abandoned { book: self.clone(), cpu, claims: claims.to_vec() })
    }

    /// A command for `cpu`, which has answered, that frees what is owed.
    pub(super) fn settle(self: &Arc<Self>, cpu: u32) -> Option<Bequest> {
        let mut accounts = self.lock();
        if accounts.freeing || accounts.owed.is_empty() {
            return None;
        }
        accounts.freeing = true;
        let ranges = accounts.owed.take_ranges(MAX_OPS);
        drop(accounts);
        let ops: Vec<_> = ranges.iter().map(|&(handle, count)| Op::FreePages { handle, count }.encode()).collect();
        let message = encode(CommandHeader { cpu, ..CommandHeader::default() }, &ops, &[]);
        Some(Bequest { message, heir: Box::new(Freeing { book: self.clone(), cpu, ranges }) })
    }
}

/// A command that was given up on.
struct Abandoned {
    book: Arc<Book>,
    cpu: u32,
    claims: Vec<Claim>,
}

impl Heir for Abandoned {
    fn learn(self: Box<Self>, fate: Fate) -> Option<Bequest> {
        let mut accounts = self.book.lock();
        let results = match &fate {
            Fate::Answered(reply) => &reply.results[..],
            Fate::Unsent => &[],
            // The guest may have all of it, or nothing: these handles are not used again.
            Fate::Unknown(_) => return None,
        };
        for claim in &self.claims {
            let has = claim.given.map_or(claim.count, |op| claim.through(results, op));
            let lost = claim.taken.map_or(0, |op| claim.through(results, op)).min(has);
            accounts.free.give(claim.handle, lost);
            accounts.owed.give(claim.handle + lost, has - lost);
            accounts.free.give(claim.handle + has, claim.count - has);
        }
        drop(accounts);
        // A guest without a buffer for the command has none for another. It gets it with its next answer.
        if fate == Fate::Unsent { None } else { self.book.settle(self.cpu) }
    }
}

/// It is answered, or never will be, or was just before it was given up on.
impl Drop for Abandoned {
    fn drop(&mut self) {
        let mut accounts = self.book.lock();
        accounts.unanswered = accounts.unanswered.saturating_sub(1);
    }
}

/// A command that frees what was owed.
struct Freeing {
    book: Arc<Book>,
    cpu: u32,
    ranges: Vec<(u32, u32)>,
}

impl Freeing {
    fn settle(&self, accounts: &mut Accounts, reply: &Reply) {
        for (&(handle, count), result) in self.ranges.iter().zip(&reply.results) {
            let freed = match result.error {
                None => count,
                Some(_) => u32::try_from(result.value).unwrap_or(u32::MAX).min(count),
            };
            accounts.free.give(handle, freed);
            if freed == count {
                continue;
            }
            // The one that failed may be used again if it stands for nothing; those behind it are to be tried again.
            if result.error == Some(OpError::BadHandle) {
                accounts.free.give(handle + freed, 1);
            }
            accounts.owed.give(handle + freed + 1, count - freed - 1);
        }
    }
}

impl Heir for Freeing {
    fn learn(self: Box<Self>, fate: Fate) -> Option<Bequest> {
        let mut accounts = self.book.lock();
        accounts.freeing = false;
        match &fate {
            Fate::Answered(reply) => self.settle(&mut accounts, reply),
            Fate::Unsent => self.ranges.iter().for_each(|&(handle, count)| accounts.owed.give(handle, count)),
            Fate::Unknown(_) => {}
        }
        drop(accounts);
        if matches!(fate, Fate::Answered(_)) { self.book.settle(self.cpu) } else { None }
    }
}
