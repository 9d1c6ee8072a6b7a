//! Commands from the host: from the monitor device's queue to the CPU they are aimed at, and replies back.
//!
//! The device interrupts CPU 0, which looks at each message's head and puts it into the queue of a CPU. There a thread of
//! the kernel's that is bound to the CPU works the queue off, and sleeps when it is empty. The commands themselves are
//! executed by [`pagevisor_mm::command`].
//!
//! The device is told of replies when a CPU has nothing more to do at once: not between short commands that follow each
//! other, at most [`BURST`] of them, but always before the CPU waits, stops, or begins something long ([`tell`]).

mod parts;

use core::hint::spin_loop;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use pagevisor_mm::Mm;
use pagevisor_mm::command::{Commands, Services, execute, is_short, refuse};
use pagevisor_shared::NR_CPUS;
use pagevisor_shared::command::workload::Touch;
use pagevisor_shared::command::{ANY_CPU, BUFFER_BYTES, CommandHeader, NR_BUFFERS, Status};
use pagevisor_shared::device::monitor::{QUEUE_COMMAND, QUEUE_REPLY};
use pagevisor_shared::region::records::{Activity, CpuState};
use pagevisor_shared::units::{CpuId, CpuMask};

use crate::arch::{cpu, percpu};
use crate::monitor::{Monitor, QUEUE_BYTES};
use crate::platform::{self, Kernel};
use crate::sync::{IrqSpinLock, Once};
use crate::task::{self, WaitQueue};
use crate::virtq::{Buffers, Queue};
use crate::{exec, power, region, smp};

/// Bytes of the buffers of both queues.
pub const BUFFERS_BYTES: u64 = 2 * (NR_BUFFERS * BUFFER_BYTES) as u64;

/// Rounds of waiting before a worker sleeps in between, and nanoseconds that it sleeps for.
const SPINS: u32 = 50;
const DOZE: u64 = 1 << 17;
/// A round so many ticks after the one before belongs to another wait.
const NEW_WAIT: u64 = 1 << 21;

/// Most replies that the device is told of at once: as long as the host works on these, there are buffers left.
const BURST: u32 = NR_BUFFERS as u32 / 2;

static TRANSPORT: Once<Transport> = Once::new();
static COMMANDS: Commands = Commands::new();
static JOBS: [Jobs; NR_CPUS] = [const { Jobs::new() }; NR_CPUS];
/// Barriers that have begun, and other reasons for a CPU to look up from what it does at its next safe point.
static BARRIERS: AtomicU64 = AtomicU64::new(0);

/// The queues.
#[derive(Debug)]
struct Transport {
    commands: Queue,
    replies: Queue,
}

/// A message that waits: its buffer and length.
#[derive(Clone, Copy, Debug)]
struct Job {
    buffer: u8,
    len: u32,
}

/// What a CPU has to do.
#[derive(Debug)]
struct Jobs {
    waiting: IrqSpinLock<Fifo>,
    /// Messages that wait or are being executed.
    count: AtomicU32,
    /// The last barrier that began before the CPU's last safe point.
    barrier: AtomicU64,
    /// Rounds that it has waited for others, and the time stamp of the last.
    rounds: AtomicU32,
    relaxed: AtomicU64,
    /// Replies that the device was not told of yet. Only the CPU itself uses this.
    untold: AtomicU32,
    /// Its worker sleeps here.
    worker: WaitQueue,
}

/// Messages in order of arrival. There are no more than buffers.
#[derive(Debug)]
struct Fifo {
    jobs: [Job; NR_BUFFERS],
    first: usize,
    len: usize,
}

impl Jobs {
    const fn new() -> Self {
        let fifo = Fifo { jobs: [Job { buffer: 0, len: 0 }; NR_BUFFERS], first: 0, len: 0 };
        let [count, rounds, untold] = [const { AtomicU32::new(0) }; 3];
        let worker = WaitQueue::new();
        let [barrier, relaxed] = [const { AtomicU64::new(0) }; 2];
        Self { waiting: IrqSpinLock::new(fifo), count, barrier, rounds, relaxed, untold, worker }
    }

