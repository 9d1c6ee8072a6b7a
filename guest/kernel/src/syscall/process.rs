//! Calls on tasks and what they are, and on the machine.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::errno::Errno;
use pagevisor_shared::layout::TASK_SIZE_MAX;
use pagevisor_shared::report::counters;
use pagevisor_shared::sched::{RLIM_NLIMITS, TaskStruct};
use pagevisor_shared::units::{CpuMask, PAGE_SIZE};
use pagevisor_shared::vmstat::{NodeStat, ZoneStat};

use super::{Outcome, clone, files, time, tree};
use crate::arch::traps::TrapFrame;
use crate::arch::{percpu, uaccess};
use crate::fs::path;
use crate::task::{self, Process, Task, TaskRef, Usage, clone_flags, exited_with};
use crate::{clock, exec, fs, platform, random, smp};

/// `arch_prctl`: what to do.
const ARCH_SET_GS: u64 = 0x1001;
const ARCH_SET_FS: u64 = 0x1002;
const ARCH_GET_FS: u64 = 0x1003;
const ARCH_GET_GS: u64 = 0x1004;
/// `prctl`: whether memory may be looked at; names of threads.
const PR_GET_DUMPABLE: u64 = 3;
const PR_SET_NAME: u64 = 15;
const PR_GET_NAME: u64 = 16;
/// `getrandom`: nobody waits; from the one or the other pool of numbers.
const GRND_NONBLOCK: u32 = 1;
const GRND_RANDOM: u32 = 2;
const GRND_INSECURE: u32 = 4;
/// Bytes of the head of a list of robust mutexes (`struct robust_list_head`).
const ROBUST_HEAD: u64 = 24;
/// What an argument takes beside its bytes.
const POINTER_AND_ZERO: usize = 9;
/// The longest argument (`MAX_ARG_STRLEN`).
const MAX_ARGUMENT: usize = 32 * PAGE_SIZE as usize;
/// Most interpreters in a row of files that begin with `#!`.
const MAX_INTERPRETERS: u32 = 4;

/// What call `number` of `task` gives, if it tells a number and nothing else: these are nothing but a call.
#[inline(always)]
pub fn identity(task: &Task, number: u32) -> Option<u64> {
    match number {
        39 => Some(u64::from(task.tgid())),
        110 => Some(u64::from(task.record.ppid.load(Relaxed))),
        186 => Some(u64::from(task.pid())),
        // Everybody is root.
        102 | 104 | 107 | 108 => Some(0),
        _ => None,
    }
}

/// Makes call `number`, if it is one of these.
pub fn call(number: u32, args: &[u64; 6], frame: &TrapFrame) -> Option<Outcome> {
    let [a, b, c, d, ..] = *args;
    Some(match number {
        24 => {
            task::yield_now();
            Ok(0)
        }
        56 => clone::clone(args, frame),
        57 => clone::fork(0, frame),
        58 => clone::fork(clone_flags::VFORK | clone_flags::VM, frame),
        435 => clone::clone3(a, b, frame),
        60 => exit(a),
        63 => system(a),
        97 => own()
            .and_then(|own| limit_of(&own, a, None))
            .and_then(|[soft, hard]| uaccess::write_words(b, &[soft, hard]).map(|()| 0)),
        98 => usage(a as i32, b),
        99 => information(a),
        100 => times(a),
        // Everybody is in no other group.
        115 if (a as u32).cast_signed() < 0 => Err(Errno::EINVAL),
        115 => Ok(0),
        118 | 120 => [a, b, c].into_iter().try_for_each(|at| uaccess::write_u32(at, 0)).map(|()| 0),
        105 | 106 | 113 | 114 | 116 | 117 | 119 | 122 | 123 => Ok(0),
        109 => set_group(a as u32, b as u32),
        111 => group_of(0, |process| process.record.pgrp.load(Relaxed)),
        112 => new_session(),
        121 => group_of(a as u32, |process| process.record.pgrp.load(Relaxed)),
        124 => group_of(a as u32, |process| process.record.session.load(Relaxed)),
        157 => name(a, b),
        158 => bases(a, b),
        160 => uaccess::read_words(b).and_then(|limits| limit_of(&*own()?, a, Some(limits))).map(|_| 0),
        203 => set_affinity(a as u32, b, c),
        204 => affinity(a as u32, b, c),
        218 => {
            let task = task::current();
            task.clear_child_tid.store(a, Relaxed);
            Ok(u64::from(task.pid()))
        }
        231 => exit_group(a),
        273 if b != ROBUST_HEAD => Err(Errno::EINVAL),
        273 => {
            task::current().robust_list.store(a, Relaxed);
            Ok(0)
        }
        274 => thread(a as u32).and_then(|task| {
            uaccess::write_u64(c, ROBUST_HEAD)?;
            uaccess::write_u64(b, task.robust_list.load(Relaxed)).map(|()| 0)
        }),
        302 => limits(a as u32, b, c, d),
        309 => where_am_i(a, b),
        318 => get_random(a, b, c as u32),
        334 => crate::rseq::call(a, b as u32, c as u32, d as u32),
        _ => return None,
    })
}

