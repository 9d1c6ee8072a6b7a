//! Page faults as events: what [`EventKind::PageFaultUser`] and [`EventKind::PageFaultKernel`] say.

use core::fmt;

use super::event::{Event, EventKind};

/// The error code that the processor gives with a page fault (`enum x86_pf_error_code`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ErrorCode(pub u32);

crate::flag_set!(ErrorCode);

impl ErrorCode {
    /// A page was there, and did not allow it (`X86_PF_PROT`).
    pub const PRESENT: Self = Self(1);
    /// It was a write (`X86_PF_WRITE`).
    pub const WRITE: Self = Self(1 << 1);
    /// It came from user mode (`X86_PF_USER`).
    pub const USER: Self = Self(1 << 2);
    /// A table has bits that must be zero (`X86_PF_RSVD`).
    pub const RESERVED: Self = Self(1 << 3);
    /// It was the fetch of an instruction (`X86_PF_INSTR`).
    pub const FETCH: Self = Self(1 << 4);

    /// The bits, and their letters in the processor's manual.
    pub const NAMES: [(Self, &'static str); 5] =
        [(Self::PRESENT, "P"), (Self::WRITE, "W"), (Self::USER, "U"), (Self::RESERVED, "RSVD"), (Self::FETCH, "I")];

    /// The letters of the bits that are set.
    pub fn letters(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(bit, _)| self.contains(*bit)).map(|(_, letter)| letter)
    }
}

/// `P|W|U`; a `-` for none, and other bits as a number.
impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Self::NAMES.into_iter().fold(0, |bits, (bit, _)| bits | bit.0);
        let mut between = "";
        for letter in self.letters() {
            write!(f, "{between}{letter}")?;
            between = "|";
        }
        match self.0 & !known {
            0 if self.0 == 0 => f.write_str("-"),
            0 => Ok(()),
            other => write!(f, "{between}{other:#x}"),
        }
    }
}

/// What became of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Resolution {
    /// A new anonymous page.
    Anon = 0,
    /// The zero page.
    Zero = 1,
    /// A copy of a page that others see, too.
    Cow = 2,
    /// A page that nobody else sees any more was made writable.
    CowReuse = 3,
    /// A page of a file.
    File = 4,
    /// Nothing was missing any more.
    Spurious = 5,
    /// It could not be: a signal, an error of a system call, or the kernel's end.
    Bad = 6,
}

impl Resolution {
    /// All of them, by number.
    pub const ALL: [Self; 7] =
        [Self::Anon, Self::Zero, Self::Cow, Self::CowReuse, Self::File, Self::Spurious, Self::Bad];

    /// Its name for users.
    pub const fn name(self) -> &'static str {
        ["anon", "zero", "cow", "cow-reuse", "file", "spurious", "bad"][self as usize]
    }
}

/// A page fault that has been dealt with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageFault {
    /// It was a program's, in user mode.
    pub user: bool,
    /// The address that was not to be had.
    pub address: u64,
    /// Why.
    pub error: ErrorCode,
    /// The instruction.
    pub ip: u64,
    /// Number of the thread; 0 for none.
    pub pid: u32,
    /// What became of it.
    pub resolution: Resolution,
    /// It had to wait for data.
    pub major: bool,
    /// Time stamp ticks from its begin in the kernel's handler to its end.
    pub ticks: u64,
}

impl PageFault {
    /// As an event, with the time and CPU still to be filled in.
    pub const fn encode(self) -> Event {
        let kind = if self.user { EventKind::PageFaultUser } else { EventKind::PageFaultKernel };
        Event {
            order: self.resolution as u8,
            migratetype: self.major as u8,
            caller: self.ip,
            args: [self.address, self.error.0 as u64 | (self.pid as u64) << 32, self.ticks],
            ..Event::new(kind)
        }
    }

    /// From an event of these kinds; `None` for others and for numbers that mean nothing.
    pub fn decode(event: &Event) -> Option<Self> {
        let [address, what, ticks] = event.args;
        event.kind.is_of_fault().then_some(())?;
        Some(Self {
            user: event.kind == EventKind::PageFaultUser,
            address,
            error: ErrorCode(what as u32),
            ip: event.caller,
            pid: (what >> 32) as u32,
            resolution: *Resolution::ALL.get(usize::from(event.order))?,
            major: [false, true].get(usize::from(event.migratetype)).copied()?,
            ticks,
        })
    }
}
