//! The guest's side of a control socket.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{ControlMessage, MsgFlags, SockFlag, accept4, getsockopt, recv, sendmsg};
use nix::unistd::geteuid;
use pagevisor_shared::command::{ANY_CPU, CommandHeader, Op, OpResult};

use super::dir::Claim;
use super::protocol::{Guest, MAX_REPLY, MAX_REQUEST, PROTOCOL_VERSION, Phase, Reply, Request, Status, Verb, to_hex};
use super::relay;
use crate::devices::monitor::{NoReply, Waiting};
use crate::machine::{Commander, PauseError, Paused, Pauser};
use crate::sandbox::{self, Role};

/// How long a client may stay silent before its first request.
const SILENCE: Duration = Duration::from_secs(5);
/// How often the server looks for replies of the guest that clients wait for, in milliseconds.
const LISTEN: u16 = 2;
/// How long a guest may take to execute a command.
const COMMAND_PATIENCE: Duration = Duration::from_secs(5);
/// Most clients at a time. Each costs a descriptor of this process.
const MAX_CLIENTS: usize = 128;

/// What the socket gives access to.
pub struct Endpoint {
    /// The machine's description; what `phase` gives overrides its state.
    pub guest: Guest,
    /// Read-only descriptors of the state region and of each node that has memory.
    pub memory: Vec<OwnedFd>,
    /// How far the guest has come now.
    pub phase: Box<dyn Fn() -> Phase + Send>,
    /// Asks for the guest's end, and returns at once.
    pub stop: Box<dyn Fn() + Send>,
    /// Pauses the guest. It takes some seconds at most.
    pub pauser: Option<Pauser>,
    /// Sends commands to the guest.
    pub commander: Option<Commander>,
    /// Whether the thread that serves is confined.
    pub sandbox: sandbox::Mode,
}

/// Serves a control socket from a thread of its own. Dropping it ends the thread, removes the socket and closes all
/// connections, in this order: who sees its connection close knows that the name is free.
#[derive(Debug)]
pub struct ControlServer {
    thread: Option<JoinHandle<Option<()>>>,
    quit: Arc<EventFd>,
}

impl ControlServer {
    /// Starts to serve `endpoint` on the socket of `claim`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(claim: Claim, endpoint: Endpoint) -> io::Result<Self> {
        let quit = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let mode = endpoint.sandbox;
        let server =
            Server { claim, endpoint, started: Instant::now(), quit: quit.clone(), clients: Vec::new(), events: 0 };
        let builder = thread::Builder::new().name("control".into());
        let thread = sandbox::spawn(builder, Role::Control, mode, move || server.serve())?;
        Ok(Self { thread: Some(thread), quit })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // An eventfd's write fails only when its counter is full, and then the thread is awake anyway.
        let _ = self.quit.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed already.
            let _ = thread.join();
        }
    }
}

/// A connection. `deadline` is set until the first request is served; after that a client may stay as long as it
/// likes, to see the guest end. A guest that it paused runs again when it goes, whatever way it goes.
struct Client {
    fd: OwnedFd,
    deadline: Option<Instant>,
    paused: Option<Paused>,
    /// A command of its whose reply is not there yet.
    waiting: Option<Waiting>,
    /// Kinds of events that are recorded for it.
    events: u64,
}

struct Server {
    // Fields are dropped in this order: the name is given back before connections close.
    claim: Claim,
    endpoint: Endpoint,
    started: Instant,
    quit: Arc<EventFd>,
    clients: Vec<Client>,
    /// Kinds of events that the guest recorded before any client asked for some.
    events: u64,
}

impl Server {
    fn serve(mut self) {
        loop {
            let Some(ready) = self.wait() else { return };
            // From the back, so that removal does not move what is still to be looked at.
            for index in (0..self.clients.len()).rev() {
                let flags = ready[2 + index];
                let keep = if flags.is_empty() { !self.is_late(index) } else { self.answer(index).is_ok() };
                let keep = keep && self.forward(index).is_ok();
                if !keep {
                    let gone = self.clients.swap_remove(index);
                    if gone.events != 0 {
                        // A guest that does not answer any more goes on recording.
                        let _ = self.record();
                    }
                }
            }
            if !ready[1].is_empty() {
                self.accept();
            }
        }
    }