fn exit(code: u64) -> ! {
    let task = task::current();
    let code = exited_with(code as i32);
    if task.process().is_some_and(|process| process.live.load(Relaxed) == 1) {
        exec::init_ends(&task, code);
    }
    task::exit(code)
}

fn exit_group(code: u64) -> ! {
    let code = exited_with(code as i32);
    exec::init_ends(&task::current(), code);
    task::exit_group(code)
}

/// The current task's process.
///
/// # Errors
/// ESRCH for a thread of the kernel.
pub fn own() -> Result<Arc<Process>, Errno> {
    task::current().get_process().ok_or(Errno::ESRCH)
}

/// The task of number `pid`; 0 is the current one.
///
/// # Errors
/// ESRCH.
pub fn thread(pid: u32) -> Result<TaskRef, Errno> {
    if pid == 0 { Ok(task::current().get()) } else { task::find(pid).ok_or(Errno::ESRCH) }
}

fn group_of(pid: u32, word: impl FnOnce(&Process) -> u32) -> Outcome {
    let task = thread(pid)?;
    task.process().map(|process| u64::from(word(process))).ok_or(Errno::ESRCH)
}

/// `setpgid`: of the current process, or of a child that is still the same program.
fn set_group(pid: u32, group: u32) -> Outcome {
    if group.cast_signed() < 0 {
        return Err(Errno::EINVAL);
    }
    let (task, own) = (task::current(), own()?);
    let pid = if pid == 0 { task.tgid() } else { pid };
    let target = thread(pid)?;
    let process = target.get_process().ok_or(Errno::ESRCH)?;
    if target.pid() != target.tgid() {
        return Err(Errno::EINVAL);
    }
    let (session, group) = (own.record.session.load(Relaxed), if group == 0 { pid } else { group });
    if !Arc::ptr_eq(&process, &own) {
        match process.parent() {
            Some(parent) if Arc::ptr_eq(&parent, &own) => {}
            _ => return Err(Errno::ESRCH),
        }
        if process.record.session.load(Relaxed) != session {
            return Err(Errno::EPERM);
        }
        if !target.has(TaskStruct::FORKNOEXEC) {
            return Err(Errno::EACCES);
        }
    }
    // Who leads a session stays in its group; a group is a new one, or one of the session.
    let leads = process.record.session.load(Relaxed) == pid;
    if leads || group != pid && !is_group_of(session, group) {
        return Err(Errno::EPERM);
    }
    process.record.pgrp.store(group, Relaxed);
    Ok(0)
}

/// Whether there is a process group `group` in `session`.
fn is_group_of(session: u32, group: u32) -> bool {
    let mut found = false;
    task::for_each(|task| {
        let is = |process: &Process| {
            process.record.pgrp.load(Relaxed) == group && process.record.session.load(Relaxed) == session
        };
        found |= task.process().is_some_and(is);
    });
    found
}

fn new_session() -> Outcome {
    let (task, process) = (task::current(), own()?);
    if process.record.pgrp.load(Relaxed) == task.tgid() {
        return Err(Errno::EPERM);
    }
    process.record.pgrp.store(task.tgid(), Relaxed);
    process.record.session.store(task.tgid(), Relaxed);
    Ok(u64::from(task.tgid()))
}

/// `uname`: six fields of 65 bytes.
fn system(at: u64) -> Outcome {
    const FIELD: usize = 65;
    let fields = ["Linux", "pagevisor", "6.1.0", concat!("Pagevisor ", env!("CARGO_PKG_VERSION")), "x86_64", "(none)"];
    let mut bytes = [0; 6 * FIELD];
    for (field, text) in bytes.chunks_exact_mut(FIELD).zip(fields) {
        field[..text.len()].copy_from_slice(text.as_bytes());
    }
    uaccess::write(at, &bytes).map(|()| 0)
}

/// Soft and hard limit of a resource, which are changed if `new` says so.
fn limit_of(process: &Process, resource: u64, new: Option<[u64; 2]>) -> Result<[u64; 2], Errno> {
    let resource =
        usize::try_from(resource as u32).ok().filter(|number| *number < RLIM_NLIMITS).ok_or(Errno::EINVAL)?;
    let words = &process.record.rlim[resource];
    let old = [words[0].load(Relaxed), words[1].load(Relaxed)];
    if let Some([soft, hard]) = new {
        if soft > hard {
            return Err(Errno::EINVAL);
        }
        words[0].store(soft, Relaxed);
        words[1].store(hard, Relaxed);
    }
    Ok(old)
}

