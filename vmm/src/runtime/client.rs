//! A client's side of a control socket.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, getsockopt, recvmsg, send};

use super::dir::{RuntimeDir, RuntimeDirError};
use super::name::GuestName;
use pagevisor_shared::command::{ANY_CPU, CommandHeader, Op, RawOp};

use super::protocol::{Guest, MAX_FDS, MAX_REPLY, PROTOCOL_VERSION, Reply, Request, Status, Verb, from_hex, to_hex};
use crate::devices::monitor::{Reply as Answer, encode};
use crate::kvm::CpuRegisters;

/// How long a guest's process may take for a reply. It has a thread for that, so only a stopped or starved process
/// comes near.
const PATIENCE: Duration = Duration::from_secs(10);

/// What can go wrong between a client and a guest's process.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no such guest, or no way to find out.
    #[error(transparent)]
    Directory(#[from] RuntimeDirError),
    /// The socket failed.
    #[error("connection to guest '{0}'")]
    Io(GuestName, #[source] io::Error),
    /// The process is there but says nothing.
    #[error("guest '{0}' does not answer (is its process stopped?)")]
    Silent(GuestName),
    /// It said something that makes no sense.
    #[error("guest '{0}' answers nonsense: {1}")]
    Nonsense(GuestName, String),
    /// It declines.
    #[error("guest '{0}' says: {1}")]
    Refused(GuestName, String),
    /// It belongs to another version of the contract.
    #[error(
        "guest '{name}' has contract version {found}, this pagevisor reads version {}",
        pagevisor_shared::ABI_VERSION
    )]
    Abi {
        /// The guest.
        name: GuestName,
        /// Its version.
        found: u32,
    },
    /// It has not ended.
    #[error("guest '{0}' was told to stop but has not ended after {1:?}")]
    StillThere(GuestName, Duration),
}

/// A connection to a running guest.
#[derive(Debug)]
pub struct Connection {
    fd: OwnedFd,
    name: GuestName,
}

/// A guest's description and memory.
#[derive(Debug)]
pub struct Attached {
    /// The description.
    pub guest: Guest,
    /// The state region, read-only.
    pub region: OwnedFd,
    /// Memory by node, read-only; `None` for a node without.
    pub nodes: Vec<Option<OwnedFd>>,
}

/// A guest of another process that is paused for as long as this lives.
#[derive(Debug)]
pub struct RemotePause<'a> {
    connection: &'a Connection,
    registers: Vec<CpuRegisters>,
}

impl RemotePause<'_> {
    /// The vCPUs' registers, by CPU.
    pub fn registers(&self) -> &[CpuRegisters] {
        &self.registers
    }
}

impl Drop for RemotePause<'_> {
    fn drop(&mut self) {
        // If it fails the connection is of no more use, and the guest runs again when it closes.
        let _ = self.connection.ask(Verb::Resume);
    }
}

