//! The first program: the one that the command line names is started with the arguments that came with it, and ends the
//! machine with itself.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::device::{initrd, shutdown};
use pagevisor_shared::errno::Errno;
use pagevisor_shared::units::CpuMask;

use super::{exec, frame_of};
use crate::arch::gdt;
use crate::arch::traps::TrapFrame;
use crate::fs::file::{End, File, Name, O_RDWR, read_all};
use crate::fs::table::{Directories, Files};
use crate::fs::{path, root};
use crate::log::pr_err;
use crate::task::{self, Kind, Task};
use crate::{power, signal, syscall};

/// The environment of the first program (`envp_init`).
const ENVIRONMENT: [&str; 3] = ["HOME=/", "TERM=linux", "PATH=/sbin:/usr/sbin:/bin:/usr/bin"];

/// Makes the current task, a thread of the kernel that returns then, the program at `path`. If that cannot be, the machine
/// ends (`run_init_process`).
pub fn start(path: &str) {
    if let Err(error) = become_init(path) {
        pr_err!("Failed to execute {path} (error -{})", error.number());
        power::off(shutdown::NO_INIT);
    }
}

fn become_init(path: &str) -> Result<(), Errno> {
    let task = task::current();
    let file = path::lookup(root(), path, true)?;
    task.set_resource(Kind::Directories, Some(Arc::new(Directories::default())));
    task.set_resource(Kind::Signals, Some(Arc::new(signal::Actions::default())));
    let files = Arc::new(Files::default());
    let dev = path::lookup(root(), "/dev", true)?;
    let console = File::new(dev.find("console")?, O_RDWR, End::None, Name::In(dev, "console".into()));
    for _ in 0..3 {
        files.insert(Arc::clone(&console), 0, u64::MAX, false)?;
    }
    task.set_resource(Kind::Files, Some(files));
    // Boot was on one CPU; programs go where there is room.
    task::set_affinity(&task, CpuMask(u64::MAX))?;
    let arguments = arguments(path);
    let environment: Vec<Vec<u8>> = ENVIRONMENT.iter().map(|word| word.as_bytes().to_vec()).collect();
    // SAFETY: the thread has not left the kernel yet, so nobody uses the end of its stack.
    let frame = unsafe { frame_of(&task) };
    exec(&file, path, &arguments, environment, frame)?;
    let at = core::ptr::from_mut(frame).expose_provenance() as u64;
    task.record.user_regs.store(at, Relaxed);
    // From now on a switch to the task sets it; this CPU has it now.
    gdt::set_kernel_stack(at + size_of::<TrapFrame>() as u64);
    Ok(())
}

/// The arguments that came with the program, its own name first.
fn arguments(path: &str) -> Vec<Vec<u8>> {
    let given = read_all(initrd::ARGUMENTS).unwrap_or_default();
    let mut arguments: Vec<Vec<u8>> = given.split_inclusive(|byte| *byte == 0).map(without_zero).collect();
    if arguments.is_empty() {
        arguments.push(String::from(path).into_bytes());
    }
    arguments
}

fn without_zero(argument: &[u8]) -> Vec<u8> {
    argument.strip_suffix(&[0]).unwrap_or(argument).to_vec()
}

/// The process of `task` ends with `code`, as `wait` would give it. If it is the first program, so does the machine, with the
/// status that a shell would show; its memory is still there to be looked at.
pub fn ends(task: &Task, code: u32) {
    if task.tgid() == 1 {
        let status = match code & 0x7f {
            0 => code >> 8 & 0xff,
            signal => 128 + signal,
        };
        syscall::report_unknown();
        power::off(shutdown::INIT_EXIT | status as u16 & 0xff);
    }
}
