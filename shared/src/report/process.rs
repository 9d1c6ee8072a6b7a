//! Files of a process in `/proc` (`fs/proc/array.c`, `fs/proc/task_mmu.c`), from plain values: who has read them, in
//! whatever way, gets Linux's text.

use core::fmt::{self, Write};
use core::sync::atomic::Ordering::Relaxed;

use super::kib;
use crate::MAX_NUMNODES;
use crate::mm_types::{MmCounter, MmStruct, VmaFlags};
use crate::sched::TaskState;
use crate::units::{PAGE_SHIFT, PAGE_SIZE};

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

    /// `/proc/PID/statm` (`proc_pid_statm`).
    ///
    /// # Errors
    /// Those of `out`.
    pub fn statm(&self, out: &mut dyn Write) -> fmt::Result {
        let shared = self.mapped(MmCounter::File).wrapping_add(self.mapped(MmCounter::Shmem));
        let data = self.data_vm.wrapping_add(self.stack_vm);
        let (size, rss, text) = (self.total_vm, self.total_rss(), self.text_pages());
        writeln!(out, "{size} {rss} {shared} {text} 0 {data} 0")
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
    pub fd_size: u64,
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
    /// Signals that wait for the thread, and for the process; that are blocked, ignored, handled.
    pub signals: [u64; 5],
    /// Signals that wait at most.
    pub signal_limit: u64,
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
        writeln!(out, "TracerPid:\t0\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0")?;
        writeln!(out, "FDSize:\t{}\nGroups:\t ", self.fd_size)?;
        for (name, number) in [("tgid", self.tgid), ("pid", self.pid), ("pgid", self.pgrp), ("sid", self.session)] {
            writeln!(out, "NS{name}:\t{number}")?;
        }
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
        matches!(self.state, TaskState::Interruptible | TaskState::Uninterruptible)
    }
}

/// All capabilities there are up to Linux 6.1 (`CAP_FULL_SET`).
const ALL_CAPS: u64 = (1 << 41) - 1;

/// An area as `maps` and its kind show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Area<'n> {
    /// First byte, and first byte behind.
    pub start: u64,
    /// See above.
    pub end: u64,
    /// What it is.
    pub flags: VmaFlags,
    /// Offset in the file, in pages; 0 for anonymous memory.
    pub pgoff: u64,
    /// The file's device, major and minor number, and its number; 0 for anonymous memory.
    pub device: [u32; 2],
    /// See above.
    pub inode: u64,
    /// The file's path, or [`Memory::name_of`].
    pub name: &'n str,
}

/// Column of a name in `maps` (`seq_setwidth`, and the blank behind).
const NAME_COLUMN: usize = 73;

/// Counts what is written.
struct Counted<'o>(&'o mut dyn Write, usize);

impl Write for Counted<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.1 += text.len();
        self.0.write_str(text)
    }
}

impl Area<'_> {
    /// The line of `maps` (`show_map_vma`).
    ///
    /// # Errors
    /// Those of `out`.
    pub fn line(&self, out: &mut dyn Write) -> fmt::Result {
        let letter = |flag, letter| if self.flags.contains(flag) { letter } else { '-' };
        let mut out = Counted(out, 0);
        write!(out, "{:08x}-{:08x} ", self.start, self.end)?;
        for (flag, shown) in [(VmaFlags::READ, 'r'), (VmaFlags::WRITE, 'w'), (VmaFlags::EXEC, 'x')] {
            out.write_char(letter(flag, shown))?;
        }
        out.write_char(if self.flags.contains(VmaFlags::MAYSHARE) { 's' } else { 'p' })?;
        let [major, minor] = self.device;
        write!(out, " {:08x} {major:02x}:{minor:02x} {} ", self.pgoff << PAGE_SHIFT, self.inode)?;
        if self.name.is_empty() {
            return out.write_char('\n');
        }
        let blanks = NAME_COLUMN.saturating_sub(out.1).max(1);
        writeln!(out, "{:blanks$}{}", "", self.name)
    }
}

/// A page that an area has mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MappedPage {
    /// How often it is mapped.
    pub mapcount: u64,
    /// Whether it is anonymous.
    pub anon: bool,
    /// Whether it was written to, by the entry or the page's flags.
    pub dirty: bool,
    /// Whether it was touched.
    pub referenced: bool,
    /// Whether it is on an active list.
    pub active: bool,
    /// The node of the page.
    pub node: usize,
}

/// Pages of an area by what they are (`struct mem_size_stats`), in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sizes {
    rss: u64,
    /// Shifted by [`PSS_SHIFT`], as are the next two.
    pss: u64,
    pss_dirty: u64,
    pss_locked: u64,
    shared_clean: u64,
    shared_dirty: u64,
    private_clean: u64,
    private_dirty: u64,
    referenced: u64,
    anonymous: u64,
}

