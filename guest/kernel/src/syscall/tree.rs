//! Calls on names of files.

use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::errno::Errno;

use super::{Outcome, files};
use crate::arch::uaccess;
use crate::fs::access::Written;
use crate::fs::file::{
    self, File, Name, O_ACCMODE, O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_RDONLY, O_TMPFILE, O_TRUNC, O_WRONLY,
};
use crate::fs::inode::{Device, Inode, Kind};
use crate::fs::table::directories;
use crate::fs::{mode, path, root};
use crate::task;

/// From the working directory (`AT_FDCWD`).
pub const AT_FDCWD: u64 = -100i32 as u32 as u64;
/// A directory is removed.
const AT_REMOVEDIR: u64 = 0x200;

/// Makes call `number`, if it is one of these.
pub fn call(number: u32, args: &[u64; 6]) -> Option<Outcome> {
    let [a, b, c, d, e, _] = *args;
    Some(match number {
        2 => open(AT_FDCWD, a, b as u32, c as u32),
        21 => lookup(AT_FDCWD, a, true).map(|_| 0),
        76 => lookup(AT_FDCWD, a, true).and_then(|file| cut(&file, b)),
        77 => files::own().and_then(|files| truncate(&*files.get(a)?, b)),
        86 => hard_link(AT_FDCWD, a, AT_FDCWD, b),
        265 => hard_link(a, b, c, d),
        78 | 217 => entries(a, b, c as usize),
        79 => working_directory(a, b),
        80 => lookup(AT_FDCWD, a, true).and_then(change_directory),
        81 => files::own().and_then(|files| change_directory(Arc::clone(&files.get(a)?.inode))),
        82 => rename(AT_FDCWD, a, AT_FDCWD, b),
        83 => make(AT_FDCWD, a, mode::DIRECTORY | b as u32 & 0o7777, 0),
        84 => unlink(AT_FDCWD, a, true),
        85 => open(AT_FDCWD, a, O_CREAT | O_WRONLY | O_TRUNC, b as u32),
        87 => unlink(AT_FDCWD, a, false),
        88 => link(a, AT_FDCWD, b),
        89 => read_link(AT_FDCWD, a, b, c),
        90 => lookup(AT_FDCWD, a, true).map(|file| set_rights(&file, b as u32)),
        95 => directories(&task::current()).map(|own| u64::from(own.record.umask.swap(a as u32 & 0o777, Relaxed))),
        133 => make(AT_FDCWD, a, b as u32, c),
        257 => open(a, b, c as u32, d as u32),
        258 => make(a, b, mode::DIRECTORY | c as u32 & 0o7777, 0),
        259 => make(a, b, c as u32, d),
        263 => unlink(a, b, c & AT_REMOVEDIR != 0),
        264 => rename(a, b, c, d),
        266 => link(a, b, c),
        267 => read_link(a, b, c, d),
        268 => lookup(a, b, true).map(|file| set_rights(&file, c as u32)),
        269 | 439 => lookup(a, b, true).map(|_| 0),
        316 if e == 0 => rename(a, b, c, d),
        _ => return None,
    })
}

/// The program's string at `at`: a path.
///
/// # Errors
/// EFAULT; ENAMETOOLONG; ENOENT for what is no text, which no file has for a name here.
pub fn string(at: u64) -> Result<String, Errno> {
    let mut bytes = alloc::vec![0; path::PATH_MAX];
    let len = uaccess::read_string(&mut bytes, at)?;
    if len == bytes.len() {
        return Err(Errno::ENAMETOOLONG);
    }
    bytes.truncate(len);
    String::from_utf8(bytes).map_err(|_| Errno::ENOENT)
}

/// The directory that a path begins at which does not begin at the root; or any file that is open.
pub fn start(directory: u64) -> Result<Arc<Inode>, Errno> {
    if directory as u32 == AT_FDCWD as u32 {
        return directories(&task::current()).map(|own| own.work());
    }
    Ok(Arc::clone(&files::own()?.get(directory)?.inode))
}

/// The file that a path leads to.
///
/// # Errors
/// As [`path::lookup`].
pub fn lookup(directory: u64, name: u64, follow: bool) -> Result<Arc<Inode>, Errno> {
    path::lookup(&start(directory)?, &string(name)?, follow)
}

