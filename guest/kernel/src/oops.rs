//! The end: an exception nobody handles, or a panic.
//!
//! Both take the same way. A panic notes its message and executes an invalid instruction (never a breakpoint, which
//! emulated hosts cannot take), so that the report has the registers of the place. The report goes to the region's
//! panic record, for the host, and to the log; then the machine is shut down.

use core::fmt::{self, Write};
use core::ops::Range;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use pagevisor_shared::device::shutdown;
use pagevisor_shared::region::{GuestState, MAX_BACKTRACE, PanicRecord};

use crate::arch::entry::FLAG_INTERRUPTS;
use crate::arch::traps::{FAULT_FETCH, FAULT_PRESENT, FAULT_RESERVED, FAULT_USER, FAULT_WRITE, TrapFrame, vector};
use crate::arch::{apic, cpu, irq, percpu, stacks};
use crate::log::{Line, pr};
use crate::sync::IrqSpinLock;
use crate::{log, monitor, power, region, signal, task};

/// Exceptions that have ended tasks.
static OOPSES: AtomicU32 = AtomicU32::new(0);
/// The CPU that panics first, plus 1.
static DYING_CPU: AtomicU32 = AtomicU32::new(0);
/// The message below is a panic's.
static PANICKED: AtomicBool = AtomicBool::new(false);
static MESSAGE: IrqSpinLock<Line<512>> = IrqSpinLock::new(Line::new());

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    // A panic while another is being reported must not take the report's place; it ends in `die` all the same.
    if !PANICKED.load(Relaxed) {
        let mut message = MESSAGE.lock_at_any_price();
        match info.location() {
            Some(at) => message.format(format_args!("{} at {}:{}", info.message(), at.file(), at.line())),
            None => message.format(format_args!("{}", info.message())),
        }
        PANICKED.store(true, Relaxed);
    }
    cpu::invalid_instruction()
}

/// Names of the exceptions, as Linux reports them.
const EXCEPTIONS: [&str; 32] = [
    "divide error",
    "debug",
    "NMI",
    "int3",
    "overflow",
    "bounds",
    "invalid opcode",
    "device not available",
    "double fault",
    "coprocessor segment overrun",
    "invalid TSS",
    "segment not present",
    "stack segment",
    "general protection fault",
    "page fault",
    "spurious interrupt",
    "x87 FPU exception",
    "alignment check",
    "machine check",
    "SIMD exception",
    "virtualization exception",
    "control protection fault",
    "exception 22",
    "exception 23",
    "exception 24",
    "exception 25",
    "exception 26",
    "exception 27",
    "hypervisor injection",
    "VMM communication exception",
    "security exception",
    "exception 31",
];

/// What happened, in a sentence.
struct Cause<'a>(&'a TrapFrame);

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frame = self.0;
        let address = cpu::cr2();
        match frame.vector {
            vector::PAGE_FAULT => {
                let access = match frame.error_code {
                    code if code & FAULT_FETCH != 0 => "instruction fetch",
                    code if code & FAULT_WRITE != 0 => "write access",
                    _ => "read access",
                };
                let why =
                    if frame.error_code & FAULT_PRESENT != 0 { "permissions violation" } else { "not-present page" };
                write!(f, "unable to handle page fault for address: {address:016x} ({access}, {why})")
            }
            vector::DOUBLE_FAULT if stacks::is_guard(address) => {
                write!(f, "kernel stack overflow at {address:016x} in {}", Who)
            }
            number => f.write_str(EXCEPTIONS[number as usize & 31]),
        }
    }
}

/// The current task: its name and number, as Linux's reports have them.
struct Who;

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match task::try_current() {
            Some(task) => write!(f, "PID: {} Comm: {}", task.pid(), task.name()),
            None => f.write_str("PID: 0 Comm: swapper"),
        }
    }
}

