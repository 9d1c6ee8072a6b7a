//! Files of the guest's `/proc` that take what is written to them, by Linux's rules.

use std::fmt;
use std::path::Path;

use pagevisor_shared::command::{ObjectOp, Op, OpError, Setting, Text};

use crate::state::StateView;

/// Most bytes that `slabinfo` takes at once (`MAX_SLABINFO_WRITE`).
const MAX_SLABINFO_WRITE: usize = 128;

/// A file that takes what is written to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tunable {
    /// `/proc/slabinfo` takes `NAME LIMIT BATCHCOUNT SHARED` (`slabinfo_write`).
    Slabinfo,
    /// `/proc/sys/vm/*` takes numbers.
    Sysctl(Setting),
}

/// Why something is not written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadWrite {
    /// There is no such file, or none that takes anything.
    #[error("no file of the guest's that can be written; those are {}", Tunable::names())]
    NoTunable,
    /// What is to be written means nothing there.
    #[error("Invalid argument: '{text}' is not {expected}")]
    Text {
        /// What was to be written.
        text: String,
        /// What the file takes.
        expected: &'static str,
    },
    /// The guest does not take it.
    #[error("{error}: {reason}")]
    Refused {
        /// The error, in Linux's words where that has one for it.
        error: String,
        /// What it is about.
        reason: String,
    },
}

/// What is to be written to a file, as operations of the guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    tunable: Tunable,
    text: String,
    ops: Vec<Op>,
}

impl Tunable {
    /// The file at `path`: below `/proc`, with or without that, or a setting as `sysctl` names it.
    ///
    /// # Errors
    /// [`BadWrite::NoTunable`].
    pub fn at(path: &Path) -> Result<Self, BadWrite> {
        let path = path.to_str().ok_or(BadWrite::NoTunable)?.trim_start_matches('/');
        let path = path.strip_prefix("proc/").unwrap_or(path);
        if path == "slabinfo" {
            return Ok(Self::Slabinfo);
        }
        let setting = ["sys/vm/", "vm/", "vm."].into_iter().find_map(|prefix| path.strip_prefix(prefix));
        setting.and_then(Setting::named).map(Self::Sysctl).ok_or(BadWrite::NoTunable)
    }

    fn names() -> String {
        let settings = Setting::ALL.map(|setting| Self::Sysctl(setting).to_string());
        format!("{}, {}", Self::Slabinfo, settings.join(", "))
    }

    /// What the file takes.
    const fn expected(self) -> &'static str {
        match self {
            Self::Slabinfo => "'NAME LIMIT BATCHCOUNT SHARED'",
            Self::Sysctl(Setting::LowmemReserveRatio) => "one number for each zone type, or fewer",
            Self::Sysctl(_) => "one number",
        }
    }

    /// What writing `text` to it, by one call, is to do.
    ///
    /// # Errors
    /// [`BadWrite::Text`] for what Linux would not even look at (`-EINVAL`).
    pub fn write(self, text: &str) -> Result<Write, BadWrite> {
        let text = text.trim();
        let ops = match self {
            Self::Slabinfo => slabinfo(text),
            Self::Sysctl(setting) => sysctl(setting, text),
        };
        let bad = || BadWrite::Text { text: text.to_owned(), expected: self.expected() };
        Ok(Write { tunable: self, text: text.to_owned(), ops: ops.ok_or_else(bad)? })
    }
}

/// The path below `/proc`.
impl fmt::Display for Tunable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slabinfo => f.write_str("slabinfo"),
            Self::Sysctl(setting) => write!(f, "sys/vm/{}", setting.name()),
        }
    }
}

fn slabinfo(text: &str) -> Option<Vec<Op>> {
    let mut words = text.split_ascii_whitespace();
    let name = words.next()?;
    let numbers = words.by_ref().take(3).map(str::parse::<i32>).collect::<Result<Vec<_>, _>>().ok()?;
    let fits = text.len() <= MAX_SLABINFO_WRITE && !name.is_empty() && numbers.len() == 3 && words.next().is_none();
    let line = Text { payload: 0, len: u32::try_from(text.len()).ok()? };
    fits.then(|| vec![Op::Object(ObjectOp::SetSlabinfo { line })])
}

