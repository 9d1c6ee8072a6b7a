//! Programs: how a task becomes one (`fs/exec.c`).
//!
//! [`elf`] reads the file's headers; [`map`] maps its segments; [`stack`] is what the program finds on its stack.

mod elf;
mod init;
mod map;
mod stack;
mod toucher;

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::mmap::{Limits, Space};
use pagevisor_shared::errno::Errno;
use pagevisor_shared::layout::TASK_SIZE_MAX;
use pagevisor_shared::mm_types::uapi::{PROT_EXEC, PROT_READ, PROT_WRITE};
use pagevisor_shared::sched::TaskStruct;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};

use crate::arch::entry::FLAG_INTERRUPTS;
use crate::arch::fpu;
use crate::arch::gdt::{USER_CODE, USER_DATA};
use crate::arch::traps::TrapFrame;
use crate::fs::access::Executed;
use crate::fs::file::display_name;
use crate::fs::inode::Inode;
use crate::fs::path::full_path;
use crate::fs::root;
use crate::platform;
use crate::task::{self, Task};

pub use init::{ends as init_ends, start as start_init};
pub use toucher::run as run_toucher;

/// Where stacks end (`STACK_TOP`).
const STACK_TOP: u64 = TASK_SIZE_MAX;
/// Bytes of stack that a program begins with (`setup_arg_pages`).
const STACK_FIRST: u64 = 128 << 10;
/// Least and most room that is left below the stack's top before other mappings (`MIN_GAP`, `MAX_GAP`).
const MIN_GAP: u64 = 128 << 20;
const MAX_GAP: u64 = STACK_TOP / 6 * 5;
/// Room that stacks have below them (`stack_guard_gap`).
const STACK_GUARD: u64 = 256 << 12;
/// What arguments and environment may have at most, as a part of the stack's limit, and at all (`bprm_stack_limits`).
const STACK_SHARE: u64 = 4;
const MAX_STRINGS: u64 = (8 << 20) / 4 * 3;

/// What keeps a C library off the parts of the processor that emulated ring 0 cannot switch.
const TUNABLES: &str =
    "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-AVX,-AVX_Usable,-AVX2_Usable";

/// A program in memory, ready to be entered.
#[derive(Debug)]
struct Loaded {
    space: Space,
    entry: u64,
    sp: u64,
}

/// Gives its space up unless it was taken.
struct NewSpace(Option<Space>);

impl Drop for NewSpace {
    fn drop(&mut self) {
        if let (Some(space), Some(mm)) = (self.0.take(), platform::mm()) {
            mm.mmput(space);
        }
    }
}

/// Makes the current task, which has no other threads in its process, the program in `file`, which the user calls `path`
/// (`execve`); it goes on with `frame`.
///
/// # Errors
/// As [`elf::parse`]; E2BIG, ENOMEM, ETXTBSY. Then the task is what it was.
pub fn exec(
    file: &Arc<Inode>,
    path: &str,
    arguments: &[Vec<u8>],
    mut environment: Vec<Vec<u8>>,
    frame: &mut TrapFrame,
) -> Result<(), Errno> {
    let (task, executed) = (task::current(), Executed::new(file)?);
    let limits = crate::syscall::limits(&task);
    if fpu::is_emulated() && !environment.iter().any(|word| word.starts_with(b"GLIBC_TUNABLES=")) {
        environment.push(TUNABLES.as_bytes().to_vec());
    }
    let full = path_without_links(&task, file, path);
    let loaded = load(file, [path, &full], arguments, &environment, &limits)?;
    if let Some(process) = task.process() {
        process.be_alone();
    }
    task::exec_space(loaded.space);
    if !task::renew() {
        // What the program was is gone.
        crate::signal::die(crate::signal::SIGKILL);
    }
    if let Some(process) = task.process() {
        // What `/proc/PID/exe` is.
        let old = process.program.lock().replace((executed, full));
        drop(old);
        process.wants_barriers.store(0, Relaxed);
    }
    become_program(&task, path);
    *frame = TrapFrame {
        r15_to_r8: [0; 8],
        rbp: 0,
        rdi: 0,
        rsi: 0,
        rdx: 0,
        rcx: 0,
        rbx: 0,
        rax: 0,
        vector: 0,
        error_code: 0,
        rip: loaded.entry,
        cs: USER_CODE,
        rflags: FLAG_INTERRUPTS | 1 << 1,
        rsp: loaded.sp,
        ss: USER_DATA,
    };
    Ok(())
}

/// The path of `file` without links, which the user calls `path`.
fn path_without_links(task: &Task, file: &Arc<Inode>, path: &str) -> String {
    let start = crate::fs::table::directories(task).map_or_else(|_| Arc::clone(root()), |own| own.work());
    full_path(&start, path).unwrap_or_else(|_| {
        // By a link of `/proc`: to a program that somebody executes, himself mostly.
        let process = task.get_process();
        let program = process.as_ref().map(|process| process.program.lock());
        match program.as_ref().and_then(|program| program.as_ref()) {
            Some((old, path)) if Arc::ptr_eq(&**old, file) => path.clone(),
            _ => String::from(path),
        }
    })
}

