//! The monitor device: virtio over MMIO, through which the guest finds the state region, tells how far it has come,
//! and will be sent commands.
//!
//! Register accesses come from vCPU threads ([`Device`]); queue notifications ring a doorbell ([`Monitor::doorbell`])
//! that a thread of the device waits for. A driver that breaks the rules of virtio finds the device in
//! `DEVICE_NEEDS_RESET`, and the log says what it did.
//!
//! A command ([`Monitor::submit`]) goes into the next buffer that the driver has put into the command queue; until there
//! is one it waits. Replies find their requesters by tag ([`Mailbox`]), and their buffers go back to the driver.

mod config;
mod interrupt;
mod mailbox;
mod queue;
mod registers;
#[cfg(test)]
mod tests;
mod transfer;
mod worker;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, io};

use pagevisor_shared::command::{BUFFER_BYTES, CommandHeader, RawOp};
use pagevisor_shared::device::monitor;
use pagevisor_shared::region::GuestState;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::bus::Device;
use super::{Input, Tty};
use crate::memory::GuestMemory;
use crate::topology::AddrRange;

pub use interrupt::{Interrupt, MsiRoute};
pub use mailbox::{Bequest, Fate, Heir, MAX_HEIRS, Mailbox, NoReply, Reply, Traffic, Waiting, encode};
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
    /// Commands and who waits for replies; whoever learns first of the machine's end closes it.
    pub mailbox: Arc<Mailbox>,
    /// Where what programs write to the console goes.
    pub tty: Arc<Tty>,
    /// What programs read from the console.
    pub input: Arc<Input>,
}

/// The device.
pub struct Monitor {
    inner: Mutex<Inner>,
    memory: Arc<GuestMemory>,
    interrupt: Interrupt,
    doorbells: [EventFd; QUEUES],
    mailbox: Arc<Mailbox>,
    hooks: MonitorHooks,
}

struct Inner {
    registers: Registers,
    notices: u32,
    signals: Signals,
}

/// How often driver and device disturbed each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Signals {
    /// Notifications by the driver, each of which takes a vCPU out of the guest, by queue.
    pub kicks: [u64; QUEUES],
    /// Interrupts by the device.
    pub interrupts: u64,
}

impl Signals {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.kicks.iter().sum::<u64>() + self.interrupts
    }
}

