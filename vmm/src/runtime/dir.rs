//! The runtime directory.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, open, openat};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::name::GuestName;

/// How long to wait for another process that has the directory locked; it needs microseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// What can be wrong with the runtime directory.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeDirError {
    /// It cannot be made, opened or searched.
    #[error("runtime directory {path}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It belongs to someone else, who could put sockets of their own there.
    #[error("runtime directory {path} belongs to user {owner}, not to you (set PAGEVISOR_RUNTIME_DIR to another one)")]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
    },
    /// Others may write to it.
    #[error("runtime directory {path} can be written by others (mode {mode:03o}; `chmod 700` it)")]
    Mode {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another process holds its lock for too long.
    #[error("runtime directory {path} stays locked by another process")]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// A running guest has this name.
    #[error("a guest named '{0}' is already running (choose another --name, or `pagevisor stop {0}`)")]
    NameInUse(GuestName),
    /// No running guest has this name.
    #[error("no guest named '{0}' is running (`pagevisor list` names those that are)")]
    NoSuchGuest(GuestName),
}

/// The open runtime directory. Sockets in it are reached through its descriptor, so its path may be of any length
/// (a socket's address may not) and may even change.
#[derive(Debug)]
pub struct RuntimeDir {
    fd: OwnedFd,
    path: PathBuf,
}

impl RuntimeDir {
    /// Where the directory is for this user: `$PAGEVISOR_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/pagevisor`, else
    /// `/run/pagevisor` for root and `/tmp/pagevisor-UID` for others.
    pub fn locate() -> PathBuf {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(path) = variable("PAGEVISOR_RUNTIME_DIR") {
            return path;
        }
        if let Some(path) = variable("XDG_RUNTIME_DIR") {
            return path.join("pagevisor");
        }
        match geteuid() {
            root if root.is_root() => PathBuf::from("/run/pagevisor"),
            user => PathBuf::from(format!("/tmp/pagevisor-{user}")),
        }
    }

