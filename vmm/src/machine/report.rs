//! What is known about a guest that died, as an oops of Linux would say it.
//!
//! What the guest wrote about its own death is hostile input like all else: numbers of entries are bounded by the
//! record, text loses its control characters.

use std::fmt;
use std::sync::atomic::Ordering;

use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
};
use pagevisor_shared::region::{GuestState, Header, PanicRecord};

use crate::kvm::{CpuState, Registers};
use crate::symbols::{Location, Symbols};

/// [`PanicRecord::vector`] of a panic that is no exception.
const NO_VECTOR: u32 = u32::MAX;

/// Names of the exceptions, by vector.
const EXCEPTIONS: [&str; 32] = [
    "divide error",
    "debug",
    "NMI",
    "breakpoint",
    "overflow",
    "bound range exceeded",
    "invalid opcode",
    "device not available",
    "double fault",
    "coprocessor segment overrun",
    "invalid TSS",
    "segment not present",
    "stack segment fault",
    "general protection fault",
    "page fault",
    "reserved",
    "x87 floating-point error",
    "alignment check",
    "machine check",
    "SIMD floating-point error",
    "virtualization exception",
    "control protection exception",
    "reserved",
    "reserved",
    "reserved",
    "reserved",
    "reserved",
    "reserved",
    "hypervisor injection exception",
    "VMM communication exception",
    "security exception",
    "reserved",
];

/// An exception of the guest's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// Its vector.
    pub vector: u32,
    /// Its error code; 0 for those that have none.
    pub error_code: u64,
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = EXCEPTIONS.get(self.vector as usize).copied().unwrap_or("no exception of a CPU");
        write!(f, "exception {} ({name}), error code {:#06x}", self.vector, self.error_code)
    }
}

/// How a guest panicked, as it recorded it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PanicReport {
    /// The CPU.
    pub cpu: u32,
    /// Why.
    pub message: String,
    /// The exception, unless the kernel itself gave up.
    pub exception: Option<Exception>,
    /// The registers, unless the guest left none.
    pub registers: Option<Registers>,
    /// Where it was.
    pub rip: Option<Location>,
    /// Who had called, innermost first.
    pub backtrace: Vec<Location>,
}

impl PanicReport {
    /// Reads what the guest left in the state region's header.
    pub(super) fn read(header: Option<&Header>, symbols: &Symbols) -> Self {
        let panicked = |header: &&Header| {
            header.magic.load(Ordering::Acquire) == Header::MAGIC
                && header.state.load(Ordering::Acquire) == GuestState::Panicked as u32
        };
        let Some(record) = header.filter(panicked).map(|header| &header.panic) else {
            let message = "(it left no record of why)".to_owned();
            return Self { cpu: 0, message, exception: None, registers: None, rip: None, backtrace: Vec::new() };
        };
        let vector = record.vector.load(Ordering::Relaxed);
        let error_code = record.error_code.load(Ordering::Relaxed);
        let registers = Registers(record.registers.each_ref().map(|register| register.load(Ordering::Relaxed)));
        let registers = (registers.rip() != 0).then_some(registers);
        let addresses = record.backtrace.iter().map(|address| address.load(Ordering::Relaxed));
        Self {
            cpu: record.cpu.load(Ordering::Relaxed),
            message: message(record),
            exception: (vector != NO_VECTOR).then_some(Exception { vector, error_code }),
            registers,
            rip: registers.map(|registers| symbols.locate(registers.rip())),
            backtrace: addresses.take_while(|&address| address != 0).map(|at| symbols.locate_return(at)).collect(),
        }
    }
}

/// The text of a panic, with nothing in it that could do something to a terminal.
fn message(record: &PanicRecord) -> String {
    let words = record.message.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes());
    let bytes: Vec<u8> = words.take(record.message_len.load(Ordering::Relaxed) as usize).collect();
    let mut text = String::with_capacity(bytes.len());
    for c in String::from_utf8_lossy(&bytes).trim_end().chars() {
        match c {
            '\n' => text.push('\n'),
            c if c.is_control() => text.extend(c.escape_default()),
            c => text.push(c),
        }
    }
    text
}

