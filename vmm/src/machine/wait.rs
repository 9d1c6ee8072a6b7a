//! Waiting: for how long, and for whom else.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Until when to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// Wait as long as it takes.
    pub const NEVER: Self = Self(None);

    /// Wait until `instant`.
    pub const fn at(instant: Instant) -> Self {
        Self(Some(instant))
    }

    /// Wait for `time` from now; without end if that is beyond what the clock can count.
    pub fn after(time: Duration) -> Self {
        Self(Instant::now().checked_add(time))
    }

    /// How long it is until then; `None` if it never is.
    pub fn left(self) -> Option<Duration> {
        self.0.map(|instant| instant.saturating_duration_since(Instant::now()))
    }

    /// For `poll`: rounded up, so that it does not wake just before the time.
    fn timeout(self) -> PollTimeout {
        let Some(instant) = self.0 else { return PollTimeout::NONE };
        let left = instant.saturating_duration_since(Instant::now());
        let millis = left.as_nanos().div_ceil(1_000_000);
        PollTimeout::from(u16::try_from(millis).unwrap_or(u16::MAX))
    }

    fn passed(self) -> bool {
        self.0.is_some_and(|instant| Instant::now() >= instant)
    }
}

/// Why someone outside the guest ended it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum StopReason {
    /// By request, such as `pagevisor stop` or [`super::Machine::stop`].
    Request = 1,
    /// SIGINT: Ctrl-C.
    Interrupt = 2,
    /// SIGTERM.
    Terminate = 3,
}

/// Wakes whoever waits for a machine. Clones are the same event.
#[derive(Clone, Debug)]
pub struct StopEvent(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fd: EventFd,
    /// The first reason, or 0.
    reason: AtomicU8,
}

impl StopEvent {
    /// An event that has not happened.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        let fd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self(Arc::new(Inner { fd, reason: AtomicU8::new(0) })))
    }

    /// Lets it happen, for good. The first reason counts. May be called from a signal handler.
    pub fn stop(&self, reason: StopReason) {
        let _ = self.0.reason.compare_exchange(0, reason as u8, Ordering::Release, Ordering::Relaxed);
        // Fails only when the counter is full, and then the event has happened.
        let _ = self.0.fd.write(1);
    }

    /// Why it happened, if it has.
    pub fn reason(&self) -> Option<StopReason> {
        match self.0.reason.load(Ordering::Acquire) {
            0 => None,
            2 => Some(StopReason::Interrupt),
            3 => Some(StopReason::Terminate),
            _ => Some(StopReason::Request),
        }
    }
}

/// Readable once the event has happened.
impl AsFd for StopEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        event_fd(&self.0.fd)
    }
}

/// Borrows an eventfd for polling.
pub(super) fn event_fd(fd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as `fd` is, which the result borrows.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}

/// Sleeps until one of `fds` is readable and gives the index of the first that is, or `None` at the deadline.
pub(super) fn wait_any<const N: usize>(fds: [BorrowedFd<'_>; N], deadline: Deadline) -> Option<usize> {
    let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    loop {
        match poll(&mut fds, deadline.timeout()) {
            Ok(0) | Err(Errno::EINTR) if deadline.passed() => return None,
            Ok(0) | Err(Errno::EINTR | Errno::EAGAIN) => {}
            // Nothing else can happen to descriptors that are open; were it to, it must not become a busy loop.
            Err(_) => return None,
            Ok(_) => {
                if let Some(first) = fds.iter().position(|fd| fd.any() == Some(true)) {
                    return Some(first);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_counts_and_stays() {
        let stop = StopEvent::new().unwrap();
        assert_eq!(stop.reason(), None);
        assert_eq!(wait_any([stop.as_fd()], Deadline::after(Duration::ZERO)), None);
        stop.clone().stop(StopReason::Terminate);
        stop.stop(StopReason::Interrupt);
        assert_eq!(stop.reason(), Some(StopReason::Terminate));
        for _ in 0..2 {
            assert_eq!(wait_any([stop.as_fd()], Deadline::NEVER), Some(0));
        }
    }

    #[test]
    fn a_deadline_is_neither_early_nor_forgotten() {
        let stop = StopEvent::new().unwrap();
        let begin = Instant::now();
        assert_eq!(wait_any([stop.as_fd()], Deadline::after(Duration::from_micros(20_300))), None);
        assert!(begin.elapsed() >= Duration::from_micros(20_300));
        assert_eq!(wait_any([stop.as_fd()], Deadline::at(begin)), None);
    }
}
