//! Guests of a few instructions, assembled by hand: 32-bit code as PVH starts it, in an ELF made here.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use pagevisor::layout::{KERNEL_PHYS, MONITOR};
use pagevisor::machine::{Deadline, End, KernelImage, Machine, MachineConfig, StopEvent};
use pagevisor::topology::Topology;
use pagevisor_shared::device::SHUTDOWN_MAGIC;

/// Where the code is loaded and begins.
pub const KERNEL: u64 = KERNEL_PHYS;
/// Where the code is linked to run; the paging stays off.
pub const LINKED: u64 = 0xffff_ffff_8100_0000;
/// Name of the code's only symbol.
pub const SYMBOL: &str = "tiny_start";
/// Long enough for anything here even on a busy host.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// 32-bit code.
#[derive(Clone, Default)]
pub struct Code(pub Vec<u8>);

impl Code {
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn with_word(self, opcode: &[u8], word: u32) -> Self {
        self.bytes(opcode).bytes(&word.to_le_bytes())
    }

    /// `mov dword [address], value`
    pub fn store(self, address: u32, value: u32) -> Self {
        self.with_word(&[0xc7, 0x05], address).bytes(&value.to_le_bytes())
    }

    /// `mov eax, [address]; cmp eax, value; je +; (power off with code)`
    pub fn expect(self, address: u32, value: u32, code: u16) -> Self {
        let off = Self::default().power_off(code).0;
        let jump = self.with_word(&[0xa1], address).with_word(&[0x3d], value).bytes(&[0x74, off.len() as u8]);
        jump.bytes(&off)
    }

    /// `1: mov eax, [address]; test eax, mask; jz 1b`
    pub fn wait_for(self, address: u32, mask: u32) -> Self {
        self.with_word(&[0xa1], address).with_word(&[0xa9], mask).bytes(&[0x74, 0xf4])
    }

    /// Writes a byte to a port.
    pub fn out8(self, port: u16, value: u8) -> Self {
        self.bytes(&[0x66, 0xba]).bytes(&port.to_le_bytes()).bytes(&[0xb0, value, 0xee])
    }

    pub fn out32(self, port: u16, value: u32) -> Self {
        self.bytes(&[0x66, 0xba]).bytes(&port.to_le_bytes()).with_word(&[0xb8], value).bytes(&[0xef])
    }

    pub fn power_off(self, code: u16) -> Self {
        self.out32(0x604, SHUTDOWN_MAGIC | u32::from(code)).halt()
    }

    /// `1: hlt; jmp 1b`
    pub fn halt(self) -> Self {
        self.bytes(&[0xf4, 0xeb, 0xfd])
    }

    /// `1: inc dword [address]; jmp 1b`
    pub fn count(self, address: u32) -> Self {
        self.with_word(&[0xff, 0x05], address).bytes(&[0xeb, 0xf8])
    }

    /// `1: jmp 1b`
    pub fn spin(self) -> Self {
        self.bytes(&[0xeb, 0xfe])
    }

    /// A register of the monitor.
    pub fn set(self, register: u32, value: u32) -> Self {
        self.store(MONITOR.start as u32 + register, value)
    }

    /// A register of the monitor must read so; if not, power off with code.
    pub fn check(self, register: u32, value: u32, code: u16) -> Self {
        self.expect(MONITOR.start as u32 + register, value, code)
    }

    pub fn elf(&self) -> Vec<u8> {
        elf(&self.0, KERNEL_PHYS, Some(KERNEL_PHYS as u32))
    }
}

/// A section header: name and type, then flags, address, place and size, then the section it refers to.
fn section([name, kind]: [u32; 2], words: [u64; 4], link: u32) -> Vec<u8> {
    let entry_size: u64 = if kind == 2 { 24 } else { 0 };
    let mut header = [name.to_le_bytes(), kind.to_le_bytes()].concat();
    header.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    header.extend([link.to_le_bytes(), 1u32.to_le_bytes()].concat());
    header.extend([1u64.to_le_bytes(), entry_size.to_le_bytes()].concat());
    header
}

