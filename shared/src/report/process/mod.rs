//! Files of a process in `/proc` (`fs/proc/array.c`, `fs/proc/task_mmu.c`), from plain values: who has read them, in
//! whatever way, gets Linux's text.

mod areas;

use core::fmt::{self, Write};
use core::sync::atomic::Ordering::Relaxed;

use super::kib;
use crate::MAX_NUMNODES;
use crate::mm_types::{MmCounter, MmStruct};
use crate::sched::TaskState;
use crate::units::{PAGE_SHIFT, PAGE_SIZE};

pub use areas::{Area, MappedPage, NumaPages, Sizes, pagemap};

/// What the files show of an address space. Sizes in pages where Linux has pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Memory {
    /// Pages of all areas.
    pub total_vm: u64,
    /// Most of them that there were.
    pub hiwater_vm: u64,
    /// Pages of locked areas.
    pub locked_vm: u64,
    /// Pinned pages.
    pub pinned_vm: u64,
    /// Pages of private writable areas that are no stack.
    pub data_vm: u64,
    /// Pages of executable areas.
    pub exec_vm: u64,
    /// Pages of stacks.
    pub stack_vm: u64,
    /// Pages that are mapped, by [`MmCounter`].
    pub rss: [u64; 4],
    /// Most of them that there were.
    pub hiwater_rss: u64,
    /// Bytes of page tables.
    pub pgtables_bytes: u64,
    /// Text, from and to.
    pub code: [u64; 2],
    /// Data, from and to.
    pub data: [u64; 2],
    /// Where the heap begins.
    pub start_brk: u64,
    /// Where it ends.
    pub brk: u64,
    /// Where the stack begins.
    pub start_stack: u64,
    /// Arguments, from and to.
    pub arguments: [u64; 2],
    /// Environment, from and to.
    pub environment: [u64; 2],
}

impl Memory {
    /// What `space` says.
    pub fn of(space: &MmStruct) -> Self {
        let get = |word: &core::sync::atomic::AtomicU64| word.load(Relaxed);
        Self {
            total_vm: get(&space.total_vm),
            hiwater_vm: get(&space.hiwater_vm),
            locked_vm: get(&space.locked_vm),
            pinned_vm: get(&space.pinned_vm),
            data_vm: get(&space.data_vm),
            exec_vm: get(&space.exec_vm),
            stack_vm: get(&space.stack_vm),
            // Who looks while it changes may see less than nothing.
            rss: core::array::from_fn(|kind| space.rss_stat[kind].load(Relaxed).max(0).cast_unsigned()),
            hiwater_rss: get(&space.hiwater_rss),
            pgtables_bytes: get(&space.pgtables_bytes),
            code: [get(&space.start_code), get(&space.end_code)],
            data: [get(&space.start_data), get(&space.end_data)],
            start_brk: get(&space.start_brk),
            brk: get(&space.brk),
            start_stack: get(&space.start_stack),
            arguments: [get(&space.arg_start), get(&space.arg_end)],
            environment: [get(&space.env_start), get(&space.env_end)],
        }
    }

    /// Mapped pages of a kind.
    pub const fn mapped(&self, kind: MmCounter) -> u64 {
        self.rss[kind as usize]
    }

    /// All mapped pages (`get_mm_rss`).
    pub const fn total_rss(&self) -> u64 {
        let [file, anon, _, shmem] = self.rss;
        file.wrapping_add(anon).wrapping_add(shmem)
    }

    /// Pages that the text is in.
    const fn text_pages(&self) -> u64 {
        let end = self.code[1].wrapping_add(PAGE_SIZE - 1) >> PAGE_SHIFT;
        end.saturating_sub(self.code[0] >> PAGE_SHIFT)
    }

    /// The memory lines of `/proc/PID/status` (`task_mem`).
    ///
    /// # Errors
    /// Those of `out`.
    pub fn status(&self, out: &mut dyn Write) -> fmt::Result {
        let rss = self.total_rss();
        let text = self.text_pages().min(self.exec_vm);
        let lines = [
            ("VmPeak", kib(self.hiwater_vm.max(self.total_vm))),
            ("VmSize", kib(self.total_vm)),
            ("VmLck", kib(self.locked_vm)),
            ("VmPin", kib(self.pinned_vm)),
            ("VmHWM", kib(self.hiwater_rss.max(rss))),
            ("VmRSS", kib(rss)),
            ("RssAnon", kib(self.mapped(MmCounter::Anon))),
            ("RssFile", kib(self.mapped(MmCounter::File))),
            ("RssShmem", kib(self.mapped(MmCounter::Shmem))),
            ("VmData", kib(self.data_vm)),
            ("VmStk", kib(self.stack_vm)),
            ("VmExe", kib(text)),
            ("VmLib", kib(self.exec_vm - text)),
            ("VmPTE", self.pgtables_bytes >> 10),
            ("VmSwap", kib(self.mapped(MmCounter::Swap))),
            ("HugetlbPages", 0),
        ];
        lines.iter().try_for_each(|(name, kib)| writeln!(out, "{name}:\t{kib:>8} kB"))
    }

