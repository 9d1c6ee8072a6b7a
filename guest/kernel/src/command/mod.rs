//! Commands from the host: from the monitor device's queue to the CPU they are aimed at, and replies back.
//!
//! The device interrupts CPU 0, which looks at each message's head and puts it into the queue of a CPU. A CPU that
//! has nothing to do halts; woken, it works its queue off, with interrupts on, from its idle loop. The commands
//! themselves are executed by [`pagevisor_mm::command`].
//!
//! The device is told of replies when a CPU has nothing more to do at once: not between short commands that follow each
//! other, at most [`BURST`] of them, but always before the CPU waits, stops, or begins something long ([`tell`]).

mod parts;
mod queue;

use core::hint::spin_loop;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use pagevisor_mm::Mm;
use pagevisor_mm::command::{Commands, Services, execute, is_short, refuse};
use pagevisor_shared::NR_CPUS;
use pagevisor_shared::command::{ANY_CPU, BUFFER_BYTES, CommandHeader, NR_BUFFERS, Status};
use pagevisor_shared::device::monitor::{QUEUE_COMMAND, QUEUE_REPLY};
use pagevisor_shared::region::records::{Activity, CpuState};
use pagevisor_shared::units::{CpuId, CpuMask};

use crate::arch::{apic, cpu, percpu};
use crate::monitor::{Monitor, QUEUE_BYTES};
use crate::platform::{self, Kernel};
use crate::sync::{IrqSpinLock, Once};
use crate::{power, region, smp};
use queue::Queue;

/// Bytes of the buffers of both queues.
pub const BUFFERS_BYTES: u64 = 2 * (NR_BUFFERS * BUFFER_BYTES) as u64;

/// Rounds of waiting before a CPU halts in between, and ticks of its timer that it halts for.
const SPINS: u32 = 50;
const DOZE: u32 = 1 << 17;

/// Most replies that the device is told of at once: as long as the host works on these, there are buffers left.
const BURST: u32 = NR_BUFFERS as u32 / 2;

static TRANSPORT: Once<Transport> = Once::new();
static COMMANDS: Commands = Commands::new();
static JOBS: [Jobs; NR_CPUS] = [const { Jobs::new() }; NR_CPUS];
/// Barriers that have begun.
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
    /// Rounds that it has waited for others since it last did something.
    rounds: AtomicU32,
    /// Replies that the device was not told of yet. Only the CPU itself uses this.
    untold: AtomicU32,
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
        Self { waiting: IrqSpinLock::new(fifo), count, barrier: AtomicU64::new(0), rounds, untold }
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

/// Notes the queues, of `size` entries at physical address `parts`, and their buffers. The device has none yet.
pub fn init(device: &'static Monitor, size: u16, parts: u64, buffers: u64) {
    let half = BUFFERS_BYTES / 2;
    let commands = Queue::new(device, QUEUE_COMMAND, size, parts, buffers, true);
    let replies = Queue::new(device, QUEUE_REPLY, size, parts + QUEUE_BYTES, buffers + half, false);
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

/// Puts a message into the queue of the CPU it is for.
fn hand_out(transport: &Transport, here: usize, buffer: usize, len: usize) {
    let target = match header(transport, buffer, len) {
        Some(header) if header.cpu == ANY_CPU => least_busy(here),
        Some(header) if is_online(header.cpu) => header.cpu as usize,
        // Somebody must say that it cannot be executed.
        _ => here,
    };
    JOBS[target % NR_CPUS].push(Job { buffer: buffer as u8, len: len as u32 });
    if let Some(cpu) = CpuId::new(target).filter(|_| target != here) {
        smp::reschedule(cpu);
    }
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

/// Does what there is to do for this CPU, with interrupts on.
pub fn work() {
    let Some(mm) = platform::mm() else { return };
    if percpu::local().is_null() || TRANSPORT.get().is_none() {
        return;
    }
    cpu::irq_enable();
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

/// Halts until there may be something to do. Interrupts are off, and come on.
pub fn wait() {
    if !my_jobs().is_empty() || parts::waiting() {
        cpu::irq_enable();
        return;
    }
    set_activity(Activity::Idle);
    cpu::halt_with_irqs();
    set_activity(Activity::Running);
    Worker.safe_point();
}

/// Leaves the host's processor to the CPUs that this one waits for, for a moment.
fn doze() {
    // In this order: the timer's interrupt must not come before the halt that it is to end.
    cpu::irq_disable();
    apic::arm_timer_ticks(DOZE);
    set_activity(Activity::Idle);
    cpu::halt_with_irqs();
    set_activity(Activity::Running);
    Worker.pass(my_jobs());
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
        // Release: who sees that the barrier was seen sees what was done before.
        jobs.barrier.store(BARRIERS.load(Ordering::Relaxed), Ordering::Release);
        let asked = &region.header().park_request;
        if asked.load(Ordering::Relaxed) != 0 {
            self.park(asked);
        }
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
        let jobs = my_jobs();
        jobs.rounds.store(0, Ordering::Relaxed);
        self.pass(jobs);
    }

    fn relax(&self) {
        tell();
        self.pass(my_jobs());
        parts::serve();
        let rounds = my_jobs().rounds.fetch_add(1, Ordering::Relaxed);
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
            let passed = || {
                let activity = region.cpus().get(cpu).map_or(0, |state| state.activity.load(Ordering::Acquire));
                activity != Activity::Running as u32 || JOBS[cpu].barrier.load(Ordering::Acquire) >= number
            };
            while !passed() {
                self.relax();
            }
        }
    }

    fn shutdown(&self, code: u16) {
        power::off(code);
    }
}

const _: () = assert!(NR_BUFFERS <= u8::MAX as usize);