/// Reports what brought the kernel here and ends it.
pub fn die(frame: &TrapFrame) -> ! {
    cpu::irq_disable();
    let me = percpu::cpu_number() + 1;
    match DYING_CPU.compare_exchange(0, me, Relaxed, Relaxed) {
        Ok(_) => {}
        // The report itself failed. Whatever got out must do.
        Err(dying) if dying == me => power::off(shutdown::PANIC),
        Err(_) => cpu::stop(),
    }
    stop_others();
    log::dying();
    let own = frame.vector == vector::INVALID_OPCODE && PANICKED.load(Relaxed);
    let mut message = MESSAGE.lock_at_any_price();
    if !own {
        message.format(format_args!("{}", Cause(frame)));
    }
    let text = core::str::from_utf8(message.bytes()).unwrap_or("(the message is not text)");
    if let Some(region) = region::get() {
        record(&region.header().panic, frame, own, text.as_bytes());
        region.header().state.store(GuestState::Panicked as u32, core::sync::atomic::Ordering::Release);
    }
    report(frame, if own { Oops::Panic } else { Oops::OfKernel }, text);
    monitor::announce(GuestState::Panicked);
    power::off(shutdown::PANIC)
}

/// The kernel has met an exception that it cannot deal with. If it is in a system call or a fault of a program, that program
/// ends and the kernel goes on (`oops_end`); otherwise all ends.
pub fn bad_access(frame: &TrapFrame) {
    let Some(task) = task::try_current() else { die(frame) };
    let in_program = frame.rflags & FLAG_INTERRUPTS != 0 && task.space().is_some();
    let own = frame.vector == vector::INVALID_OPCODE;
    if !in_program || own || task.tgid() == 1 || stacks::is_guard(cpu::cr2()) {
        die(frame);
    }
    let mut message = Line::<512>::new();
    message.format(format_args!("{}", Cause(frame)));
    report(frame, Oops::OfTask(OOPSES.fetch_add(1, Relaxed) + 1), message.text());
    cpu::irq_enable();
    signal::die(signal::SIGKILL);
}

/// Stops the other CPUs, as far as they listen.
fn stop_others() {
    irq::STOPPING.store(true, Relaxed);
    if apic::is_ready() {
        for record in percpu::others() {
            apic::send(record.apic_id(), irq::Irq::Stop);
        }
    }
}

/// Everything in the order of [`PanicRecord::REGISTER_NAMES`].
fn registers(frame: &TrapFrame) -> [u64; 24] {
    let [cr0, cr3, cr4] = cpu::control_registers();
    let [r15, r14, r13, r12, r11, r10, r9, r8] = frame.r15_to_r8;
    [
        frame.rip,
        frame.rsp,
        frame.rflags,
        frame.cs,
        frame.ss,
        cr0,
        cpu::cr2(),
        cr3,
        cr4,
        frame.rax,
        frame.rbx,
        frame.rcx,
        frame.rdx,
        frame.rsi,
        frame.rdi,
        frame.rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ]
}

fn record(record: &PanicRecord, frame: &TrapFrame, own: bool, message: &[u8]) {
    record.cpu.store(percpu::cpu_number(), Relaxed);
    record.vector.store(if own { u32::MAX } else { frame.vector as u32 }, Relaxed);
    record.error_code.store(frame.error_code, Relaxed);
    store_all(&record.registers, registers(frame));
    store_all(&record.backtrace, Backtrace::from_frame(frame).take(MAX_BACKTRACE));
    record.message_len.store(message.len() as u32, Relaxed);
    let words = message.chunks(8).map(|chunk| {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(bytes)
    });
    store_all(&record.message, words);
}

fn store_all(slots: &[AtomicU64], values: impl IntoIterator<Item = u64>) {
    for (slot, value) in slots.iter().zip(values) {
        slot.store(value, Relaxed);
    }
}

/// What is reported.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Oops {
    /// A panic.
    Panic,
    /// An exception that ends the kernel.
    OfKernel,
    /// An exception, this one in number, that ends a task.
    OfTask(u32),
}

/// What went wrong with a page table's entry and who was there, as Linux decodes an error code (`show_fault_oops`).
fn report_fault(frame: &TrapFrame) {
    let code = frame.error_code;
    let mode = if code & FAULT_USER == 0 { "supervisor" } else { "user" };
    let access = match code {
        _ if code & FAULT_FETCH != 0 => "instruction fetch",
        _ if code & FAULT_WRITE != 0 => "write access",
        _ => "read access",
    };
    let why = match code {
        _ if code & FAULT_PRESENT == 0 => "not-present page",
        _ if code & FAULT_RESERVED != 0 => "reserved bit violation",
        _ => "permissions violation",
    };
    pr!(Alert, "#PF: {mode} {access} in kernel mode");
    pr!(Alert, "#PF: error_code({code:#06x}) - {why}");
}

