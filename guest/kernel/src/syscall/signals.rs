//! Calls on signals.

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::errno::Errno;

use super::Outcome;
use crate::arch::traps::TrapFrame;
use crate::arch::uaccess;
use crate::signal::{self, Action, Info, SIGCHLD, SIGNALS, UNBLOCKABLE, bit};
use crate::{clock, task};

/// Bytes of a mask.
const MASK_BYTES: u64 = 8;
/// Least bytes of a stack for handlers (`MINSIGSTKSZ`).
const LEAST_STACK: u64 = 2048;

/// Makes call `number`, if it is one of these.
pub fn call(number: u32, args: &[u64; 6], frame: &TrapFrame) -> Option<Outcome> {
    let [a, b, c, d, ..] = *args;
    Some(match number {
        13 if d != MASK_BYTES => Err(Errno::EINVAL),
        13 => action(a as u32, b, c),
        14 if d != MASK_BYTES => Err(Errno::EINVAL),
        14 => mask(a as u32, b, c),
        34 => wait_for_signal(),
        62 => signal::kill(a as i32, b as u32).map(|()| 0),
        127 => uaccess::write_u64(a, pending()).map(|()| 0),
        128 if d != MASK_BYTES => Err(Errno::EINVAL),
        128 => timed_wait(a, b, c),
        129 => queue(a as u32, None, b as u32, c),
        297 => queue(a as u32, Some(b as u32), c as u32, d),
        130 => uaccess::read_u64(a).and_then(|mask| {
            signal::block_for_now(&task::current(), mask);
            wait_for_signal()
        }),
        131 => stack(a, b, frame.rsp),
        200 => to_thread(None, a as u32, b as u32),
        234 => to_thread(Some(a as u32), b as u32, c as u32),
        _ => return None,
    })
}

/// `rt_sigaction`.
fn action(number: u32, new: u64, old: u64) -> Outcome {
    if number == 0 || number > SIGNALS || new != 0 && UNBLOCKABLE & bit(number) != 0 {
        return Err(Errno::EINVAL);
    }
    let task = task::current();
    let actions = signal::actions_of(&task).ok_or(Errno::EINVAL)?;
    let before = actions.get(number);
    if new != 0 {
        let [handler, flags, restorer, mask] = uaccess::read_words(new)?;
        let action = Action { handler, flags, restorer, mask: mask & !UNBLOCKABLE };
        actions.set(number, action);
        // What waits is forgotten, whoever blocks it.
        if let Some(process) = task.process().filter(|_| action.does_nothing(number)) {
            signal::forget(process, bit(number));
        }
        if number == SIGCHLD
            && let Some(process) = task.process()
        {
            let ignores = action.ignores() || action.leaves_no_zombies();
            process.ignores_children.store(u32::from(ignores), Relaxed);
        }
    }
    if old != 0 {
        uaccess::write_words(old, &[before.handler, before.flags, before.restorer, before.mask])?;
    }
    Ok(0)
}

/// `rt_sigprocmask`.
fn mask(how: u32, new: u64, old: u64) -> Outcome {
    let task = task::current();
    let before = task.record.blocked.load(Relaxed);
    if new != 0 {
        let mask = uaccess::read_u64(new)?;
        signal::set_blocked(match how {
            0 => before | mask,
            1 => before & !mask,
            2 => mask,
            _ => return Err(Errno::EINVAL),
        });
    }
    if old != 0 {
        uaccess::write_u64(old, before)?;
    }
    Ok(0)
}

fn pending() -> u64 {
    let task = task::current();
    let shared = task.process().map_or(0, |process| process.pending().bits());
    (task.pending().bits() | shared) & task.record.blocked.load(Relaxed)
}

/// `pause`: nothing wakes but a signal.
fn wait_for_signal() -> Outcome {
    task::sleep_until(u64::MAX, true).map(|()| 0)
}

/// `sigaltstack`.
fn stack(new: u64, old: u64, sp: u64) -> Outcome {
    let task = task::current();
    let on = signal::is_on_stack(&task, sp);
    let [start, own, size] = [0, 1, 2].map(|index| task.signals.stack[index].load(Relaxed));
    let wanted = if new == 0 { None } else { Some(uaccess::read_words::<3>(new)?) };
    if old != 0 {
        let flags = if size == 0 {
            signal::SS_DISABLE
        } else if on {
            signal::SS_ONSTACK
        } else {
            0
        };
        uaccess::write_words(old, &[start, flags | own & signal::SS_AUTODISARM, size])?;
    }
    if let Some([start, flags, size]) = wanted {
        let flags = flags & 0xffff_ffff;
        let mode = flags & !signal::SS_AUTODISARM;
        let disable = mode == signal::SS_DISABLE;
        if on {
            return Err(Errno::EPERM);
        }
        if !disable && mode != signal::SS_ONSTACK && mode != 0 {
            return Err(Errno::EINVAL);
        }
        if !disable && size < LEAST_STACK {
            return Err(Errno::ENOMEM);
        }
        for (word, value) in task.signals.stack.iter().zip(if disable { [0; 3] } else { [start, flags, size] }) {
            word.store(value, Relaxed);
        }
    }
    Ok(0)
}

/// `tkill`, `tgkill`.
fn to_thread(process: Option<u32>, thread: u32, number: u32) -> Outcome {
    // None of them is negative, either.
    let is_one = |pid: u32| pid.cast_signed() > 0;
    if number > SIGNALS || !is_one(thread) || !process.is_none_or(is_one) {
        return Err(Errno::EINVAL);
    }
    let target = task::find(thread).ok_or(Errno::ESRCH)?;
    if process.is_some_and(|process| target.tgid() != process) || target.process().is_none() {
        return Err(Errno::ESRCH);
    }
    if number != 0 {
        let words = [u64::from(task::current().tgid()), 0, 0];
        signal::send_to_thread(&target, Info { number, code: signal::SI_TKILL, words });
    }
    Ok(0)
}

/// `rt_sigtimedwait`.
fn timed_wait(wanted: u64, info: u64, time: u64) -> Outcome {
    let wanted = uaccess::read_u64(wanted)? & !UNBLOCKABLE;
    let until = if time == 0 { None } else { Some(clock::nanos().saturating_add(super::time::read(time)?)) };
    let taken = signal::wait_for(wanted, until)?;
    if info != 0 {
        uaccess::write_words(info, &signal::siginfo(&taken))?;
    }
    Ok(u64::from(taken.number))
}

/// `rt_sigqueueinfo`, and, if a thread is given, `rt_tgsigqueueinfo`: a signal with what the sender says of it, which must not
/// look as if the kernel had sent it to somebody else.
fn queue(process: u32, thread: Option<u32>, number: u32, info: u64) -> Outcome {
    let [_, code, words @ ..] = uaccess::read_words::<5>(info)?;
    let (code, me) = ((code as u32).cast_signed(), task::current());
    if (code >= 0 || code == signal::SI_TKILL) && process != me.tgid() {
        return Err(Errno::EPERM);
    }
    if number > SIGNALS || thread == Some(0) {
        return Err(Errno::EINVAL);
    }
    let target = task::find(thread.unwrap_or(process)).ok_or(Errno::ESRCH)?;
    let of_process = target.get_process().filter(|_| target.tgid() == process).ok_or(Errno::ESRCH)?;
    let info = Info { number, code, words };
    match thread {
        _ if number == 0 => {}
        Some(_) => signal::send_to_thread(&target, info),
        None => signal::send_to_process(&of_process, &target, info),
    }
    Ok(0)
}
