//! What signals do to a process (`struct sighand_struct`).

use alloc::sync::Arc;
use core::any::Any;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::errno::Errno;
use pagevisor_shared::sched::SighandStruct;

use super::{IGNORED, SIGNALS, UNBLOCKABLE, bit};
use crate::sync::SpinLock;
use crate::task::{self, Resource};

/// Nothing special happens (`SIG_DFL`); nothing happens at all (`SIG_IGN`).
const DEFAULT: u64 = 0;
const IGNORE: u64 = 1;

/// The parent is not told of children that stop (`SA_NOCLDSTOP`).
const SA_NOCLDSTOP: u64 = 0x1;
/// Ended children are not waited for (`SA_NOCLDWAIT`).
const SA_NOCLDWAIT: u64 = 0x2;
/// The handler uses the stack for handlers.
const SA_ONSTACK: u64 = 0x0800_0000;
/// Calls that were interrupted are made again.
const SA_RESTART: u64 = 0x1000_0000;
/// The signal is not blocked in its handler.
const SA_NODEFER: u64 = 0x4000_0000;
/// Handled once.
const SA_RESETHAND: u64 = 0x8000_0000;
/// The handler's way back is given.
const SA_RESTORER: u64 = 0x0400_0000;

/// What a signal does (`struct sigaction` as the kernel has it).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Action {
    /// The handler.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Where the handler returns to.
    pub restorer: u64,
    /// What is blocked meanwhile.
    pub mask: u64,
}

impl Action {
    /// Whether it is ignored.
    pub const fn ignores(&self) -> bool {
        self.handler == IGNORE
    }

    /// Whether nobody handles it.
    pub const fn is_default(&self) -> bool {
        self.handler == DEFAULT
    }

    /// Whether a handler is there for it.
    const fn is_caught(&self) -> bool {
        !self.ignores() && !self.is_default()
    }

    /// Whether nothing happens on signal `number` (`sig_handler_ignored`).
    pub const fn does_nothing(&self, number: u32) -> bool {
        self.ignores() || self.is_default() && IGNORED & bit(number) != 0
    }

    /// Whether children that end are not to be asked for.
    pub const fn leaves_no_zombies(&self) -> bool {
        self.flags & SA_NOCLDWAIT != 0
    }

    /// Whether children that stop or go on are no reason for a signal.
    pub(super) const fn wants_only_ends(&self) -> bool {
        self.flags & SA_NOCLDSTOP != 0
    }

    pub(super) const fn restarts(&self) -> bool {
        self.flags & SA_RESTART != 0
    }

    pub(super) const fn is_once(&self) -> bool {
        self.flags & SA_RESETHAND != 0
    }

    pub(super) const fn wants_stack(&self) -> bool {
        self.flags & SA_ONSTACK != 0
    }

    pub(super) const fn way_back(&self) -> Option<u64> {
        if self.flags & SA_RESTORER != 0 { Some(self.restorer) } else { None }
    }

    /// What is blocked while signal `number` is handled.
    pub(super) const fn blocks(&self, number: u32) -> u64 {
        (self.mask | if self.flags & SA_NODEFER != 0 { 0 } else { bit(number) }) & !UNBLOCKABLE
    }
}

/// What each signal does.
#[derive(Debug)]
pub struct Actions {
    /// What others may read. Written with the actions locked.
    record: SighandStruct,
    actions: SpinLock<[Action; SIGNALS as usize]>,
}

impl Default for Actions {
    fn default() -> Self {
        Self::new([Action::default(); SIGNALS as usize], [0; 2])
    }
}

impl Resource for Actions {
    fn duplicate(&self) -> Result<Arc<dyn Resource>, Errno> {
        let actions = self.actions.lock();
        let copy = Self::new(*actions, self.masks());
        drop(actions);
        Ok(Arc::new(copy))
    }

    fn record(&self) -> u64 {
        task::address_of(&self.record)
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Actions {
    /// These actions, of which those in `ignored` ignore, and those in `caught` are handlers.
    const fn new(actions: [Action; SIGNALS as usize], [ignored, caught]: [u64; 2]) -> Self {
        let record = SighandStruct { ignored: AtomicU64::new(ignored), caught: AtomicU64::new(caught) };
        Self { record, actions: SpinLock::new(actions) }
    }

    /// What signal `number` does.
    pub fn get(&self, number: u32) -> Action {
        self.actions.lock()[(number - 1) as usize % SIGNALS as usize]
    }

    /// Changes what signal `number` does; gives what it did.
    pub fn set(&self, number: u32, action: Action) -> Action {
        let mut actions = self.actions.lock();
        for (word, is_set) in [(&self.record.ignored, action.ignores()), (&self.record.caught, action.is_caught())] {
            let others = word.load(Relaxed) & !bit(number);
            word.store(others | if is_set { bit(number) } else { 0 }, Relaxed);
        }
        core::mem::replace(&mut actions[(number - 1) as usize % SIGNALS as usize], action)
    }

    /// Signals that are ignored, and that a handler is there for.
    pub fn masks(&self) -> [u64; 2] {
        [&self.record.ignored, &self.record.caught].map(|word| word.load(Relaxed))
    }

    /// What is left when another program is run: who ignored goes on to.
    pub(super) fn for_another_program(&self) -> Self {
        let actions = self.actions.lock();
        let [ignored, _] = self.masks();
        let kept = actions.map(|action| match action.handler {
            IGNORE => Action { handler: IGNORE, ..Action::default() },
            _ => Action::default(),
        });
        Self::new(kept, [ignored, 0])
    }
}