/// An ELF that loads `code` at `physical`, with a PVH note that names `entry`, and one symbol.
pub fn elf(code: &[u8], physical: u64, entry: Option<u32>) -> Vec<u8> {
    const HEADERS: usize = 64 + 2 * 56;
    let note: Vec<u8> = match entry {
        Some(entry) => {
            [&4u32.to_le_bytes()[..], &4u32.to_le_bytes(), &18u32.to_le_bytes(), b"Xen\0", &entry.to_le_bytes()]
                .concat()
        }
        None => [&4u32.to_le_bytes()[..], &4u32.to_le_bytes(), &1u32.to_le_bytes(), b"GNU\0", &[0; 4]].concat(),
    };
    let strings = [b"\0", SYMBOL.as_bytes(), b"\0"].concat();
    let names = b"\0.text\0.symtab\0.strtab\0.shstrtab\0";
    let mut symbols = vec![0; 24];
    symbols.extend(1u32.to_le_bytes());
    symbols.extend([0x12, 0, 1, 0]);
    symbols.extend(LINKED.to_le_bytes());
    symbols.extend((code.len() as u64).to_le_bytes());
    let code_at = HEADERS;
    let note_at = (code_at + code.len()).next_multiple_of(4);
    let symbols_at = note_at + note.len();
    let strings_at = symbols_at + symbols.len();
    let names_at = strings_at + strings.len();
    let sections_at = (names_at + names.len()).next_multiple_of(8);

    let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    out.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [LINKED, 64, sections_at as u64] {
        out.extend(word.to_le_bytes());
    }
    out.extend([0; 4]);
    for half in [64u16, 56, 2, 64, 5, 4] {
        out.extend(half.to_le_bytes());
    }
    let segment = |kind: u32, flags: u32, words: [u64; 6]| {
        let mut header = [kind.to_le_bytes(), flags.to_le_bytes()].concat();
        header.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        header
    };
    let len = code.len() as u64;
    out.extend(segment(1, 7, [code_at as u64, LINKED, physical, len, len, 4096]));
    out.extend(segment(4, 4, [note_at as u64, 0, 0, note.len() as u64, note.len() as u64, 4]));
    out.extend(code);
    out.resize(note_at, 0);
    for part in [&note[..], &symbols, &strings, names] {
        out.extend(part);
    }
    out.resize(sections_at, 0);
    let place = |at: usize, part: &[u8]| [0, 0, at as u64, part.len() as u64];
    out.extend(section([0, 0], [0; 4], 0));
    out.extend(section([1, 1], [6, LINKED, code_at as u64, len], 0));
    out.extend(section([7, 2], place(symbols_at, &symbols), 3));
    out.extend(section([15, 3], place(strings_at, &strings), 0));
    out.extend(section([23, 3], place(names_at, names), 0));
    out
}

pub fn config(code: Code) -> MachineConfig {
    let mut config = MachineConfig::new(Topology::default()).expect("the default topology can be placed");
    config.kernel = KernelImage::Bytes(code.elf().into());
    config
}

pub fn start(config: MachineConfig) -> Machine {
    Machine::start(config).unwrap_or_else(|error| {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        panic!("cannot start a machine: {error}{}", source.unwrap_or_default())
    })
}

pub fn stop_event() -> StopEvent {
    StopEvent::new().expect("an eventfd")
}

/// Boots `code` on the default topology and waits for its end.
pub fn run(code: Code) -> End {
    start(config(code)).wait(Deadline::after(PATIENCE), &stop_event())
}

struct Tap(Sender<u8>);

impl Write for Tap {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        for &byte in data {
            self.0.send(byte).map_err(io::Error::other)?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A console whose bytes can be received.
pub fn tap() -> (Box<dyn Write + Send>, Receiver<u8>) {
    let (sender, receiver) = channel();
    (Box::new(Tap(sender)), receiver)
}
