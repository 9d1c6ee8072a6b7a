//! Files: a tree of them in memory, that what the loader gave has been unpacked into (`fs/ramfs`, `init/initramfs.c`), and the
//! files that programs have open.
//!
//! [`inode`] what a tree is made of; [`content`] what is in files; [`initramfs`] how it comes from an archive; [`path`] names; [`file`] open files;
//! [`table`] their numbers; [`pipe`]; [`proc`].

pub mod access;
pub mod content;
pub mod file;
pub mod initramfs;
pub mod inode;
pub mod path;
pub mod pipe;
pub mod proc;
pub mod table;

use alloc::sync::Arc;

use pagevisor_shared::errno::Errno;

use crate::log::pr_warn;
use crate::sync::Once;
use content::FileSystem;
use inode::{Device, Inode, Kind};

/// Types in the mode of a file (`S_IF*`).
pub mod mode {
    /// The bits of the type.
    pub const TYPE: u32 = 0o170_000;
    /// A pipe.
    pub const PIPE: u32 = 0o010_000;
    /// A character device.
    pub const CHARACTER: u32 = 0o020_000;
    /// A directory.
    pub const DIRECTORY: u32 = 0o040_000;
    /// A regular file.
    pub const REGULAR: u32 = 0o100_000;
    /// A symbolic link.
    pub const LINK: u32 = 0o120_000;
}

static ROOT: Once<Arc<Inode>> = Once::new();

/// The root of the tree.
pub fn root() -> &'static Arc<Inode> {
    ROOT.get().unwrap_or_else(|| ROOT.set(Inode::directory(FileSystem::Root, 0o755)))
}

/// Makes the tree: what is in `archive`, and the devices.
pub fn init(archive: &[u8]) {
    let root = root();
    initramfs::unpack(root, archive);
    mount(root, "proc", proc::root());
    for system in [FileSystem::Temporary, FileSystem::Shared] {
        system.limit_to_half();
    }
    mount(root, "tmp", Inode::directory(FileSystem::Temporary, 0o1777));
    let Ok(dev) = path::make_directories(root, "dev") else { return };
    mount(&dev, "shm", Inode::directory(FileSystem::Shared, 0o1777));
    for (name, device) in [
        ("null", Device::Null),
        ("zero", Device::Zero),
        ("full", Device::Full),
        ("random", Device::Random),
        ("urandom", Device::Urandom),
        ("console", Device::Console),
        ("tty", Device::Console),
    ] {
        // What the archive brought is kept.
        let _ = dev.insert(name, Inode::new(dev.system, mode::CHARACTER | 0o666, Kind::Device(device)));
    }
}

/// Mounts a file system: puts its root into `directory` as `name`, in place of an empty directory that may be there.
fn mount(directory: &Arc<Inode>, name: &str, system: Arc<Inode>) {
    let mounted = match directory.remove(name, true) {
        Ok(()) | Err(Errno::ENOENT) => directory.enter(name, system).map(drop),
        Err(error) => Err(error),
    };
    if let Err(error) = mounted {
        pr_warn!("fs: nothing is mounted at {name}: {}", error.name());
    }
}
