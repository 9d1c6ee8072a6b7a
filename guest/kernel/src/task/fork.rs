//! New tasks from old ones (`kernel/fork.c`).

use core::mem::size_of;
use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

use pagevisor_mm::mmap::Space;
use pagevisor_shared::errno::Errno;
use pagevisor_shared::sched::TaskStruct;
use pagevisor_shared::units::VirtAddr;

use super::clone_flags as flag;
use super::object::{Task, TaskRef, current};
use super::process::Process;
use super::{sched, stack, table, wait};
use crate::arch::switch;
use crate::arch::traps::TrapFrame;
use crate::platform;

/// How to make a child (`struct kernel_clone_args`).
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneArgs {
    /// [`flag`], without the signal.
    pub flags: u64,
    /// The signal that tells the parent of its end.
    pub exit_signal: u32,
    /// The child's stack pointer; 0 for the parent's.
    pub stack: u64,
    /// For [`flag::PARENT_SETTID`].
    pub parent_tid: u64,
    /// For [`flag::CHILD_SETTID`] and [`flag::CHILD_CLEARTID`].
    pub child_tid: u64,
    /// For [`flag::SETTLS`].
    pub tls: u64,
}

/// Makes a child of the current task, which is in a system call with `registers` of user mode; gives its number
/// (`kernel_clone`).
///
/// # Errors
/// EINVAL for flags that do not go together, EAGAIN when there are no more numbers, ENOMEM, and what the parts give.
pub fn clone(args: &CloneArgs, registers: &TrapFrame) -> Result<u32, Errno> {
    let has = |bit: u64| args.flags & bit != 0;
    let apart = has(flag::THREAD) && !has(flag::SIGHAND) || has(flag::SIGHAND) && !has(flag::VM);
    if apart || has(flag::NEWNS) && has(flag::FS) {
        return Err(Errno::EINVAL);
    }
    let parent = current();
    let child = copy_task(&parent, args, registers)?;
    if let Err(error) = enter(&parent, &child, args) {
        undo(&child);
        return Err(error);
    }
    let pid = child.pid();
    tell_numbers(&parent, &child, args);
    if has(flag::VFORK) {
        child.vfork.store(1, SeqCst);
    }
    // The reference that it has to itself; `finish_switch` drops it.
    let _addr = child.clone().into_addr();
    sched::wake_new(&child);
    while has(flag::VFORK) && child.vfork.load(SeqCst) != 0 {
        wait::wait_on(&child.vfork, 1);
    }
    Ok(pid)
}

/// A task like `parent`, that nobody knows yet (`copy_process`).
fn copy_task(parent: &Task, args: &CloneArgs, registers: &TrapFrame) -> Result<TaskRef, Errno> {
    let child = Task::alloc(format_args!("{}", parent.name()), parent.cpus()).ok_or(Errno::ENOMEM)?;
    child.record.cpu.store(parent.cpu() as u32, Relaxed);
    child
        .record
        .flags
        .store(parent.record.flags.load(Relaxed) & !TaskStruct::EXITING | TaskStruct::FORKNOEXEC, Relaxed);
    child.weight.store(parent.weight.load(Relaxed), Relaxed);
    child.nice.store(parent.nice.load(Relaxed), Relaxed);
    if !stack::alloc(&child, parent.cpu()) || !child.user.copy_fpu(Some(&parent.user)) {
        return Err(Errno::ENOMEM);
    }
    let [fs, gs] = parent.user.bases();
    child.user.set_bases([if args.flags & flag::SETTLS != 0 { args.tls } else { fs }, gs]);
    copy_registers(&child, registers, args.stack);
    if args.flags & flag::CHILD_CLEARTID != 0 {
        child.clear_child_tid.store(args.child_tid, Relaxed);
    }
    let process = match parent.get_process() {
        Some(process) if args.flags & flag::THREAD != 0 => process,
        process => Process::new(process.as_deref(), args.exit_signal),
    };
    child.set_process(process);
    copy_space(parent, &child, args.flags)?;
    crate::signal::fork(parent, &child, args.flags);
    crate::rseq::fork(parent, &child, args.flags);
    super::resources::copy(parent, &child, args.flags).inspect_err(|_| drop_space(&child))?;
    if args.flags & flag::CLEAR_SIGHAND != 0 {
        crate::signal::clear_handlers(&child);
    }
    Ok(child)
}