impl Connection {
    /// Connects to the guest called `name`.
    ///
    /// # Errors
    /// [`RuntimeDirError::NoSuchGuest`] when none is running, others when the connection cannot be made.
    pub fn open(dir: &RuntimeDir, name: &GuestName) -> Result<Self, ClientError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match dir.try_connect(name) {
                Ok(Some(fd)) => return Ok(Self { fd, name: name.clone() }),
                Ok(None) => {
                    dir.clean(name)?;
                    return Err(RuntimeDirError::NoSuchGuest(name.clone()).into());
                }
                Err(RuntimeDirError::Io { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() >= deadline {
                        return Err(ClientError::Silent(name.clone()));
                    }
                    thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The guest's name.
    pub const fn name(&self) -> &GuestName {
        &self.name
    }

    /// How the guest is.
    ///
    /// # Errors
    /// When the guest's process does not answer as it should.
    pub fn status(&self) -> Result<Status, ClientError> {
        match self.ask(Verb::Status)?.0 {
            Reply::Status(status) => Ok(status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// The guest's description and memory. The connection stays good for [`Self::wait_closed`].
    ///
    /// # Errors
    /// When the guest's process does not answer as it should, or is of another version.
    pub fn attach(&self) -> Result<Attached, ClientError> {
        let (reply, fds) = self.ask(Verb::Attach)?;
        let Reply::Guest(guest) = reply else { return Err(self.unexpected(&reply)) };
        if guest.abi != pagevisor_shared::ABI_VERSION {
            return Err(ClientError::Abi { name: self.name.clone(), found: guest.abi });
        }
        let nonsense = |what: &str| ClientError::Nonsense(self.name.clone(), what.into());
        let expected = 1 + guest.nodes.iter().filter(|node| !node.ranges.is_empty()).count();
        if fds.len() != expected {
            return Err(nonsense(&format!("{} descriptors with the description, not {expected}", fds.len())));
        }
        let mut fds = fds.into_iter();
        let region = fds.next().ok_or_else(|| nonsense("no state region"))?;
        let nodes = guest.nodes.iter().map(|node| if node.ranges.is_empty() { None } else { fds.next() }).collect();
        Ok(Attached { guest, region, nodes })
    }

    /// Takes all vCPUs out of the guest, at a point where its tables are consistent, until the guard is dropped or this
    /// process ends.
    ///
    /// # Errors
    /// When a vCPU does not stop, or the guest's process does not answer as it should.
    pub fn pause(&self) -> Result<RemotePause<'_>, ClientError> {
        self.pause_by(Verb::Pause)
    }

    /// As [`Self::pause`], wherever the vCPUs are: for a guest that hangs.
    ///
    /// # Errors
    /// As there.
    pub fn pause_anywhere(&self) -> Result<RemotePause<'_>, ClientError> {
        self.pause_by(Verb::PauseAnywhere)
    }

    /// Has the guest record events of these kinds, beside those that it records anyhow, for as long as the connection
    /// lasts; gives the kinds that are recorded now.
    ///
    /// # Errors
    /// When the guest does not obey in time, or its process does not answer as it should.
    pub fn record_events(&self, kinds: u64) -> Result<u64, ClientError> {
        match self.ask(Verb::Events(kinds))?.0 {
            Reply::Recording(mask) => Ok(mask),
            other => Err(self.unexpected(&other)),
        }
    }

    fn pause_by(&self, verb: Verb) -> Result<RemotePause<'_>, ClientError> {
        match self.ask(verb)?.0 {
            Reply::Paused(registers) => Ok(RemotePause { connection: self, registers }),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Has the guest execute operations without handles, and gives its reply.
    ///
    /// # Errors
    /// When the guest's process refuses the command, or the guest does not reply within `timeout`.
    pub fn command(&self, ops: &[Op], payload: &[u8], timeout: Duration) -> Result<Answer, ClientError> {
        let ops: Vec<RawOp> = ops.iter().map(Op::encode).collect();
        let header = CommandHeader { cpu: ANY_CPU, ..CommandHeader::default() };
        let command = to_hex(&encode(header, &ops, payload));
        match self.ask_for(Verb::Command, command, timeout)?.0 {
            Reply::Executed(digits) => from_hex(&digits)
                .and_then(|bytes| Answer::decode(&bytes))
                .ok_or_else(|| ClientError::Nonsense(self.name.clone(), "a reply that is none".into())),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Ends the guest, and returns when its process is gone.
    ///
    /// # Errors
    /// When the guest's process does not answer as it should, or is still there after `patience`.
    pub fn stop(self, patience: Duration) -> Result<(), ClientError> {
        // Taken before it can end: the number alone could soon mean another process.
        let process = getsockopt(&self.fd, PeerCredentials).ok().and_then(|peer| pidfd_open(peer.pid()));
        match self.ask(Verb::Stop) {
            Ok((Reply::Stopping, _)) => {}
            Ok((other, _)) => return Err(self.unexpected(&other)),
            // It has ended by itself meanwhile.
            Err(ClientError::Io(_, error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
        }
        let deadline = Instant::now() + patience;
        let ended = self.wait_closed(patience)
            && process.is_none_or(|process| {
                wait_readable(&process, deadline.saturating_duration_since(Instant::now()), PollFlags::POLLIN)
            });
        if ended { Ok(()) } else { Err(ClientError::StillThere(self.name, patience)) }
    }

    /// Waits up to `timeout` for the guest's process to close the connection, as it does when the guest has ended;
    /// `true` when it has.
    pub fn wait_closed(&self, timeout: Duration) -> bool {
        wait_readable(&self.fd, timeout, PollFlags::POLLHUP)
    }

    fn unexpected(&self, reply: &Reply) -> ClientError {
        match reply {
            Reply::Error(reason) => ClientError::Refused(self.name.clone(), reason.clone()),
            _ => ClientError::Nonsense(self.name.clone(), "a reply to something else".into()),
        }
    }

    fn ask(&self, verb: Verb) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        self.ask_for(verb, String::new(), PATIENCE)
    }

    fn ask_for(&self, verb: Verb, command: String, patience: Duration) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        let io = |error: io::Error| ClientError::Io(self.name.clone(), error);
        let request = Request { version: PROTOCOL_VERSION, request: verb, command };
        let packet = serde_json::to_vec(&request).map_err(|error| io(error.into()))?;
        // A server that has refused us already (too many clients) has closed its end; its reason can still be read.
        match send(self.fd.as_raw_fd(), &packet, MsgFlags::MSG_NOSIGNAL) {
            Ok(_) | Err(Errno::EPIPE) => {}
            Err(errno) => return Err(io(errno.into())),
        }
        if !wait_readable(&self.fd, patience, PollFlags::POLLIN) {
            return Err(ClientError::Silent(self.name.clone()));
        }
        let (packet, fds) = receive(&self.fd).map_err(io)?;
        let reply = serde_json::from_slice(&packet);
        Ok((reply.map_err(|error| ClientError::Nonsense(self.name.clone(), error.to_string()))?, fds))
    }
}

/// Receives a packet with the descriptors that came with it.
fn receive(socket: &OwnedFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut packet = vec![0; MAX_REPLY];
    let mut rights = cmsg_space!([RawFd; MAX_FDS]);
    let mut buffers = [IoSliceMut::new(&mut packet)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut rights), flags)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just made these descriptors for us, and nothing else knows their numbers.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let truncated = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    let len = message.bytes;
    if truncated {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the reply is too long"));
    }
    if len == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the guest has ended"));
    }
    packet.truncate(len);
    Ok((packet, fds))
}

/// Waits up to `timeout` for one of `events` (or an error, or the other end's close) on `fd`.
fn wait_readable(fd: &OwnedFd, timeout: Duration, events: PollFlags) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd.as_fd(), events)], wait) {
            Ok(0) | Err(Errno::EINTR) if Instant::now() < deadline => {}
            Ok(0) | Err(_) => return false,
            Ok(_) => return true,
        }
    }
}

/// A descriptor for process `pid` that becomes readable when it ends; `None` when there is no such process here (it
/// may live in another container).
fn pidfd_open(pid: i32) -> Option<OwnedFd> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows its number.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}
