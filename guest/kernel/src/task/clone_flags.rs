//! What a child has in common with its parent, and what is done for it (`CLONE_*`).

/// The signal that tells the parent of its end.
pub const CSIGNAL: u64 = 0xff;
/// The address space.
pub const VM: u64 = 0x100;
/// Root and working directory.
pub const FS: u64 = 0x200;
/// The table of open files.
pub const FILES: u64 = 0x400;
/// What signals do.
pub const SIGHAND: u64 = 0x800;
/// The parent waits until the child has given up the address space.
pub const VFORK: u64 = 0x4000;
/// The parent's parent is the child's.
pub const PARENT: u64 = 0x8000;
/// The process.
pub const THREAD: u64 = 0x1_0000;
/// A namespace of mounts of its own.
pub const NEWNS: u64 = 0x2_0000;
/// The child's FS base is given.
pub const SETTLS: u64 = 0x8_0000;
/// The child's number is written to the parent's memory.
pub const PARENT_SETTID: u64 = 0x10_0000;
/// When the child ends, a word of its memory is cleared and who waits there woken.
pub const CHILD_CLEARTID: u64 = 0x20_0000;
/// The child's number is written to its own memory.
pub const CHILD_SETTID: u64 = 0x100_0000;
/// Namespaces of its own, of all kinds but of mounts.
pub const NEW_NAMESPACES: u64 = 0x80 | 0x200_0000 | 0x400_0000 | 0x800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000;
/// The parent gets a file that stands for the child.
pub const PIDFD: u64 = 0x1000;
/// Means nothing any more.
pub const DETACHED: u64 = 0x40_0000;
/// Signals that are not ignored do what they do at first.
pub const CLEAR_SIGHAND: u64 = 1 << 32;
/// A control group is given.
pub const INTO_CGROUP: u64 = 1 << 33;