impl fmt::Display for PanicReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest panicked on CPU {}: {}", self.cpu, self.message)?;
        if let Some(exception) = &self.exception {
            write!(f, "\n{exception}")?;
        }
        if let (Some(registers), Some(rip)) = (&self.registers, &self.rip) {
            write_registers(f, registers, rip)?;
        }
        if !self.backtrace.is_empty() {
            write!(f, "\nCall Trace:")?;
            for location in &self.backtrace {
                write!(f, "\n [<{:016x}>] {location}", location.address)?;
            }
        }
        Ok(())
    }
}

/// A vCPU that cannot go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuReport {
    /// Its number.
    pub cpu: u32,
    /// Its registers, if the host still has them.
    pub registers: Option<Registers>,
    /// Where it is.
    pub rip: Option<Location>,
    /// The bytes of the instruction it is at, as far as they are known.
    pub instruction: Vec<u8>,
    /// The instruction in words.
    pub disassembly: Option<String>,
}

impl CpuReport {
    pub(super) fn new(state: &CpuState, symbols: &Symbols) -> Self {
        let rip = state.registers.map(|registers| registers.rip());
        let decoded = disassemble(state.bitness, rip.unwrap_or(0), &state.code);
        let (instruction, disassembly) = match decoded {
            Some((len, text)) => (state.code[..len].to_vec(), Some(text)),
            None => (state.code.clone(), None),
        };
        Self {
            cpu: state.cpu,
            registers: state.registers,
            rip: rip.map(|rip| symbols.locate(rip)),
            instruction,
            disassembly,
        }
    }
}

/// The first instruction of `code`: its length and its text.
fn disassemble(bitness: u32, rip: u64, code: &[u8]) -> Option<(usize, String)> {
    let mut decoder = Decoder::with_ip(bitness, code, rip, DecoderOptions::NONE);
    let instruction = decoder.can_decode().then(|| decoder.decode()).filter(|decoded| !decoded.is_invalid())?;
    let mut text = String::new();
    NasmFormatter::new().format(&instruction, &mut text);
    Some((instruction.len().min(code.len()), text))
}

impl fmt::Display for CpuReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code:")?;
        if self.instruction.is_empty() {
            write!(f, " unknown")?;
        }
        for byte in &self.instruction {
            write!(f, " {byte:02x}")?;
        }
        if let Some(text) = &self.disassembly {
            write!(f, "    {text}")?;
        }
        match (&self.registers, &self.rip) {
            (Some(registers), Some(rip)) => write_registers(f, registers, rip),
            _ => write!(f, "\nRIP: lost, like all registers (AMD-V keeps nothing of a CPU that shut down)"),
        }
    }
}

fn write_registers(f: &mut fmt::Formatter<'_>, registers: &Registers, rip: &Location) -> fmt::Result {
    let [address, _, _, cs, ..] = registers.0;
    write!(f, "\nRIP: {cs:04x}:{rip}")?;
    if rip.symbol.is_some() {
        write!(f, " [<{address:016x}>]")?;
    }
    write!(f, "\n{registers}")
}

/// KVM could not go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InternalErrorReport {
    /// KVM's reason (`KVM_INTERNAL_ERROR_*`).
    pub suberror: u32,
    /// The vCPU.
    pub cpu: CpuReport,
}

impl fmt::Display for InternalErrorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.suberror {
            KVM_INTERNAL_ERROR_EMULATION => "an instruction it cannot emulate",
            KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions at the same time",
            KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit while it delivered an event",
            KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an exit for no known reason",
            _ => "something",
        };
        let Self { suberror, cpu } = self;
        write!(f, "KVM met {reason} (internal error, suberror {suberror}) on CPU {}\n{cpu}", cpu.cpu)
    }
}
