//! Going into the background.
//!
//! The command forks while it still has one thread. The child boots the guest with the terminal's stdio, so that all
//! it has to say until the guest is ready, error or summary, is seen; then it lets go of terminal, session and
//! directory, and tells the parent its exit status. The parent only waits, and passes on the signals it gets.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::kill;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe, setsid};

use super::signals::Signals;
use crate::error::exit_status;

/// The child's word to its parent. If it is dropped without [`Parent::release`], the parent ends with the child.
#[derive(Debug)]
pub(super) struct Parent(File);

/// Which of the two processes this is.
pub(super) enum Side {
    /// The one in the background.
    Child(Parent),
    /// The one that was started; this is its exit status.
    Parent(u8),
}

/// Splits this process in two. In the parent it returns when the child has let go of it or ended.
pub(super) fn split(signals: &Signals) -> io::Result<Side> {
    let (reader, writer) = pipe()?;
    // SAFETY: the process has a single thread here (the command starts none before), so the child may go on as if
    // it had been started itself.
    match unsafe { fork() }? {
        ForkResult::Child => Ok(Side::Child(Parent(writer.into()))),
        ForkResult::Parent { child } => {
            drop(writer);
            Ok(Side::Parent(wait(child, reader.into(), signals)))
        }
    }
}

fn wait(child: Pid, mut reader: File, signals: &Signals) -> u8 {
    loop {
        let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => break,
        }
        if let Some(signal) = signals.take() {
            // If the child has just ended there is nothing left to end.
            let _ = kill(child, signal);
            continue;
        }
        let mut word = [0];
        match reader.read(&mut word) {
            Ok(1) => return word[0],
            Ok(_) => break,
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted) => {}
            Err(_) => break,
        }
    }
    match waitpid(child, None) {
        Ok(WaitStatus::Exited(_, code)) => u8::try_from(code).unwrap_or(exit_status::FAILURE),
        Ok(WaitStatus::Signaled(_, signal, _)) => super::signals::exit_status(signal),
        _ => exit_status::FAILURE,
    }
}

impl Parent {
    /// Lets go of the terminal, the session and the directory, and lets the parent end with status 0.
    pub fn release(mut self) -> io::Result<()> {
        // Fails only for the leader of a process group, which a process just forked is not.
        setsid()?;
        chdir("/")?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        dup2_stderr(&null)?;
        // A parent that was killed cannot be told; the guest was asked for all the same.
        let _ = self.0.write_all(&[exit_status::OK]);
        Ok(())
    }
}
