//! Taking from the process that runs a guest what it will not need.

use std::path::Path;

use super::args::RunArgs;
use super::failure::Failure;
use super::notice;
use super::run::host;
use crate::kvm::KVM_DEVICE;
use crate::procdir::ProcDir;
use crate::sandbox::{self, Access, FileRules, Mode, Role};

impl RunArgs {
    /// How the process is to be confined.
    pub(super) fn sandbox(&self) -> Mode {
        match (self.no_sandbox, self.sandbox_log) {
            (true, _) => Mode::Off,
            (_, true) => Mode::Log,
            _ => Mode::Enforce,
        }
    }
}

/// Confines this process. It has one thread, its name (in `runtime`) and its directory of files, and has not started
/// the machine.
pub(super) fn confine(args: &RunArgs, runtime: Option<&Path>, proc_dir: Option<&ProcDir>) -> Result<(), Failure> {
    let mode = args.sandbox();
    let say = |line: &dyn std::fmt::Display| {
        if args.verbose {
            notice(format_args!("sandbox: {line}"));
        }
    };
    match mode {
        Mode::Off => say(&"off"),
        // Landlock cannot only watch.
        Mode::Log => say(&"forbidden system calls go to the kernel's log"),
        Mode::Enforce => {
            say(&rules(args, runtime, proc_dir).restrict().map_err(host("cannot confine this process's files"))?);
            say(&"system calls are filtered");
        }
    }
    sandbox::enter(Role::Main, mode).map_err(host("cannot confine this process's system calls"))
}

/// All that is opened, made or removed from here on.
fn rules(args: &RunArgs, runtime: Option<&Path>, proc_dir: Option<&ProcDir>) -> FileRules {
    let mut rules = FileRules::default()
        .allow(KVM_DEVICE, Access::Device)
        // Where a guest in the background leaves its stdio.
        .allow("/dev/null", Access::Device)
        // What kind of host this is, how old this process is, and the backtrace of a bug.
        .allow("/proc/cpuinfo", Access::Read)
        .allow("/proc/self", Access::Read);
    if let Ok(program) = std::env::current_exe() {
        rules = rules.allow(program, Access::Read);
    }
    for file in [&args.kernel, &args.initrd].into_iter().flatten() {
        rules = rules.allow(file, Access::Read);
    }
    if let Some(runtime) = runtime {
        // The socket, in the end.
        rules = rules.allow(runtime, Access::RemoveFiles);
    }
    if let Some(dir) = proc_dir {
        rules = rules.allow(dir.root(), Access::All);
        if let Some(parent) = dir.parent_of_made() {
            rules = rules.allow(parent, Access::RemoveDirs);
        }
    }
    rules
}