    /// What `/proc/PID/statm` shows, by name; `lib` and `dt` are 0 since Linux 2.6 (`proc_pid_statm`).
    pub const fn statm_rows(&self) -> [(&'static str, u64); 7] {
        [
            ("size", self.total_vm),
            ("resident", self.total_rss()),
            ("shared", self.mapped(MmCounter::File).wrapping_add(self.mapped(MmCounter::Shmem))),
            ("text", self.text_pages()),
            ("lib", 0),
            ("data", self.data_vm.wrapping_add(self.stack_vm)),
            ("dt", 0),
        ]
    }

    /// `/proc/PID/statm`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn statm(&self, out: &mut dyn Write) -> fmt::Result {
        let mut blank = "";
        for (_, pages) in self.statm_rows() {
            write!(out, "{blank}{pages}")?;
            blank = " ";
        }
        out.write_char('\n')
    }

    /// The name that `maps` gives an anonymous area from `start` to `end`; none for most.
    pub const fn name_of(&self, start: u64, end: u64) -> &'static str {
        if start <= self.brk && end >= self.start_brk && self.brk != 0 {
            "[heap]"
        } else if start <= self.start_stack && end >= self.start_stack && self.start_stack != 0 {
            "[stack]"
        } else {
            ""
        }
    }
}

/// What the files show of a task beside its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Process<'n> {
    /// Its name.
    pub name: &'n str,
    /// What it does.
    pub state: TaskState,
    /// Numbers of the thread, the process, and the parent.
    pub pid: u32,
    /// See above.
    pub tgid: u32,
    /// See above.
    pub ppid: u32,
    /// Process group and session.
    pub pgrp: u32,
    /// See above.
    pub session: u32,
    /// Its files' mode mask.
    pub umask: u32,
    /// Room for open files.
    pub fd_size: u32,
    /// Signals that wait for the thread, and for the process; that are blocked, ignored, handled.
    pub signals: [u64; 5],
    /// Signals that wait at most.
    pub signal_limit: u64,
    /// Threads of the process.
    pub threads: u64,
    /// `PF_*`.
    pub flags: u32,
    /// Faults without waiting, then with: its own, and those of its children.
    pub faults: [[u64; 2]; 2],
    /// Nanoseconds in user mode and in the kernel: its own, and those of its children.
    pub time: [[u64; 2]; 2],
    /// The nice value.
    pub nice: i32,
    /// Nanoseconds from boot to its start.
    pub start_time: u64,
    /// Limit of mapped memory, in bytes.
    pub rss_limit: u64,
    /// The signal that its parent gets.
    pub exit_signal: u32,
    /// The CPU it runs or ran on.
    pub cpu: u32,
    /// CPUs it may run on.
    pub cpus: u64,
    /// Nodes it may have memory of.
    pub nodes: u64,
    /// Times that it gave up its CPU, and that it was taken away.
    pub switches: [u64; 2],
    /// What it ended with.
    pub exit_code: u32,
}

/// Nanoseconds of a tick as `/proc` counts them (`USER_HZ` is 100).
const TICK: u64 = 10_000_000;

/// Bits as ranges of numbers (`%*pbl`).
fn list(bits: u64) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        let (mut at, mut comma) = (0, "");
        while at < u64::BITS {
            let run = (bits >> at).trailing_ones();
            if run == 0 {
                at += 1;
                continue;
            }
            write!(f, "{comma}{at}")?;
            if run > 1 {
                write!(f, "-{}", at + run - 1)?;
            }
            (at, comma) = (at + run, ",");
        }
        Ok(())
    })
}

/// Bits as groups of eight hexadecimal digits, for `count` of them (`%*pb`).
fn groups(bits: u64, count: u32) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        if count > 32 {
            let digits = (count as usize - 32).div_ceil(4);
            write!(f, "{:0digits$x},", bits >> 32)?;
        }
        let digits = (count.min(32) as usize).div_ceil(4);
        write!(f, "{:0digits$x}", bits as u32)
    })
}

