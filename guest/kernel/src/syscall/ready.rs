//! Waiting until files can be read or written (`fs/select.c`). Who waits looks again and again: there is no queue that all of
//! them are in.

use alloc::vec::Vec;

use pagevisor_shared::errno::Errno;

use super::{Outcome, files};
use crate::arch::uaccess;
use crate::fs::file::File;
use crate::fs::inode::{Device, Kind};
use crate::{clock, console, signal, task};

/// Events of `poll`.
const POLLIN: u64 = 1;
const POLLOUT: u64 = 4;
const POLLERR: u64 = 8;
const POLLHUP: u64 = 16;
const POLLNVAL: u64 = 32;

/// Sets of `select`: what is read, what is written, and what has news of another kind, which nothing here has; and the events
/// that these are.
const SETS: [u64; 3] = [POLLIN | POLLHUP | POLLERR, POLLOUT | POLLERR, 0];

const SECOND: u64 = 1_000_000_000;
/// Nanoseconds of the smaller unit of `struct timespec` and of `struct timeval`.
const NANO: u64 = 1;
const MICRO: u64 = 1000;
/// How long somebody who waits sleeps before he looks again.
const PAUSE: u64 = 5_000_000;
/// Bytes of a mask of signals.
const MASK_BYTES: u64 = 8;

/// Makes call `number`, if it is one of these.
pub fn call(number: u32, args: &[u64; 6]) -> Option<Outcome> {
    let [a, b, c, d, e, f] = *args;
    Some(match number {
        7 => {
            let until = u64::try_from(c as i32).ok().map(|millis| clock::nanos() + millis * 1_000_000);
            poll(a, b, until)
        }
        23 => in_time(e, MICRO, |until| select(a as u32, [b, c, d], until)),
        270 => {
            let mask = if f == 0 { Ok([0; 2]) } else { uaccess::read_words(f) };
            mask.and_then(|mask| in_time(e, NANO, |until| with_mask(mask, || select(a as u32, [b, c, d], until))))
        }
        271 => in_time(c, NANO, |until| with_mask([d, e], || poll(a, b, until))),
        _ => return None,
    })
}

/// Does `work` until the time is over that the program has at `at`, in seconds and a smaller unit of `unit` nanoseconds, if it
/// is not 0; notes there what is left of it (`poll_select_finish`).
fn in_time(at: u64, unit: u64, work: impl FnOnce(Option<u64>) -> Outcome) -> Outcome {
    if at == 0 {
        return work(None);
    }
    let [seconds, part] = uaccess::read_words(at)?;
    let part = part.saturating_mul(unit);
    // Microseconds may be more than a second.
    if seconds > i64::MAX as u64 || part > i64::MAX as u64 || unit == NANO && part >= SECOND {
        return Err(Errno::EINVAL);
    }
    let until = clock::nanos().saturating_add(seconds.saturating_mul(SECOND)).saturating_add(part);
    let result = work(Some(until));
    let rest = until.saturating_sub(clock::nanos());
    // As in Linux the result counts, whether this can be noted or not.
    let _ = uaccess::write_words(at, &[rest / SECOND, rest % SECOND / unit]);
    result
}

/// Does `work` while the signals of a mask are blocked, of which there are an address, 0 for none, and a size.
fn with_mask([mask, size]: [u64; 2], work: impl FnOnce() -> Outcome) -> Outcome {
    if mask == 0 {
        return work();
    }
    if size != MASK_BYTES {
        return Err(Errno::EINVAL);
    }
    signal::block_for_now(&task::current(), uaccess::read_u64(mask)?);
    let result = work();
    if result != Err(Errno::EINTR) {
        // Else what has come is taken first.
        signal::unblock();
    }
    result
}

/// Looks until there is something, until it is too late, or until a signal comes.
fn wait(until: Option<u64>, mut look: impl FnMut() -> Outcome) -> Outcome {
    loop {
        let found = look()?;
        if found > 0 || until.is_some_and(|until| clock::nanos() >= until) {
            return Ok(found);
        }
        let rest = until.map_or(PAUSE, |until| PAUSE.min(until.saturating_sub(clock::nanos())));
        task::sleep(rest, true)?;
    }
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

/// `poll`.
fn poll(list: u64, count: u64, until: Option<u64>) -> Outcome {
    if count > files::most() {
        return Err(Errno::EINVAL);
    }
    let files = files::own()?;
    wait(until, || {
        let mut found = 0;
        for index in 0..count {
            let at = list.wrapping_add(8 * index);
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
        Ok(found)
    })
}

/// `select`, with the files below `count`, of the sets at `sets`.
fn select(count: u32, sets: [u64; 3], until: Option<u64>) -> Outcome {
    if count.cast_signed() < 0 {
        return Err(Errno::EINVAL);
    }
    let files = files::own()?;
    let count = u64::from(count).min(files.room() as u64) as usize;
    let words = count.div_ceil(64);
    let mut wanted = [const { Vec::new() }; 3];
    for (bits, at) in wanted.iter_mut().zip(sets).filter(|(_, at)| *at != 0) {
        for word in 0..words as u64 {
            bits.push(uaccess::read_u64(at.wrapping_add(8 * word))?);
        }
    }
    let mut given = [const { Vec::new() }; 3];
    let found = wait(until, || {
        given = wanted.each_ref().map(|bits| alloc::vec![0; bits.len()]);
        let mut found = 0;
        for number in 0..count {
            let (word, bit) = (number / 64, 1 << (number % 64));
            let asks = |bits: &Vec<u64>| bits.get(word).is_some_and(|bits| bits & bit != 0);
            if !wanted.iter().any(asks) {
                continue;
            }
            let events = ready(&*files.get(number as u64)?, POLLIN | POLLOUT);
            for ((bits, has), which) in wanted.iter().zip(&mut given).zip(SETS) {
                if asks(bits) && events & which != 0 {
                    has[word] |= bit;
                    found += 1;
                }
            }
        }
        Ok(found)
    })?;
    for (bits, at) in given.iter().zip(sets) {
        uaccess::write_words(at, bits)?;
    }
    Ok(found)
}
