//! Calls on open files.

use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::errno::Errno;

use super::{Outcome, iovec, shmem, stat};
use crate::arch::uaccess;
use crate::fs::file::{File, O_ACCMODE, O_APPEND, O_CLOEXEC, O_NONBLOCK};
use crate::fs::inode::Kind;
use crate::fs::pipe::Pipe;
use crate::fs::table::{Files, files};
use crate::signal::{self, Info, SIGPIPE};
use crate::task::{self, Resource};

/// The resource that limits the numbers of files (`RLIMIT_NOFILE`).
const LIMIT_FILES: usize = 7;

/// `fcntl`: what to do.
const F_DUPFD: u32 = 0;
const F_GETFD: u32 = 1;
const F_SETFD: u32 = 2;
const F_GETFL: u32 = 3;
const F_SETFL: u32 = 4;
const F_DUPFD_CLOEXEC: u32 = 1030;
const F_ADD_SEALS: u32 = 1033;
const F_GET_SEALS: u32 = 1034;

/// `close_range`: of an own table of files; they are not closed but marked to be when another program is run.
const CLOSE_RANGE_UNSHARE: u32 = 2;
const CLOSE_RANGE_CLOEXEC: u32 = 4;
/// `fadvise64`: the last thing that can be said (`POSIX_FADV_NOREUSE`).
const LAST_ADVICE: u32 = 5;

/// Makes call `number`, if it is one of these.
pub fn call(number: u32, args: &[u64; 6]) -> Option<Outcome> {
    let [a, b, c, d, ..] = *args;
    Some(match number {
        0 => with(a, |file| file.read(b, clamp(c), None)),
        1 => written(with(a, |file| file.write(b, clamp(c), None))),
        3 => own().and_then(|files| files.remove(a)).map(|_| 0),
        5 => own().and_then(|files| files.get(a)).and_then(|file| stat::write(b, &file.inode)),
        8 => seek(a, b, c as u32),
        16 => ioctl(a),
        17 => with(a, |file| positioned(file, d).and_then(|at| file.read(b, clamp(c), Some(at)))),
        18 => written(with(a, |file| positioned(file, d).and_then(|at| file.write(b, clamp(c), Some(at))))),
        19 => pieces(a, b, c, None, File::read),
        20 => written(pieces(a, b, c, None, File::write)),
        295 => pieces(a, b, c, Some(d), File::read),
        296 => written(pieces(a, b, c, Some(d), File::write)),
        22 => pipe(a, 0),
        32 => duplicate(a, 0, false),
        33 if a == b => own().and_then(|files| files.get(a)).map(|_| b),
        33 => replace(a, b, false),
        74 | 75 => own().and_then(|files| synchronized(&*files.get(a)?)),
        // What is written is written.
        162 => Ok(0),
        306 => own().and_then(|files| files.get(a)).map(|_| 0),
        221 => own().and_then(|files| advise(&*files.get(a)?, d as u32)),
        436 => close_range(a as u32, b as u32, c as u32),
        40 => sendfile(a, b, c, clamp(d)),
        72 => control(a, b as u32, c),
        292 if a == b || c as u32 & !O_CLOEXEC != 0 => Err(Errno::EINVAL),
        292 => replace(a, b, c as u32 & O_CLOEXEC != 0),
        293 => pipe(a, b as u32),
        _ => return None,
    })
}

/// The current task's open files.
pub fn own() -> Result<Arc<Files>, Errno> {
    files(&task::current())
}

/// Most that a call moves, of `len` bytes.
pub fn clamp(len: u64) -> usize {
    len.min(iovec::MAX_RW_COUNT) as usize
}

fn with(number: u64, work: impl FnOnce(&File) -> Result<usize, Errno>) -> Outcome {
    let file = own()?.get(number)?;
    work(&file).map(|done| done as u64)
}

/// What writing gives; nobody reading the pipe is a signal, too.
fn written(result: Outcome) -> Outcome {
    if result == Err(Errno::EPIPE) {
        let task = task::current();
        let words = [u64::from(task.tgid()), 0, 0];
        signal::send_to_thread(&task, Info { number: SIGPIPE, code: signal::SI_USER, words });
    }
    result
}

fn positioned(file: &File, at: u64) -> Result<u64, Errno> {
    if file.is_stream() {
        return Err(Errno::ESPIPE);
    }
    if at > i64::MAX as u64 { Err(Errno::EINVAL) } else { Ok(at) }
}

/// A file, an address and a length there, and where in the file: reading, or writing.
type Move = fn(&File, u64, usize, Option<u64>) -> Result<usize, Errno>;