impl Monitor {
    /// A device for the state region of `memory`, which interrupts through `route`.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new(memory: Arc<GuestMemory>, route: Box<dyn MsiRoute>, hooks: MonitorHooks) -> io::Result<Self> {
        let shm = AddrRange { start: memory.state().start(), size: memory.state().size() };
        let doorbell = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let console = doorbell()?;
        hooks.tty.ring_for_room(console.try_clone()?);
        let input = doorbell()?;
        hooks.input.ring_for_answers(input.try_clone()?);
        Ok(Self {
            inner: Mutex::new(Inner { registers: Registers::new(shm), notices: 0, signals: Signals::default() }),
            memory,
            interrupt: Interrupt::new(route)?,
            doorbells: [doorbell()?, doorbell()?, console, input],
            mailbox: hooks.mailbox.clone(),
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
        self.mailbox.forget_sent();
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
            Effect::Reset => {
                self.interrupt.unroute();
                self.mailbox.forget_sent();
            }
            Effect::Notify(queue) => self.serve(inner, queue),
            Effect::State(state) => {
                (self.hooks.state)(state);
                self.send(inner);
            }
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

    /// How often driver and device disturbed each other so far.
    pub fn signals(&self) -> Signals {
        self.lock().signals
    }

    /// A doorbell has rung, so often.
    fn rung(&self, queue: usize, times: u64) {
        let mut inner = self.lock();
        inner.kicked(queue, times);
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
        match index as u32 {
            monitor::QUEUE_REPLY => self.receive(inner),
            monitor::QUEUE_CONSOLE => self.print(inner),
            monitor::QUEUE_INPUT => self.feed(inner),
            _ => self.send(inner),
        }
    }

    /// Takes what programs have written, as long as there is room for it.
    fn print(&self, inner: &mut Inner) {
        let ram = self.memory.ram();
        let tty = &self.hooks.tty;
        let printed = inner.live_queue(monitor::QUEUE_CONSOLE).map(|queue| transfer::print(queue, ram, tty));
        if let Some(Ok(transfer::Received { more: true, .. })) = printed {
            let _ = self.doorbells[monitor::QUEUE_CONSOLE as usize].write(1);
        }
        self.used(inner, monitor::QUEUE_CONSOLE, printed.map(|printed| printed.map(|printed| printed.interrupt)));
    }

    /// Gives programs what there is to read for them.
    fn feed(&self, inner: &mut Inner) {
        let ram = self.memory.ram();
        let fed = inner.live_queue(monitor::QUEUE_INPUT).map(|queue| transfer::feed(queue, ram, &self.hooks.input));
        self.used(inner, monitor::QUEUE_INPUT, fed);
    }

    /// Puts commands that wait into the buffers that are there.
    fn send(&self, inner: &mut Inner) {
        let ram = self.memory.ram();
        let sent = inner.live_queue(monitor::QUEUE_COMMAND).map(|queue| transfer::send(queue, ram, &self.mailbox));
        self.used(inner, monitor::QUEUE_COMMAND, sent);
    }

    /// Takes the replies that are there and gives their buffers back. The driver that tells of a reply has put a buffer
    /// back, too, so commands that wait are sent then.
    fn receive(&self, inner: &mut Inner) {
        let ram = self.memory.ram();
        let mut strays = 0;
        let received = inner
            .live_queue(monitor::QUEUE_REPLY)
            .map(|queue| transfer::receive(queue, ram, &mut |reply| strays += u32::from(!self.mailbox.deliver(reply))));
        for _ in 0..strays {
            self.notice(inner, "monitor device: a reply to no command, or one that makes no sense");
        }
        if let Some(Ok(transfer::Received { more: true, .. })) = received {
            // They are looked at after what else the device has to do.
            let _ = self.doorbells[monitor::QUEUE_REPLY as usize].write(1);
        }
        self.used(inner, monitor::QUEUE_REPLY, received.map(|received| received.map(|received| received.interrupt)));
        if self.mailbox.has_pending() {
            self.send(inner);
        }
    }

    /// Tells the driver of buffers that were used, or what is wrong with them.
    fn used(&self, inner: &mut Inner, index: u32, used: Option<Result<bool, virtio_queue::Error>>) {
        match used {
            None | Some(Ok(false)) => {}
            Some(Ok(true)) => {
                inner.registers.buffers_used();
                inner.signals.interrupts += 1;
                self.interrupt.raise();
            }
            Some(Err(_)) => self.broken(inner, Violation::Buffer(index as usize)),
        }
    }

    /// Sends a command to the guest as soon as it has a buffer for it.
    ///
    /// # Errors
    /// When it is too long, or the machine has ended.
    pub fn submit(&self, header: CommandHeader, ops: &[RawOp], payload: &[u8]) -> Result<Waiting, NoReply> {
        let message = mailbox::encode(header, ops, payload);
        if message.len() > BUFFER_BYTES {
            return Err(NoReply::TooLong);
        }
        let waiting = self.mailbox.post(message)?;
        self.send(&mut self.lock());
        Ok(waiting)
    }

    /// Sends a command whose reply nobody waits for, as soon as the guest has a buffer for it.
    pub fn bequeath(&self, bequest: Bequest) {
        if bequest.message.len() <= BUFFER_BYTES {
            self.mailbox.bequeath(bequest);
            self.send(&mut self.lock());
        }
    }

    /// Commands and replies.
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("mailbox", &self.mailbox).finish_non_exhaustive()
    }
}

impl Inner {
    /// The driver has notified a queue, which may be none.
    fn kicked(&mut self, queue: usize, times: u64) {
        if let Some(kicks) = self.signals.kicks.get_mut(queue) {
            *kicks = kicks.wrapping_add(times);
        }
    }

    /// The queue, if the driver has set it up and is alive.
    fn live_queue(&mut self, index: u32) -> Option<&mut virtio_queue::Queue> {
        if self.registers.is_live() { self.registers.queue(index as usize) } else { None }
    }
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
            Ok(effect) => {
                if let Effect::Notify(queue) = effect {
                    inner.kicked(queue, 1);
                }
                self.apply(&mut inner, effect);
            }
            Err(_) if inner.registers.needs_reset() => {}
            Err(violation) => self.broken(&mut inner, violation),
        }
    }
}
