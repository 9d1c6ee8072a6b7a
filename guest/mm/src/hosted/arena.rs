//! Address space that stands for a machine's memory, and the platform over it.
//!
//! An arena is never unmapped: when its machine is dropped its memory is given back and the address space kept for
//! the next machine. So whatever still points there points to mapped zeros, never into something else.
#![allow(unsafe_code, reason = "maps memory and implements an unsafe trait")]

use core::cell::Cell;
use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::boxed::Box;
use std::string::{String, ToString};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::vec::Vec;

use pagevisor_shared::layout::STATE_REGION_WINDOW;
use pagevisor_shared::mm_types::MmStruct;
use pagevisor_shared::page::{PAGE_STRUCT_SIZE, Page};
use pagevisor_shared::units::{CpuId, PhysAddr, VirtAddr};

use crate::cpu::CpuLocal;
use crate::platform::{IrqFlags, Level, Platform, Running};

/// Bytes of physical address space: 2 TiB.
pub(super) const PHYS_WINDOW: u64 = 1 << 41;
/// Bytes of the window of page metadata: a record for every 32-bit frame number.
const MEMMAP_WINDOW: u64 = PAGE_STRUCT_SIZE << 32;

/// A mapping.
#[derive(Debug)]
struct Window {
    base: NonNull<u8>,
    bytes: u64,
}

// SAFETY: only an address and a length.
unsafe impl Send for Window {}
// SAFETY: it never changes.
unsafe impl Sync for Window {}

impl Window {
    fn new(bytes: u64) -> Self {
        // SAFETY: asks for new anonymous memory anywhere; nothing existing is touched.
        let base = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                bytes as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert!(base != libc::MAP_FAILED, "no address space for an arena");
        Self { base: NonNull::new(base.cast()).expect("mmap gives no null address"), bytes }
    }

    /// Gives all memory back; the window reads as zero.
    fn clear(&self) {
        // SAFETY: the range is this window's own anonymous mapping.
        let failed = unsafe { libc::madvise(self.base.as_ptr().cast(), self.bytes as usize, libc::MADV_DONTNEED) };
        assert!(failed == 0, "an arena's memory cannot be given back");
    }
}

std::thread_local! {
    /// The CPU this thread stands for: the arena's address and the CPU's record.
    static CURRENT: Cell<(usize, Option<&'static CpuLocal>)> = const { Cell::new((0, None)) };
    /// This thread is handling an interrupt.
    static IN_INTERRUPT: Cell<bool> = const { Cell::new(false) };
}

/// What CPUs were made to forget of a program's address space ([`Platform::flush_user`]).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserFlush {
    /// Number of the address space (`ctx_id`).
    pub space: u64,
    /// The addresses.
    pub range: Range<u64>,
    /// And the tables on the way there.
    pub tables: bool,
}

/// The platform of a machine in a process.
#[derive(Debug)]
pub struct HostPlatform {
    phys: Window,
    memmap: Window,
    region: Window,
    clock: AtomicU64,
    log: Mutex<Vec<(Level, String)>>,
    cpus: Mutex<Vec<&'static CpuLocal>>,
    /// Dumped stacks.
    stacks: AtomicU64,
    /// What stands for the calls that led to an allocation.
    trace: Mutex<Vec<u64>>,
    /// Ranges of addresses that the CPUs were made to forget.
    flushes: Mutex<Vec<Range<u64>>>,
    /// The same of programs' addresses.
    user_flushes: Mutex<Vec<UserFlush>>,
}