    /// Waits for something to do: what has happened to the `quit` event, the listener and each client. `None` when
    /// it is time to end.
    fn wait(&self) -> Option<Vec<PollFlags>> {
        let fds = [self.quit.as_fd(), self.claim.listener().as_fd()];
        let fds = fds.into_iter().chain(self.clients.iter().map(|client| client.fd.as_fd()));
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let timeout = match self.clients.iter().filter_map(|client| client.deadline).min() {
            // Replies of the guest come without a descriptor to wait for.
            _ if self.clients.iter().any(|client| client.waiting.is_some()) => PollTimeout::from(LISTEN),
            Some(deadline) => millis_until(deadline),
            None => PollTimeout::NONE,
        };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            // ENOMEM, perhaps for a moment: try again, but not at full speed.
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
        let ready: Vec<_> = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::POLLNVAL)).collect();
        if ready[0].is_empty() { Some(ready) } else { None }
    }

    fn is_late(&self, index: usize) -> bool {
        self.clients[index].deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    fn accept(&mut self) {
        match accept4(self.claim.listener().as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
            Ok(fd) => self.admit(own(fd)),
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => {}
            // No descriptor left, most likely. The listener stays readable, so do not spin.
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }

    fn admit(&mut self, fd: OwnedFd) {
        let me = geteuid().as_raw();
        match getsockopt(&fd, PeerCredentials) {
            Ok(peer) if peer.uid() == me || peer.uid() == 0 => {}
            _ => return drop(send(&fd, &Reply::Error("this guest belongs to another user".into()), &[])),
        }
        if self.clients.len() >= MAX_CLIENTS {
            return drop(send(&fd, &Reply::Error("too many clients are connected to this guest".into()), &[]));
        }
        self.clients.push(Client {
            fd,
            deadline: Some(Instant::now() + SILENCE),
            paused: None,
            waiting: None,
            events: 0,
        });
    }

    /// Has the guest record what any client wants, and what it recorded before.
    fn record(&self) -> Result<u64, String> {
        let wanted = self.clients.iter().fold(self.events, |mask, client| mask | client.events);
        self.set_events(wanted).map(|_| wanted)
    }

    /// Tells the guest which events to record; gives those that it recorded before.
    fn set_events(&self, mask: u64) -> Result<u64, String> {
        let commander = self.endpoint.commander.as_ref().ok_or("the guest takes no commands")?;
        let header = CommandHeader { cpu: ANY_CPU, ..CommandHeader::default() };
        let waiting =
            commander.submit(header, &[Op::SetEvents { mask }.encode()], &[]).map_err(|why| why.to_string())?;
        let reply =
            waiting.poll(COMMAND_PATIENCE).ok_or("the guest does not answer")?.map_err(|why| why.to_string())?;
        match reply.results.first() {
            Some(OpResult { error: None, value, .. }) => Ok(*value),
            _ => Err("the guest does not record such events".into()),
        }
    }

    /// Serves [`Verb::Events`].
    fn record_for(&mut self, index: usize, kinds: u64) -> Result<u64, String> {
        if self.clients.iter().all(|client| client.events == 0) && kinds != 0 {
            self.events = self.set_events(kinds)?;
        }
        let before = std::mem::replace(&mut self.clients[index].events, kinds);
        self.record().inspect_err(|_| self.clients[index].events = before)
    }

    /// Reads and answers a request. An error means that the connection is of no more use.
    fn answer(&mut self, index: usize) -> io::Result<()> {
        let client = &mut self.clients[index];
        let mut packet = vec![0; MAX_REQUEST];
        // With MSG_TRUNC the packet's whole length is returned, also when it did not fit.
        let len = match recv(client.fd.as_raw_fd(), &mut packet, MsgFlags::MSG_TRUNC) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => len,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let refuse = |reason: String| {
            send(&client.fd, &Reply::Error(reason), &[])?;
            Err(io::ErrorKind::InvalidData.into())
        };
        let Some(packet) = packet.get(..len) else {
            return refuse(format!("a request of {len} bytes is too long (at most {MAX_REQUEST})"));
        };
        let request: Request = match serde_json::from_slice(packet) {
            Ok(request) => request,
            Err(error) => return refuse(format!("not a request: {error}")),
        };
        if request.version != PROTOCOL_VERSION {
            return refuse(format!("the guest speaks protocol version {PROTOCOL_VERSION}, not {}", request.version));
        }
        client.deadline = None;
        match request.request {
            Verb::Attach => {
                let fds: Vec<RawFd> = self.endpoint.memory.iter().map(AsRawFd::as_raw_fd).collect();
                let guest = Guest { state: (self.endpoint.phase)(), ..self.endpoint.guest.clone() };
                send(&client.fd, &Reply::Guest(guest), &fds)
            }
            Verb::Status => send(&client.fd, &Reply::Status(status(&self.endpoint, self.started)), &[]),
            Verb::Stop => {
                (self.endpoint.stop)();
                send(&client.fd, &Reply::Stopping, &[])
            }
            verb @ (Verb::Pause | Verb::PauseAnywhere) => {
                let pauser = self.endpoint.pauser.as_ref().ok_or(PauseError::Ended);
                let pause = if verb == Verb::Pause { Pauser::pause } else { Pauser::pause_anywhere };
                // What it held before is let go after the new pause has begun: in between the guest does not run.
                match pauser.and_then(pause) {
                    Ok(paused) => {
                        let registers = paused.registers().to_vec();
                        client.paused = Some(paused);
                        send(&client.fd, &Reply::Paused(registers), &[])
                    }
                    Err(error) => send(&client.fd, &Reply::Error(error.to_string()), &[]),
                }
            }
            Verb::Command if client.waiting.is_some() => {
                refuse("the guest has not replied to the command before".to_owned())
            }
            Verb::Command => {
                let commander = self.endpoint.commander.as_ref().ok_or("the guest takes no commands".to_owned());
                match commander.and_then(|commander| relay::submit(commander, &request.command)) {
                    Ok(waiting) => client.waiting = Some(waiting),
                    Err(reason) => return send(&client.fd, &Reply::Error(reason), &[]),
                }
                Ok(())
            }
            Verb::Events(kinds) => {
                let reply = self.record_for(index, kinds).map_or_else(Reply::Error, Reply::Recording);
                send(&self.clients[index].fd, &reply, &[])
            }
            Verb::Resume => {
                client.paused = None;
                send(&client.fd, &Reply::Running, &[])
            }
        }
    }
}

impl Server {
    /// Passes the guest's reply to a command on, if it is there.
    fn forward(&mut self, index: usize) -> io::Result<()> {
        let Some(client) = self.clients.get_mut(index) else { return Ok(()) };
        let Some(answer) = client.waiting.as_ref().and_then(|waiting| waiting.poll(Duration::ZERO)) else {
            return Ok(());
        };
        client.waiting = None;
        let reply = match answer {
            Ok(answer) => Reply::Executed(to_hex(&answer.to_bytes())),
            Err(error) => Reply::Error(NoReply::to_string(&error)),
        };
        send(&client.fd, &reply, &[])
    }
}

fn status(endpoint: &Endpoint, started: Instant) -> Status {
    let guest = &endpoint.guest;
    Status {
        pid: guest.pid,
        state: (endpoint.phase)(),
        uptime_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        nodes: guest.nodes.len(),
        cpus: guest.cpus,
        memory: guest.nodes.iter().flat_map(|node| &node.ranges).map(|range| range.size).sum(),
    }
}

/// Sends without ever waiting: a client that does not read its replies is dropped.
fn send(socket: &OwnedFd, reply: &Reply, fds: &[RawFd]) -> io::Result<()> {
    let mut packet = serde_json::to_vec(reply)?;
    if packet.len() > MAX_REPLY {
        packet = serde_json::to_vec(&Reply::Error("the machine's description is too long to send".into()))?;
    }
    let rights = [ControlMessage::ScmRights(fds)];
    let rights = if fds.is_empty() { &[] } else { &rights[..] };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&packet)], rights, flags, None)?;
    Ok(())
}

/// Takes ownership of a descriptor that the kernel has just made for us.
fn own(fd: RawFd) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: `accept4` returned it a moment ago, and nothing else knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn millis_until(deadline: Instant) -> PollTimeout {
    let left = deadline.saturating_duration_since(Instant::now());
    // One more, so that the deadline has passed when the wait is over.
    PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
}
