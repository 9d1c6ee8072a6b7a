//! Server and client together, and each against a partner that misbehaves.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket};

use super::*;

fn name(text: &str) -> GuestName {
    text.parse().unwrap()
}

fn memfd(content: &[u8]) -> OwnedFd {
    let mut file = File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap());
    file.write_all(content).unwrap();
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap().into()
}

fn guest() -> Guest {
    let range = protocol::GuestRange { base: 0, size: 4096, offset: 0 };
    let node = |ranges| protocol::GuestNode { cpus: vec![], ranges };
    Guest {
        abi: pagevisor_shared::ABI_VERSION,
        name: "ring".into(),
        pid: std::process::id(),
        started_unix_ms: 1,
        kernel: "embedded".into(),
        version: "1".into(),
        state: Phase::Booting,
        append: String::new(),
        region_bytes: 6,
        cpus: 1,
        nodes: vec![node(vec![]), node(vec![range])],
        distances: vec![vec![10, 20], vec![20, 10]],
    }
}

fn check_status(connection: &Connection) {
    let expected =
        Status { pid: std::process::id(), state: Phase::Ready, uptime_ms: 0, nodes: 2, cpus: 1, memory: 4096 };
    let status = connection.status().unwrap();
    assert!(status.uptime_ms < 60_000);
    assert_eq!(Status { uptime_ms: 0, ..status }, expected);
}

/// A server called `ring` in `path`, and how often it was told to stop.
fn serve(path: &Path) -> (ControlServer, Arc<AtomicUsize>) {
    let stops = Arc::new(AtomicUsize::new(0));
    let counter = stops.clone();
    let endpoint = Endpoint {
        guest: guest(),
        memory: vec![memfd(b"region"), memfd(b"node 1")],
        phase: Box::new(|| Phase::Ready),
        stop: Box::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        }),
        pauser: None,
        commander: None,
        sandbox: crate::sandbox::Mode::Off,
    };
    let claim = RuntimeDir::open(path).unwrap().unwrap().claim(&name("ring")).unwrap();
    (ControlServer::start(claim, endpoint).unwrap(), stops)
}

fn open(path: &Path) -> Result<Connection, ClientError> {
    Connection::open(&RuntimeDir::open(path).unwrap().unwrap(), &name("ring"))
}

fn raw(path: &Path) -> OwnedFd {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    connect(fd.as_raw_fd(), &UnixAddr::new(&path.join("ring.sock")).unwrap()).unwrap();
    fd
}

/// Sends `packet` and gives the reply as text; empty when the server just closed.
fn exchange(fd: &OwnedFd, packet: &[u8]) -> String {
    send(fd.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL).unwrap();
    let mut reply = [0; 1024];
    let len = recv(fd.as_raw_fd(), &mut reply, MsgFlags::empty()).unwrap_or(0);
    String::from_utf8(reply[..len].to_vec()).unwrap()
}

#[test]
fn an_attached_client_gets_description_and_memory() {
    let temp = tempfile::tempdir().unwrap();
    let (server, stops) = serve(temp.path());
    let connection = open(temp.path()).unwrap();
    check_status(&connection);
    let attached = connection.attach().unwrap();
    assert_eq!(attached.guest, Guest { state: Phase::Ready, ..guest() });
    let mut text = String::new();
    File::from(attached.region).read_to_string(&mut text).unwrap();
    let [None, Some(node)] = <[_; 2]>::try_from(attached.nodes).unwrap() else { panic!("node 1 alone has memory") };
    let mut node = File::from(node);
    node.read_to_string(&mut text).unwrap();
    assert_eq!(text, "regionnode 1");
    assert!(node.write(b"x").is_err(), "clients must not be able to write");
    assert!(!connection.wait_closed(Duration::from_millis(1)));
    drop(server);
    assert!(connection.wait_closed(Duration::from_secs(5)));
    assert_eq!(stops.load(Ordering::SeqCst), 0);
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
    assert!(matches!(open(temp.path()), Err(ClientError::Directory(RuntimeDirError::NoSuchGuest(_)))));
}

#[test]
fn stop_asks_once_and_waits_for_the_end() {
    let temp = tempfile::tempdir().unwrap();
    let (server, stops) = serve(temp.path());
    // The server runs in this very process, which does not end: so the wait must run out.
    let patience = Duration::from_millis(50);
    assert!(matches!(open(temp.path()).unwrap().stop(patience), Err(ClientError::StillThere(..))));
    assert_eq!(stops.load(Ordering::SeqCst), 1);
    drop(server);
}

