//! A directory that looks like the guest's `/proc` and `/sys`, for tools that take another root.
//!
//! Files are replaced as a whole (written beside, then renamed), and only when they have changed: a reader sees an
//! old or a new file, never a half. When the guest ends everything that was made here goes away again, so that nobody
//! takes the figures of a machine that is gone for those of a living one.
//!
//! Where Linux's files take what is written to them, so do these: [`ProcDir::listen`].

mod inbox;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use inbox::Inbox;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{PROC_SUPER_MAGIC, SYSFS_MAGIC, statfs};

/// What can be wrong with the directory.
#[derive(Debug, thiserror::Error)]
pub enum ProcDirError {
    /// It cannot be made or opened.
    #[error("cannot use directory {path}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is the root of the real thing.
    #[error("{path} is the proc or sys file system of this machine")]
    Real {
        /// Where that is mounted.
        path: PathBuf,
    },
    /// Another guest writes there.
    #[error("another guest keeps directory {path}")]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// A file in it cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The directory. Dropping it removes the files and directories made in it, unless [`ProcDir::leave`] is called.
#[derive(Debug)]
pub struct ProcDir {
    root: PathBuf,
    /// Held as long as the directory is ours.
    _lock: Flock<File>,
    /// What each file holds now.
    written: BTreeMap<PathBuf, String>,
    /// Directories made here; one sorts before those in it.
    made: BTreeSet<PathBuf>,
    inbox: Option<Inbox>,
    /// Files that others have written to.
    stale: BTreeSet<PathBuf>,
}

/// How the names of files begin that are not finished.
const TEMPORARY: &str = ".pagevisor-";

impl ProcDir {
    /// Takes the directory at `path`, making it when it is not there.
    ///
    /// # Errors
    /// When it cannot be made or written, belongs to another guest, or is the real `/proc`'s.
    pub fn open(path: &Path) -> Result<Self, ProcDirError> {
        let open = |source| ProcDirError::Open { path: path.into(), source };
        let mut made = BTreeSet::new();
        // Absolute, since a detached guest leaves the directory it was started in.
        make_dirs(&std::path::absolute(path).map_err(open)?, &mut made).map_err(open)?;
        let root = path.canonicalize().map_err(open)?;
        for real in [root.clone(), root.join("proc"), root.join("sys")] {
            if statfs(&real).is_ok_and(|stat| [PROC_SUPER_MAGIC, SYSFS_MAGIC].contains(&stat.filesystem_type())) {
                return Err(ProcDirError::Real { path: real });
            }
        }
        let lock = match Flock::lock(File::open(&root).map_err(open)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => return Err(ProcDirError::Busy { path: path.into() }),
            Err((_, errno)) => return Err(open(errno.into())),
        };
        let dir = Self { root, _lock: lock, written: BTreeMap::new(), made, inbox: None, stale: BTreeSet::new() };
        // Whether files can be made shows only when one is made.
        temporary(&dir.root).map_err(open)?;
        Ok(dir)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the first of the directories that were made for it lies: they are removed from there in the end.
    pub fn parent_of_made(&self) -> Option<&Path> {
        self.made.first()?.parent()
    }

    /// Brings the directory up to date: `files` by path relative to it.
    ///
    /// # Errors
    /// The first file that could not be written; the others are up to date.
    pub fn update(&mut self, files: impl IntoIterator<Item = (PathBuf, String)>) -> Result<(), ProcDirError> {
        let mut first = Ok(());
        // Before the first file is there that somebody could write to; again for directories that are made now.
        self.watch();
        for (path, text) in files {
            if self.written.get(&path).is_some_and(|old| *old == text) && !self.stale.contains(&path) {
                continue;
            }
            let target = self.root.join(&path);
            match replace(&target, &text, &mut self.made) {
                Ok(file) => {
                    if let Some(inbox) = self.inbox.as_mut().filter(|inbox| inbox.covers(&path)) {
                        inbox.renewed(&path, file, &text);
                    }
                    self.stale.remove(&path);
                    self.written.insert(path, text);
                }
                Err(source) => first = first.and(Err(ProcDirError::Write { path: target, source })),
            }
        }
        self.watch();
        first
    }

    /// From now on takes what others write to files in these directories, by path from the root.
    ///
    /// # Errors
    /// When the kernel gives no descriptor for that.
    pub fn listen(&mut self, dirs: &[&str]) -> io::Result<()> {
        self.inbox = Some(Inbox::new(dirs)?);
        Ok(())
    }

    fn watch(&mut self) {
        if let Some(inbox) = &mut self.inbox {
            inbox.watch(&self.root);
        }
    }

    /// A descriptor that is readable when somebody has written to a file.
    pub fn written_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inbox.as_ref().map(Inbox::fd)
    }