static POOL: OnceLock<Mutex<Vec<&'static HostPlatform>>> = OnceLock::new();

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A test that failed while it held the lock has said so already.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HostPlatform {
    /// An arena that nobody uses, all zero.
    pub(super) fn take() -> &'static Self {
        let pool = POOL.get_or_init(|| Mutex::new(Vec::new()));
        if let Some(arena) = locked(pool).pop() {
            return arena;
        }
        Box::leak(Box::new(Self {
            phys: Window::new(PHYS_WINDOW),
            memmap: Window::new(MEMMAP_WINDOW),
            region: Window::new(STATE_REGION_WINDOW),
            clock: AtomicU64::new(0),
            log: Mutex::new(Vec::new()),
            cpus: Mutex::new(Vec::new()),
            stacks: AtomicU64::new(0),
            trace: Mutex::new(Vec::new()),
            flushes: Mutex::new(Vec::new()),
            user_flushes: Mutex::new(Vec::new()),
        }))
    }

    /// Gives the arena back for the next machine.
    pub(super) fn give_back(&'static self) {
        self.phys.clear();
        self.memmap.clear();
        self.region.clear();
        self.clock.store(0, Relaxed);
        self.stacks.store(0, Relaxed);
        locked(&self.log).clear();
        locked(&self.cpus).clear();
        locked(&self.trace).clear();
        locked(&self.flushes).clear();
        locked(&self.user_flushes).clear();
        locked(POOL.get_or_init(|| Mutex::new(Vec::new()))).push(self);
    }

    /// Start of the state region's window.
    pub(super) fn region_base(&self) -> NonNull<u8> {
        self.region.base
    }

    /// Makes the records of the CPUs known.
    pub(super) fn set_cpus(&'static self, cpus: Vec<&'static CpuLocal>) {
        *locked(&self.cpus) = cpus;
    }

    /// Makes this thread CPU `cpu`; gives what it was before, for [`Self::unbind`].
    pub(super) fn bind(&'static self, cpu: CpuId) -> (usize, Option<&'static CpuLocal>) {
        let local = locked(&self.cpus).get(cpu.index()).copied();
        assert!(local.is_some(), "the machine has no such CPU");
        CURRENT.replace((core::ptr::from_ref(self).addr(), local))
    }

    /// Makes this thread what it was before [`Self::bind`].
    pub(super) fn unbind(before: (usize, Option<&'static CpuLocal>)) {
        CURRENT.set(before);
    }

    #[cold]
    fn bind_first(&self) -> &'static CpuLocal {
        let local = locked(&self.cpus).first().copied().expect("the machine has not booted");
        CURRENT.set((core::ptr::from_ref(self).addr(), Some(local)));
        local
    }

    /// What was logged so far.
    pub fn log_lines(&self) -> Vec<(Level, String)> {
        locked(&self.log).clone()
    }

    /// Forgets what was logged.
    pub fn clear_log(&self) {
        locked(&self.log).clear();
    }

    /// Moves the clock on.
    pub fn advance(&self, nanos: u64) {
        self.clock.fetch_add(nanos, Relaxed);
    }

    /// Sets what [`Platform::backtrace`] gives.
    pub fn set_backtrace(&self, trace: &[u64]) {
        *locked(&self.trace) = trace.to_vec();
    }

    /// The ranges of addresses that the CPUs were made to forget since the last time somebody asked, in order.
    pub fn take_flushes(&self) -> Vec<Range<u64>> {
        core::mem::take(&mut *locked(&self.flushes))
    }

    /// As [`Self::take_flushes`], of programs' addresses.
    pub fn take_user_flushes(&self) -> Vec<UserFlush> {
        core::mem::take(&mut *locked(&self.user_flushes))
    }

    /// Runs `handler` as if an interrupt had come.
    pub fn interrupt<R>(&self, handler: impl FnOnce() -> R) -> R {
        let before = IN_INTERRUPT.replace(true);
        let result = handler();
        IN_INTERRUPT.set(before);
        result
    }

    /// How many stacks were dumped.
    pub fn stacks_dumped(&self) -> u64 {
        self.stacks.load(Relaxed)
    }
}

// SAFETY: the windows are mapped readable and writable, zero at first, for the life of the program; RAM is inside
// `phys` (`Topology::boot` checks), and `memmap` spans 2^32 records and holds nothing else. Frame 0, the root, is nobody's
// (`Topology::memblock`). A thread stands for one CPU of a machine at a time (`bind`), and threads do not migrate.
unsafe impl Platform for HostPlatform {
    #[inline]
    fn direct_map(&self) -> NonNull<u8> {
        self.phys.base
    }

    #[inline]
    fn vmemmap(&self) -> NonNull<Page> {
        self.memmap.base.cast()
    }

    #[inline]
    fn this_cpu(&self) -> &'static CpuLocal {
        match CURRENT.get() {
            (arena, Some(local)) if arena == core::ptr::from_ref(self).addr() => local,
            _ => self.bind_first(),
        }
    }

    #[inline]
    fn irq_save(&self) -> IrqFlags {
        IrqFlags(0)
    }

    #[inline]
    fn irq_restore(&self, _flags: IrqFlags) {}

    fn relax(&self) {
        // More CPUs than processors: let the holder run.
        std::thread::yield_now();
    }

    fn now(&self) -> u64 {
        self.clock.load(Relaxed)
    }

    fn log(&self, level: Level, line: fmt::Arguments<'_>) {
        locked(&self.log).push((level, line.to_string()));
    }

    fn backtrace(&self, trace: &mut [u64]) -> usize {
        let calls = locked(&self.trace);
        trace.iter_mut().zip(&*calls).for_each(|(slot, call)| *slot = *call);
        trace.len().min(calls.len())
    }

    fn tsc(&self) -> u64 {
        self.clock.load(Relaxed)
    }

    fn caller(&self) -> u64 {
        locked(&self.trace).first().copied().unwrap_or(0)
    }

    fn kernel_root(&self) -> PhysAddr {
        // Frame 0 is in the window and no machine's memory.
        PhysAddr::new(0)
    }

    fn flush_kernel_range(&self, start: VirtAddr, end: VirtAddr) {
        assert!(!self.in_interrupt(), "an interrupt handler waits for other CPUs");
        locked(&self.flushes).push(start.raw()..end.raw());
    }

    fn in_interrupt(&self) -> bool {
        IN_INTERRUPT.get()
    }

    fn current(&self) -> Running {
        Running::idle(self.this_cpu().cpu)
    }

    fn dump_stack(&self) {
        self.stacks.fetch_add(1, Relaxed);
        self.log(Level::Warning, format_args!("Call Trace:"));
    }

    fn wait_on(&self, word: &AtomicU32, value: u32) {
        assert!(!self.in_interrupt(), "an interrupt handler sleeps");
        // SAFETY: a futex call that reads a word which is there; it sleeps, or returns at once.
        unsafe {
            let forever = core::ptr::null::<libc::timespec>();
            libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, value, forever);
        }
    }

    fn wake_all(&self, word: &AtomicU32) {
        // SAFETY: a futex call that touches nothing.
        unsafe {
            libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, i32::MAX);
        }
    }

    fn flush_user(&self, space: &MmStruct, start: VirtAddr, end: VirtAddr, tables: bool) {
        assert!(!self.in_interrupt(), "an interrupt handler waits for other CPUs");
        let flush = UserFlush { space: space.ctx_id.load(Relaxed), range: start.raw()..end.raw(), tables };
        locked(&self.user_flushes).push(flush);
    }
}
