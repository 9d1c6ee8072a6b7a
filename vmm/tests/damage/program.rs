//! A program for guests, assembled by hand: it maps memory of all kinds, forks, and sleeps.

use std::time::{Duration, Instant};

use pagevisor::boot::Init;
use pagevisor::machine::{Deadline, Machine, MachineConfig};
use pagevisor::state::{Patience, StateView};
use pagevisor::topology::Topology;
use pagevisor_shared::mm_types::uapi::{
    MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE,
};
use pagevisor_shared::sched::TaskState;

use crate::tiny::{PATIENCE, start, stop_event};

/// Where the program is, and where it maps what.
pub const TEXT: u64 = 0x40_0000;
/// Private memory: of its pages the first is written by parent and child after the fork, the next three before it, the
/// others never.
pub const PRIVATE: u64 = 0x1000_0000;
pub const PRIVATE_PAGES: u64 = 8;
/// Memory that nobody may come to.
pub const NONE: u64 = PRIVATE + PRIVATE_PAGES * PAGE;
/// Shared memory of two pages, both written, and locked by the parent.
pub const SHARED: u64 = 0x3000_0000;
/// Private memory that is read only, so that it has the zero page; mapped read-only after one page was written.
pub const READ_ONLY: u64 = 0x5000_0000;

const PAGE: u64 = 0x1000;
const MMAP: u32 = 9;
const MPROTECT: u32 = 10;
const PAUSE: u32 = 34;
const MLOCK: u32 = 149;
const FORK: u32 = 57;

/// Code for 64-bit mode.
#[derive(Default)]
struct Code(Vec<u8>);

impl Code {
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// `movabs`: RDI, RSI, RDX, R10, R8, R9.
    fn load(self, register: usize, value: u64) -> Self {
        const CODES: [[u8; 2]; 6] =
            [[0x48, 0xbf], [0x48, 0xbe], [0x48, 0xba], [0x49, 0xba], [0x49, 0xb8], [0x49, 0xb9]];
        self.bytes(&CODES[register]).bytes(&value.to_le_bytes())
    }

    /// A system call.
    fn call(self, number: u32, arguments: &[u64]) -> Self {
        let loaded = arguments.iter().enumerate().fold(self, |code, (register, value)| code.load(register, *value));
        loaded.bytes(&[0xb8]).bytes(&number.to_le_bytes()).bytes(&[0x0f, 0x05])
    }

    fn map(self, at: u64, pages: u64, prot: u32, kind: u32) -> Self {
        let flags = (kind | MAP_ANONYMOUS | MAP_FIXED).into();
        self.call(MMAP, &[at, pages * PAGE, prot.into(), flags, u64::MAX, 0])
    }

    /// `mov byte [rdi], 1` or `cmp byte [rdi], 1` at each of so many pages.
    fn touch(self, at: u64, pages: u64, write: bool) -> Self {
        let op = if write { 0xc6 } else { 0x80 };
        let modrm = if write { 0x07 } else { 0x3f };
        (0..pages).fold(self, |code, page| code.load(0, at + page * PAGE).bytes(&[op, modrm, 1]))
    }
}

/// The program, as an ELF file.
fn elf() -> Vec<u8> {
    let data = PROT_READ | PROT_WRITE;
    let code = Code::default()
        .map(PRIVATE, PRIVATE_PAGES, data, MAP_PRIVATE)
        .map(NONE, 2, PROT_NONE, MAP_PRIVATE)
        .map(SHARED, 2, data, MAP_SHARED)
        .map(READ_ONLY, 4, data, MAP_PRIVATE)
        .touch(PRIVATE, 4, true)
        .touch(SHARED, 2, true)
        .touch(READ_ONLY, 1, true)
        .touch(READ_ONLY, 2, false)
        .call(MPROTECT, &[READ_ONLY, 4 * PAGE, PROT_READ.into()])
        .call(MLOCK, &[SHARED, 2 * PAGE])
        .call(FORK, &[])
        .touch(PRIVATE, 1, true);
    let code = code.call(PAUSE, &[]).bytes(&[0xeb, 0xfe]).0;
    let headers = 64 + 56;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [TEXT + headers, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend([0; 4]);
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend([1u32.to_le_bytes(), 5u32.to_le_bytes()].concat());
    let size = headers + code.len() as u64;
    for word in [0, TEXT, TEXT, size, size, PAGE] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

/// A guest whose first program has forked, and sleeps as its child does.
pub fn guest_with_programs() -> Machine {
    let mut config = MachineConfig::new(Topology::default()).unwrap();
    config.init = Some(Init { path: "/bin/sleepers".into(), program: Some(elf()), arguments: Vec::new() });
    let machine = start(config);
    machine.wait_ready(Deadline::after(PATIENCE), &stop_event()).unwrap_or_else(|end| panic!("{end}"));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let view = StateView::of_machine(&machine).unwrap();
        let tasks = view.tasks(Patience::default()).unwrap().list;
        let sleeps = |task: &pagevisor::state::TaskInfo| task.mm != 0 && task.state == TaskState::Interruptible;
        if tasks.iter().filter(|task| sleeps(task)).count() == 2 {
            return machine;
        }
        assert!(Instant::now() < deadline, "the programs do not get there: {tasks:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
