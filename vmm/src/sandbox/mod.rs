//! What this process, and each of its threads, may still ask of the host's kernel.
//!
//! A guest is hostile. Should it take over the thread that runs it, that thread is to be worth little:
//!
//! - [`enter`] puts the calling thread under a seccomp filter: an allow list for its [`Role`] (see `calls.rs`, a table
//!   of a line per system call). A call that is not in it ends the process with
//!   [`exit_status::SANDBOX`](crate::error::exit_status::SANDBOX) and a line that names the thread and the call.
//!   Threads inherit the filter of the one that starts them and add their own, so a thread without a role of its own
//!   may do what its maker may.
//! - [`FileRules`] confines the process to the files and directories it needs, by Landlock where the kernel has it.
//!   It holds for threads that are started later.
//!
//! `pagevisor run` does both unless `--no-sandbox` is given: files first, then its main thread, then each thread that
//! it starts. What it needs to open later has to be among the rules in `cli/session.rs`.
//!
//! A program that uses this library decides for itself ([`MachineConfig::sandbox`]): with [`Mode::Enforce`] only the
//! threads of the machine are filtered, and the program's own closures that run on them (console, notices) have to
//! make do with what the table allows: writing, locking, waking.
//!
//! [`MachineConfig::sandbox`]: crate::machine::MachineConfig::sandbox

mod calls;
mod files;
mod violation;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

pub use files::{Access, FileRules, Landlock};

/// What a thread is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Role {
    /// Starts everything, waits, prints; serves `--proc-dir`. Whoever starts threads has this role.
    Main = 1,
    /// Runs a vCPU and the devices that it reaches.
    Vcpu = 2,
    /// Serves the queues of the monitor device.
    Monitor = 4,
    /// Serves the control socket.
    Control = 8,
}

impl Role {
    /// As messages have it.
    const fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Vcpu => "vCPU",
            Self::Monitor => "monitor",
            Self::Control => "control",
        }
    }
}

/// How serious the filters are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// There are none.
    #[default]
    Off,
    /// What would end the process is written to the kernel's log instead (`type=1326 audit`), to find out what a
    /// thread needs.
    Log,
    /// A violation ends the process.
    Enforce,
}

thread_local! {
    /// For the message; written before the filter is there, read by the signal handler.
    static ROLE: Cell<Option<Role>> = const { Cell::new(None) };
}

/// Confines the calling thread, for good, to what `role` needs. Nothing happens with [`Mode::Off`].
///
/// # Errors
/// When the kernel does not take the filter.
pub fn enter(role: Role, mode: Mode) -> io::Result<()> {
    let action = match mode {
        Mode::Off => return Ok(()),
        Mode::Log => SeccompAction::Log,
        Mode::Enforce => SeccompAction::Trap,
    };
    violation::prepare()?;
    let filter = compile(role, action).map_err(io::Error::other)?;
    ROLE.set(Some(role));
    apply_filter(&filter).map_err(io::Error::other)
}

/// Starts a thread that does `body`, confined to what `role` needs.
///
/// # Errors
/// When there is no thread to be had, or the kernel does not take its filter; nothing runs then.
pub(crate) fn spawn<T: Send + 'static>(
    builder: Builder,
    role: Role,
    mode: Mode,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<Option<T>>> {
    let (tell, told) = sync_channel(1);
    let thread = builder.spawn(move || {
        settle_allocator();
        let entered = enter(role, mode);
        let go = entered.is_ok();
        // The one who waits for it is the one who started this thread.
        let _ = tell.send(entered);
        go.then(body)
    })?;
    match told.recv() {
        Ok(Err(error)) => Err(error),
        // Not told: the thread panicked, and whoever joins it learns that.
        Ok(Ok(())) | Err(_) => Ok(thread),
    }
}

/// Lets glibc's allocator give memory back for the first time. It reads `/proc/sys/vm/overcommit_memory` then, once for
/// the process, which a confined thread may not. That is when 64 KiB are freed and more than 128 KiB are free then at
/// the end of the thread's heap; what is larger than that is mapped by itself.
fn settle_allocator() {
    const BLOCK: usize = 96 << 10;
    let blocks: [Vec<u8>; 4] = std::array::from_fn(|_| Vec::with_capacity(BLOCK));
    drop(std::hint::black_box(blocks));
}

fn compile(role: Role, otherwise: SeccompAction) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules = BTreeMap::new();
    for call in calls::CALLS.iter().filter(|call| call.roles & role as u8 != 0) {
        rules.insert(call.number, call.only.rules()?);
    }
    SeccompFilter::new(rules, otherwise, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_filter_for_each_role() {
        let length = |role| compile(role, SeccompAction::Trap).unwrap().len();
        let [main, vcpu, monitor, control] = [Role::Main, Role::Vcpu, Role::Monitor, Role::Control].map(length);
        assert!(vcpu < main && monitor <= vcpu && control < main, "{main} {vcpu} {monitor} {control}");
        // The kernel takes 4096 instructions.
        assert!(main < 1000, "{main}");
    }

    #[test]
    fn nothing_happens_when_it_is_off() {
        enter(Role::Vcpu, Mode::Off).unwrap();
        std::fs::read("/proc/self/stat").unwrap();
    }
}