/// The child returns from the system call, too: with 0.
fn copy_registers(child: &Task, registers: &TrapFrame, stack: u64) {
    let top = stack::top(child);
    let at = top - size_of::<TrapFrame>() as u64;
    let copied = with_exposed_provenance_mut::<TrapFrame>(at as usize);
    // SAFETY: the top of a stack that nobody uses yet.
    unsafe {
        core::ptr::copy_nonoverlapping(registers, copied, 1);
        (*copied).rax = 0;
        if stack != 0 {
            (*copied).rsp = stack;
        }
        child.record.sp.store(switch::begin(at), Relaxed);
    }
    child.record.user_regs.store(at, Relaxed);
}

/// The child's address space (`copy_mm`).
fn copy_space(parent: &Task, child: &Task, flags: u64) -> Result<(), Errno> {
    let (Some(mm), Some(space)) = (platform::mm(), parent.space()) else { return Ok(()) };
    let space: Space = if flags & flag::VM != 0 {
        mm.mmget(space);
        space
    } else {
        mm.dup_mmap(space)?
    };
    child.set_space(space);
    Ok(())
}

fn drop_space(child: &Task) {
    if let (Some(mm), Some(space)) = (platform::mm(), child.space()) {
        child.record.mm.store(0, Relaxed);
        mm.mmput(space);
    }
}

/// A child that cannot be.
fn undo(child: &Task) {
    super::resources::exit(child);
    drop_space(child);
}

/// Gives the child its number and its place in the family.
fn enter(parent: &Task, child: &TaskRef, args: &CloneArgs) -> Result<(), Errno> {
    let (Some(family), Some(process)) = (parent.get_process(), child.process()) else { return Err(Errno::EAGAIN) };
    let mut table = table::lock();
    // Who is to end makes no threads.
    let is_thread = args.flags & flag::THREAD != 0;
    if is_thread && (process.ends_with().is_some() || parent.kill.load(Relaxed) != 0) {
        return Err(Errno::EINTR);
    }
    let pid = table.alloc_pid().ok_or(Errno::EAGAIN)?;
    child.record.pid.store(pid, Relaxed);
    child.record.tgid.store(if is_thread { parent.tgid() } else { pid }, Relaxed);
    table.insert(child.clone());
    if is_thread {
        process.live.fetch_add(1, SeqCst);
        child.record.ppid.store(parent.record.ppid.load(Relaxed), Relaxed);
        process.family.lock().threads.push(child.addr());
        return Ok(());
    }
    process.family.lock().threads.push(child.addr());
    match family.parent_locked() {
        Some(grandparent) if args.flags & flag::PARENT != 0 => {
            process.exit_signal.store(family.exit_signal.load(Relaxed), Relaxed);
            grandparent.adopt(child, parent.record.ppid.load(Relaxed));
        }
        _ => family.adopt(child, parent.tgid()),
    }
    Ok(())
}

/// Writes the child's number where it is wanted. What cannot be written is not, as in Linux.
fn tell_numbers(parent: &Task, child: &Task, args: &CloneArgs) {
    let Some(mm) = platform::mm() else { return };
    let number = child.pid().to_le_bytes();
    for (bit, space, at) in
        [(flag::PARENT_SETTID, parent.space(), args.parent_tid), (flag::CHILD_SETTID, child.space(), args.child_tid)]
    {
        if args.flags & bit != 0
            && let Some(space) = space
        {
            mm.write_remote_vm(space, VirtAddr::new(at), &number);
        }
    }
}
