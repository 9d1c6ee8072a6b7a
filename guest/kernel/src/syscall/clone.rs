//! Calls that make tasks (`kernel/fork.c`).

use pagevisor_shared::errno::Errno;
use pagevisor_shared::units::PAGE_SIZE;

use super::Outcome;
use crate::arch::traps::TrapFrame;
use crate::arch::uaccess;
use crate::task::{self, CloneArgs, clone_flags as flag};

/// Bytes of the arguments of `clone3` that there have been at least, and that are known (`CLONE_ARGS_SIZE_VER0`,
/// `CLONE_ARGS_SIZE_VER2`).
const FIRST_SIZE: u64 = 64;
const KNOWN_SIZE: u64 = 88;
/// The highest signal.
const LAST_SIGNAL: u64 = 64;
/// What there is not: namespaces, control groups, and files that stand for tasks.
const UNKNOWN: u64 = flag::NEWNS | flag::NEW_NAMESPACES | flag::INTO_CGROUP | flag::PIDFD;
/// All that `clone3` has flags for.
const FLAGS: u64 = 0xffff_ffff | flag::CLEAR_SIGHAND | flag::INTO_CGROUP;

/// `clone`.
pub fn clone(args: &[u64; 6], frame: &TrapFrame) -> Outcome {
    let [flags, stack, parent_tid, child_tid, tls, _] = *args;
    // It has 32 flags.
    let (flags, exit_signal) = (flags & u64::from(u32::MAX), (flags & flag::CSIGNAL) as u32);
    let args = CloneArgs { flags: flags & !flag::CSIGNAL, exit_signal, stack, parent_tid, child_tid, tls };
    if args.flags & UNKNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    task::clone(&args, frame).map(u64::from)
}

/// `fork` and `vfork`.
pub fn fork(flags: u64, frame: &TrapFrame) -> Outcome {
    let args = CloneArgs { flags, exit_signal: crate::signal::SIGCHLD, ..CloneArgs::default() };
    task::clone(&args, frame).map(u64::from)
}

/// `clone3`, with `size` bytes of arguments at `at`.
pub fn clone3(at: u64, size: u64, frame: &TrapFrame) -> Outcome {
    let args = arguments(&read(at, size)?)?;
    task::clone(&args, frame).map(u64::from)
}

/// The arguments, of whatever size the program knows them (`copy_struct_from_user`).
///
/// # Errors
/// E2BIG if there is more than is known and it says something, EINVAL if there is less than ever was; EFAULT.
fn read(at: u64, size: u64) -> Result<[u64; 11], Errno> {
    if size > PAGE_SIZE {
        return Err(Errno::E2BIG);
    }
    if size < FIRST_SIZE {
        return Err(Errno::EINVAL);
    }
    let mut bytes = alloc::vec![0; size.max(KNOWN_SIZE) as usize];
    uaccess::read(&mut bytes[..size as usize], at)?;
    let (known, more) = bytes.split_at(KNOWN_SIZE as usize);
    if more.iter().any(|byte| *byte != 0) {
        return Err(Errno::E2BIG);
    }
    let mut words = [0; 11];
    for (word, bytes) in words.iter_mut().zip(known.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    Ok(words)
}

/// What the words of `struct clone_args` say (`copy_clone_args_from_user`, `clone3_args_valid`).
///
/// # Errors
/// EINVAL for what contradicts itself, and for what there is not.
fn arguments(words: &[u64; 11]) -> Result<CloneArgs, Errno> {
    let [flags, _, child_tid, parent_tid, exit_signal, stack, stack_size, tls, numbers, count, _] = *words;
    let (handlers, family) = (flag::SIGHAND | flag::CLEAR_SIGHAND, flag::THREAD | flag::PARENT);
    let has_stack = stack != 0 && stack_size != 0 && uaccess::is_user_range(stack, stack_size);
    let fits = flags & !FLAGS == 0
        && flags & (flag::DETACHED | flag::CSIGNAL | UNKNOWN) == 0
        && flags & handlers != handlers
        && (flags & family == 0 || exit_signal == 0)
        && exit_signal <= LAST_SIGNAL
        && (has_stack || stack == 0 && stack_size == 0)
        // Nobody chooses numbers here.
        && numbers == 0
        && count == 0;
    if !fits {
        return Err(Errno::EINVAL);
    }
    let exit_signal = exit_signal as u32;
    Ok(CloneArgs { flags, exit_signal, stack: stack.wrapping_add(stack_size), parent_tid, child_tid, tls })
}
