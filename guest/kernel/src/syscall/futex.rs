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
const WAIT_BITSET: u32 = 9;
const WAKE_BITSET: u32 = 10;
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
    let (operation, value) = (operation as u32 & !(PRIVATE | REALTIME), value as u32);
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
        WAKE => Ok(u64::from(task::wake(key, ALL_BITS, value.max(1)))),
        WAKE_BITSET if bits as u32 == 0 => Err(Errno::EINVAL),
        WAKE_BITSET => Ok(u64::from(task::wake(key, bits as u32, value.max(1)))),
        REQUEUE | CMP_REQUEUE => {
            if operation == CMP_REQUEUE && uaccess::read_u32(word)? != bits as u32 {
                return Err(Errno::EAGAIN);
            }
            let (woken, moved) = task::requeue(key, self::key(second, private)?, value, fourth as u32);
            Ok(u64::from(woken) + if operation == CMP_REQUEUE { u64::from(moved) } else { 0 })
        }
        _ => Err(Errno::ENOSYS),
    }
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
