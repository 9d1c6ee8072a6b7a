//! What the guest's programs read: their console's input, which comes from a descriptor of the host's.
//!
//! Nothing is read before a program asks for it, and then no more than it has room for: whoever else reads from the same
//! descriptor later finds the rest, and a guest that reads slowly makes the writer wait. An end of file is the answer to
//! one question, as a terminal gives it; a pipe or a file answers the next question the same way.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::monitor::Notice;
use crate::sandbox::{self, Role};

/// Most bytes that are read at once, however many the guest has room for.
const MOST: usize = 64 << 10;

/// Bytes on their way in. Without a source every question is answered by an end of file.
#[derive(Default)]
pub struct Input {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The answer to the last question: nothing at the end of file.
    answer: Option<Vec<u8>>,
    /// Bytes that somebody has asked for, and that are being read.
    wanted: Option<usize>,
    /// Rung when there is an answer.
    doorbell: Option<EventFd>,
    /// Wakes the thread that reads, as long as there is one.
    source: Option<Arc<EventFd>>,
    /// The thread is to end.
    ends: bool,
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Input").field("wanted", &state.wanted).field("open", &state.source.is_some()).finish()
    }
}

impl Input {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on `doorbell` is rung when there is an answer to a question.
    pub(super) fn ring_for_answers(&self, doorbell: EventFd) {
        self.lock().doorbell = Some(doorbell);
    }

    /// At most `room` bytes, none of them at the end of file. `None` if they still have to be read: the doorbell is rung
    /// when they are.
    pub(super) fn take(&self, room: usize) -> Option<Vec<u8>> {
        let mut state = self.lock();
        if let Some(mut answer) = state.answer.take() {
            if answer.len() > room {
                // Asked by somebody with more room.
                state.answer = Some(answer.split_off(room));
            }
            return Some(answer);
        }
        let Some(source) = state.source.clone() else { return Some(Vec::new()) };
        if state.wanted.replace(room.clamp(1, MOST)).is_none() {
            // Fails only if the thread has been woken already.
            let _ = source.write(1);
        }
        None
    }

    /// What to read, for the thread that does; `Err` when it is to end.
    fn wanted(&self) -> Result<Option<usize>, ()> {
        let state = self.lock();
        if state.ends { Err(()) } else { Ok(state.wanted) }
    }

    /// Answers the question.
    fn answer(&self, bytes: Vec<u8>) {
        let mut state = self.lock();
        state.wanted = None;
        state.answer = Some(bytes);
        if let Some(doorbell) = &state.doorbell {
            // Fails only if it has rung already.
            let _ = doorbell.write(1);
        }
    }

    /// Nobody reads any more. Whoever still waits is at the end of file.
    fn close(&self) {
        let asked = {
            let mut state = self.lock();
            state.source = None;
            state.wanted.is_some()
        };
        if asked {
            self.answer(Vec::new());
        }
        self.changed.notify_all();
    }
}

/// The thread that reads. Dropping it ends it.
#[derive(Debug)]
pub struct InputReader {
    input: Arc<Input>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<Option<()>>>,
}

impl InputReader {
    /// How long the thread may take to end.
    const LEAVE: Duration = Duration::from_secs(1);

    /// Starts the thread, which reads from `source` what `input` is asked for. What goes wrong is an end of file, and a
    /// line for `notice`.
    ///
    /// # Errors
    /// When the process has no thread or file descriptor left.
    pub fn start(input: Arc<Input>, source: OwnedFd, notice: Notice, sandbox: sandbox::Mode) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        input.lock().source = Some(wake.clone());
        let (asked, woken) = (input.clone(), wake.clone());
        let body = move || {
            // Signals are for the process's main thread, but for the sandbox's and that by which a terminal stops who reads
            // from it in the background. Blocking them cannot fail.
            let mut signals = SigSet::all();
            signals.remove(Signal::SIGSYS);
            signals.remove(Signal::SIGTTIN);
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&signals), None);
            if let Err(error) = serve(&asked, &woken, &File::from(source)) {
                notice(&format!("cannot read the programs' input: {error}"));
            }
            asked.close();
        };
        let builder = Builder::new().name("input".into()).stack_size(256 << 10);
        let thread = Some(sandbox::spawn(builder, Role::Monitor, sandbox, body)?);
        Ok(Self { input, wake, thread })
    }
}

