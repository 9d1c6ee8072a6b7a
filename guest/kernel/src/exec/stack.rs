//! What a program finds on its stack: arguments, environment, and what the kernel tells it (`create_elf_tables`).

use alloc::vec::Vec;

use pagevisor_shared::random::SplitMix64;
use pagevisor_shared::units::PAGE_SIZE;

use super::elf::Program;
use crate::arch::cpu;

/// What the kernel tells (`AT_*`).
const AT_NULL: u64 = 0;
const AT_PHDR: u64 = 3;
const AT_PHENT: u64 = 4;
const AT_PHNUM: u64 = 5;
const AT_PAGESZ: u64 = 6;
const AT_BASE: u64 = 7;
const AT_FLAGS: u64 = 8;
const AT_ENTRY: u64 = 9;
const AT_UID: u64 = 11;
const AT_EUID: u64 = 12;
const AT_GID: u64 = 13;
const AT_EGID: u64 = 14;
const AT_PLATFORM: u64 = 15;
const AT_HWCAP: u64 = 16;
const AT_CLKTCK: u64 = 17;
const AT_SECURE: u64 = 23;
const AT_RANDOM: u64 = 25;
const AT_HWCAP2: u64 = 26;
const AT_EXECFN: u64 = 31;
const AT_MINSIGSTKSZ: u64 = 51;

/// Ticks per second that times are counted in.
const CLOCK_TICKS: u64 = 100;
/// Bytes that a signal's frame may take, the processor's state aside.
const SIGNAL_FRAME: u64 = 1024;

/// A stack's contents, which end at its top.
#[derive(Debug)]
pub struct Contents {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The stack pointer: where they begin.
    pub sp: u64,
    /// Where the arguments begin and end; and the environment.
    pub arguments: [u64; 2],
    /// See [`Self::arguments`].
    pub environment: [u64; 2],
}

/// Strings, laid out upwards from an address.
struct Strings {
    bytes: Vec<u8>,
    start: u64,
}

impl Strings {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn push(&mut self, string: &[u8]) -> u64 {
        let at = self.end();
        self.bytes.extend_from_slice(string);
        self.bytes.push(0);
        at
    }
}

fn sixteen_random_bytes() -> [u8; 16] {
    // No secret depends on it: programs take a stack protector's value and a hash's seed from here.
    let mut random = SplitMix64::new(cpu::rdtsc());
    let [low, high] = [random.next(), random.next()];
    (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
}

/// What goes onto the stack that ends at `top`, for `program` from the file `path`.
pub fn contents(top: u64, program: &Program, path: &[u8], arguments: &[Vec<u8>], environment: &[Vec<u8>]) -> Contents {
    let length = |strings: &[Vec<u8>]| strings.iter().map(|string| string.len() + 1).sum::<usize>();
    let platform = b"x86_64";
    let total = length(arguments) + length(environment) + path.len() + 1 + platform.len() + 1 + 16;
    // As in Linux the last word is 0.
    let start = (top - 8 - total as u64) & !15;
    let mut strings = Strings { bytes: Vec::with_capacity(total), start };
    let random = strings.end();
    strings.bytes.extend_from_slice(&sixteen_random_bytes());
    let platform = strings.push(platform);
    let argument_pointers: Vec<u64> = arguments.iter().map(|string| strings.push(string)).collect();
    let argument_start = argument_pointers.first().copied().unwrap_or(strings.end());
    let argument_end = strings.end();
    let environment_pointers: Vec<u64> = environment.iter().map(|string| strings.push(string)).collect();
    let environment_end = strings.end();
    let name = strings.push(path);
    let auxiliary = [
        [AT_HWCAP, u64::from(cpu::cpuid(1, 0).edx)],
        [AT_PAGESZ, PAGE_SIZE],
        [AT_CLKTCK, CLOCK_TICKS],
        [AT_PHDR, program.headers],
        [AT_PHENT, 56],
        [AT_PHNUM, program.headers_count],
        [AT_BASE, 0],
        [AT_FLAGS, 0],
        [AT_ENTRY, program.entry],
        [AT_UID, 0],
        [AT_EUID, 0],
        [AT_GID, 0],
        [AT_EGID, 0],
        [AT_SECURE, 0],
        [AT_RANDOM, random],
        [AT_HWCAP2, 0],
        [AT_EXECFN, name],
        [AT_PLATFORM, platform],
        [AT_MINSIGSTKSZ, SIGNAL_FRAME + crate::arch::fpu::frame_bytes() as u64],
        [AT_NULL, 0],
    ];
    let mut words = Vec::new();
    words.push(arguments.len() as u64);
    words.extend_from_slice(&argument_pointers);
    words.push(0);
    words.extend_from_slice(&environment_pointers);
    words.push(0);
    words.extend(auxiliary.as_flattened());
    // The ABI wants the stack pointer to be a multiple of 16.
    let sp = (start - 8 * words.len() as u64) & !15;
    let mut bytes = Vec::with_capacity((top - sp) as usize);
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    bytes.resize((start - sp) as usize, 0);
    bytes.extend_from_slice(&strings.bytes);
    bytes.resize((top - sp) as usize, 0);
    Contents { bytes, sp, arguments: [argument_start, argument_end], environment: [argument_end, environment_end] }
}
