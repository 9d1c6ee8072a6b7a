//! `futex`: sleeping on words of programs (`kernel/futex`).

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::errno::Errno;

use super::{Outcome, time};
use crate::arch::uaccess;
use crate::clock;
use crate::task::{self, ALL_BITS, Key, Restart, Sleep};

const WAIT: u32 = 0;
const WAKE: u32 = 1;
const REQUEUE: u32 = 3;
const CMP_REQUEUE: u32 = 4;
const WAKE_OP: u32 = 5;
const WAIT_BITSET: u32 = 9;
const WAKE_BITSET: u32 = 10;
/// What there is.
const KNOWN: [u32; 7] = [WAIT, WAKE, REQUEUE, CMP_REQUEUE, WAKE_OP, WAIT_BITSET, WAKE_BITSET];
/// What Linux has, by number (`FUTEX_*`).
const OPERATIONS: [&str; 14] = [
    "WAIT",
    "WAKE",
    "FD",
    "REQUEUE",
    "CMP_REQUEUE",
    "WAKE_OP",
    "LOCK_PI",
    "UNLOCK_PI",
    "TRYLOCK_PI",
    "WAIT_BITSET",
    "WAKE_BITSET",
    "WAIT_REQUEUE_PI",
    "CMP_REQUEUE_PI",
    "LOCK_PI2",
];
/// [`WAKE_OP`]: the argument is a bit, by its number.
const OP_SHIFT: u32 = 8;
/// Bits beside the operation: nobody else has the word; by the date.
const PRIVATE: u32 = 128;
const REALTIME: u32 = 256;

/// [`Restart::call`] of who waits for a word that nobody else has, or somebody.
const RESTARTS_PRIVATE: u32 = 2;
const RESTARTS_SHARED: u32 = 3;

/// The call.
pub fn call(args: &[u64; 6]) -> Outcome {
    let [word, operation, value, fourth, second, bits] = *args;
    let private = operation as u32 & PRIVATE != 0;
    let by_date = operation as u32 & REALTIME != 0;
    let (operation, value) = (operation as u32 & !(PRIVATE | REALTIME), value as u32);
    if !KNOWN.contains(&operation) {
        return Err(super::not_here(operation, "futex operation", OPERATIONS.get(operation as usize)));
    }
    if by_date && operation != WAIT_BITSET {
        return Err(Errno::ENOSYS);
    }
    let key = key(word, private)?;
    match operation {
        WAIT | WAIT_BITSET => {
            let bits = if operation == WAIT { ALL_BITS } else { bits as u32 };
            if bits == 0 {
                return Err(Errno::EINVAL);
            }
            let until = match fourth {
                0 => None,
                at if operation == WAIT => Some(clock::nanos().saturating_add(time::read(at)?)),
                at => Some(time::read(at)?),
            };
            wait(word, private, value, bits, until)
        }
        WAKE => Ok(wake(key, ALL_BITS, value)),
        WAKE_BITSET if bits as u32 == 0 => Err(Errno::EINVAL),
        WAKE_BITSET => Ok(wake(key, bits as u32, value)),
        WAKE_OP => {
            let other = self::key(second, private)?;
            let too = change(second, bits as u32)?;
            Ok(wake(key, ALL_BITS, value) + if too { wake(other, ALL_BITS, fourth as u32) } else { 0 })
        }
        REQUEUE | CMP_REQUEUE if value.cast_signed() < 0 || (fourth as u32).cast_signed() < 0 => Err(Errno::EINVAL),
        REQUEUE | CMP_REQUEUE => {
            if operation == CMP_REQUEUE && uaccess::read_u32(word)? != bits as u32 {
                return Err(Errno::EAGAIN);
            }
            let (woken, moved) = task::requeue(key, self::key(second, private)?, value, fourth as u32);
            Ok(u64::from(woken) + u64::from(moved))
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// Wakes `count` of who waits, and one in any case, as Linux does.
fn wake(key: Key, bits: u32, count: u32) -> u64 {
    task::wake(key, bits, count.cast_signed().max(1).cast_unsigned()).into()
}

/// Changes `word` as `how` says, in one step; whether what it was compares as `how` says (`futex_atomic_op_inuser`).
///
/// # Errors
/// EFAULT; ENOSYS for what there is not, to which nothing is done, or, if it is the comparison, which is not made.
fn change(word: u64, how: u32) -> Result<bool, Errno> {
    // Numbers of 12 bits, with a sign.
    let number = |at: u32| (how << (20 - at)).cast_signed() >> 20;
    let [operation, comparison] = [how >> 28, how >> 24 & 0xf];
    let (argument, expected) = (number(12), number(0));
    let argument = if operation & OP_SHIFT != 0 { 1 << (argument & 31) } else { argument.cast_unsigned() };
    let old = loop {
        let old = uaccess::read_u32(word)?;
        let new = match operation & !OP_SHIFT {
            0 => argument,
            1 => old.wrapping_add(argument),
            2 => old | argument,
            3 => old & !argument,
            4 => old ^ argument,
            _ => return Err(Errno::ENOSYS),
        };
        if uaccess::exchange_u32(word, old, new)? {
            break old.cast_signed();
        }
    };
    Ok(match comparison {
        0 => old == expected,
        1 => old != expected,
        2 => old < expected,
        3 => old >= expected,
        4 => old <= expected,
        5 => old > expected,
        _ => return Err(Errno::ENOSYS),
    })
}

/// Sleeps while the word is `value`, at most until `until`; interrupted, it notes how to go on, if it has a time
/// (`futex_wait`).
fn wait(word: u64, private: bool, value: u32, bits: u32, until: Option<u64>) -> Outcome {
    let key = key(word, private)?;
    // What is not there is brought in before anything is locked.
    uaccess::read_u32(word)?;
    let check = || if uaccess::read_u32(word)? == value { Ok(()) } else { Err(Errno::EAGAIN) };
    let sleep = until.map_or(Sleep::LIGHT, |until| Sleep::LIGHT.until(until));
    let result = task::wait(key, bits, sleep, check);
    if let (Err(Errno::EINTR), Some(until)) = (result, until) {
        let restart = &task::current().restart;
        restart.call.store(if private { RESTARTS_PRIVATE } else { RESTARTS_SHARED }, Relaxed);
        restart.until.store(until, Relaxed);
        restart.at.store(word, Relaxed);
        restart.value.store(value, Relaxed);
        restart.bits.store(bits, Relaxed);
    }
    result.map(|()| 0)
}

/// Goes on with a wait that was interrupted, to the end that it had (`futex_wait_restart`).
///
/// # Errors
/// EINTR if `call` is none.
pub fn restart(call: u32, restart: &Restart) -> Outcome {
    if call != RESTARTS_PRIVATE && call != RESTARTS_SHARED {
        return Err(Errno::EINTR);
    }
    let [value, bits] = [&restart.value, &restart.bits].map(|word| word.load(Relaxed));
    let until = Some(restart.until.load(Relaxed));
    wait(restart.at.load(Relaxed), call == RESTARTS_PRIVATE, value, bits, until)
}

fn key(word: u64, private: bool) -> Result<Key, Errno> {
    if !word.is_multiple_of(4) {
        return Err(Errno::EINVAL);
    }
    if !uaccess::is_user_range(word, 4) {
        return Err(Errno::EFAULT);
    }
    let space = task::current().space().ok_or(Errno::EFAULT)?;
    Ok(if private { Key::private(space, word) } else { Key::shared(space, word) })
}
