//! How far a machine is: running, ready, ended. Threads of vCPUs write it, those who wait for the machine read it.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::pause::PauseGate;
use super::wait::StopReason;
use crate::devices::monitor::Mailbox;
use crate::kvm::{Cause, CpuRegisters, Interrupter, Kick, Supervisor};

/// What made a machine end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    /// One of its vCPUs.
    Vcpu(Box<Cause>),
    /// Someone outside.
    Stopped(StopReason),
}

/// The machine's progress. Each step happens once.
#[derive(Debug)]
pub(super) struct Lifecycle {
    ending: OnceLock<Ending>,
    ready_at: OnceLock<Instant>,
    /// vCPU threads that have not left.
    running: AtomicUsize,
    kicks: Vec<Kick>,
    interrupter: Interrupter,
    /// Where vCPU threads wait while the machine is paused.
    pub pause: PauseGate,
    /// Commands on their way, and who waits for replies.
    pub mailbox: Arc<Mailbox>,
    /// Readable once the guest is ready.
    pub ready: EventFd,
    /// Readable once the machine has ended and no vCPU runs any more.
    pub ended: EventFd,
}

impl Lifecycle {
    /// Of a machine with `vcpus` vCPUs.
    pub(super) fn new(vcpus: usize, interrupter: Interrupter) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        Ok(Self {
            ending: OnceLock::new(),
            ready_at: OnceLock::new(),
            running: AtomicUsize::new(vcpus),
            kicks: (0..vcpus).map(|_| Kick::default()).collect(),
            interrupter,
            pause: PauseGate::new(vcpus),
            mailbox: Arc::default(),
            ready: event()?,
            ended: event()?,
        })
    }

    /// Where vCPU `index` can be kicked.
    pub(super) fn kick(&self, index: usize) -> &Kick {
        &self.kicks[index]
    }

    /// The guest is ready.
    pub(super) fn set_ready(&self) {
        if self.ready_at.set(Instant::now()).is_ok() {
            // The counter is empty, so the write cannot fail.
            let _ = self.ready.write(1);
        }
    }

    /// When the guest was ready.
    pub(super) fn ready_at(&self) -> Option<Instant> {
        self.ready_at.get().copied()
    }

    /// Ends the machine, unless it has ended, and makes all vCPU threads leave.
    pub(super) fn end(&self, ending: Ending) {
        if self.ending.set(ending).is_ok() {
            self.kick_all();
            self.pause.wake();
            self.mailbox.close();
        }
    }

    /// Makes all vCPUs leave the guest for a moment. A thread that does not stand in its kick yet looks at what there
    /// is to do after it does: both take the same lock.
    pub(super) fn kick_all(&self) {
        self.kicks.iter().for_each(Kick::kick);
    }

    /// Makes vCPU `index` look whether it is to stay at a safe point.
    pub(super) fn interrupt(&self, index: usize) {
        self.interrupter.interrupt(index as u32);
    }

    /// As [`Self::end`], for a vCPU.
    pub(super) fn end_by(&self, cause: Cause) {
        self.end(Ending::Vcpu(Box::new(cause)));
    }

    /// What ended the machine, if it has.
    pub(super) fn ending(&self) -> Option<&Ending> {
        self.ending.get()
    }

    /// A vCPU thread leaves; the last one reports the end.
    fn leave(&self) {
        if self.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            // The counter is empty, so the write cannot fail.
            let _ = self.ended.write(1);
        }
    }
}

impl Supervisor for Lifecycle {
    fn ended(&self) -> bool {
        self.ending().is_some()
    }

    fn hold(&self, cpu: u32, registers: &dyn Fn() -> CpuRegisters) {
        self.pause.hold(cpu as usize, registers, &|| self.ended());
    }
}

/// Stands for a vCPU thread: whatever way the thread goes, the machine learns of it.
pub(super) struct Running<'a>(pub &'a Lifecycle);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end_by(Cause::Host("a vCPU thread panicked, which is a bug of this program".into()));
        }
        self.0.leave();
    }
}
