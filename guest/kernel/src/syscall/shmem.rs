//! Calls on files of shared memory (`mm/memfd.c`, `fs/open.c`).

use alloc::string::String;

use pagevisor_shared::errno::Errno;

use super::{Outcome, files};
use crate::arch::uaccess;
use crate::fs::file::{End, File, Name, O_CLOEXEC, O_RDWR};
use crate::fs::inode::{Allocate, Inode};
use crate::platform;

/// `memfd_create`: closed when another program is run; it may be sealed; of huge pages.
const MFD_CLOEXEC: u32 = 1;
const MFD_ALLOW_SEALING: u32 = 2;
const MFD_HUGETLB: u32 = 4;
/// Longest name (`MFD_NAME_MAX_LEN`).
const MFD_NAME_MAX: usize = 249;
/// `fallocate`: the file does not grow; it gets a hole.
const FALLOC_FL_KEEP_SIZE: u32 = 1;
const FALLOC_FL_PUNCH_HOLE: u32 = 2;

/// Makes call `number`, if it is one of these.
pub fn call(number: u32, args: &[u64; 6]) -> Option<Outcome> {
    let [a, b, c, d, ..] = *args;
    Some(match number {
        285 => allocate(a, b as u32, c, d),
        319 => create(a, b as u32),
        _ => return None,
    })
}

/// `memfd_create`.
fn create(name: u64, flags: u32) -> Outcome {
    if flags & !(MFD_CLOEXEC | MFD_ALLOW_SEALING) != 0 {
        // There are no pools of huge pages.
        return Err(if flags & MFD_HUGETLB != 0 { Errno::ENOSYS } else { Errno::EINVAL });
    }
    let mut bytes = [0; MFD_NAME_MAX + 1];
    let len = uaccess::read_string(&mut bytes, name)?;
    if len > MFD_NAME_MAX {
        return Err(Errno::EINVAL);
    }
    let inode = Inode::unnamed(flags & MFD_ALLOW_SEALING != 0)?;
    let name = alloc::format!("/memfd:{} (deleted)", String::from_utf8_lossy(&bytes[..len]));
    let file = File::new(inode, O_RDWR, End::None, Name::Fixed(name));
    files::enter(file, if flags & MFD_CLOEXEC != 0 { O_CLOEXEC } else { 0 })
}

/// `fcntl` with `F_GET_SEALS`, or with `F_ADD_SEALS` and what to add.
///
/// # Errors
/// EINVAL for other files, EPERM for who may not write to it; what [`pagevisor_mm::Mm::add_seals`] gives.
pub fn seals(file: &File, add: Option<u32>) -> Outcome {
    let mapping = file.inode.mapping().filter(|_| file.inode.system.is_shmem()).ok_or(Errno::EINVAL)?;
    let mm = platform::mm().ok_or(Errno::EINVAL)?;
    match add {
        None => Ok(mm.seals(mapping).into()),
        Some(_) if !file.writes() => Err(Errno::EPERM),
        Some(seals) => mm.add_seals(mapping, seals).map(|()| 0),
    }
}

/// `fallocate` (`vfs_fallocate`).
fn allocate(number: u64, mode: u32, offset: u64, len: u64) -> Outcome {
    let file = files::own()?.get(number)?;
    if offset.cast_signed() < 0 || len.cast_signed() <= 0 {
        return Err(Errno::EINVAL);
    }
    let what = match mode {
        0 => Allocate::Pages { keep_size: false },
        FALLOC_FL_KEEP_SIZE => Allocate::Pages { keep_size: true },
        _ if mode == FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE => Allocate::Hole,
        _ => return Err(Errno::EOPNOTSUPP),
    };
    if !file.writes() {
        return Err(Errno::EBADF);
    }
    if file.is_stream() {
        return Err(Errno::ESPIPE);
    }
    file.inode.allocate(what, offset, len).map(|()| 0)
}