    fn push(&self, job: Job) {
        let mut fifo = self.waiting.lock();
        let at = (fifo.first + fifo.len) % NR_BUFFERS;
        fifo.jobs[at] = job;
        fifo.len += 1;
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    fn pop(&self) -> Option<Job> {
        let mut fifo = self.waiting.lock();
        fifo.len = fifo.len.checked_sub(1)?;
        let job = fifo.jobs[fifo.first % NR_BUFFERS];
        fifo.first = (fifo.first + 1) % NR_BUFFERS;
        Some(job)
    }

    /// The next message, which stays.
    fn next(&self) -> Option<Job> {
        let fifo = self.waiting.lock();
        (fifo.len != 0).then(|| fifo.jobs[fifo.first % NR_BUFFERS])
    }

    fn is_empty(&self) -> bool {
        self.waiting.lock().len == 0
    }
}

/// Notes the queues, of `size` entries at physical address `parts`, and their buffers from `first` on. The device has none yet.
pub fn init(device: &'static Monitor, size: u16, parts: u64, first: u64) {
    let half = BUFFERS_BYTES / 2;
    let buffers = |phys| Buffers { phys, count: NR_BUFFERS, bytes: BUFFER_BYTES };
    let commands = Queue::new(device, QUEUE_COMMAND, size, parts, buffers(first), true);
    let replies = Queue::new(device, QUEUE_REPLY, size, parts + QUEUE_BYTES, buffers(first + half), false);
    replies.no_interrupts();
    TRANSPORT.set(Transport { commands, replies });
}

/// Everything is up: commands may come.
pub fn open() {
    if let Some(transport) = TRANSPORT.get() {
        transport.commands.post_all();
    }
}

/// The device has interrupted: hands its messages to the CPUs they are for. Interrupts are off.
pub fn receive() {
    let Some(transport) = TRANSPORT.get() else { return };
    let here = percpu::cpu_number() as usize;
    loop {
        match transport.commands.returned() {
            Some((buffer, len)) => hand_out(transport, here, buffer, len),
            None if transport.commands.rest() => return,
            None => {}
        }
    }
}

/// Somebody waits for a CPU whose slice is over: a worker looks at its next safe point whether it is its own.
pub fn hurry() {
    BARRIERS.fetch_add(1, Ordering::Relaxed);
}

/// Makes the worker of `cpu` look what there is to do.
fn call_worker(cpu: CpuId) {
    JOBS[cpu.index()].worker.wake_all();
}

/// Puts a message into the queue of the CPU it is for.
fn hand_out(transport: &Transport, here: usize, buffer: usize, len: usize) {
    let target = match header(transport, buffer, len) {
        Some(header) if header.cpu == ANY_CPU => least_busy(here),
        Some(header) if is_online(header.cpu) => header.cpu as usize,
        // Somebody must say that it cannot be executed.
        _ => here,
    };
    JOBS[target % NR_CPUS].push(Job { buffer: buffer as u8, len: len as u32 });
    JOBS[target % NR_CPUS].worker.wake_all();
}

/// The head of a message.
fn header(transport: &Transport, buffer: usize, len: usize) -> Option<CommandHeader> {
    // SAFETY: the device has given the buffer back, and only the end of the command gives it to the device again.
    let bytes = unsafe { transport.commands.bytes(buffer, len) };
    CommandHeader::from_bytes(bytes.first_chunk()?, len)
}

fn is_online(cpu: u32) -> bool {
    CpuId::new(cpu as usize).is_some_and(|cpu| smp::online().contains(cpu))
}

/// The CPU with the least to do; `here` if it is none the worse.
fn least_busy(here: usize) -> usize {
    let load = |cpu: usize| JOBS[cpu].count.load(Ordering::Relaxed);
    if load(here) == 0 {
        return here;
    }
    let others = smp::online().iter().map(CpuId::index);
    others.min_by_key(|cpu| (load(*cpu), *cpu != here)).unwrap_or(here)
}

fn my_jobs() -> &'static Jobs {
    &JOBS[percpu::cpu_number() as usize % NR_CPUS]
}

fn my_state() -> Option<&'static CpuState> {
    region::get()?.cpus().get(percpu::cpu_number() as usize)
}