/// Parts of a page that many share are added up with so many bits more (`PSS_SHIFT`).
const PSS_SHIFT: u32 = 12;

impl Sizes {
    /// Adds `page`, of an area that is `locked` or not (`smaps_account`).
    pub fn add(&mut self, page: &MappedPage, locked: bool) {
        let shared = page.mapcount > 1;
        let kind = match (shared, page.dirty) {
            (true, true) => &mut self.shared_dirty,
            (true, false) => &mut self.shared_clean,
            (false, true) => &mut self.private_dirty,
            (false, false) => &mut self.private_clean,
        };
        *kind += PAGE_SIZE;
        self.rss += PAGE_SIZE;
        if page.anon {
            self.anonymous += PAGE_SIZE;
        }
        if page.referenced {
            self.referenced += PAGE_SIZE;
        }
        let part = (PAGE_SIZE << PSS_SHIFT) / page.mapcount.max(1);
        self.pss += part;
        if page.dirty {
            self.pss_dirty += part;
        }
        if locked {
            self.pss_locked += part;
        }
    }

    /// Adds those of another area, for `smaps_rollup`.
    pub fn merge(&mut self, other: &Self) {
        self.rss += other.rss;
        self.pss += other.pss;
        self.pss_dirty += other.pss_dirty;
        self.pss_locked += other.pss_locked;
        self.shared_clean += other.shared_clean;
        self.shared_dirty += other.shared_dirty;
        self.private_clean += other.private_clean;
        self.private_dirty += other.private_dirty;
        self.referenced += other.referenced;
        self.anonymous += other.anonymous;
    }

    /// The lines (`__show_smap`). A rollup says what of its own share is what, for all areas together.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn lines(&self, out: &mut dyn Write) -> fmt::Result {
        let lines = [
            ("Rss", self.rss),
            ("Pss", self.pss >> PSS_SHIFT),
            ("Pss_Dirty", self.pss_dirty >> PSS_SHIFT),
            ("Shared_Clean", self.shared_clean),
            ("Shared_Dirty", self.shared_dirty),
            ("Private_Clean", self.private_clean),
            ("Private_Dirty", self.private_dirty),
            ("Referenced", self.referenced),
            ("Anonymous", self.anonymous),
            ("LazyFree", 0),
            ("AnonHugePages", 0),
            ("ShmemPmdMapped", 0),
            ("FilePmdMapped", 0),
            ("Shared_Hugetlb", 0),
            ("Private_Hugetlb", 0),
            ("Swap", 0),
            ("SwapPss", 0),
            ("Locked", self.pss_locked >> PSS_SHIFT),
        ];
        lines.iter().try_for_each(|(name, bytes)| size_line(name, *bytes, out))
    }
}

/// A line of `smaps`: the number ends in the same column whatever the name.
fn size_line(name: &str, bytes: u64, out: &mut dyn Write) -> fmt::Result {
    let width = 23 - name.len();
    writeln!(out, "{name}:{:>width$} kB", bytes >> 10)
}

impl Area<'_> {
    /// What `smaps` says of the area (`show_smap`).
    ///
    /// # Errors
    /// Those of `out`.
    pub fn smaps(&self, sizes: &Sizes, out: &mut dyn Write) -> fmt::Result {
        self.line(out)?;
        for (name, bytes) in
            [("Size", self.end.wrapping_sub(self.start)), ("KernelPageSize", PAGE_SIZE), ("MMUPageSize", PAGE_SIZE)]
        {
            size_line(name, bytes, out)?;
        }
        sizes.lines(out)?;
        out.write_str("THPeligible:    0\nVmFlags: ")?;
        for (_, letters) in VmaFlags::NAMED.iter().filter(|(flag, _)| self.flags.contains(*flag)) {
            write!(out, "{letters} ")?;
        }
        out.write_char('\n')
    }
}

/// Pages of an area by node (`struct numa_maps`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NumaPages {
    pages: u64,
    anon: u64,
    active: u64,
    mapcount_max: u64,
    dirty: u64,
    nodes: [u64; MAX_NUMNODES],
}

impl Default for NumaPages {
    fn default() -> Self {
        Self { pages: 0, anon: 0, active: 0, mapcount_max: 0, dirty: 0, nodes: [0; MAX_NUMNODES] }
    }
}

impl NumaPages {
    /// Adds `page` (`gather_stats`).
    pub fn add(&mut self, page: &MappedPage) {
        self.pages += 1;
        self.anon += u64::from(page.anon);
        self.active += u64::from(page.active);
        self.dirty += u64::from(page.dirty);
        self.mapcount_max = self.mapcount_max.max(page.mapcount);
        if let Some(count) = self.nodes.get_mut(page.node) {
            *count += 1;
        }
    }

