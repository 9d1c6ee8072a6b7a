//! Which files the process may use, by Landlock (`Documentation/userspace-api/landlock.rst`).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What may be done with a file, or with all that is below a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read files, list directories.
    Read,
    /// Use a device: read, write, its own requests.
    Device,
    /// Remove files, list directories.
    RemoveFiles,
    /// Remove directories that are empty.
    RemoveDirs,
    /// Anything with regular files and directories.
    All,
}

/// `LANDLOCK_ACCESS_FS_*`
mod right {
    pub(super) const WRITE_FILE: u64 = 1 << 1;
    pub(super) const READ_FILE: u64 = 1 << 2;
    pub(super) const READ_DIR: u64 = 1 << 3;
    pub(super) const REMOVE_DIR: u64 = 1 << 4;
    pub(super) const REMOVE_FILE: u64 = 1 << 5;
    pub(super) const MAKE_DIR: u64 = 1 << 7;
    pub(super) const MAKE_REG: u64 = 1 << 8;
    pub(super) const TRUNCATE: u64 = 1 << 14;
    pub(super) const IOCTL_DEV: u64 = 1 << 15;
    /// Those that make sense for what is no directory.
    pub(super) const OF_FILES: u64 = 1 | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;
}

impl Access {
    const fn rights(self) -> u64 {
        use right::*;
        match self {
            Self::Read => READ_FILE | READ_DIR,
            Self::Device => READ_FILE | WRITE_FILE | IOCTL_DEV,
            Self::RemoveFiles => READ_DIR | REMOVE_FILE,
            Self::RemoveDirs => REMOVE_DIR,
            Self::All => READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | MAKE_DIR | MAKE_REG | REMOVE_DIR | REMOVE_FILE,
        }
    }
}

/// What has become of the rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Landlock {
    /// They are in force; which version (ABI) of Landlock the kernel has.
    Enforced(u32),
    /// The kernel has no Landlock, or it is switched off.
    Absent,
}

impl std::fmt::Display for Landlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Enforced(version) => write!(f, "files are confined by Landlock (version {version})"),
            Self::Absent => f.write_str("this kernel has no Landlock: files are not confined"),
        }
    }
}

/// The files that a process will need.
#[derive(Clone, Debug, Default)]
pub struct FileRules(Vec<(PathBuf, Access)>);

impl FileRules {
    /// Adds a file, or a directory with all below it. What does not exist when the rules come into force is not
    /// allowed later either.
    #[must_use]
    pub fn allow(mut self, path: impl Into<PathBuf>, access: Access) -> Self {
        self.0.push((path.into(), access));
        self
    }

    /// Confines the calling thread, and all that it will start, to these files, and takes from it TCP, abstract
    /// sockets and signals to other processes, as far as the kernel knows how to. Open descriptors stay usable.
    ///
    /// # Errors
    /// When the kernel has Landlock and does not take the rules.
    pub fn restrict(&self) -> io::Result<Landlock> {
        let Some(version) = version() else { return Ok(Landlock::Absent) };
        let attributes = Attributes::of(version);
        let ruleset = attributes.create(version)?;
        for (path, access) in &self.0 {
            add(&ruleset, path, access.rights() & attributes.files)?;
        }
        // SAFETY: the call takes four numbers and no pointer.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
        // SAFETY: takes a descriptor, which is open, and flags.
        check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) })?;
        Ok(Landlock::Enforced(version))
    }
}

/// `struct landlock_ruleset_attr`: what is forbidden unless a rule allows it.
#[repr(C)]
struct Attributes {
    files: u64,
    net: u64,
    scoped: u64,
}

impl Attributes {
    /// All that `version` knows.
    const fn of(version: u32) -> Self {
        let files = match version {
            1 => 13,
            2 => 14,
            3 | 4 => 15,
            _ => 16,
        };
        let net = if version >= 4 { 0b11 } else { 0 };
        let scoped = if version >= 6 { 0b11 } else { 0 };
        Self { files: (1 << files) - 1, net, scoped }
    }

    fn create(&self, version: u32) -> io::Result<OwnedFd> {
        // Older kernels refuse a longer structure.
        let size: usize = match version {
            ..4 => 8,
            4 | 5 => 16,
            _ => 24,
        };
        // SAFETY: the structure is valid for at least `size` bytes, and the kernel only reads it.
        let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const *self, size, 0) };
        let fd = i32::try_from(check(fd)?).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made the descriptor, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// `struct landlock_path_beneath_attr`
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

fn add(ruleset: &OwnedFd, path: &Path, rights: u64) -> io::Result<()> {
    const LANDLOCK_RULE_PATH_BENEATH: u32 = 1;
    let Ok(file) = File::options().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path) else {
        return Ok(());
    };
    let is_dir = file.metadata()?.is_dir();
    let allowed = if is_dir { rights } else { rights & right::OF_FILES };
    if allowed == 0 {
        return Ok(());
    }
    let rule = PathBeneath { allowed, parent: file.as_raw_fd() };
    // SAFETY: the kernel only reads the structure, which is of the type that the rule's kind calls for.
    let result = unsafe {
        libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), LANDLOCK_RULE_PATH_BENEATH, &raw const rule, 0)
    };
    check(result).map(drop)
}

/// Which version of Landlock the kernel has, if any.
fn version() -> Option<u32> {
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    let null = std::ptr::null::<u8>();
    // SAFETY: with this flag there is no structure, only the question.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, null, 0_usize, LANDLOCK_CREATE_RULESET_VERSION) };
    u32::try_from(version).ok().filter(|&version| version > 0)
}

fn check(result: i64) -> io::Result<i64> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn each_version_has_its_rights() {
        assert_eq!(Attributes::of(1).files, 0x1fff);
        assert_eq!(Attributes::of(3).files, 0x7fff);
        assert_eq!(Attributes::of(4).net, 3);
        assert_eq!((Attributes::of(7).files, Attributes::of(7).scoped), (0xffff, 3));
        assert_eq!(size_of::<PathBeneath>(), 12);
    }

    #[test]
    fn rules_hold_for_a_thread_and_only_for_it() {
        let temp = tempfile::tempdir().unwrap();
        let (inside, outside) = (temp.path().join("in"), temp.path().join("out"));
        std::fs::create_dir(&inside).unwrap();
        std::fs::create_dir(&outside).unwrap();
        let (mine, other) = (inside.clone(), outside.clone());
        let confined = std::thread::spawn(move || {
            let rules = FileRules::default().allow(&mine, Access::All).allow("/nonexistent", Access::Read);
            if rules.restrict().unwrap() == Landlock::Absent {
                return false;
            }
            std::fs::write(mine.join("file"), "x").unwrap();
            std::fs::rename(mine.join("file"), mine.join("renamed")).unwrap();
            let refused = |result: io::Result<()>| {
                assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            };
            refused(std::fs::write(other.join("file"), "x"));
            refused(std::fs::read("/etc/passwd").map(drop));
            refused(std::fs::remove_dir(&other));
            true
        });
        if !confined.join().unwrap() {
            // Past what is kept back from a test that passes.
            writeln!(io::stderr(), "sandbox::files: nothing was confined: this kernel has no Landlock").unwrap();
        }
        std::fs::write(outside.join("file"), "x").unwrap();
        assert!(inside.join("renamed").exists());
    }
}