/// Makes the threads that execute commands, one for each CPU.
pub fn start() {
    for cpu in smp::online().iter() {
        let name = format_args!("command/{}", cpu.index());
        if task::kthread_run(name, CpuMask::default().with(cpu), worker, 0).is_none() {
            panic!("no memory for the commands of CPU {}", cpu.index());
        }
    }
}

/// What such a thread does.
fn worker(_: usize) -> i32 {
    loop {
        work();
        let jobs = my_jobs();
        let behind = || jobs.barrier.load(Ordering::Relaxed) != BARRIERS.load(Ordering::Relaxed);
        jobs.worker.wait_idle(|| !jobs.is_empty() || parts::waiting() || behind());
    }
}

/// Does what there is to do for this CPU.
fn work() {
    let Some(mm) = platform::mm() else { return };
    Worker.safe_point();
    parts::serve();
    while let Some(job) = my_jobs().pop() {
        answer(mm, job);
        my_jobs().count.fetch_sub(1, Ordering::Relaxed);
        if !more_at_once() {
            tell();
        }
        Worker.safe_point();
        parts::serve();
        // A CPU that always has another command never idles.
        mm.cache_reap();
        task::cond_resched();
    }
    // Nothing is left untold: the last job had no next one.
}

/// Whether the CPU's next reply will be there at once, so that the device can be told of it together with the last ones.
fn more_at_once() -> bool {
    let Some(transport) = TRANSPORT.get() else { return false };
    let short = |job: Job| {
        // SAFETY: the device has given the buffer back; it is this CPU that will give it to the device again, later.
        is_short(unsafe { transport.commands.bytes(job.buffer.into(), job.len as usize) })
    };
    my_jobs().untold.load(Ordering::Relaxed) < BURST && my_jobs().next().is_some_and(short)
}

/// Tells the device of this CPU's replies, if there are any that it was not told of.
fn tell() {
    if let Some(transport) = TRANSPORT.get()
        && my_jobs().untold.swap(0, Ordering::Relaxed) != 0
    {
        transport.replies.tell();
        transport.commands.tell();
    }
}