    /// The line of `numa_maps` for `area`, whose memory is where `policy` says (`show_numa_map`).
    ///
    /// # Errors
    /// Those of `out`.
    pub fn line(&self, area: &Area<'_>, policy: &str, out: &mut dyn Write) -> fmt::Result {
        write!(out, "{:08x} {policy}", area.start)?;
        match area.name {
            "" => {}
            "[heap]" => out.write_str(" heap")?,
            "[stack]" => out.write_str(" stack")?,
            path => write!(out, " file={path}")?,
        }
        if self.pages != 0 {
            self.counts(out)?;
        }
        out.write_char('\n')
    }

    fn counts(&self, out: &mut dyn Write) -> fmt::Result {
        if self.anon != 0 {
            write!(out, " anon={}", self.anon)?;
        }
        if self.dirty != 0 {
            write!(out, " dirty={}", self.dirty)?;
        }
        if self.pages != self.anon && self.pages != self.dirty {
            write!(out, " mapped={}", self.pages)?;
        }
        if self.mapcount_max > 1 {
            write!(out, " mapmax={}", self.mapcount_max)?;
        }
        if self.active < self.pages {
            write!(out, " active={}", self.active)?;
        }
        for (node, pages) in self.nodes.iter().enumerate().filter(|(_, pages)| **pages != 0) {
            write!(out, " N{node}={pages}")?;
        }
        write!(out, " kernelpagesize_kB={}", PAGE_SIZE >> 10)
    }
}

/// Bits of a word of `pagemap`.
pub mod pagemap {
    /// The frame.
    pub const FRAME: u64 = (1 << 55) - 1;
    /// Changed since somebody asked (`PM_SOFT_DIRTY`).
    pub const SOFT_DIRTY: u64 = 1 << 55;
    /// Mapped once (`PM_MMAP_EXCLUSIVE`).
    pub const EXCLUSIVE: u64 = 1 << 56;
    /// A file's, or shared (`PM_FILE`).
    pub const FILE: u64 = 1 << 61;
    /// There is a page (`PM_PRESENT`).
    pub const PRESENT: u64 = 1 << 63;
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::String;

    #[test]
    fn lines_of_maps() {
        let mut text = String::new();
        let flags = VmaFlags::READ.with(VmaFlags::WRITE).with(VmaFlags::GROWSDOWN);
        let stack = Area { start: 0x7ffd_3f5b_c000, end: 0x7ffd_3f5d_d000, flags, name: "[stack]", ..Area::default() };
        stack.line(&mut text).unwrap();
        let flags = VmaFlags::READ.with(VmaFlags::EXEC).with(VmaFlags::MAYSHARE);
        let file =
            Area { start: 0x40_0000, end: 0x40_1000, flags, pgoff: 3, device: [8, 1], inode: 77, ..Area::default() };
        file.line(&mut text).unwrap();
        assert_eq!(
            text,
            "7ffd3f5bc000-7ffd3f5dd000 rw-p 00000000 00:00 0                          [stack]\n\
             00400000-00401000 r-xs 00003000 08:01 77 \n"
        );
    }

    #[test]
    fn shares_of_pages() {
        let mut sizes = Sizes::default();
        let page = MappedPage { mapcount: 3, anon: true, dirty: true, ..MappedPage::default() };
        sizes.add(&page, false);
        sizes.add(&MappedPage { mapcount: 1, ..page }, true);
        let mut text = String::new();
        sizes.lines(&mut text).unwrap();
        for line in [
            "Rss:                   8 kB\n",
            "Pss:                   5 kB\n",
            "Shared_Dirty:          4 kB\n",
            "Private_Dirty:         4 kB\n",
            "Private_Hugetlb:       0 kB\n",
            "Locked:                4 kB\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }

    #[test]
    fn sets_of_numbers() {
        use std::format;
        assert_eq!(format!("{}", list(0b1011_0111)), "0-2,4-5,7");
        assert_eq!(format!("{}", list(u64::MAX)), "0-63");
        assert_eq!(format!("{}", groups(5, 2)), "5");
        assert_eq!(format!("{}", groups(1 << 33, 64)), "00000002,00000000");
    }

    #[test]
    fn pages_by_node() {
        let mut pages = NumaPages::default();
        pages.add(&MappedPage { mapcount: 1, anon: true, dirty: true, active: true, ..MappedPage::default() });
        pages.add(&MappedPage { mapcount: 2, anon: true, dirty: true, active: true, node: 1, ..MappedPage::default() });
        let mut text = String::new();
        let heap = Area { start: 0x1000, name: "[heap]", ..Area::default() };
        pages.line(&heap, "default", &mut text).unwrap();
        assert_eq!(text, "00001000 default heap anon=2 dirty=2 mapmax=2 N0=1 N1=1 kernelpagesize_kB=4\n");
    }
}