fn report(frame: &TrapFrame, oops: Oops, message: &str) {
    let cpu = percpu::cpu_number();
    let own = oops == Oops::Panic;
    if own {
        pr!(Emerg, "Kernel panic - not syncing: {message}");
    } else {
        let number = if let Oops::OfTask(number) = oops { number } else { OOPSES.load(Relaxed) + 1 };
        pr!(Alert, "BUG: {message}");
        if frame.vector == vector::PAGE_FAULT {
            report_fault(frame);
        }
        pr!(Alert, "Oops: {:04x} [#{number}] vector {}", frame.error_code, frame.vector);
    }
    pr!(
        Emerg,
        "CPU: {cpu} {Who} RIP: {:04x}:{:016x} RSP: {:04x}:{:016x} EFLAGS: {:08x}",
        frame.cs,
        frame.rip,
        frame.ss,
        frame.rsp,
        frame.rflags
    );
    let registers = registers(frame);
    let pairs = PanicRecord::REGISTER_NAMES.iter().zip(registers).skip(5);
    let mut line = Line::<128>::new();
    for (index, (name, value)) in pairs.enumerate() {
        // The line holds three registers; a write to it never fails.
        let _ = write!(line, "{name:>3}: {value:016x} ");
        if index % 3 == 2 {
            pr!(Emerg, "{}", line.text());
            line.format(format_args!(""));
        }
    }
    if !line.text().is_empty() {
        pr!(Emerg, "{}", line.text());
    }
    print_trace(Backtrace::from_frame(frame));
    if oops == Oops::OfKernel {
        pr!(Emerg, "Kernel panic - not syncing: Fatal exception");
    }
}

/// Logs the calls that led to the caller, as Linux's `dump_stack` does.
pub fn dump_stack() {
    pr!(Warning, "CPU: {} {Who}", percpu::cpu_number());
    print_trace(Backtrace { rip: 0, rbp: cpu::frame_pointer() });
}

/// Fills `trace` with the return addresses of the calls that led to the caller's, innermost first; gives how many.
pub fn backtrace(trace: &mut [u64]) -> usize {
    let calls = Backtrace { rip: 0, rbp: cpu::frame_pointer() };
    trace.iter_mut().zip(calls).map(|(slot, call)| *slot = call).count()
}

/// The return address of the innermost call from outside `text`, on the way to the caller's call; 0 when there is none.
#[inline(never)]
pub fn caller_of(text: &Range<u64>) -> u64 {
    // As `Backtrace` goes, which is too general for what every allocation of address space does.
    let mut rbp = cpu::frame_pointer();
    let mut inside = false;
    for _ in 0..MAX_BACKTRACE {
        let Some([caller, address]) = stacks::read_frame(rbp) else { break };
        // The innermost call is the platform's own, then come those inside the text.
        let here = address.wrapping_sub(text.start) < text.end - text.start;
        if inside && !here {
            return address;
        }
        inside |= here;
        if caller <= rbp {
            break;
        }
        rbp = caller;
    }
    0
}

fn print_trace(trace: Backtrace) {
    pr!(Warning, "Call Trace:");
    for address in trace.take(MAX_BACKTRACE) {
        pr!(Warning, " [<{address:016x}>]");
    }
}

/// Return addresses along the chain of frame pointers, as long as it stays on stacks.
struct Backtrace {
    /// Reported first, unless 0.
    rip: u64,
    rbp: u64,
}

impl Backtrace {
    const fn from_frame(frame: &TrapFrame) -> Self {
        Self { rip: frame.rip, rbp: frame.rbp }
    }
}

impl Iterator for Backtrace {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        if self.rip != 0 {
            return Some(core::mem::take(&mut self.rip));
        }
        let [caller, address] = stacks::read_frame(self.rbp)?;
        // Stacks grow down, so callers' frames are above; anything else is no chain, or an endless one.
        self.rbp = if caller > self.rbp { caller } else { 0 };
        (address != 0).then_some(address)
    }
}
