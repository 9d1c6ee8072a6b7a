//! How commands and operations end.

use core::fmt;

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$item:meta])* $variant:ident = $raw:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u32)]
        pub enum $name {
            $($(#[$item])* $variant = $raw,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The one numbered `raw`.
            pub const fn new(raw: u32) -> Option<Self> {
                match raw {
                    $($raw => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $text,)*
                })
            }
        }
    };
}

codes! {
    /// What became of a command as a whole.
    Status {
        /// Its operations were executed; each has a result.
        Done = 0, "done";
        /// An operation failed and the command asked to stop then; results end with the failed one.
        Stopped = 1, "stopped at an operation that failed";
        /// The guest could not read it.
        Malformed = 2, "the guest could not read the message";
        /// It was aimed at a CPU that is not there.
        NoSuchCpu = 3, "there is no such CPU";
    }
}

codes! {
    /// Why an operation failed. 0 is success and has no error.
    OpError {
        /// The allocator has no memory for it (`-ENOMEM`).
        NoMemory = 1, "out of memory";
        /// The handle stands for nothing.
        BadHandle = 2, "the handle stands for nothing";
        /// The handle is in use already.
        HandleInUse = 3, "the handle is in use already";
        /// What the handle stands for cannot be used so.
        WrongKind = 4, "the handle stands for something else";
        /// An argument is out of its range (`-EINVAL`).
        Invalid = 5, "an argument is out of range";
        /// The operation is unknown to this guest.
        Unknown = 6, "the guest does not know this operation";
        /// What it needs is in use (`-EBUSY`).
        Busy = 7, "busy";
        /// A pattern does not match.
        Mismatch = 8, "the pattern does not match";
        /// The reply has no room for what it gives.
        NoRoom = 9, "the reply has no room for the result";
        /// This machine was not booted for it.
        Unavailable = 10, "this machine was not booted with what it needs";
        /// A record of a trace cannot be replayed; the value is its number in the message, `aux` the error in it.
        BadRecord = 11, "a record of the trace cannot be replayed";
        /// The CPU is not there, or does not take part.
        NoSuchCpu = 12, "the CPU is not there or does not take part";
    }
}

impl core::error::Error for OpError {}
