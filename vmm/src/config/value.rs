//! The values of the vocabulary as text: sizes, ranges, CPU lists. Flags and files share them.

use std::fmt;

use pagevisor_shared::NR_CPUS;

use crate::topology::{AddrRange, Fault, PairKind};

/// Bytes, written with the largest binary unit that leaves no remainder: `16M`, `3056M`, `640K`, `5`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Size(pub u64);

/// Unit letters with the power of two they stand for, largest first.
const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, shift)| self.0 != 0 && self.0.trailing_zeros() >= *shift) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Reads `512M`: a number, decimal or hexadecimal after `0x`, and then perhaps one of K, M, G, T (binary).
pub fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size: a number, then K, M, G or T, such as \"512M\"");
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, last)) => match UNITS.iter().find(|(unit, _)| last.eq_ignore_ascii_case(unit)) {
            Some(&(_, shift)) => (&text[..at], shift),
            None => (text, 0),
        },
        None => return Err(bad()),
    };
    let (digits, radix) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None => (digits, 10),
    };
    // `from_str_radix` would accept a sign.
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(bad());
    }
    let number = u64::from_str_radix(digits, radix).ok();
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| format!("{text} is more than 64 bits can hold"))
}

/// Reads an amount of memory: a size that is not zero.
pub fn amount(text: &str) -> Result<u64, String> {
    match size(text)? {
        0 => Err(Fault::ZeroSize.to_string()),
        bytes => Ok(bytes),
    }
}

/// Reads `4G-6G` (END is the first address above) or `4G+2G`.
pub fn range(text: &str) -> Result<AddrRange, String> {
    let bad = || format!("{text:?} is not a range: START-END or START+SIZE, such as \"4G-6G\"");
    if let Some((start, bytes)) = text.split_once('+') {
        let (start, bytes) = (size(start)?, amount(bytes)?);
        return match start.checked_add(bytes) {
            Some(_) => Ok(AddrRange { start, size: bytes }),
            None => Err(format!("{text} is more than 64 bits can hold")),
        };
    }
    let (start, end) = text.split_once('-').ok_or_else(bad)?;
    let (start, end) = (size(start)?, size(end)?);
    if end > start { Ok(AddrRange::between(start, end)) } else { Err(format!("{text} ends before it has begun")) }
}

/// The CPUs of a node as they were given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cpus {
    /// So many, with the lowest numbers that nobody names.
    Count(usize),
    /// These, in ascending order.
    List(Vec<u32>),
}

/// Reads the value of `cpus`: `2`, or a list in brackets, `[0-3,5]`.
pub fn cpus(text: &str) -> Result<Cpus, String> {
    if let Some(list) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let mut numbers = Vec::new();
        for part in list.split(',').filter(|_| !list.trim().is_empty()) {
            add_cpus(part.trim(), &mut numbers)?;
        }
        numbers.sort_unstable();
        return Ok(Cpus::List(numbers));
    }
    let bad = || format!("{text:?} is neither a number of CPUs nor a list such as [0-3,5]");
    Ok(Cpus::Count(decimal(text).ok_or_else(bad)?))
}

/// Reads an entry of a CPU list, `3` or `0-3`, and puts the numbers into `list`, which has no use for one twice.
pub fn add_cpus(text: &str, list: &mut Vec<u32>) -> Result<(), String> {
    let bad = || format!("{text:?} is not a CPU or a range of CPUs, such as 3 or 0-3");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (cpu(first, bad)?, cpu(last, bad)?);
    if last < first {
        return Err(bad());
    }
    for number in first..=last {
        if list.contains(&number) {
            return Err(format!("CPU {number} is in the list twice"));
        }
        list.push(number);
    }
    Ok(())
}

fn cpu(text: &str, bad: impl Fn() -> String) -> Result<u32, String> {
    let number = decimal(text).ok_or_else(bad)?;
    match u32::try_from(number) {
        Ok(cpu) if number < NR_CPUS => Ok(cpu),
        _ => Err(format!("there is no CPU {number}: numbers go from 0 to {}", NR_CPUS - 1)),
    }
}

/// A plain decimal number: no sign, nothing around it. One too large for `usize` comes out as the largest.
pub fn decimal(text: &str) -> Option<usize> {
    let all_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| text.parse().unwrap_or(usize::MAX))
}

/// A figure of a pair of nodes as it was given: from, to, and the value, which has yet to be checked.
pub type Pair = (usize, usize, i64);

/// Reads the pair of nodes `0:1`.
pub fn node_pair(text: &str) -> Result<(usize, usize), String> {
    text.split_once(':')
        .and_then(|(from, to)| Some((decimal(from)?, decimal(to)?)))
        .ok_or_else(|| format!("{text:?} is not a pair of nodes, such as 0:1"))
}

/// Reads `0:1=20`.
pub fn pair(kind: PairKind, text: &str) -> Result<Pair, String> {
    let (unit, example) = kind.example();
    let bad = || format!("{text:?} is not a {}: FROM:TO={unit}, such as {example}", kind.name());
    let (pair, value) = text.split_once('=').ok_or_else(bad)?;
    let (from, to) = node_pair(pair)?;
    Ok((from, to, value.parse().map_err(|_| bad())?))
}
