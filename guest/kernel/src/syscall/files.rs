//! Calls on open files.

use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::errno::Errno;

use super::{Outcome, iovec, shmem, stat};
use crate::arch::uaccess;
use crate::fs::file::{File, O_ACCMODE, O_APPEND, O_CLOEXEC, O_NONBLOCK};
use crate::fs::inode::{Device, Kind};
use crate::fs::pipe::Pipe;
use crate::fs::table::{Files, files};
use crate::signal::{self, Info, SIGPIPE};
use crate::{console, task};

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
/// `ioctl`: the terminal's settings and window.
const TCGETS: u32 = 0x5401;
const TIOCGWINSZ: u32 = 0x5413;
/// Events of `poll`.
const POLLIN: u64 = 1;
const POLLOUT: u64 = 4;
const POLLERR: u64 = 8;
const POLLHUP: u64 = 16;
const POLLNVAL: u64 = 32;

/// Makes call `number`, if it is one of these.
pub fn call(number: u32, args: &[u64; 6]) -> Option<Outcome> {
    let [a, b, c, d, ..] = *args;
    Some(match number {
        0 => with(a, |file| file.read(b, clamp(c), None)),
        1 => written(with(a, |file| file.write(b, clamp(c), None))),
        3 => own().and_then(|files| files.remove(a)).map(|_| 0),
        5 => own().and_then(|files| files.get(a)).and_then(|file| stat::write(b, &file.inode)),
        7 => poll(a, b, c as i32),
        8 => seek(a, b, c as u32),
        16 => ioctl(a, b as u32, c),
        17 => with(a, |file| positioned(file, d).and_then(|at| file.read(b, clamp(c), Some(at)))),
        18 => written(with(a, |file| positioned(file, d).and_then(|at| file.write(b, clamp(c), Some(at))))),
        19 => pieces(a, b, c, File::read),
        20 => written(pieces(a, b, c, File::write)),
        22 => pipe(a, 0),
        32 => duplicate(a, 0, false),
        33 if a == b => own().and_then(|files| files.get(a)).map(|_| b),
        33 => replace(a, b, false),
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

fn clamp(len: u64) -> usize {
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

/// `readv`, `writev`.
fn pieces(number: u64, list: u64, count: u64, one: Move) -> Outcome {
    let file = own()?.get(number)?;
    let mut done = 0;
    for [addr, len] in iovec::import(list, count)?.into_iter().filter(|[_, len]| *len != 0) {
        match one(&file, addr, len as usize, None) {
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

/// `ioctl`. The console is no terminal whose settings anybody could ask for.
fn ioctl(number: u64, request: u32, _at: u64) -> Outcome {
    own()?.get(number)?;
    match request {
        TCGETS | TIOCGWINSZ => Err(Errno::ENOTTY),
        _ => Err(Errno::ENOTTY),
    }
}

/// How many files the current task may have.
fn most() -> u64 {
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
    let numbers = [enter(reader, flags)?, enter(writer, flags)?];
    let written =
        uaccess::write_u32(at, numbers[0] as u32).and_then(|()| uaccess::write_u32(at + 4, numbers[1] as u32));
    if written.is_err() {
        let files = own()?;
        for number in numbers {
            drop(files.remove(number));
        }
    }
    written.map(|()| 0)
}

/// What of `wanted` can be done with `file` at once.
fn ready(file: &File, wanted: u64) -> u64 {
    let events = match file.pipe() {
        Some(pipe) => {
            let (len, writers, room, readers) = pipe.poll();
            let reading = if len > 0 { POLLIN } else { 0 } | if writers { 0 } else { POLLHUP };
            let writing = if room { POLLOUT } else { 0 } | if readers { 0 } else { POLLERR };
            if file.reads() { reading } else { writing }
        }
        None if matches!(file.inode.kind, Kind::Device(Device::Console)) => {
            let reading = if wanted & POLLIN != 0 && console::is_readable() { POLLIN } else { 0 };
            reading | POLLOUT
        }
        None => POLLIN | POLLOUT,
    };
    events & (wanted | POLLERR | POLLHUP)
}

/// `poll`. Who waits looks again and again: there is no queue that all of them are in.
fn poll(list: u64, count: u64, timeout: i32) -> Outcome {
    const PAUSE: u64 = 5_000_000;
    if count > most() {
        return Err(Errno::EINVAL);
    }
    let files = own()?;
    let until = u64::try_from(timeout).ok().map(|millis| crate::clock::nanos() + millis * 1_000_000);
    loop {
        let mut found = 0;
        for index in 0..count {
            let at = list + 8 * index;
            let word = uaccess::read_u64(at)?;
            let number = word as u32;
            let events = match files.get(u64::from(number)) {
                _ if number.cast_signed() < 0 => 0,
                Ok(file) => ready(&file, word >> 32 & 0xffff),
                Err(_) => POLLNVAL,
            };
            uaccess::write_u64(at, word & 0xffff_ffff_ffff | events << 48)?;
            found += u64::from(events != 0);
        }
        if found > 0 || until.is_some_and(|until| crate::clock::nanos() >= until) {
            return Ok(found);
        }
        let rest = until.map_or(PAUSE, |until| PAUSE.min(until.saturating_sub(crate::clock::nanos())));
        task::sleep(rest, true)?;
    }
}
