//! What happens to a thread that makes a forbidden call: a line on stderr, and the process's end.

use std::ffi::{c_int, c_void};
use std::io;
use std::sync::OnceLock;

use nix::sys::signal::{SigSet, Signal};
use pagevisor_shared::syscalls;
use vmm_sys_util::signal::register_signal_handler;

use super::ROLE;
use crate::error::exit_status;

/// Sees to it that a violation in the calling thread, from now on, is told and ends the process.
pub(super) fn prepare() -> io::Result<()> {
    static HANDLER: OnceLock<Result<(), i32>> = OnceLock::new();
    HANDLER
        .get_or_init(|| register_signal_handler(libc::SIGSYS, on_violation).map_err(|error| error.errno()))
        .map_err(io::Error::from_raw_os_error)?;
    // While it is blocked a violation ends the process all the same, but without a word.
    let mut set = SigSet::empty();
    set.add(Signal::SIGSYS);
    Ok(set.thread_unblock()?)
}

/// Only what a signal handler may do: nothing is allocated, nothing is locked.
extern "C" fn on_violation(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a ucontext of the interrupted thread. For a system call that a filter refused, its
    // RAX is the call's number again.
    let number = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RAX as usize] };
    let role = ROLE.get().map_or("unnamed", super::Role::name);
    let mut line = Line::default();
    line.push("pagevisor: error: the sandbox ends this process: its ");
    line.push(role);
    line.push(" thread made the system call ");
    line.push_number(number.unsigned_abs());
    line.push(" (");
    line.push(u64::try_from(number).ok().and_then(syscalls::name).unwrap_or_default());
    line.push("), which it is not meant to (--no-sandbox would let it)\n");
    // SAFETY: the buffer is valid for the length given; `_exit` ends the process at once.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len);
        libc::_exit(exit_status::SANDBOX.into());
    }
}

/// Text in a buffer; what does not fit is left out.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 256], len: 0 }
    }
}

impl Line {
    fn push(&mut self, text: &str) {
        for &byte in text.as_bytes() {
            if let Some(slot) = self.bytes.get_mut(self.len) {
                *slot = byte;
                self.len += 1;
            }
        }
    }

    fn push_number(&mut self, mut number: u64) {
        let mut digits = [0_u8; 20];
        let mut first = digits.len();
        loop {
            first -= 1;
            digits[first] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.push(std::str::from_utf8(&digits[first..]).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_made_without_memory() {
        let mut line = Line::default();
        line.push("call ");
        for number in [0, 41, u64::MAX] {
            line.push_number(number);
            line.push(" ");
        }
        assert_eq!(&line.bytes[..line.len], b"call 0 41 18446744073709551615 ");
        line.push(&"x".repeat(1000));
        assert_eq!(line.len, line.bytes.len());
    }
}