    /// Opens the directory at `path`, making it when it is not there.
    ///
    /// # Errors
    /// When it cannot be made or used, or when others could tamper with it.
    pub fn create(path: &Path) -> Result<Self, RuntimeDirError> {
        let io = |source| RuntimeDirError::Io { path: path.into(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io)?;
        Self::open(path)?.ok_or_else(|| io(io::ErrorKind::NotFound.into()))
    }

    /// Opens the directory at `path`; `None` when there is none, and so no guest.
    ///
    /// # Errors
    /// When it cannot be used, or when others could tamper with it.
    pub fn open(path: &Path) -> Result<Option<Self>, RuntimeDirError> {
        let io = |errno: Errno| RuntimeDirError::Io { path: path.into(), source: errno.into() };
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let fd = match open(path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(io(errno)),
        };
        let stat = fstat(&fd).map_err(io)?;
        if stat.st_uid != geteuid().as_raw() {
            return Err(RuntimeDirError::Owner { path: path.into(), owner: stat.st_uid });
        }
        if stat.st_mode & 0o022 != 0 {
            return Err(RuntimeDirError::Mode { path: path.into(), mode: stat.st_mode & 0o777 });
        }
        Ok(Some(Self { fd, path: path.into() }))
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn io(&self, source: impl Into<io::Error>) -> RuntimeDirError {
        RuntimeDirError::Io { path: self.path.clone(), source: source.into() }
    }

    /// Locks the directory against other processes (and other threads: each call has a description of its own).
    fn lock(&self) -> Result<Flock<OwnedFd>, RuntimeDirError> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let mut fd = openat(&self.fd, ".", flags, Mode::empty()).map_err(|errno| self.io(errno))?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match Flock::lock(fd, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((returned, Errno::EWOULDBLOCK | Errno::EINTR)) if Instant::now() < deadline => fd = returned,
                Err((_, Errno::EWOULDBLOCK)) => return Err(RuntimeDirError::Locked { path: self.path.clone() }),
                Err((_, errno)) => return Err(self.io(errno)),
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn socket_name(name: &GuestName) -> String {
        format!("{name}.sock")
    }

    fn address(&self, name: &GuestName) -> Result<UnixAddr, RuntimeDirError> {
        let path = format!("/proc/self/fd/{}/{}", self.fd.as_raw_fd(), Self::socket_name(name));
        UnixAddr::new(path.as_str()).map_err(|errno| self.io(errno))
    }

    /// Connects to the socket of `name`: `Ok(None)` when no process listens there.
    pub(super) fn try_connect(&self, name: &GuestName) -> Result<Option<OwnedFd>, RuntimeDirError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(|errno| self.io(errno))?;
        match connect(fd.as_raw_fd(), &self.address(name)?) {
            Ok(()) => Ok(Some(fd)),
            Err(Errno::ENOENT | Errno::ECONNREFUSED) => Ok(None),
            Err(errno) => Err(self.io(errno)),
        }
    }

    /// Whether a process listens on the socket of `name`. One whose queue is full listens, too.
    fn is_alive(&self, name: &GuestName) -> Result<bool, RuntimeDirError> {
        match self.try_connect(name) {
            Ok(connection) => Ok(connection.is_some()),
            Err(RuntimeDirError::Io { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Removes the socket of `name`, whose owner is known to be dead. The caller holds the lock.
    fn remove(&self, name: &GuestName) -> Result<(), RuntimeDirError> {
        match unlinkat(&self.fd, Self::socket_name(name).as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(self.io(errno)),
        }
    }

    /// Takes `name` for this process, which will serve the socket.
    ///
    /// # Errors
    /// [`RuntimeDirError::NameInUse`] when a running guest has it, others when the directory cannot be used.
    pub fn claim(self, name: &GuestName) -> Result<Claim, RuntimeDirError> {
        let _lock = self.lock()?;
        if self.is_alive(name)? {
            return Err(RuntimeDirError::NameInUse(name.clone()));
        }
        self.remove(name)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(|errno| self.io(errno))?;
        bind(listener.as_raw_fd(), &self.address(name)?).map_err(|errno| self.io(errno))?;
        listen(&listener, Backlog::new(64).unwrap_or(Backlog::MAXALLOWABLE)).map_err(|errno| self.io(errno))?;
        let inode = self.inode(name).ok_or_else(|| self.io(io::ErrorKind::NotFound))?;
        Ok(Claim { dir: self, name: name.clone(), listener, inode })
    }

    fn inode(&self, name: &GuestName) -> Option<(u64, u64)> {
        let stat = fstatat(&self.fd, Self::socket_name(name).as_str(), AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
        Some((stat.st_dev, stat.st_ino))
    }

    /// The names of running guests in order; what dead ones left is removed.
    ///
    /// # Errors
    /// When the directory cannot be read, locked or cleaned.
    pub fn guests(&self) -> Result<Vec<GuestName>, RuntimeDirError> {
        let _lock = self.lock()?;
        let mut alive = Vec::new();
        let entries = fs::read_dir(format!("/proc/self/fd/{}", self.fd.as_raw_fd())).map_err(|error| self.io(error))?;
        for entry in entries {
            let file = entry.map_err(|error| self.io(error))?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".sock")).map(str::parse::<GuestName>);
            let Some(Ok(name)) = name else { continue };
            if self.is_alive(&name)? {
                alive.push(name);
            } else {
                self.remove(&name)?;
            }
        }
        alive.sort();
        Ok(alive)
    }

    /// Removes the socket of `name` if its owner is dead.
    ///
    /// # Errors
    /// When the directory cannot be locked or cleaned.
    pub(super) fn clean(&self, name: &GuestName) -> Result<(), RuntimeDirError> {
        let _lock = self.lock()?;
        if self.is_alive(name)? { Ok(()) } else { self.remove(name) }
    }
}

/// A name taken by this process, with the socket that listens under it. Dropping it gives the name back.
#[derive(Debug)]
pub struct Claim {
    dir: RuntimeDir,
    name: GuestName,
    listener: OwnedFd,
    inode: (u64, u64),
}

impl Claim {
    /// The name.
    pub const fn name(&self) -> &GuestName {
        &self.name
    }

    /// The directory it is in.
    pub fn directory(&self) -> &Path {
        &self.dir.path
    }

    /// The listening socket, non-blocking.
    pub(super) const fn listener(&self) -> &OwnedFd {
        &self.listener
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // No lock needed: while the listener is open nobody else takes the socket for stale. Should a person have
        // removed it by hand and another guest have taken the name since, the inode tells.
        if self.dir.inode(&self.name) == Some(self.inode) {
            // There is nobody to tell; the next command finds the socket stale and removes it.
            let _ = self.dir.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;
    use std::sync::{Arc, Barrier};

    use super::*;

    fn name(text: &str) -> GuestName {
        text.parse().unwrap()
    }

    fn entries(path: &Path) -> Vec<String> {
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn the_directory_is_made_for_its_owner_alone() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b");
        assert!(RuntimeDir::open(&path).unwrap().is_none());
        RuntimeDir::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(matches!(RuntimeDir::open(&path), Err(RuntimeDirError::Mode { mode: 0o770, .. })));
        let link = temp.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(RuntimeDir::open(&link), Err(RuntimeDirError::Io { .. })));
    }

    #[test]
    fn a_name_is_taken_until_its_claim_is_dropped() {
        let temp = tempfile::tempdir().unwrap();
        let open = || RuntimeDir::open(temp.path()).unwrap().unwrap();
        let claim = open().claim(&name("ring")).unwrap();
        assert!(matches!(open().claim(&name("ring")), Err(RuntimeDirError::NameInUse(_))));
        let other = open().claim(&name("demo")).unwrap();
        assert_eq!(open().guests().unwrap(), [name("demo"), name("ring")]);
        drop((claim, other));
        assert_eq!(entries(temp.path()), [""; 0]);
        open().claim(&name("ring")).unwrap();
    }

    #[test]
    fn what_a_dead_guest_left_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let open = || RuntimeDir::open(temp.path()).unwrap().unwrap();
        // A listener that is closed leaves its socket behind, as a killed process does.
        drop(UnixListener::bind(temp.path().join("dead.sock")).unwrap());
        fs::write(temp.path().join("notes.txt"), "not a guest").unwrap();
        assert_eq!(open().guests().unwrap(), []);
        assert_eq!(entries(temp.path()), ["notes.txt"]);
        drop(UnixListener::bind(temp.path().join("dead.sock")).unwrap());
        open().clean(&name("dead")).unwrap();
        assert_eq!(entries(temp.path()), ["notes.txt"]);
        drop(UnixListener::bind(temp.path().join("dead.sock")).unwrap());
        open().claim(&name("dead")).unwrap();
    }

    #[test]
    fn a_claim_does_not_remove_the_socket_of_its_successor() {
        let temp = tempfile::tempdir().unwrap();
        let open = || RuntimeDir::open(temp.path()).unwrap().unwrap();
        let first = open().claim(&name("ring")).unwrap();
        fs::remove_file(temp.path().join("ring.sock")).unwrap();
        let _second = open().claim(&name("ring")).unwrap();
        drop(first);
        assert_eq!(entries(temp.path()), ["ring.sock"]);
    }

    #[test]
    fn of_those_who_race_for_a_name_one_gets_it() {
        let temp = tempfile::tempdir().unwrap();
        drop(UnixListener::bind(temp.path().join("ring.sock")).unwrap());
        let barrier = Arc::new(Barrier::new(8));
        let racers: Vec<_> = (0..8)
            .map(|_| {
                let (barrier, dir) = (barrier.clone(), RuntimeDir::open(temp.path()).unwrap().unwrap());
                thread::spawn(move || {
                    barrier.wait();
                    dir.claim(&name("ring"))
                })
            })
            .collect();
        let claims: Vec<_> = racers.into_iter().map(|racer| racer.join().unwrap()).collect();
        assert_eq!(claims.iter().filter(|claim| claim.is_ok()).count(), 1);
        assert!(claims.iter().all(|claim| matches!(claim, Ok(_) | Err(RuntimeDirError::NameInUse(_)))));
    }
}