impl Drop for InputReader {
    fn drop(&mut self) {
        self.input.lock().ends = true;
        // Fails only if the thread has been woken already.
        let _ = self.wake.write(1);
        let reads = |state: &mut State| state.source.is_some();
        let waited = self.input.changed.wait_timeout_while(self.input.lock(), Self::LEAVE, reads);
        if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            // Somebody else took what was there to read. It ends with the process.
            return;
        }
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by its own hook; there is nothing to add.
            let _ = thread.join();
        }
    }
}

/// Reads what is asked for until it is to end.
fn serve(input: &Input, wake: &EventFd, mut source: &File) -> io::Result<()> {
    // SAFETY: the eventfd is borrowed by this function, which outlives each poll.
    let woken = unsafe { BorrowedFd::borrow_raw(wake.as_raw_fd()) };
    loop {
        // The read empties the counter, so that the next poll sleeps.
        let _ = wake.read();
        let Ok(wanted) = input.wanted() else { return Ok(()) };
        let mut fds = [PollFd::new(woken, PollFlags::POLLIN), PollFd::new(source.as_fd(), PollFlags::POLLIN)];
        // Nobody looks at a source that nobody asks: it would be ready all the time.
        let looked_at = if wanted.is_some() { 2 } else { 1 };
        match poll(&mut fds[..looked_at], PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let Some(room) = wanted.filter(|_| fds[1].any() == Some(true)) else { continue };
        let mut bytes = vec![0; room];
        match source.read(&mut bytes) {
            Ok(len) => {
                bytes.truncate(len);
                input.answer(bytes);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::time::Instant;

    use super::*;

    struct Rig {
        input: Arc<Input>,
        doorbell: EventFd,
        reader: InputReader,
        writer: File,
        source: OwnedFd,
    }

    fn rig() -> Rig {
        let (source, writer) = nix::unistd::pipe().unwrap();
        let (input, doorbell) = (Arc::new(Input::default()), EventFd::new(0).unwrap());
        input.ring_for_answers(doorbell.try_clone().unwrap());
        let read = source.as_fd().try_clone_to_owned().unwrap();
        let reader = InputReader::start(input.clone(), read, Arc::new(|_| {}), sandbox::Mode::Off).unwrap();
        Rig { input, doorbell, reader, writer: writer.into(), source }
    }

    #[test]
    fn no_more_is_read_than_was_asked_for() {
        let mut rig = rig();
        rig.writer.write_all(b"one two").unwrap();
        assert_eq!(rig.input.take(4), None);
        rig.doorbell.read().unwrap();
        assert_eq!(rig.input.take(3).unwrap(), b"one");
        assert_eq!(rig.input.take(4).unwrap(), b" ");
        drop(rig.reader);
        let mut rest = [0; 8];
        assert_eq!(File::from(rig.source).read(&mut rest).unwrap(), 3);
        assert_eq!(&rest[..3], b"two");
    }

    #[test]
    fn the_end_of_a_pipe_is_the_answer_to_each_question() {
        let Rig { input, doorbell, writer, reader: _reader, .. } = rig();
        drop(writer);
        for _ in 0..2 {
            assert_eq!(input.take(10), None);
            doorbell.read().unwrap();
            assert_eq!(input.take(10).unwrap(), b"");
        }
    }

    #[test]
    fn without_a_source_there_is_nothing_to_read() {
        assert_eq!(Input::default().take(10).unwrap(), b"");
    }

    #[test]
    fn a_source_that_cannot_be_read_is_said_once_and_is_at_its_end() {
        let (input, doorbell) = (Arc::new(Input::default()), EventFd::new(0).unwrap());
        input.ring_for_answers(doorbell.try_clone().unwrap());
        let (told, lines) = std::sync::mpsc::channel();
        let notice: Notice = Arc::new(move |line: &str| told.send(line.to_owned()).unwrap());
        let directory = OwnedFd::from(File::open("/").unwrap());
        let _reader = InputReader::start(input.clone(), directory, notice, sandbox::Mode::Off).unwrap();
        assert_eq!(input.take(10), None);
        doorbell.read().unwrap();
        assert_eq!(input.take(10).unwrap(), b"");
        assert_eq!(input.take(10).unwrap(), b"");
        assert!(lines.recv().unwrap().contains("directory"));
        assert!(lines.try_recv().is_err());
    }

    #[test]
    fn it_ends_at_once_while_nobody_types() {
        let Rig { input, reader, writer: _writer, .. } = rig();
        assert_eq!(input.take(10), None);
        let began = Instant::now();
        drop(reader);
        assert!(began.elapsed() < InputReader::LEAVE);
        assert_eq!(input.take(10).unwrap(), b"");
    }
}
