//! What files are (`fs/stat.c`).

use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::errno::Errno;

use super::{Outcome, files, tree};
use crate::arch::uaccess;
use crate::clock;
use crate::fs::content::FileSystem;
use crate::fs::inode::{CHANGED, Inode, Kind, READ, WRITTEN};
use crate::fs::path;

/// A symbolic link is not followed.
const AT_SYMLINK_NOFOLLOW: u64 = 0x100;
/// Nothing is mounted on the way.
const AT_NO_AUTOMOUNT: u64 = 0x800;
/// An empty path is the file itself.
const AT_EMPTY_PATH: u64 = 0x1000;
/// How fresh it has to be; all is.
const AT_STATX_SYNC_TYPE: u64 = 0x6000;
/// `utimensat`: nanoseconds that stand for now, and for what it is.
const UTIME_NOW: u64 = 0x3fff_ffff;
const UTIME_OMIT: u64 = 0x3fff_fffe;
/// Bytes that are best read at once.
const BLOCK_SIZE: u64 = 4096;
/// What `statx` gives here: the basic fields (`STATX_BASIC_STATS`).
const STATX_BASIC: u64 = 0x7ff;
/// A bit that means nothing yet (`STATX__RESERVED`).
const STATX_RESERVED: u64 = 1 << 31;

/// `statfs`: the flags are some (`ST_VALID`); bytes at the end that are nothing yet.
const ST_VALID: u64 = 0x20;
const SPARE: usize = 32;

const SECOND: u64 = 1_000_000_000;

/// Makes call `number`, if it is one of these.
pub fn call(number: u32, args: &[u64; 6]) -> Option<Outcome> {
    let [a, b, c, d, e, _] = *args;
    Some(match number {
        4 => find(tree::AT_FDCWD, a, 0).and_then(|inode| write(b, &inode)),
        6 => find(tree::AT_FDCWD, a, AT_SYMLINK_NOFOLLOW).and_then(|inode| write(b, &inode)),
        137 => find(tree::AT_FDCWD, a, 0).and_then(|inode| write_system(b, inode.system)),
        138 => files::own().and_then(|files| write_system(b, files.get(a)?.inode.system)),
        262 if d & !(AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH) != 0 => Err(Errno::EINVAL),
        262 => find(a, b, d).and_then(|inode| write(c, &inode)),
        280 => set_times(a, b, c, d),
        332 => extended(a, b, c, d, e),
        _ => return None,
    })
}

/// `struct statfs`: type, size of a block; blocks, free ones and those that anybody can have; no number of files is the
/// most; number, longest name, size of a block once more, flags.
fn write_system(at: u64, system: FileSystem) -> Outcome {
    let (max, used) = system.usage();
    let (free, number) = (max.saturating_sub(used), u64::from(system.device()));
    let name = path::NAME_MAX as u64;
    let words = [system.magic(), BLOCK_SIZE, max, free, free, 0, 0, number, name, BLOCK_SIZE, ST_VALID];
    uaccess::write_words(at, &words)?;
    uaccess::clear(at + 8 * words.len() as u64, SPARE).map(|()| 0)
}

/// The file that a path leads to, as `flags` say.
fn find(directory: u64, name: u64, flags: u64) -> Result<Arc<Inode>, Errno> {
    let text = match tree::string(name) {
        // As Linux: nothing need be there if the file itself is meant.
        Err(Errno::EFAULT) if name == 0 && flags & AT_EMPTY_PATH != 0 => return tree::start(directory),
        text => text?,
    };
    if text.is_empty() && flags & AT_EMPTY_PATH != 0 {
        return tree::start(directory);
    }
    path::lookup(&tree::start(directory)?, &text, flags & AT_SYMLINK_NOFOLLOW == 0)
}

fn device(inode: &Inode) -> u64 {
    match inode.kind {
        Kind::Device(device) => device.number(),
        _ => 0,
    }
}

fn times(inode: &Inode) -> [[u64; 2]; 3] {
    [READ, WRITTEN, CHANGED].map(|which| {
        let nanos = inode.times[which].load(Relaxed);
        [nanos / SECOND, nanos % SECOND]
    })
}

/// Writes what `stat` gives for `inode` to `at` (`struct stat`).
pub fn write(at: u64, inode: &Inode) -> Outcome {
    // dev, ino, nlink, mode and uid, gid, rdev, size, blksize, blocks, three times, three words of padding.
    let mut words = [0; 18];
    words[0] = inode.system.device().into();
    words[1] = inode.number;
    words[2] = inode.links.load(Relaxed).into();
    words[3] = inode.mode.load(Relaxed).into();
    words[5] = device(inode);
    words[6] = inode.size();
    words[7] = BLOCK_SIZE;
    words[8] = inode.blocks();
    words[9..15].copy_from_slice(times(inode).as_flattened());
    uaccess::write_words(at, &words).map(|()| 0)
}

/// `statx` (`struct statx`). Nobody has noted when files were made.
fn extended(directory: u64, name: u64, flags: u64, mask: u64, at: u64) -> Outcome {
    let known = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH | AT_STATX_SYNC_TYPE;
    if flags & !known != 0 || flags & AT_STATX_SYNC_TYPE == AT_STATX_SYNC_TYPE || mask & STATX_RESERVED != 0 {
        return Err(Errno::EINVAL);
    }
    let inode = find(directory, name, flags)?;
    let mut words = [0; 32];
    // mask and blksize, attributes, nlink and uid, gid and mode, ino, size, blocks, attributes_mask.
    words[0] = STATX_BASIC | BLOCK_SIZE << 32;
    words[2] = inode.links.load(Relaxed).into();
    words[3] = u64::from(inode.mode.load(Relaxed)) << 32;
    words[4] = inode.number;
    words[5] = inode.size();
    words[6] = inode.blocks();
    // Times of reading, of birth, of any change, of writing: seconds, and nanoseconds with padding.
    let [read, written, changed] = times(&inode);
    words[8..10].copy_from_slice(&read);
    words[12..14].copy_from_slice(&changed);
    words[14..16].copy_from_slice(&written);
    // Device that it is: major, minor; device that it is on.
    let device = device(&inode);
    words[16] = device >> 8 | (device & 0xff) << 32;
    words[17] = u64::from(inode.system.device()) << 32;
    uaccess::write_words(at, &words).map(|()| 0)
}

/// `utimensat`: sets when a file was read and written last.
fn set_times(directory: u64, name: u64, at: u64, flags: u64) -> Outcome {
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let now = clock::nanos();
    let [read, read_nanos, written, written_nanos] =
        if at == 0 { [0, UTIME_NOW, 0, UTIME_NOW] } else { uaccess::read_words(at)? };
    let time = |seconds: u64, nanos: u64| match nanos {
        UTIME_NOW => Ok(Some(now)),
        UTIME_OMIT => Ok(None),
        _ if nanos >= SECOND => Err(Errno::EINVAL),
        _ => Ok(Some(seconds.saturating_mul(SECOND).saturating_add(nanos))),
    };
    let wanted = [time(read, read_nanos)?, time(written, written_nanos)?];
    let inode = if name == 0 { tree::start(directory)? } else { find(directory, name, flags)? };
    for (which, time) in [READ, WRITTEN].into_iter().zip(wanted) {
        if let Some(time) = time {
            inode.times[which].store(time, Relaxed);
            inode.times[CHANGED].store(now, Relaxed);
        }
    }
    Ok(0)
}
