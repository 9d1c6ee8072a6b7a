//! Where the guest's programs write to: what they write waits here until whoever reads it takes it.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use vmm_sys_util::eventfd::EventFd;

use crate::sandbox::{self, Role};

/// Bytes that may wait. What comes then stays with the guest, which waits in turn.
const ROOM: usize = 256 << 10;

/// Bytes on their way out.
#[derive(Default)]
pub struct Tty {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: VecDeque<u8>,
    /// Rung when there is room again.
    doorbell: Option<EventFd>,
    /// Somebody found no room.
    wanted: bool,
    /// The thread is writing what it took.
    writing: bool,
    /// Nobody writes what comes now.
    closed: bool,
}

impl fmt::Debug for Tty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Tty").field("waiting", &state.bytes.len()).field("closed", &state.closed).finish()
    }
}

impl Tty {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on `doorbell` is rung when there is room again.
    pub(super) fn ring_for_room(&self, doorbell: EventFd) {
        self.lock().doorbell = Some(doorbell);
    }

    /// Whether there is room. If not, the doorbell is rung when there is.
    pub(super) fn has_room(&self) -> bool {
        let mut state = self.lock();
        state.wanted = !state.closed && state.bytes.len() >= ROOM;
        !state.wanted
    }

    /// Takes `bytes`, which may be a little more than there is room for.
    pub(super) fn put(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if !state.closed {
            state.bytes.extend(bytes);
            self.changed.notify_all();
        }
    }

    /// What waits, for whoever writes it; `None` when there will be no more.
    fn take(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        state.writing = false;
        self.changed.notify_all();
        while state.bytes.is_empty() {
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let bytes = std::mem::take(&mut state.bytes).into();
        state.writing = true;
        if std::mem::take(&mut state.wanted)
            && let Some(doorbell) = &state.doorbell
        {
            // Fails only if it has rung already.
            let _ = doorbell.write(1);
        }
        Some(bytes)
    }

    /// Nothing more is taken; what waits is still written, unless it is to be thrown away.
    fn close(&self, forget: bool) {
        let mut state = self.lock();
        state.closed = true;
        if forget {
            state.bytes.clear();
            state.writing = false;
        }
        self.changed.notify_all();
    }

    /// Waits, at most for `timeout`, until all is written that has come so far. Whether it is.
    fn settle(&self, timeout: Duration) -> bool {
        let busy = |state: &mut State| state.writing || !state.bytes.is_empty();
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

/// The thread that writes. Dropping it ends it once it has written everything, unless that takes longer than
/// [`Self::LEAVE`].
#[derive(Debug)]
pub struct TtyWriter {
    tty: Arc<Tty>,
    thread: Option<JoinHandle<Option<()>>>,
}

impl TtyWriter {
    /// How long whoever reads may take for the rest.
    const LEAVE: Duration = Duration::from_secs(5);

    /// Starts the thread, which writes what comes to `tty` into `sink`. When the sink fails, what comes is dropped.
    ///
    /// # Errors
    /// When the process has no thread left.
    pub fn start(tty: Arc<Tty>, mut sink: Box<dyn Write + Send>, sandbox: sandbox::Mode) -> io::Result<Self> {
        let source = tty.clone();
        let body = move || {
            // Signals are for the process's main thread, but for the sandbox's. Blocking them cannot fail.
            let mut signals = SigSet::all();
            signals.remove(Signal::SIGSYS);
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&signals), None);
            while let Some(bytes) = source.take() {
                if sink.write_all(&bytes).and_then(|()| sink.flush()).is_err() {
                    source.close(true);
                    return;
                }
            }
        };
        let builder = Builder::new().name("tty".into()).stack_size(256 << 10);
        let thread = sandbox::spawn(builder, Role::Monitor, sandbox, body)?;
        Ok(Self { tty, thread: Some(thread) })
    }

    /// Waits until everything is written that the guest has written, or until `interrupted` says so. It is asked a few
    /// times a second.
    pub fn settle(&self, interrupted: &dyn Fn() -> bool) {
        while !self.tty.settle(Duration::from_millis(100)) && !interrupted() {}
    }
}

impl Drop for TtyWriter {
    fn drop(&mut self) {
        self.tty.close(false);
        if !self.tty.settle(Self::LEAVE) {
            // It stands in a write to somebody who does not read, and ends with the process.
            return;
        }
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by its own hook; there is nothing to add.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    /// Takes nothing until it is let.
    struct Gate {
        let_through: Receiver<()>,
        out: SyncSender<Vec<u8>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.let_through.recv().map_err(io::Error::other)?;
            self.out.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated() -> (Arc<Tty>, TtyWriter, SyncSender<()>, Receiver<Vec<u8>>) {
        let (let_go, let_through) = sync_channel(16);
        let (out, written) = sync_channel(16);
        let tty = Arc::new(Tty::default());
        let writer = TtyWriter::start(tty.clone(), Box::new(Gate { let_through, out }), sandbox::Mode::Off).unwrap();
        (tty, writer, let_go, written)
    }

    #[test]
    fn what_is_written_arrives_in_order_and_whole() {
        let (tty, writer, let_go, written) = gated();
        tty.put(b"one ");
        let_go.send(()).unwrap();
        assert_eq!(written.recv().unwrap(), b"one ");
        tty.put(b"two ");
        tty.put(b"three");
        (0..4).for_each(|_| let_go.send(()).unwrap());
        drop(writer);
        let rest: Vec<u8> = written.into_iter().flatten().collect();
        assert_eq!(rest, b"two three");
    }

    #[test]
    fn a_reader_that_is_slow_makes_the_guest_wait_and_is_told_of_room() {
        let (tty, _writer, let_go, written) = gated();
        let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
        tty.ring_for_room(doorbell.try_clone().unwrap());
        tty.put(b"x");
        // The writer holds the first byte.
        while !tty.lock().writing {
            std::thread::yield_now();
        }
        tty.put(&vec![b'y'; ROOM]);
        assert!(!tty.has_room());
        assert!(doorbell.read().is_err());
        let_go.send(()).unwrap();
        assert_eq!(written.recv().unwrap(), b"x");
        while doorbell.read().is_err() {
            std::thread::yield_now();
        }
        assert!(tty.has_room());
        let_go.send(()).unwrap();
    }

    #[test]
    fn a_reader_that_is_gone_stops_nobody() {
        let (tty, writer, let_go, written) = gated();
        drop(written);
        let_go.send(()).unwrap();
        tty.put(b"lost");
        writer.settle(&|| false);
        while !tty.lock().closed {
            std::thread::yield_now();
        }
        tty.put(&vec![0; 2 * ROOM]);
        assert!(tty.has_room());
    }
}