fn open(directory: u64, name: u64, flags: u32, rights: u32) -> Outcome {
    if flags & O_TMPFILE & !O_DIRECTORY != 0 {
        return open_unnamed(directory, name, flags, rights);
    }
    let (name, creates) = (string(name)?, flags & O_CREAT != 0);
    let follow = flags & O_NOFOLLOW == 0 && flags & (O_CREAT | O_EXCL) != O_CREAT | O_EXCL;
    let place = path::find(&start(directory)?, &name, follow)?;
    let inode = match place.file {
        Some(_) if creates && flags & O_EXCL != 0 => return Err(Errno::EEXIST),
        Some(file) => file,
        None if !creates => return Err(Errno::ENOENT),
        None if place.wants_directory => return Err(Errno::EISDIR),
        None => {
            let mask = directories(&task::current())?.record.umask.load(Relaxed);
            let file = Inode::regular(place.directory.system, rights & !mask)?;
            place.directory.insert(&place.name, file)?
        }
    };
    match inode.kind {
        Kind::Link(_) => return Err(Errno::ELOOP),
        _ if inode.is_directory() && (flags & O_ACCMODE != O_RDONLY || creates) => return Err(Errno::EISDIR),
        _ if inode.is_directory() => {}
        _ if flags & O_DIRECTORY != 0 => return Err(Errno::ENOTDIR),
        _ => {}
    }
    let writes = flags & O_ACCMODE != O_RDONLY && matches!(inode.kind, Kind::Regular(_));
    let written = if writes { Some(Written::new(&inode)?) } else { None };
    if writes && flags & O_TRUNC != 0 {
        inode.truncate(0)?;
    }
    let name = Name::In(place.directory, place.name);
    files::enter(File::open(inode, flags & !(O_CREAT | O_EXCL | O_TRUNC), name, written), flags)
}

/// A new file without a name, in the file system of the directory that is named (`do_tmpfile`).
fn open_unnamed(directory: u64, name: u64, flags: u32, rights: u32) -> Outcome {
    if flags & O_TMPFILE != O_TMPFILE || flags & O_ACCMODE == O_RDONLY || flags & O_CREAT != 0 {
        return Err(Errno::EINVAL);
    }
    let parent = lookup(directory, name, flags & O_NOFOLLOW == 0)?;
    match parent.kind {
        Kind::Directory(..) => {}
        Kind::Proc(_) if parent.is_directory() => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::ENOTDIR),
    }
    let inode = Inode::regular(parent.system, rights & !directories(&task::current())?.record.umask.load(Relaxed))?;
    let path = path::path_of(&parent)?;
    let name = alloc::format!("{}/#{} (deleted)", path.trim_end_matches('/'), inode.number);
    let written = Some(Written::new(&inode)?);
    files::enter(File::open(inode, flags & !(O_TMPFILE | O_EXCL | O_TRUNC), Name::Fixed(name), written), flags)
}

/// `truncate`.
fn cut(inode: &Arc<Inode>, size: u64) -> Outcome {
    if size > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    if inode.is_directory() {
        return Err(Errno::EISDIR);
    }
    let _written = Written::new(inode)?;
    resize(inode, size)
}

fn truncate(file: &File, size: u64) -> Outcome {
    if !file.writes() || size > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    resize(&file.inode, size)
}

/// Makes a file `size` bytes long, but not longer than the current task may (`inode_newsize_ok`).
fn resize(inode: &Inode, size: u64) -> Outcome {
    if size > inode.size() {
        file::room_below_limit(size - 1, 1)?;
    }
    inode.truncate(size).map(|()| 0)
}

fn set_rights(inode: &Inode, rights: u32) -> u64 {
    let kind = inode.mode.load(Relaxed) & mode::TYPE;
    inode.mode.store(kind | rights & 0o7777, Relaxed);
    0
}

fn change_directory(inode: Arc<Inode>) -> Outcome {
    if !inode.is_directory() {
        return Err(Errno::ENOTDIR);
    }
    directories(&task::current())?.set_work(inode);
    Ok(0)
}

/// `getcwd`: the length, the final zero included.
fn working_directory(at: u64, size: u64) -> Outcome {
    let mut name = path::path_of(&start(AT_FDCWD)?)?.into_bytes();
    name.push(0);
    if name.len() as u64 > size {
        return Err(Errno::ERANGE);
    }
    uaccess::write(at, &name).map(|()| name.len() as u64)
}

/// `mknod` and `mkdir`.
fn make(directory: u64, name: u64, kind: u32, device: u64) -> Outcome {
    let place = path::find(&start(directory)?, &string(name)?, false)?;
    if place.file.is_some() {
        return Err(Errno::EEXIST);
    }
    let rights = kind & 0o7777 & !directories(&task::current())?.record.umask.load(Relaxed);
    let file = match kind & mode::TYPE {
        mode::DIRECTORY => Inode::directory(place.directory.system, rights),
        0 | mode::REGULAR => Inode::regular(place.directory.system, rights)?,
        mode::CHARACTER => {
            let (major, minor) = (device >> 8 & 0xfff, device & 0xff);
            let device = Device::of_number(major as u32, minor as u32).ok_or(Errno::ENODEV)?;
            Inode::new(place.directory.system, mode::CHARACTER | rights, Kind::Device(device))
        }
        _ => return Err(Errno::EPERM),
    };
    place.directory.insert(&place.name, file).map(|_| 0)
}

