//! The monitor device: virtio over MMIO, through which the guest finds the state region, tells how far it has come,
//! and will be sent commands.
//!
//! Register accesses come from vCPU threads ([`Device`]); queue notifications ring a doorbell ([`Monitor::doorbell`])
//! that a thread of the device waits for. A driver that breaks the rules of virtio finds the device in
//! `DEVICE_NEEDS_RESET`, and the log says what it did.
//!
//! Commands are not sent yet: the command queue is set up and checked, buffers stay with the device; what arrives in
//! the reply queue answers nothing and goes back to the driver as used.

mod config;
mod interrupt;
mod queue;
mod registers;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pagevisor_shared::device::monitor;
use pagevisor_shared::region::GuestState;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::bus::Device;
use crate::memory::GuestMemory;
use crate::topology::AddrRange;

pub use interrupt::{Interrupt, MsiRoute};
pub use queue::QueueSetupError;
pub use registers::{Effect, QUEUES, Registers, Violation};
pub use worker::MonitorWorker;

/// Receives lines for the VMM's log: what the guest did that it should not have.
pub type Notice = Arc<dyn Fn(&str) + Send + Sync>;

/// Most lines that a guest can cause in the log.
const MAX_NOTICES: u32 = 16;

/// Where the device reports to.
pub struct MonitorHooks {
    /// The guest has come so far.
    pub state: Box<dyn Fn(GuestState) + Send + Sync>,
    /// The log.
    pub notice: Notice,
}

/// The device.
pub struct Monitor {
    inner: Mutex<Inner>,
    memory: Arc<GuestMemory>,
    interrupt: Interrupt,
    doorbells: [EventFd; QUEUES],
    hooks: MonitorHooks,
}

struct Inner {
    registers: Registers,
    notices: u32,
}

impl Monitor {
    /// A device for the state region of `memory`, which interrupts through `route`.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new(memory: Arc<GuestMemory>, route: Box<dyn MsiRoute>, hooks: MonitorHooks) -> io::Result<Self> {
        let shm = AddrRange { start: memory.state().start(), size: memory.state().size() };
        let doorbell = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        Ok(Self {
            inner: Mutex::new(Inner { registers: Registers::new(shm), notices: 0 }),
            memory,
            interrupt: Interrupt::new(route)?,
            doorbells: [doorbell()?, doorbell()?],
            hooks,
        })
    }

    /// The eventfd that a notification of queue `index` is to signal, and the value the guest writes for it.
    pub fn doorbells(&self) -> impl Iterator<Item = (u32, &EventFd)> {
        (0..).zip(&self.doorbells)
    }

    /// The eventfd that raises the device's interrupt, for KVM.
    pub fn interrupt_fd(&self) -> &EventFd {
        self.interrupt.fd()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A thread that died holding the lock left registers that are each valid.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the device out of service and says why.
    fn broken(&self, inner: &mut Inner, violation: Violation) {
        self.notice(inner, &format!("monitor device: the driver {violation}; it must reset the device"));
        if inner.registers.need_reset() {
            self.interrupt.raise();
        }
    }

    /// Writes a line, unless the guest has caused too many.
    fn notice(&self, inner: &mut Inner, line: &str) {
        inner.notices = inner.notices.saturating_add(1);
        if inner.notices <= MAX_NOTICES {
            (self.hooks.notice)(line);
        }
        if inner.notices == MAX_NOTICES {
            (self.hooks.notice)("monitor device: the guest has caused too many lines; there will be no more");
        }
    }

    fn apply(&self, inner: &mut Inner, effect: Effect) {
        match effect {
            Effect::None | Effect::QueueChanged(_) => {}
            Effect::Reset => self.interrupt.unroute(),
            Effect::Notify(queue) => self.serve(inner, queue),
            Effect::State(state) => (self.hooks.state)(state),
            Effect::Msi { address, data } => {
                if let Err(error) = self.interrupt.route(address, data) {
                    self.notice(inner, &format!("monitor device: no interrupt by {address:#x}/{data:#x}: {error}"));
                }
            }
            Effect::Failed => self.notice(inner, "monitor device: the driver has given up on the device"),
            Effect::FeaturesRefused(features) => {
                let line = format!("monitor device: the driver does not take VIRTIO_F_VERSION_1 (only {features:#x})");
                self.notice(inner, &line);
            }
        }
    }

    /// A doorbell has rung.
    fn rung(&self, queue: usize) {
        let mut inner = self.lock();
        if inner.registers.needs_reset() {
            return;
        }
        match inner.registers.notify(queue as u32) {
            Ok(effect) => self.apply(&mut inner, effect),
            Err(violation) => self.broken(&mut inner, violation),
        }
    }

    /// Looks at what the driver put into a queue.
    fn serve(&self, inner: &mut Inner, index: usize) {
        if !inner.registers.is_live() {
            return;
        }
        let Some(queue) = inner.registers.queue(index) else { return };
        let ram = self.memory.ram();
        let served =
            if index == monitor::QUEUE_REPLY as usize { discard_replies(queue, ram) } else { check(queue, ram) };
        match served {
            Ok(false) => {}
            Ok(true) => {
                inner.registers.buffers_used();
                self.interrupt.raise();
            }
            Err(_) => self.broken(inner, Violation::Buffer(index)),
        }
    }
}

/// Checks that the driver is at most a queue's length ahead.
fn check(queue: &mut virtio_queue::Queue, ram: &GuestMemoryMmap) -> Result<bool, virtio_queue::Error> {
    queue.iter(ram).map(|_| false)
}

/// Gives back all replies unread: no command was sent that they could answer. Says whether to interrupt.
fn discard_replies(queue: &mut virtio_queue::Queue, ram: &GuestMemoryMmap) -> Result<bool, virtio_queue::Error> {
    // `iter` refuses an index that is more than a queue's length ahead, so this ends.
    let heads: Vec<u16> = queue.iter(ram)?.map(|chain| chain.head_index()).collect();
    for &head in &heads {
        queue.add_used(ram, head, 0)?;
    }
    Ok(!heads.is_empty() && queue.needs_notification(ram)?)
}

impl Device for Monitor {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut inner = self.lock();
        if let Err(violation) = inner.registers.read(offset, data) {
            data.fill(0);
            if !inner.registers.needs_reset() {
                self.broken(&mut inner, violation);
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut inner = self.lock();
        match inner.registers.write(offset, data, self.memory.ram()) {
            Ok(effect) => self.apply(&mut inner, effect),
            Err(_) if inner.registers.needs_reset() => {}
            Err(violation) => self.broken(&mut inner, violation),
        }
    }
}