/// `prlimit64`.
fn limits(pid: u32, resource: u64, new: u64, old: u64) -> Outcome {
    let process = thread(pid)?.get_process().ok_or(Errno::ESRCH)?;
    let new = if new == 0 { None } else { Some(uaccess::read_words(new)?) };
    let before = limit_of(&process, resource, new)?;
    if old != 0 {
        uaccess::write_words(old, &before)?;
    }
    Ok(0)
}

/// Writes `usage` to `at` (`struct rusage`).
///
/// # Errors
/// EFAULT.
pub fn write_usage(at: u64, usage: &Usage) -> Result<(), Errno> {
    let mut words = [0; 18];
    for (pair, nanos) in words.chunks_exact_mut(2).zip([&usage.utime, &usage.stime]) {
        let nanos = nanos.load(Relaxed);
        pair.copy_from_slice(&[nanos / 1_000_000_000, nanos % 1_000_000_000 / 1000]);
    }
    words[4] = usage.maxrss.load(Relaxed) * (PAGE_SIZE >> 10);
    for (index, word) in [(8, &usage.min_flt), (9, &usage.maj_flt), (16, &usage.nvcsw), (17, &usage.nivcsw)] {
        words[index] = word.load(Relaxed);
    }
    uaccess::write_words(at, &words)
}

/// `getrusage`.
fn usage(who: i32, at: u64) -> Outcome {
    let (process, task) = (own()?, task::current());
    let usage = match who {
        -1 => return write_usage(at, &process.children).map(|()| 0),
        0 => process.usage(),
        1 => Usage::of(&task),
        _ => return Err(Errno::EINVAL),
    };
    usage.maxrss.fetch_max(process.gone.maxrss.load(Relaxed), Relaxed);
    task.space().inspect(|space| usage.add_space(*space));
    write_usage(at, &usage).map(|()| 0)
}

/// `times`.
fn times(at: u64) -> Outcome {
    if at != 0 {
        let process = own()?;
        let (usage, children) = (process.usage(), &process.children);
        let words = [&usage.utime, &usage.stime, &children.utime, &children.stime];
        uaccess::write_words(at, &words.map(|word| time::ticks(word.load(Relaxed))))?;
    }
    Ok(time::ticks(clock::nanos()))
}

/// `sysinfo`: uptime, loads, memory, tasks.
fn information(at: u64) -> Outcome {
    let mm = platform::mm().ok_or(Errno::ENOSYS)?;
    let (region, mut words) = (mm.region(), [0; 14]);
    words[0] = clock::nanos() / 1_000_000_000;
    words[4] = PAGE_SIZE * region.zones().iter().map(|zone| zone.managed_pages.load(Relaxed)).sum::<u64>();
    words[5] = PAGE_SIZE * counters::global_zone_page_state(region, ZoneStat::NrFreePages);
    words[6] = PAGE_SIZE * counters::global_node_page_state(region, NodeStat::NrShmem);
    words[10] = task::count() & 0xffff;
    // Bytes of a unit.
    words[13] = 1;
    uaccess::write_words(at, &words).map(|()| 0)
}

/// `prctl`.
fn name(what: u64, at: u64) -> Outcome {
    let task = task::current();
    match what {
        PR_SET_NAME => {
            let mut bytes = [0; 16];
            let len = uaccess::read_string(&mut bytes[..15], at)?;
            task.set_name(format_args!("{}", core::str::from_utf8(&bytes[..len]).unwrap_or("?")));
            Ok(0)
        }
        PR_GET_NAME => {
            let words = [0, 1].map(|index| task.record.comm[index].load(Relaxed));
            uaccess::write_words(at, &words).map(|()| 0)
        }
        // Nobody is kept from looking at it (`SUID_DUMP_USER`).
        PR_GET_DUMPABLE => Ok(1),
        _ => Err(Errno::EINVAL),
    }
}