/// What changes with the program beside its memory (`begin_new_exec`).
fn become_program(task: &Task, path: &str) {
    task.record.flags.fetch_and(!(TaskStruct::FORKNOEXEC | TaskStruct::KTHREAD), Relaxed);
    task.set_name(format_args!("{}", display_name(path)));
    task.clear_child_tid.store(0, Relaxed);
    crate::signal::exec(task);
    crate::rseq::exec(task);
    if let Ok(files) = crate::fs::table::files(task) {
        files.exec();
    }
}

/// Bytes that arguments and environment may take, with a pointer to each (`bprm_stack_limits`).
pub fn room_for_strings(limits: &Limits) -> u64 {
    (limits.stack / STACK_SHARE).clamp(STACK_FIRST, MAX_STRINGS)
}

/// Loads the program in `file`, which is called what the user says, and what it is called without links.
fn load(
    file: &Inode,
    [path, full_path]: [&str; 2],
    arguments: &[Vec<u8>],
    environment: &[Vec<u8>],
    limits: &Limits,
) -> Result<Loaded, Errno> {
    let mm = platform::mm().ok_or(Errno::ENOMEM)?;
    let strings: usize = arguments.iter().chain(environment).map(|string| string.len() + 9).sum();
    if strings as u64 > room_for_strings(limits) {
        return Err(Errno::E2BIG);
    }
    let program = elf::parse(|offset, to| file.read(offset, to))?;
    let space = mm.mm_alloc().ok_or(Errno::ENOMEM)?;
    let mut kept = NewSpace(Some(space));
    let record = space.record();
    let gap = limits.stack.saturating_add(STACK_GUARD).clamp(MIN_GAP, MAX_GAP);
    record.mmap_base.store((STACK_TOP - gap) & !(PAGE_SIZE - 1), Relaxed);
    let words = 8 * (arguments.len() + environment.len()) as u64;
    let len = (strings as u64 + words + 2 * PAGE_SIZE).next_multiple_of(PAGE_SIZE).max(STACK_FIRST + PAGE_SIZE);
    let len = len.min(limits.stack & !(PAGE_SIZE - 1));
    mm.insert_stack(space, VirtAddr::new(STACK_TOP), len, limits)?;
    if program.executes_stack {
        mm.do_mprotect(space, VirtAddr::new(STACK_TOP - len), len, PROT_READ | PROT_WRITE | PROT_EXEC, limits)?;
    }
    map::segments(space, file, full_path, &program.segments, limits)?;
    let contents = stack::contents(STACK_TOP, &program, path.as_bytes(), arguments, environment)?;
    if mm.write_remote_vm(space, VirtAddr::new(contents.sp), &contents.bytes) != contents.bytes.len() {
        return Err(Errno::E2BIG);
    }
    for (word, value) in [
        (&record.start_stack, contents.sp),
        (&record.arg_start, contents.arguments[0]),
        (&record.arg_end, contents.arguments[1]),
        (&record.env_start, contents.environment[0]),
        (&record.env_end, contents.environment[1]),
    ] {
        word.store(value, Relaxed);
    }
    note_segments(space, &program);
    kept.0 = None;
    Ok(Loaded { space, entry: program.entry, sp: contents.sp })
}

/// Notes where code and data are, and lets the heap begin behind them (`load_elf_binary`).
fn note_segments(space: Space, program: &elf::Program) {
    let record = space.record();
    let (mut code, mut data, mut end) = ([u64::MAX, 0], [0, 0], 0);
    for segment in &program.segments {
        data[0] = data[0].max(segment.addr);
        if segment.prot & PROT_EXEC != 0 {
            code[0] = code[0].min(segment.addr);
            code[1] = code[1].max(segment.addr + segment.file_size);
        }
        data[1] = data[1].max(segment.addr + segment.file_size);
        end = end.max(segment.end_page());
    }
    for (word, value) in [
        (&record.start_code, code[0]),
        (&record.end_code, code[1]),
        (&record.start_data, data[0]),
        (&record.end_data, data[1]),
        (&record.start_brk, end),
        (&record.brk, end),
    ] {
        word.store(value, Relaxed);
    }
}

/// The registers of user mode of `task`, which is not in user mode.
///
/// # Safety
/// Only for the task itself, and nobody else has a reference to them.
unsafe fn frame_of<'a>(task: &Task) -> &'a mut TrapFrame {
    // SAFETY: the end of the kernel stack is where they are, and nothing else is there.
    unsafe { &mut *with_exposed_provenance_mut(task::stack::frame(task) as usize) }
}
