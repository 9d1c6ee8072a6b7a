//! The monitor's thread: it sleeps until a doorbell rings.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Monitor, QUEUES};
use crate::sandbox::{self, Role};

/// Serves the monitor's doorbells. Dropping it ends the thread.
#[derive(Debug)]
pub struct MonitorWorker {
    quit: Arc<EventFd>,
    thread: Option<JoinHandle<Option<()>>>,
}

impl MonitorWorker {
    /// Starts the thread, confined as `sandbox` says.
    ///
    /// # Errors
    /// When the process has no thread or file descriptor left.
    pub fn start(monitor: Arc<Monitor>, sandbox: sandbox::Mode) -> io::Result<Self> {
        let quit = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let ends = quit.clone();
        let builder = Builder::new().name("monitor".into()).stack_size(256 << 10);
        let thread = sandbox::spawn(builder, Role::Monitor, sandbox, move || serve(&monitor, &ends))?;
        Ok(Self { quit, thread: Some(thread) })
    }
}

impl Drop for MonitorWorker {
    fn drop(&mut self) {
        // Fails only when the counter is full, and then the thread is awake already.
        let _ = self.quit.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by its own hook; there is nothing to add.
            let _ = thread.join();
        }
    }
}

fn serve(monitor: &Monitor, quit: &EventFd) {
    // Signals are for the process's main thread, but for the sandbox's. Blocking them cannot fail.
    let mut signals = SigSet::all();
    signals.remove(Signal::SIGSYS);
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&signals), None);
    loop {
        let wait = |fd: &EventFd| {
            // SAFETY: both eventfds are borrowed by this function, which outlives the poll.
            PollFd::new(unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }, PollFlags::POLLIN)
        };
        let [command, reply, console, input] = &monitor.doorbells;
        let mut fds = [wait(command), wait(reply), wait(console), wait(input), wait(quit)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(_) => return,
        }
        if fds[QUEUES].any() == Some(true) {
            return;
        }
        for (queue, doorbell) in monitor.doorbells.iter().enumerate() {
            // The read empties the counter, so that the next poll sleeps again.
            if let Ok(times) = doorbell.read() {
                monitor.rung(queue, times);
            }
        }
    }
}