impl Process<'_> {
    /// `/proc/PID/status` (`proc_pid_status`); `memory` is none for threads of the kernel.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn status(&self, memory: Option<&Memory>, nr_cpus: u32, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "Name:\t{}\nUmask:\t{:04o}", self.name, self.umask)?;
        writeln!(out, "State:\t{} ({})", self.state.letter(), self.state.word())?;
        writeln!(out, "Tgid:\t{}\nNgid:\t0\nPid:\t{}\nPPid:\t{}", self.tgid, self.pid, self.ppid)?;
        writeln!(out, "TracerPid:\t0\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nFDSize:\t{}", self.fd_size)?;
        writeln!(out, "Groups:\t \nNStgid:\t{}\nNSpid:\t{}", self.tgid, self.pid)?;
        writeln!(out, "NSpgid:\t{}\nNSsid:\t{}", self.pgrp, self.session)?;
        if let Some(memory) = memory {
            memory.status(out)?;
            writeln!(out, "CoreDumping:\t0\nTHP_enabled:\t0")?;
        }
        writeln!(out, "Threads:\t{}\nSigQ:\t0/{}", self.threads, self.signal_limit)?;
        for (name, mask) in ["SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"].into_iter().zip(self.signals) {
            writeln!(out, "{name}:\t{mask:016x}")?;
        }
        for (name, mask) in [("Inh", 0), ("Prm", ALL_CAPS), ("Eff", ALL_CAPS), ("Bnd", ALL_CAPS), ("Amb", 0)] {
            writeln!(out, "Cap{name}:\t{mask:016x}")?;
        }
        writeln!(out, "NoNewPrivs:\t0\nSeccomp:\t0\nSeccomp_filters:\t0")?;
        writeln!(out, "Speculation_Store_Bypass:\tunknown\nSpeculationIndirectBranch:\tunknown")?;
        writeln!(out, "Cpus_allowed:\t{}", groups(self.cpus, nr_cpus))?;
        writeln!(out, "Cpus_allowed_list:\t{}", list(self.cpus))?;
        writeln!(out, "Mems_allowed:\t{}", groups(self.nodes, MAX_NUMNODES as u32))?;
        writeln!(out, "Mems_allowed_list:\t{}", list(self.nodes))?;
        let [voluntary, others] = self.switches;
        writeln!(out, "voluntary_ctxt_switches:\t{voluntary}\nnonvoluntary_ctxt_switches:\t{others}")
    }

    /// `/proc/PID/stat` (`do_task_stat`).
    ///
    /// # Errors
    /// Those of `out`.
    pub fn stat(&self, memory: Option<&Memory>, out: &mut dyn Write) -> fmt::Result {
        let m = memory.copied().unwrap_or_default();
        let [[min, maj], [child_min, child_maj]] = self.faults;
        write!(out, "{} ({}) {} {} ", self.pid, self.name, self.state.letter(), self.ppid)?;
        write!(out, "{} {} 0 -1 {} {min} {child_min} {maj} {child_maj}", self.pgrp, self.session, self.flags)?;
        for nanos in self.time.as_flattened() {
            write!(out, " {}", nanos / TICK)?;
        }
        write!(out, " {} {} {} 0 {}", 20 + self.nice, self.nice, self.threads, self.start_time / TICK)?;
        write!(out, " {} {} {}", m.total_vm.wrapping_mul(PAGE_SIZE), m.total_rss(), self.rss_limit)?;
        write!(out, " {} {} {} 0 0", m.code[0], m.code[1], m.start_stack)?;
        // Only the first 31 signals have room here.
        let [pending, _, blocked, ignored, caught] = self.signals.map(|mask| mask & 0x7fff_ffff);
        write!(out, " {pending} {blocked} {ignored} {caught}")?;
        write!(out, " {} 0 0 {} {} 0 0 0 0 0", u8::from(self.is_asleep()), self.exit_signal, self.cpu)?;
        write!(out, " {} {} {}", m.data[0], m.data[1], m.start_brk)?;
        let [[arg_start, arg_end], [env_start, env_end]] = [m.arguments, m.environment];
        writeln!(out, " {arg_start} {arg_end} {env_start} {env_end} {}", self.exit_code)
    }

    const fn is_asleep(&self) -> bool {
        matches!(self.state, TaskState::Interruptible | TaskState::Uninterruptible | TaskState::Idle)
    }
}

/// All capabilities there are up to Linux 6.1 (`CAP_FULL_SET`).
const ALL_CAPS: u64 = (1 << 41) - 1;

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn sets_of_numbers() {
        use std::format;
        assert_eq!(format!("{}", list(0b1011_0111)), "0-2,4-5,7");
        assert_eq!(format!("{}", list(u64::MAX)), "0-63");
        assert_eq!(format!("{}", groups(5, 2)), "5");
        assert_eq!(format!("{}", groups(1 << 33, 64)), "00000002,00000000");
    }
}
