//! What a program finds on its stack: arguments, environment, and what the kernel tells it (`create_elf_tables`).

use alloc::vec::Vec;

use pagevisor_shared::errno::Errno;
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
/// What [`AT_PLATFORM`] leads to.
const PLATFORM: &[u8] = b"x86_64\0";

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

fn sixteen_random_bytes() -> [u8; 16] {
    // No secret depends on it: programs take a stack protector's value and a hash's seed from here.
    let mut random = SplitMix64::new(cpu::rdtsc());
    let [low, high] = [random.next(), random.next()];
    (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
}

/// What the kernel tells `program`, whose random bytes, platform and name are at the addresses `strings`.
fn auxiliary(program: &Program, [random, platform, name]: [u64; 3]) -> [[u64; 2]; 20] {
    [
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
    ]
}

/// Bytes of `strings` with a zero behind each.
fn length(strings: &[Vec<u8>]) -> u64 {
    strings.iter().map(|string| string.len() as u64 + 1).sum()
}

/// Appends the addresses of `strings`, which lie behind one another from `start` on, and a zero.
fn push_pointers(bytes: &mut Vec<u8>, strings: &[Vec<u8>], start: u64) {
    let mut at = start;
    for string in strings {
        bytes.extend_from_slice(&at.to_le_bytes());
        at += string.len() as u64 + 1;
    }
    bytes.extend_from_slice(&[0; 8]);
}

/// What goes onto the stack that ends at `top`, for `program` from the file `path`.
///
/// # Errors
/// ENOMEM.
pub fn contents(
    top: u64,
    program: &Program,
    path: &[u8],
    arguments: &[Vec<u8>],
    environment: &[Vec<u8>],
) -> Result<Contents, Errno> {
    const RANDOM_BYTES: u64 = 16;
    let total = RANDOM_BYTES + PLATFORM.len() as u64 + length(arguments) + length(environment) + path.len() as u64 + 1;
    // As in Linux the last word is 0.
    let random = (top - 8 - total) & !15;
    let platform = random + RANDOM_BYTES;
    let argument_start = platform + PLATFORM.len() as u64;
    let argument_end = argument_start + length(arguments);
    let environment_end = argument_end + length(environment);
    let auxiliary = auxiliary(program, [random, platform, environment_end]);
    // Their count; them, and a zero; the environment, and a zero.
    let words = (arguments.len() + environment.len() + 3 + 2 * auxiliary.len()) as u64;
    // The ABI wants the stack pointer to be a multiple of 16.
    let sp = (random - 8 * words) & !15;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact((top - sp) as usize).map_err(|_| Errno::ENOMEM)?;
    bytes.extend_from_slice(&arguments.len().to_le_bytes());
    push_pointers(&mut bytes, arguments, argument_start);
    push_pointers(&mut bytes, environment, argument_end);
    auxiliary.as_flattened().iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
    bytes.resize((random - sp) as usize, 0);
    bytes.extend_from_slice(&sixteen_random_bytes());
    bytes.extend_from_slice(PLATFORM);
    for string in arguments.iter().chain(environment).map(Vec::as_slice).chain([path]) {
        bytes.extend_from_slice(string);
        bytes.push(0);
    }
    bytes.resize((top - sp) as usize, 0);
    Ok(Contents { bytes, sp, arguments: [argument_start, argument_end], environment: [argument_end, environment_end] })
}