#[test]
fn garbage_is_refused_and_harms_nobody() {
    let temp = tempfile::tempdir().unwrap();
    let (_server, stops) = serve(temp.path());
    let witness = open(temp.path()).unwrap();
    let long = vec![b' '; 150_000];
    for (packet, reason) in [
        (&b"\xff\x00garbage"[..], "not a request"),
        (b"{}", "not a request"),
        (b"{\"version\":1,\"request\":\"explode\"}", "not a request"),
        (b"{\"version\":999,\"request\":\"stop\"}", "protocol version 1, not 999"),
        (&long, "150000 bytes is too long"),
    ] {
        let client = raw(temp.path());
        let reply = exchange(&client, packet);
        assert!(reply.contains(reason), "{reply} does not say {reason}");
        assert_eq!(recv(client.as_raw_fd(), &mut [0; 16], MsgFlags::empty()), Ok(0), "the connection must be closed");
    }
    // One that leaves at once, and one that asks and does not stay for the answer.
    drop(raw(temp.path()));
    let hasty = raw(temp.path());
    send(hasty.as_raw_fd(), b"{\"version\":1,\"request\":\"attach\"}", MsgFlags::MSG_NOSIGNAL).unwrap();
    drop(hasty);
    check_status(&witness);
    assert_eq!(stops.load(Ordering::SeqCst), 0);
}

#[test]
fn a_client_that_never_reads_is_dropped() {
    let temp = tempfile::tempdir().unwrap();
    let (_server, _) = serve(temp.path());
    let lazy = raw(temp.path());
    let deadline = Instant::now() + Duration::from_secs(20);
    // Until the server's send buffer is full and it closes the connection.
    while send(lazy.as_raw_fd(), b"{\"version\":1,\"request\":\"attach\"}", MsgFlags::MSG_NOSIGNAL).is_ok() {
        assert!(Instant::now() < deadline, "the server still takes requests");
    }
    check_status(&open(temp.path()).unwrap());
}

#[test]
fn silent_clients_and_crowds_do_not_shut_others_out() {
    let temp = tempfile::tempdir().unwrap();
    let (_server, _) = serve(temp.path());
    let mut crowd = Vec::new();
    // Full: whoever comes then is told so. On a busy machine the first of the crowd may be sent away meanwhile.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        crowd.extend((0..200).map(|_| raw(temp.path())));
        match open(temp.path()).unwrap().status() {
            Err(ClientError::Refused(_, reason)) if reason.contains("too many clients") => break,
            _ => assert!(Instant::now() < deadline, "the server takes any number of clients"),
        }
    }
    // None of the crowd says anything, so a few seconds later there is room.
    let deadline = Instant::now() + Duration::from_secs(20);
    while open(temp.path()).unwrap().status().is_err() {
        assert!(Instant::now() < deadline, "silent clients are never dropped");
        thread::sleep(Duration::from_millis(100));
    }
    drop(crowd);
}

/// A server that sends `reply` to whatever it is asked.
fn fake(path: &Path, reply: Vec<u8>) -> thread::JoinHandle<()> {
    use nix::sys::socket::{Backlog, accept, bind, listen};
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(&path.join("ring.sock")).unwrap()).unwrap();
    listen(&listener, Backlog::new(8).unwrap()).unwrap();
    thread::spawn(move || {
        let client = accept(listener.as_raw_fd()).unwrap();
        recv(client, &mut [0; 4096], MsgFlags::empty()).unwrap();
        if !reply.is_empty() {
            send(client, &reply, MsgFlags::MSG_NOSIGNAL).unwrap();
        }
        nix::unistd::close(client).unwrap();
    })
}

#[test]
fn a_client_believes_no_server_blindly() {
    let reply = |guest: &Guest| serde_json::to_vec(&protocol::Reply::Guest(guest.clone())).unwrap();
    let attach = |reply: Vec<u8>| {
        let temp = tempfile::tempdir().unwrap();
        let server = fake(temp.path(), reply);
        let result = open(temp.path()).unwrap().attach();
        server.join().unwrap();
        result.map(|_| ()).unwrap_err()
    };
    assert!(matches!(attach(b"nonsense".to_vec()), ClientError::Nonsense(..)));
    assert!(matches!(attach(b"\"stopping\"".to_vec()), ClientError::Nonsense(..)));
    assert!(matches!(attach(Vec::new()), ClientError::Io(..)));
    // A description without the descriptors that belong to it.
    assert!(matches!(attach(reply(&guest())), ClientError::Nonsense(..)));
    assert!(matches!(attach(reply(&Guest { abi: 99, ..guest() })), ClientError::Abi { found: 99, .. }));
    let refusal = serde_json::to_vec(&protocol::Reply::Error("no".into())).unwrap();
    assert!(matches!(attach(refusal), ClientError::Refused(_, reason) if reason == "no"));
}
