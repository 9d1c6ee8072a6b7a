//! The end of a process that was told to end and cannot.
//!
//! Whoever runs a guest may be stuck for a reason that is not the guest's: standard error is a pipe that is full and
//! that nobody reads, a file system does not answer. A thread of its own waits for the same requests as the main one,
//! and if the process is still there some time later, ends it. What is left behind then is what a killed process
//! leaves; the next command that looks cleans up.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, Builder};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::signals::Signals;
use crate::machine::StopEvent;
use crate::sandbox::{self, Mode, Role};

/// How long an orderly end may take.
const GRACE: Duration = Duration::from_secs(5);

/// Watches over the end of this process, from now on. `status` is the exit status of a request that the main thread
/// has taken already.
pub(super) fn watch(signals: &Signals, stop: &StopEvent, status: Arc<AtomicU8>, mode: Mode) -> io::Result<()> {
    let mut signals = File::from(signals.as_fd().try_clone_to_owned()?);
    let stop = stop.clone();
    let body = move || {
        wait(&signals, &stop);
        thread::sleep(GRACE);
        // A record of a signal that nobody has taken begins with its number.
        let mut record = [0; 128];
        let taken = signals.read(&mut record).is_ok_and(|len| len != 0);
        let status = if taken { 128 + record[0] } else { status.load(Ordering::Acquire) };
        // SAFETY: ends the process at once; nothing of it is run or used after this.
        unsafe { libc::_exit(status.into()) }
    };
    // Not joined: it ends with the process.
    sandbox::spawn(Builder::new().name("grace".into()), Role::Control, mode, body).map(drop)
}

/// Waits until someone asks for the end.
fn wait(signals: &File, stop: &StopEvent) {
    loop {
        let mut fds = [signals.as_fd(), stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => return,
            Err(Errno::EINTR) => {}
            // ENOMEM, perhaps for a moment.
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}
