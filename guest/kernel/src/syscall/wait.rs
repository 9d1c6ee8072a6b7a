//! Calls that wait for children (`kernel/exit.c`).

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::errno::Errno;

use super::Outcome;
use super::process::{own, write_usage};
use crate::arch::uaccess;
use crate::signal::{GOES_ON, SIGCHLD, SIGCONT, code};
use crate::task::{self, Ended, Wait, Which};

/// Nobody waits; for children that stop, that have ended, and that go on; they can be waited for once more.
const WNOHANG: u32 = 1;
const WUNTRACED: u32 = 2;
const WEXITED: u32 = 4;
const WCONTINUED: u32 = 8;
const WNOWAIT: u32 = 0x0100_0000;
/// Which threads' children, and which children, by the signal that they end with: all are taken here.
const WHOSE: u32 = 0xe000_0000;

/// Whom [`waitid`] waits for: any child, the one of a number, those of a group.
const P_ALL: u32 = 0;
const P_PID: u32 = 1;
const P_PGID: u32 = 2;

/// Makes call `number`, if it is one of these.
pub fn call(number: u32, args: &[u64; 6]) -> Option<Outcome> {
    let [a, b, c, d, e, _] = *args;
    Some(match number {
        61 => wait4(a as i32, b, c as u32, d),
        247 => waitid(a as u32, b as i32, c, d as u32, e),
        _ => return None,
    })
}

/// What `options` of any of the calls say.
const fn how(options: u32) -> Wait {
    Wait {
        no_hang: options & WNOHANG != 0,
        ended: options & WEXITED != 0,
        stopped: options & WUNTRACED != 0,
        continued: options & WCONTINUED != 0,
        keep: options & WNOWAIT != 0,
    }
}

fn own_group() -> Result<Which, Errno> {
    Ok(Which::Group(own()?.record.pgrp.load(Relaxed)))
}

fn wait4(pid: i32, status: u64, options: u32, used: u64) -> Outcome {
    if options & !(WHOSE | WNOHANG | WUNTRACED | WCONTINUED) != 0 {
        return Err(Errno::EINVAL);
    }
    let which = match pid {
        -1 => Which::Any,
        0 => own_group()?,
        pid if pid > 0 => Which::Process(pid as u32),
        group => Which::Group(group.unsigned_abs()),
    };
    let Some(ended) = task::wait4(which, how(options | WEXITED))? else { return Ok(0) };
    if status != 0 {
        uaccess::write_u32(status, ended.status)?;
    }
    if used != 0 {
        write_usage(used, &ended.usage)?;
    }
    Ok(u64::from(ended.pid))
}

fn waitid(kind: u32, id: i32, at: u64, options: u32, used: u64) -> Outcome {
    let news = WEXITED | WUNTRACED | WCONTINUED;
    if options & !(WHOSE | WNOHANG | WNOWAIT | news) != 0 || options & news == 0 {
        return Err(Errno::EINVAL);
    }
    let which = match kind {
        P_ALL => Which::Any,
        P_PID if id > 0 => Which::Process(id as u32),
        P_PGID if id == 0 => own_group()?,
        P_PGID if id > 0 => Which::Group(id as u32),
        _ => return Err(Errno::EINVAL),
    };
    let found = task::wait4(which, how(options))?;
    if let Some(ended) = found.as_ref().filter(|_| used != 0) {
        write_usage(used, &ended.usage)?;
    }
    if at != 0 {
        uaccess::write_words(at, &found.as_ref().map_or([0; 2], |_| [u64::from(SIGCHLD), 0]))?;
        let [code, pid, status] = found.as_ref().map_or([0; 3], news_of);
        for (place, value) in [(8, code), (16, pid), (20, 0), (24, status)] {
            uaccess::write_u32(at.wrapping_add(place), value)?;
        }
    }
    Ok(0)
}

/// `si_code`, `si_pid` and `si_status` of what has become of a child.
fn news_of(ended: &Ended) -> [u32; 3] {
    let (code, status) = match ended.status {
        GOES_ON => (code::CLD_CONTINUED, SIGCONT),
        status if status & 0xff == 0x7f => (code::CLD_STOPPED, status >> 8),
        status if status & 0x7f == 0 => (code::CLD_EXITED, status >> 8),
        status => (code::CLD_KILLED, status & 0x7f),
    };
    [code.cast_unsigned(), ended.pid, status]
}
