//! Files: a tree of them in memory, that what the loader gave has been unpacked into (`fs/ramfs`, `init/initramfs.c`), and the
//! files that programs have open.
//!
//! [`inode`] what a tree is made of; [`initramfs`] how it comes from an archive; [`path`] names; [`file`] open files;
//! [`table`] their numbers; [`pipe`]; [`proc`].

pub mod file;
pub mod initramfs;
pub mod inode;
pub mod path;
pub mod pipe;
pub mod proc;
pub mod table;

use alloc::sync::Arc;

use crate::sync::Once;
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
    ROOT.get().unwrap_or_else(|| ROOT.set(Inode::directory(0o755)))
}

/// Makes the tree: what is in `archive`, and the devices.
pub fn init(archive: &'static [u8]) {
    let root = root();
    initramfs::unpack(root, archive);
    proc::mount(root);
    let Ok(dev) = path::make_directories(root, "dev") else { return };
    for (name, device) in [
        ("null", Device::Null),
        ("zero", Device::Zero),
        ("full", Device::Full),
        ("console", Device::Console),
        ("tty", Device::Console),
    ] {
        // What the archive brought is kept.
        let _ = dev.insert(name, Inode::new(mode::CHARACTER | 0o666, Kind::Device(device)));
    }
}