/// Executes a command and replies.
fn answer(mm: &'static Mm<Kernel>, job: Job) {
    let Some(transport) = TRANSPORT.get() else { return };
    let (buffer, len) = (job.buffer as usize, job.len as usize);
    let reply = loop {
        match transport.replies.take() {
            Some(reply) => break reply,
            None => Worker.relax(),
        }
    };
    let words = transport.replies.words(reply);
    let header = header(transport, buffer, len);
    let bytes = match header {
        Some(header) if header.cpu != ANY_CPU && !is_online(header.cpu) => {
            refuse(Some(&header), Status::NoSuchCpu, percpu::cpu_number(), cpu::rdtsc(), words)
        }
        _ => {
            // SAFETY: the device has given the buffer back, and gets it again below.
            let message = unsafe { transport.commands.bytes(buffer, len) };
            execute(mm, &COMMANDS, &Worker, message, words)
        }
    };
    if let Some(state) = my_state() {
        // Only this CPU writes its count.
        state.commands.store(state.commands.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
    // In this order: the device that hears of the reply finds the buffer for the next command, too.
    transport.commands.post(buffer, BUFFER_BYTES);
    transport.replies.post(reply, bytes);
    my_jobs().untold.fetch_add(1, Ordering::Relaxed);
}

/// Executes a command that came from nowhere, to see what that costs.
#[inline(never)]
pub fn measure(mm: &Mm<Kernel>, message: &[u8], reply: &[AtomicU64]) {
    execute(mm, &COMMANDS, &Worker, message, reply);
}

/// Halts until an interrupt comes, of which none can have been missed. Interrupts are off, and come on.
pub fn halt() {
    set_activity(Activity::Idle);
    cpu::halt_with_irqs();
    set_activity(Activity::Running);
    Worker.pass(my_jobs());
}

/// Leaves the CPU, and the host's processor with it, to those that this thread waits for, for a moment.
fn doze() {
    // Nothing ends it but the time.
    let _ = task::sleep(DOZE, false);
    Worker.pass(my_jobs());
}

/// Whether the host wants CPUs at a safe point.
pub fn is_asked_to_stay() -> bool {
    region::get().is_some_and(|region| region.header().park_request.load(Ordering::Relaxed) != 0)
}

/// Stays, if the host asks for it, in a task that is about to leave the kernel: it has no lock and no page in its hands.
pub fn stay() {
    if is_asked_to_stay()
        && let Some(region) = region::get()
    {
        Worker.park(&region.header().park_request);
    }
}

fn set_activity(activity: Activity) {
    if let Some(state) = my_state() {
        // Release: who sees it sees the allocator's structures as they were left.
        state.activity.store(activity as u32, Ordering::Release);
    }
    // Who asks for a safe point sees this CPU running, or this CPU sees below that it is asked.
    fence(Ordering::SeqCst);
}

/// The machine, for commands.
#[derive(Debug)]
pub struct Worker;

impl Worker {
    /// Notes that this CPU's structures are whole, and stays if it is asked to.
    #[inline(always)]
    fn pass(&self, jobs: &Jobs) {
        let Some(region) = region::get() else { return };
        let number = BARRIERS.load(Ordering::Relaxed);
        if jobs.barrier.load(Ordering::Relaxed) != number {
            self.look_up(number);
        }
        let asked = &region.header().park_request;
        if asked.load(Ordering::Relaxed) != 0 {
            self.park(asked);
        }
    }

    /// Passes the barriers up to `number`, and lets others run who are more urgent.
    #[cold]
    fn look_up(&self, number: u64) {
        // Release: who sees that the barrier was seen sees what was done before.
        my_jobs().barrier.store(number, Ordering::Release);
        task::cond_resched();
    }

    /// Stays until nobody asks for a safe point any more.
    #[cold]
    fn park(&self, asked: &AtomicU32) {
        tell();
        while asked.load(Ordering::Acquire) != 0 {
            set_activity(Activity::Parked);
            while asked.load(Ordering::Acquire) != 0 {
                spin_loop();
            }
            set_activity(Activity::Running);
        }
    }
}

impl Services for Worker {
    fn ticks(&self) -> u64 {
        cpu::rdtsc()
    }

    #[inline]
    fn safe_point(&self) {
        self.pass(my_jobs());
    }

    fn relax(&self) {
        tell();
        self.pass(my_jobs());
        parts::serve();
        let jobs = my_jobs();
        let now = cpu::rdtsc();
        if now.wrapping_sub(jobs.relaxed.swap(now, Ordering::Relaxed)) > NEW_WAIT {
            jobs.rounds.store(0, Ordering::Relaxed);
        }
        let rounds = jobs.rounds.fetch_add(1, Ordering::Relaxed);
        if rounds < SPINS { spin_loop() } else { doze() }
    }

    fn online(&self) -> CpuMask {
        smp::online()
    }

    fn run_on(&self, cpus: CpuMask, part: &(dyn Fn(usize) + Sync)) {
        parts::run_on(cpus, part);
    }

    fn barrier(&self) {
        let number = BARRIERS.fetch_add(1, Ordering::SeqCst) + 1;
        let Some(region) = region::get() else { return };
        let here = percpu::cpu_number() as usize;
        for cpu in smp::online().iter().map(CpuId::index).filter(|cpu| *cpu != here) {
            let busy = || {
                region
                    .cpus()
                    .get(cpu)
                    .is_some_and(|state| state.activity.load(Ordering::Acquire) == Activity::Running as u32)
            };
            if busy() {
                // Whatever it does, its worker comes to a safe point.
                JOBS[cpu % NR_CPUS].worker.wake_all();
            }
            let passed = || {
                let activity = region.cpus().get(cpu).map_or(0, |state| state.activity.load(Ordering::Acquire));
                activity != Activity::Running as u32 || JOBS[cpu].barrier.load(Ordering::Acquire) >= number
            };
            while !passed() {
                self.relax();
            }
        }
    }

    fn run_program(&self, touch: Touch, pages: u64) -> Option<u64> {
        exec::run_toucher(touch, pages, || self.relax())
    }

    fn shutdown(&self, code: u16) {
        power::off(code);
    }
}

const _: () = assert!(NR_BUFFERS <= u8::MAX as usize);