fn unlink(directory: u64, name: u64, is_directory: bool) -> Outcome {
    let place = path::find(&start(directory)?, &string(name)?, false)?;
    if place.name.is_empty() {
        return Err(Errno::EBUSY);
    }
    if place.wants_directory && !is_directory {
        return Err(Errno::EISDIR);
    }
    place.directory.remove(&place.name, is_directory).map(|()| 0)
}

/// `link`.
fn hard_link(from_directory: u64, from: u64, directory: u64, name: u64) -> Outcome {
    let file = path::lookup(&start(from_directory)?, &string(from)?, false)?;
    if file.is_directory() {
        return Err(Errno::EPERM);
    }
    let place = path::find(&start(directory)?, &string(name)?, false)?;
    if place.file.is_some() {
        return Err(Errno::EEXIST);
    }
    place.directory.insert(&place.name, file).map(|_| 0)
}

/// `symlink`.
fn link(to: u64, directory: u64, name: u64) -> Outcome {
    let to = string(to)?;
    if to.is_empty() {
        return Err(Errno::ENOENT);
    }
    let place = path::find(&start(directory)?, &string(name)?, false)?;
    if place.file.is_some() {
        return Err(Errno::EEXIST);
    }
    let link = Inode::new(place.directory.system, mode::LINK | 0o777, Kind::Link(to));
    place.directory.insert(&place.name, link).map(|_| 0)
}

fn rename(from_directory: u64, from: u64, to_directory: u64, to: u64) -> Outcome {
    let from = path::find(&start(from_directory)?, &string(from)?, false)?;
    let to = path::find(&start(to_directory)?, &string(to)?, false)?;
    let file = from.file.ok_or(Errno::ENOENT)?;
    if from.name.is_empty() || to.name.is_empty() {
        return Err(Errno::EBUSY);
    }
    if file.system != from.directory.system {
        return Err(Errno::EBUSY);
    }
    if from.directory.system != to.directory.system {
        return Err(Errno::EXDEV);
    }
    // A directory does not go into itself.
    let mut above = Arc::clone(&to.directory);
    while file.is_directory() && !Arc::ptr_eq(&above, root()) {
        if Arc::ptr_eq(&above, &file) {
            return Err(Errno::EINVAL);
        }
        above = above.parent();
    }
    if let Some(old) = to.file {
        if Arc::ptr_eq(&old, &file) {
            return Ok(0);
        }
        match (file.is_directory(), old.is_directory()) {
            (true, false) => return Err(Errno::ENOTDIR),
            (false, true) => return Err(Errno::EISDIR),
            _ => to.directory.remove(&to.name, old.is_directory())?,
        }
    }
    from.directory.detach(&from.name)?;
    to.directory.insert(&to.name, file).map(|_| 0)
}

fn read_link(directory: u64, name: u64, at: u64, size: u64) -> Outcome {
    if size == 0 || size > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    let name = string(name)?;
    let inode = path::lookup(&start(directory)?, &name, false)?;
    let to = match &inode.kind {
        Kind::Link(to) => to.clone(),
        Kind::Proc(node) => node.target().ok_or(Errno::EINVAL)??.into_text(),
        _ => return Err(Errno::EINVAL),
    };
    let len = to.len().min(size as usize);
    uaccess::write(at, &to.as_bytes()[..len]).map(|()| len as u64)
}

/// `getdents64` (and `getdents`, which nobody calls any more: ENOSYS would be as good).
fn entries(number: u64, at: u64, size: usize) -> Outcome {
    /// Bytes of an entry before its name.
    const BEFORE_NAME: usize = 19;
    let file = files::own()?.get(number)?;
    if !file.inode.is_directory() {
        return Err(Errno::ENOTDIR);
    }
    let mut done = 0;
    loop {
        let index = file.position.load(Relaxed);
        let entry = match index {
            0 => Some((String::from("."), file.inode.number, mode::DIRECTORY, 1)),
            1 => Some((String::from(".."), file.inode.parent().number, mode::DIRECTORY, 2)),
            _ => file.inode.entry(index - 2).map(|(name, inode, mode, next)| (name, inode, mode, next + 2)),
        };
        let Some((name, inode, mode, next)) = entry else { return Ok(done as u64) };
        let len = (BEFORE_NAME + name.len() + 1).next_multiple_of(8);
        if done + len > size {
            return if done == 0 { Err(Errno::EINVAL) } else { Ok(done as u64) };
        }
        let mut bytes = alloc::vec![0; len];
        bytes[..8].copy_from_slice(&inode.to_le_bytes());
        bytes[8..16].copy_from_slice(&next.to_le_bytes());
        bytes[16..18].copy_from_slice(&(len as u16).to_le_bytes());
        bytes[18] = (mode >> 12) as u8;
        bytes[BEFORE_NAME..BEFORE_NAME + name.len()].copy_from_slice(name.as_bytes());
        uaccess::write(at + done as u64, &bytes)?;
        file.position.store(next, Relaxed);
        done += len;
    }
}
