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
        write_backtrace(f, &self.backtrace)
    }
}

fn write_backtrace(f: &mut fmt::Formatter<'_>, backtrace: &[Location]) -> fmt::Result {
    if !backtrace.is_empty() {
        write!(f, "\nCall Trace:")?;
    }
    for location in backtrace {
        write!(f, "\n [<{:016x}>] {location}", location.address)?;
    }
    Ok(())
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
    /// Who had called, innermost first, if the guest keeps frame pointers.
    pub backtrace: Vec<Location>,
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
            backtrace: state.returns.iter().map(|&address| symbols.locate_return(address)).collect(),
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
            (Some(registers), Some(rip)) => write_registers(f, registers, rip)?,
            _ => write!(f, "\nRIP: lost, like all registers (AMD-V keeps nothing of a CPU that shut down)")?,
        }
        write_backtrace(f, &self.backtrace)
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    /// A header as a guest may leave it.
    fn header() -> Box<Header> {
        // SAFETY: the header is made of atomics, for which zero is a value.
        unsafe { Box::new_zeroed().assume_init() }
    }

    fn set_message(record: &PanicRecord, text: &[u8]) {
        for (word, bytes) in record.message.iter().zip(text.chunks(8)) {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_le_bytes(padded), Ordering::Relaxed);
        }
        record.message_len.store(text.len() as u32, Ordering::Relaxed);
    }

    #[test]
    fn a_panic_is_reported_as_it_was_recorded() {
        let header = header();
        let record = &header.panic;
        header.magic.store(Header::MAGIC, Ordering::Relaxed);
        header.state.store(GuestState::Panicked as u32, Ordering::Relaxed);
        set_message(record, b"unable to handle it");
        record.cpu.store(3, Ordering::Relaxed);
        record.vector.store(14, Ordering::Relaxed);
        record.error_code.store(2, Ordering::Relaxed);
        for (register, value) in record.registers.iter().zip(0x10..) {
            register.store(value, Ordering::Relaxed);
        }
        record.backtrace[0].store(0xabc, Ordering::Relaxed);
        record.backtrace[1].store(0xdef, Ordering::Relaxed);
        let text = PanicReport::read(Some(&header), &Symbols::default()).to_string();
        let expected = "the guest panicked on CPU 3: unable to handle it
exception 14 (page fault), error code 0x0002
RIP: 0013:0x0000000000000010
RSP: 0014:0000000000000011 EFLAGS: 00000012
RAX: 0000000000000019 RBX: 000000000000001a RCX: 000000000000001b
RDX: 000000000000001c RSI: 000000000000001d RDI: 000000000000001e
RBP: 000000000000001f  R8: 0000000000000020  R9: 0000000000000021
R10: 0000000000000022 R11: 0000000000000023 R12: 0000000000000024
R13: 0000000000000025 R14: 0000000000000026 R15: 0000000000000027
CR0: 0000000000000015 CR2: 0000000000000016
CR3: 0000000000000017 CR4: 0000000000000018
Call Trace:
 [<0000000000000abc>] 0x0000000000000abc
 [<0000000000000def>] 0x0000000000000def";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_hostile_record_is_cut_down_to_harmless_text() {
        let header = header();
        header.magic.store(Header::MAGIC, Ordering::Relaxed);
        header.state.store(GuestState::Panicked as u32, Ordering::Relaxed);
        set_message(&header.panic, b"\x1b[2J\xff\x07 end");
        header.panic.message_len.store(u32::MAX, Ordering::Relaxed);
        header.panic.vector.store(77, Ordering::Relaxed);
        header.panic.backtrace.iter().for_each(|entry| entry.store(1, Ordering::Relaxed));
        let report = PanicReport::read(Some(&header), &Symbols::default());
        assert!(report.message.starts_with("\\u{1b}[2J\u{fffd}\\u{7} end"), "{}", report.message);
        assert!(report.message.chars().all(|c| !c.is_control()));
        assert_eq!(report.backtrace.len(), header.panic.backtrace.len());
        assert!(report.to_string().contains("exception 77 (no exception of a CPU)"), "{report}");
    }

    #[test]
    fn without_a_record_there_is_none() {
        let header = header();
        set_message(&header.panic, b"from an earlier life");
        for header in [None, Some(&*header)] {
            assert!(PanicReport::read(header, &Symbols::default()).message.contains("no record"));
        }
    }

    #[test]
    fn an_instruction_is_shown_alone() {
        let code = [0x0f, 0x0b, 0x90, 0x90];
        let state = CpuState { cpu: 1, registers: None, bitness: 64, code: code.into(), returns: Vec::new() };
        let text = CpuReport::new(&state, &Symbols::default()).to_string();
        assert!(text.starts_with("Code: 0f 0b    ud2\nRIP: lost"), "{text}");
        let cut = CpuState { code: vec![0x0f], ..state.clone() };
        assert!(CpuReport::new(&cut, &Symbols::default()).to_string().starts_with("Code: 0f\n"));
        let unknown = CpuState { code: Vec::new(), ..state };
        assert!(CpuReport::new(&unknown, &Symbols::default()).to_string().starts_with("Code: unknown\n"));
    }
}