/// `readv`, `writev`; `preadv`, `pwritev`, if there is a place.
fn pieces(number: u64, list: u64, count: u64, at: Option<u64>, one: Move) -> Outcome {
    let file = own()?.get(number)?;
    let at = at.map(|at| positioned(&file, at)).transpose()?;
    let mut done = 0;
    for [addr, len] in iovec::import(list, count)?.into_iter().filter(|[_, len]| *len != 0) {
        match one(&file, addr, len as usize, at.map(|at| at + done)) {
            Ok(now) => {
                done += now as u64;
                if (now as u64) < len {
                    break;
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// `sendfile`: from a regular file, to anything.
fn sendfile(to: u64, from: u64, offset: u64, len: usize) -> Outcome {
    let files = own()?;
    let (to, from) = (files.get(to)?, files.get(from)?);
    if !from.reads() || !to.writes() {
        return Err(Errno::EBADF);
    }
    let given = if offset == 0 { None } else { Some(uaccess::read_u64(offset)?) };
    let mut at = given.unwrap_or_else(|| from.position.load(Relaxed));
    let (mut done, mut buffer) = (0, alloc::vec![0; 4096]);
    while done < len {
        let wanted = buffer.len().min(len - done);
        let got = match from.read_to(&mut buffer[..wanted], at) {
            Ok(got) => got,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        };
        if got == 0 {
            break;
        }
        match to.write_from(&buffer[..got]) {
            Ok(now) => (at, done) = (at + now as u64, done + now),
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    match given {
        Some(_) => uaccess::write_u64(offset, at)?,
        None => from.position.store(at, Relaxed),
    }
    Ok(done as u64)
}

/// `lseek`.
fn seek(number: u64, offset: u64, whence: u32) -> Outcome {
    let file = own()?.get(number)?;
    if file.is_stream() {
        return Err(Errno::ESPIPE);
    }
    let base = match whence {
        0 => 0,
        1 => file.position.load(Relaxed),
        2 => file.inode.size(),
        _ => return Err(Errno::EINVAL),
    };
    let to = base.checked_add_signed(offset.cast_signed()).filter(|to| *to <= i64::MAX as u64).ok_or(Errno::EINVAL)?;
    file.position.store(to, Relaxed);
    Ok(to)
}

/// `ioctl`. No file takes any: the console is no terminal whose settings anybody could ask for.
fn ioctl(number: u64) -> Outcome {
    own()?.get(number)?;
    Err(Errno::ENOTTY)
}

/// How many files the current task may have.
pub fn most() -> u64 {
    task::current().process().map_or(u64::MAX, |process| process.record.rlim[LIMIT_FILES][0].load(Relaxed))
}

/// Enters a file that has just been opened.
pub fn enter(file: Arc<File>, flags: u32) -> Outcome {
    own()?.insert(file, 0, most(), flags & O_CLOEXEC != 0).map(|number| number as u64)
}

fn duplicate(number: u64, first: u64, close_on_exec: bool) -> Outcome {
    let files = own()?;
    let file = files.get(number)?;
    let first = usize::try_from(first).ok().filter(|first| (*first as u64) < most()).ok_or(Errno::EINVAL)?;
    files.insert(file, first, most(), close_on_exec).map(|number| number as u64)
}

/// `dup2`, `dup3`.
fn replace(number: u64, new: u64, close_on_exec: bool) -> Outcome {
    let files = own()?;
    let file = files.get(number)?;
    let new = new as u32;
    if u64::from(new) >= most() {
        return Err(Errno::EBADF);
    }
    drop(files.replace(new as usize, file, close_on_exec)?);
    Ok(u64::from(new))
}

/// `fcntl`.
fn control(number: u64, what: u32, arg: u64) -> Outcome {
    let files = own()?;
    let file = files.get(number)?;
    match what {
        F_DUPFD | F_DUPFD_CLOEXEC => duplicate(number, arg, what == F_DUPFD_CLOEXEC),
        F_GETFD => files.close_on_exec(number, None).map(u64::from),
        F_SETFD => files.close_on_exec(number, Some(arg & 1 != 0)).map(|_| 0),
        F_GETFL => Ok(u64::from(file.flags.load(Relaxed))),
        F_SETFL => {
            let kept = file.flags.load(Relaxed) & !(O_APPEND | O_NONBLOCK);
            file.flags.store(kept | arg as u32 & (O_APPEND | O_NONBLOCK) & !O_ACCMODE, Relaxed);
            Ok(0)
        }
        F_GET_SEALS => shmem::seals(&file, None),
        F_ADD_SEALS => shmem::seals(&file, Some(arg as u32)),
        _ => Err(Errno::EINVAL),
    }
}

fn pipe(at: u64, flags: u32) -> Outcome {
    if flags & !(O_CLOEXEC | O_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let [reader, writer] = Pipe::create(flags & O_NONBLOCK);
    let files = own()?;
    let leave = |number: u64| drop(files.remove(number));
    let first = enter(reader, flags)?;
    let second = enter(writer, flags).inspect_err(|_| leave(first))?;
    let written = uaccess::write_u32(at, first as u32).and_then(|()| uaccess::write_u32(at + 4, second as u32));
    written.map(|()| 0).inspect_err(|_| [first, second].into_iter().for_each(leave))
}

/// `fsync`, `fdatasync`: what is written is in its place already; some files have none.
fn synchronized(file: &File) -> Outcome {
    if matches!(file.inode.kind, Kind::Regular(_) | Kind::Directory(..)) { Ok(0) } else { Err(Errno::EINVAL) }
}

/// `fadvise64`: all is in memory, whatever is said of it.
fn advise(file: &File, advice: u32) -> Outcome {
    match advice {
        _ if file.pipe().is_some() => Err(Errno::ESPIPE),
        0..=LAST_ADVICE => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// `close_range`.
fn close_range(first: u32, last: u32, flags: u32) -> Outcome {
    if flags & !(CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC) != 0 || first > last {
        return Err(Errno::EINVAL);
    }
    if flags & CLOSE_RANGE_UNSHARE != 0 {
        task::current().set_resource(task::Kind::Files, Some(own()?.duplicate()?));
    }
    let files = own()?;
    for number in files.numbers().into_iter().filter(|number| (first..=last).contains(number)).map(u64::from) {
        // Another thread may be faster.
        if flags & CLOSE_RANGE_CLOEXEC != 0 {
            let _ = files.close_on_exec(number, Some(true));
        } else {
            drop(files.remove(number));
        }
    }
    Ok(0)
}