fn sysctl(setting: Setting, text: &str) -> Option<Vec<Op>> {
    let numbers = text.split_ascii_whitespace().map(|word| word.parse::<u32>().ok());
    let numbers: Vec<u32> = numbers.collect::<Option<_>>()?;
    let most = if setting == Setting::LowmemReserveRatio { pagevisor_shared::zone::MAX_NR_ZONES } else { 1 };
    let set = |(index, value): (u8, u32)| Op::Set { setting, index, value: value.into() };
    (1..=most).contains(&numbers.len()).then(|| (0..).zip(numbers).map(set).collect())
}

impl Write {
    /// The operations.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// The bytes that they refer to.
    pub fn payload(&self) -> &[u8] {
        match self.tunable {
            Tunable::Slabinfo => self.text.as_bytes(),
            Tunable::Sysctl(_) => &[],
        }
    }

    /// Why a guest in that state does not take it.
    pub fn refused(&self, error: OpError, state: &StateView) -> BadWrite {
        let reason = match self.tunable {
            Tunable::Slabinfo => {
                let (name, numbers) = self.text.split_once(char::is_whitespace).unwrap_or((&self.text, ""));
                match state.slab_caches() {
                    Ok(caches) if caches.named(name).is_none() => format!("there is no slab cache '{name}'"),
                    _ => format!("slab cache {name} does not take '{numbers}' (limit >= batchcount >= 1, shared >= 0)"),
                }
            }
            Tunable::Sysctl(setting) => format!("vm.{} does not take '{}'", setting.name(), self.text),
        };
        let error = if error == OpError::Invalid { "Invalid argument".to_owned() } else { error.to_string() };
        BadWrite::Refused { error, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> Option<Tunable> {
        Tunable::at(Path::new(path)).ok()
    }

    #[test]
    fn files_are_found_by_path_and_by_name() {
        for path in ["slabinfo", "proc/slabinfo", "/proc/slabinfo"] {
            assert_eq!(file(path), Some(Tunable::Slabinfo));
        }
        for setting in Setting::ALL {
            let name = setting.name();
            for path in [format!("/proc/sys/vm/{name}"), format!("vm.{name}"), format!("sys/vm/{name}")] {
                assert_eq!(file(&path), Some(Tunable::Sysctl(setting)));
            }
            assert_eq!(file(&Tunable::Sysctl(setting).to_string()), Some(Tunable::Sysctl(setting)));
        }
        for path in ["", "proc", "meminfo", "sys/vm/", "sys/vm/numa_zonelist_order", "vm.slabinfo", "x/slabinfo"] {
            assert_eq!(file(path), None, "{path}");
        }
    }

    #[test]
    fn slabinfo_takes_a_name_and_three_numbers() {
        let write = Tunable::Slabinfo.write(" kmalloc-64 60 30  8\n").unwrap();
        assert_eq!(write.payload(), b"kmalloc-64 60 30  8");
        assert_eq!(write.ops(), [Op::Object(ObjectOp::SetSlabinfo { line: Text { payload: 0, len: 19 } })]);
        // What is out of range is for the guest to refuse.
        assert!(Tunable::Slabinfo.write("kmalloc-64 0 -1 0").is_ok());
        let long = format!("{} 1 1 1", "x".repeat(MAX_SLABINFO_WRITE));
        for text in
            ["", "kmalloc-64", "kmalloc-64 60 30", "kmalloc-64 60 30 x", "kmalloc-64 60 30 8 9", "a 1 1 1e1", &long]
        {
            let error = Tunable::Slabinfo.write(text).unwrap_err();
            assert!(error.to_string().starts_with("Invalid argument: '"), "{error}");
        }
    }

    #[test]
    fn settings_take_numbers() {
        let set = |setting, index, value| Op::Set { setting, index, value };
        let one = Tunable::Sysctl(Setting::MinFreeKbytes);
        assert_eq!(one.write("8192\n").unwrap().ops(), [set(Setting::MinFreeKbytes, 0, 8192)]);
        let ratio = Setting::LowmemReserveRatio;
        let many = Tunable::Sysctl(ratio).write("256\t128").unwrap();
        assert_eq!((many.ops(), many.payload()), (&[set(ratio, 0, 256), set(ratio, 1, 128)][..], &[][..]));
        for text in ["", "x", "-1", "1 2", "4294967296"] {
            assert!(one.write(text).is_err(), "{text}");
        }
        assert!(Tunable::Sysctl(ratio).write("1 2 3 4 5 6").is_err());
    }
}
