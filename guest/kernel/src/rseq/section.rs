//! What becomes of a thread that was interrupted where it may be in a critical section (`rseq_ip_fixup`): what the program's
//! memory says about that, and nothing of the kernel's.

use pagevisor_shared::layout::TASK_SIZE_MAX;

/// Bytes of a thread's area, and what its address is a multiple of (`struct rseq`).
pub const AREA_SIZE: u64 = 32;
/// Offset in the area: the address of the section's descriptor, 0 for none (`rseq_cs`).
pub const AREA_SECTION: u64 = 8;
/// Offset in the area: flags, of which none are known any more.
const AREA_FLAGS: u64 = 16;
/// Bytes of the signature before an address to abort to.
const SIGNATURE_SIZE: u64 = 4;

/// What is to be done with a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fixup {
    /// Nothing: it is in no section.
    Nothing,
    /// It has left the section that its area names, which need not do that any more.
    Forget,
    /// It was interrupted in its section: it goes on at this address, and its area names no section any more.
    Abort(u64),
}

/// What a thread is ended for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bad {
    /// Its area, the descriptor or the signature cannot be read.
    Memory,
    /// The descriptor is of another version, or names what cannot be a section.
    Section,
    /// Before the address to abort to there is something else than the signature.
    Signature {
        /// What is there.
        found: u32,
        /// Where.
        at: u64,
    },
    /// The descriptor, or the area, has flags.
    Flags(u32),
}

/// The descriptor of a critical section (`struct rseq_cs`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Section {
    version: u32,
    flags: u32,
    /// Address of its first instruction.
    start: u64,
    /// Bytes of its instructions (`post_commit_offset`).
    len: u64,
    /// Where to go on if it was interrupted.
    abort: u64,
}

impl Section {
    const fn new([head, start, len, abort]: [u64; 4]) -> Self {
        Self { version: head as u32, flags: (head >> 32) as u32, start, len, abort }
    }

    /// Whether the instruction at `ip` belongs to it.
    const fn contains(&self, ip: u64) -> bool {
        ip.wrapping_sub(self.start) < self.len
    }

    /// Whether this is a section of a program's, and its end is outside of it.
    const fn is_valid(&self) -> bool {
        let end = match self.start.checked_add(self.len) {
            Some(end) => end,
            None => return false,
        };
        self.version == 0
            && self.start < TASK_SIZE_MAX
            && end < TASK_SIZE_MAX
            && self.abort < TASK_SIZE_MAX
            && !self.contains(self.abort)
    }
}

/// What is to be done with a thread that goes on at `ip`, was interrupted, and has registered `area` with `signature`. `read`
/// copies the program's bytes at an address, or fails.
///
/// # Errors
/// [`Bad`], whether it is in the section that its area names or not.
pub fn fixup<E>(
    ip: u64,
    area: u64,
    signature: u32,
    mut read: impl FnMut(&mut [u8], u64) -> Result<(), E>,
) -> Result<Fixup, Bad> {
    let descriptor = word(&mut read, area.wrapping_add(AREA_SECTION))?;
    if descriptor == 0 {
        return Ok(Fixup::Nothing);
    }
    if descriptor >= TASK_SIZE_MAX {
        return Err(Bad::Section);
    }
    let mut words = [0; 4];
    for (index, value) in words.iter_mut().enumerate() {
        *value = word(&mut read, descriptor.wrapping_add(8 * index as u64))?;
    }
    let section = Section::new(words);
    if !section.is_valid() {
        return Err(Bad::Section);
    }
    let at = section.abort.wrapping_sub(SIGNATURE_SIZE);
    let found = half(&mut read, at)?;
    if found != signature {
        return Err(Bad::Signature { found, at });
    }
    if !section.contains(ip) {
        return Ok(Fixup::Forget);
    }
    for flags in [section.flags, half(&mut read, area.wrapping_add(AREA_FLAGS))?] {
        if flags != 0 {
            return Err(Bad::Flags(flags));
        }
    }
    Ok(Fixup::Abort(section.abort))
}

fn word<E>(read: &mut impl FnMut(&mut [u8], u64) -> Result<(), E>, at: u64) -> Result<u64, Bad> {
    let mut bytes = [0; 8];
    read(&mut bytes, at).map_err(|_| Bad::Memory)?;
    Ok(u64::from_le_bytes(bytes))
}

fn half<E>(read: &mut impl FnMut(&mut [u8], u64) -> Result<(), E>, at: u64) -> Result<u32, Bad> {
    let mut bytes = [0; 4];
    read(&mut bytes, at).map_err(|_| Bad::Memory)?;
    Ok(u32::from_le_bytes(bytes))
}