    /// Which files were written to since the last time, by path from the root, and what. [`Self::update`] makes them as
    /// they were.
    pub fn take_written(&mut self) -> BTreeMap<PathBuf, String> {
        let mut written = self.inbox.as_mut().map(Inbox::take).unwrap_or_default();
        // Others may have files of their own there.
        written.retain(|path, _| self.written.contains_key(path));
        self.stale.extend(written.keys().cloned());
        written
    }

    /// Leaves everything as it is.
    pub fn leave(mut self) {
        self.written.clear();
        self.made.clear();
    }
}

impl Drop for ProcDir {
    fn drop(&mut self) {
        // Failures leave a file or directory where it is; there is nothing more to do about them here. A directory
        // in which somebody else has put something is not empty and stays.
        for path in self.written.keys() {
            let _ = fs::remove_file(self.root.join(path));
        }
        for path in self.made.iter().rev() {
            let _ = fs::remove_dir(path);
        }
    }
}

fn temporary(dir: &Path) -> io::Result<tempfile::NamedTempFile> {
    tempfile::Builder::new().prefix(TEMPORARY).permissions(fs::Permissions::from_mode(0o644)).tempfile_in(dir)
}

/// Makes the file at `target` hold `text`, in one step for who looks; gives it, to be read.
fn replace(target: &Path, text: &str, made: &mut BTreeSet<PathBuf>) -> io::Result<File> {
    let dir = target.parent().ok_or(io::ErrorKind::InvalidInput)?;
    make_dirs(dir, made)?;
    let mut file = temporary(dir)?;
    file.write_all(text.as_bytes())?;
    // Nothing of ours is open for writing once it has its name.
    let path = file.into_temp_path();
    let file = File::open(&path)?;
    path.persist(target).map_err(|error| error.error)?;
    Ok(file)
}

/// Makes the directory at `path` and those above it that are missing, and notes which.
fn make_dirs(path: &Path, made: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_dirs(parent, made)?;
    }
    match fs::create_dir(path) {
        Ok(()) => drop(made.insert(path.into())),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn files(list: &[(&str, &str)]) -> Vec<(PathBuf, String)> {
        list.iter().map(|(path, text)| (path.into(), (*text).into())).collect()
    }

    #[test]
    fn files_appear_change_and_go_away() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("new/root");
        let mut dir = ProcDir::open(&root).unwrap();
        dir.update(files(&[("proc/meminfo", "one\n"), ("sys/devices/node/node0/cpulist", "0\n")])).unwrap();
        let inode = |path: &str| fs::metadata(root.join(path)).unwrap().ino();
        let before = (inode("proc/meminfo"), inode("sys/devices/node/node0/cpulist"));
        assert_eq!(fs::read_to_string(root.join("proc/meminfo")).unwrap(), "one\n");
        dir.update(files(&[("proc/meminfo", "two\n"), ("sys/devices/node/node0/cpulist", "0\n")])).unwrap();
        assert_eq!(fs::read_to_string(root.join("proc/meminfo")).unwrap(), "two\n");
        assert_ne!(inode("proc/meminfo"), before.0, "the file must be replaced, not rewritten");
        assert_eq!(inode("sys/devices/node/node0/cpulist"), before.1, "an unchanged file must be left alone");
        assert_eq!(fs::metadata(root.join("proc/meminfo")).unwrap().mode() & 0o444, 0o444);
        assert_eq!(fs::read_dir(root.join("proc")).unwrap().count(), 1, "no temporary file may stay");
        drop(dir);
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_others_put_there_stays() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("proc")).unwrap();
        let mut dir = ProcDir::open(temp.path()).unwrap();
        dir.update(files(&[("proc/meminfo", "x"), ("sys/node", "y")])).unwrap();
        fs::write(temp.path().join("sys/mine"), "z").unwrap();
        drop(dir);
        assert!(temp.path().join("proc").is_dir() && temp.path().join("sys/mine").is_file());
        assert!(!temp.path().join("proc/meminfo").exists() && !temp.path().join("sys/node").exists());
    }

    #[test]
    fn a_snapshot_can_be_left() {
        let temp = tempfile::tempdir().unwrap();
        let mut dir = ProcDir::open(temp.path()).unwrap();
        dir.update(files(&[("proc/meminfo", "x")])).unwrap();
        dir.leave();
        assert_eq!(fs::read_to_string(temp.path().join("proc/meminfo")).unwrap(), "x");
    }

    #[test]
    fn what_others_write_is_taken_and_renewed() {
        let temp = tempfile::tempdir().unwrap();
        let mut dir = ProcDir::open(temp.path()).unwrap();
        dir.listen(&["proc", "proc/sys/vm"]).unwrap();
        let tree = files(&[("proc/slabinfo", "one\n"), ("proc/sys/vm/x", ""), ("sys/node", "n\n")]);
        dir.update(tree.clone()).unwrap();
        let path = |name: &str| temp.path().join(name);
        let renewed = |dir: &mut ProcDir, text: &str| {
            dir.update(files(&[("proc/slabinfo", text), ("proc/sys/vm/x", ""), ("sys/node", "n\n")])).unwrap();
            assert_eq!(fs::read_to_string(path("proc/slabinfo")).unwrap(), text);
            assert_eq!(fs::read_to_string(path("proc/sys/vm/x")).unwrap(), "");
        };
        // Renewals, readers and strangers' files are no writes.
        renewed(&mut dir, "two\n");
        fs::read(path("proc/slabinfo")).unwrap();
        fs::write(path("proc/mine"), "x").unwrap();
        fs::write(path("sys/node"), "x").unwrap();
        assert!(dir.take_written().is_empty());
        fs::write(path("proc/slabinfo"), "a 1 1 1\n").unwrap();
        fs::write(path("proc/sys/vm/x"), "3").unwrap();
        let expected = |name: &str, text: &str| BTreeMap::from([(PathBuf::from(name), text.to_owned())]);
        let both = dir.take_written();
        assert_eq!(both.into_values().collect::<Vec<_>>(), ["a 1 1 1\n", "3"]);
        renewed(&mut dir, "two\n");
        // Appended, and into a file that is being renewed.
        let mut open = File::options().append(true).open(path("proc/slabinfo")).unwrap();
        renewed(&mut dir, "three\n");
        open.write_all(b"b 2 2 2\n").unwrap();
        drop(open);
        assert_eq!(dir.take_written(), expected("proc/slabinfo", "b 2 2 2\n"));
        // Also in a directory that was made anew.
        renewed(&mut dir, "three\n");
        fs::remove_dir_all(path("proc")).unwrap();
        dir.update(files(&[("proc/slabinfo", "four\n")])).unwrap();
        fs::write(path("proc/slabinfo"), "c\n").unwrap();
        assert_eq!(dir.take_written(), expected("proc/slabinfo", "c\n"));
        drop(dir);
        assert!(!path("proc").exists() || !path("proc/slabinfo").exists());
    }

    #[test]
    fn a_directory_serves_one_guest_and_is_not_the_real_one() {
        let temp = tempfile::tempdir().unwrap();
        let dir = ProcDir::open(temp.path()).unwrap();
        assert!(matches!(ProcDir::open(temp.path()), Err(ProcDirError::Busy { .. })));
        drop(dir);
        ProcDir::open(temp.path()).unwrap();
        assert!(matches!(ProcDir::open(Path::new("/")), Err(ProcDirError::Real { .. })));
        assert!(matches!(ProcDir::open(Path::new("/proc")), Err(ProcDirError::Real { .. })));
        fs::write(temp.path().join("file"), "").unwrap();
        assert!(matches!(ProcDir::open(&temp.path().join("file/x")), Err(ProcDirError::Open { .. })));
    }

    #[test]
    fn one_bad_file_does_not_keep_the_others_old() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("proc"), "a file where a directory should be").unwrap();
        let mut dir = ProcDir::open(temp.path()).unwrap();
        let error = dir.update(files(&[("proc/meminfo", "x"), ("sys/node", "y")])).unwrap_err();
        assert!(matches!(error, ProcDirError::Write { path, .. } if path.ends_with("proc/meminfo")));
        assert_eq!(fs::read_to_string(temp.path().join("sys/node")).unwrap(), "y");
    }
}