/// `arch_prctl`.
fn bases(what: u64, addr: u64) -> Outcome {
    let [fs, gs] = task::current().user.bases();
    match what {
        ARCH_SET_FS | ARCH_SET_GS if addr >= TASK_SIZE_MAX => return Err(Errno::EPERM),
        ARCH_SET_FS => task::set_bases([addr, gs]),
        ARCH_SET_GS => task::set_bases([fs, addr]),
        ARCH_GET_FS => uaccess::write_u64(addr, fs)?,
        ARCH_GET_GS => uaccess::write_u64(addr, gs)?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

fn set_affinity(pid: u32, len: u64, at: u64) -> Outcome {
    let mut bytes = [0; 8];
    let len = (len as usize).min(bytes.len());
    uaccess::read(&mut bytes[..len], at)?;
    task::set_affinity(&*thread(pid)?, CpuMask(u64::from_le_bytes(bytes))).map(|()| 0)
}

/// `sched_getaffinity`: how many bytes it has written.
fn affinity(pid: u32, len: u64, at: u64) -> Outcome {
    if len < 8 || !len.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let cpus = thread(pid)?.cpus().0 & smp::online().0;
    uaccess::write_u64(at, cpus).map(|()| 8)
}

/// `getcpu`.
fn where_am_i(cpu: u64, node: u64) -> Outcome {
    let number = percpu::cpu_number();
    if cpu != 0 {
        uaccess::write_u32(cpu, number)?;
    }
    if node != 0 {
        let region = crate::region::get().ok_or(Errno::ENOSYS)?;
        let of = region.cpus().get(number as usize).map_or(0, |record| record.node.load(Relaxed));
        uaccess::write_u32(node, of)?;
    }
    Ok(0)
}

/// `getrandom`.
fn get_random(at: u64, len: u64, flags: u32) -> Outcome {
    let contradicts = GRND_RANDOM | GRND_INSECURE;
    if flags & !(GRND_NONBLOCK | contradicts) != 0 || flags & contradicts == contradicts {
        return Err(Errno::EINVAL);
    }
    random::fill(at, files::clamp(len)).map(|done| done as u64)
}

/// The program's list of strings at `list`. What they take, with their pointers, is taken from `room` (`copy_strings`).
///
/// # Errors
/// E2BIG if that is not enough; ENOMEM, EFAULT.
fn strings(list: u64, room: &mut u64) -> Result<Vec<Vec<u8>>, Errno> {
    let mut strings = Vec::new();
    if list == 0 {
        return Ok(strings);
    }
    let mut take = |bytes: usize| room.checked_sub(bytes as u64).map(|left| *room = left).ok_or(Errno::E2BIG);
    loop {
        let at = uaccess::read_u64(list.wrapping_add(8 * strings.len() as u64))?;
        if at == 0 {
            return Ok(strings);
        }
        take(POINTER_AND_ZERO)?;
        let mut string = Vec::new();
        loop {
            let mut piece = [0; 256];
            let len = uaccess::read_string(&mut piece, at.wrapping_add(string.len() as u64))?;
            take(len)?;
            string.try_reserve(len).map_err(|_| Errno::ENOMEM)?;
            string.extend_from_slice(&piece[..len]);
            if len < piece.len() {
                break;
            }
            if string.len() > MAX_ARGUMENT {
                return Err(Errno::E2BIG);
            }
        }
        strings.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        strings.push(string);
    }
}

/// `execve`.
pub fn execve(args: &[u64; 6], frame: &mut TrapFrame) -> Result<(), Errno> {
    let name = tree::string(args[0])?;
    let mut room = exec::room_for_strings(&super::limits(&task::current()));
    let (mut arguments, environment) = (strings(args[1], &mut room)?, strings(args[2], &mut room)?);
    if arguments.is_empty() {
        // Programs look for their own name there, whatever comes.
        arguments.push(Vec::new());
    }
    let start = fs::table::directories(&task::current())?.work();
    let mut path = name;
    for _ in 0..=MAX_INTERPRETERS {
        let file = path::lookup(&start, &path, true)?;
        if file.is_directory() || file.mode.load(Relaxed) & 0o111 == 0 {
            return Err(Errno::EACCES);
        }
        let Some((interpreter, option)) = interpreter(&file) else {
            return exec::exec(&file, &path, &arguments, environment, frame);
        };
        // The script takes the place of its own name.
        let rest = arguments.split_off(arguments.len().min(1));
        arguments =
            [Some(interpreter.clone().into_bytes()), option, Some(path.into_bytes())].into_iter().flatten().collect();
        arguments.extend(rest);
        path = interpreter;
    }
    Err(Errno::ELOOP)
}

/// The interpreter that a script names in its first line, and the argument there (`fs/binfmt_script.c`).
fn interpreter(file: &fs::inode::Inode) -> Option<(String, Option<Vec<u8>>)> {
    let mut line = [0; 256];
    let len = file.read(0, &mut line);
    let line = line[..len].strip_prefix(b"#!")?;
    let line = line.split(|byte| *byte == b'\n').next()?.trim_ascii();
    let (name, option) = match line.iter().position(u8::is_ascii_whitespace) {
        Some(end) => (&line[..end], Some(line[end..].trim_ascii().to_vec())),
        None => (line, None),
    };
    Some((String::from_utf8(name.to_vec()).ok()?, option))
}
