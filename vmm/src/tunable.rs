//! Files of the guest's `/proc` that take what is written to them, by Linux's rules.

use std::fmt;
use std::path::Path;

use pagevisor_shared::command::{Fault, Faulty, ObjectOp, Op, OpError, Setting, Text};

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
    /// `/sys/kernel/debug/fail_page_alloc` and `failslab`, of whose files each takes a value: here, `FILE=VALUE` for all that are
    /// not to be as they are before anybody sets them.
    Fault(Faulty),
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
        match path.strip_prefix("sys/kernel/debug/").unwrap_or(path) {
            "slabinfo" => return Ok(Self::Slabinfo),
            "fail_page_alloc" => return Ok(Self::Fault(Faulty::Pages)),
            "failslab" => return Ok(Self::Fault(Faulty::Objects)),
            _ => {}
        }
        let setting = ["sys/vm/", "vm/", "vm."].into_iter().find_map(|prefix| path.strip_prefix(prefix));
        setting.and_then(Setting::named).map(Self::Sysctl).ok_or(BadWrite::NoTunable)
    }

    fn names() -> String {
        let settings = Setting::ALL.map(|setting| Self::Sysctl(setting).to_string());
        let [pages, objects] = [Faulty::Pages, Faulty::Objects].map(Self::Fault);
        format!("{}, {}, {pages}, {objects}", Self::Slabinfo, settings.join(", "))
    }

    /// What the file takes.
    const fn expected(self) -> &'static str {
        match self {
            Self::Slabinfo => "'NAME LIMIT BATCHCOUNT SHARED'",
            Self::Sysctl(Setting::LowmemReserveRatio) => "one number for each zone type, or fewer",
            Self::Sysctl(_) => "one number",
            Self::Fault(Faulty::Pages) => {
                "FILE=VALUE, of probability, interval, times, space, min-order, ignore-gfp-wait, ignore-gfp-highmem"
            }
            Self::Fault(Faulty::Objects) => {
                "FILE=VALUE, of probability, interval, times, space, cache-filter, ignore-gfp-wait"
            }
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
            Self::Fault(of) => fault(of, text),
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
            Self::Fault(Faulty::Pages) => f.write_str("fail_page_alloc"),
            Self::Fault(Faulty::Objects) => f.write_str("failslab"),
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
    let numbers = text.split_ascii_whitespace().map(|word| word.parse::<u64>().ok());
    let numbers: Vec<u64> = numbers.collect::<Option<_>>()?;
    let most = if setting == Setting::LowmemReserveRatio { pagevisor_shared::zone::MAX_NR_ZONES } else { 1 };
    let set = |(index, value): (u8, u64)| Op::Set { setting, index, value };
    (1..=most).contains(&numbers.len()).then(|| (0..).zip(numbers).map(set).collect())
}

/// `Y` and `N`, and what else a file of `debugfs` takes for them.
fn switch(text: &str) -> Option<bool> {
    match text {
        "Y" | "y" | "1" => Some(true),
        "N" | "n" | "0" => Some(false),
        _ => None,
    }
}

/// Fault injection by words of `FILE=VALUE`; what none names is as before anybody sets it (`FAULT_ATTR_INITIALIZER`).
fn fault(of: Faulty, text: &str) -> Option<Vec<Op>> {
    let initial = Fault {
        interval: 1,
        times: 1,
        min_order: 1,
        ignore_gfp_wait: true,
        ignore_gfp_highmem: true,
        ..Fault::default()
    };
    let mut words = text.split_ascii_whitespace().peekable();
    words.peek()?;
    let set = words.try_fold(initial, |mut fault, word| {
        let (file, value) = word.split_once('=')?;
        match (file, of) {
            ("probability", _) => fault.probability = value.parse().ok()?,
            ("interval", _) => fault.interval = value.parse().ok()?,
            ("times", _) => fault.times = value.parse().ok()?,
            // Linux's is an `int`.
            ("space", _) => fault.space = u32::try_from(value.parse::<i32>().ok()?).ok()?,
            ("ignore-gfp-wait", _) => fault.ignore_gfp_wait = switch(value)?,
            ("min-order", Faulty::Pages) => fault.min_order = value.parse().ok()?,
            ("ignore-gfp-highmem", Faulty::Pages) => fault.ignore_gfp_highmem = switch(value)?,
            ("cache-filter", Faulty::Objects) => fault.cache_filter = switch(value)?,
            _ => return None,
        }
        Some(fault)
    })?;
    Some(vec![match of {
        Faulty::Pages => Op::FailPageAlloc(set),
        Faulty::Objects => Op::Failslab(set),
    }])
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
            Tunable::Sysctl(_) | Tunable::Fault(_) => &[],
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
            Tunable::Fault(_) => format!("{} does not take '{}'", self.tunable, self.text),
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
        for of in [Faulty::Pages, Faulty::Objects] {
            let name = Tunable::Fault(of).to_string();
            assert_eq!(
                (file(&name), file(&format!("/sys/kernel/debug/{name}"))),
                (Some(Tunable::Fault(of)), file(&name))
            );
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
        for text in ["", "x", "-1", "1 2", "18446744073709551616"] {
            assert!(one.write(text).is_err(), "{text}");
        }
        assert!(Tunable::Sysctl(ratio).write("1 2 3 4 5 6").is_err());
    }
    #[test]
    fn fault_injection_takes_the_values_of_its_files() {
        let (pages, objects) = (Tunable::Fault(Faulty::Pages), Tunable::Fault(Faulty::Objects));
        let one =
            Fault { probability: 10, interval: 1, times: 1, min_order: 1, ignore_gfp_wait: true, ..Fault::default() };
        let one = Fault { ignore_gfp_highmem: true, ..one };
        let write = pages.write("probability=10\n").unwrap();
        assert_eq!((write.ops(), write.payload()), (&[Op::FailPageAlloc(one)][..], &[][..]));
        let all = "probability=100 interval=7 times=-1 space=4096 min-order=0 ignore-gfp-wait=N ignore-gfp-highmem=0";
        let every = Fault { probability: 100, interval: 7, times: -1, space: 4096, ..Fault::default() };
        assert_eq!(pages.write(all).unwrap().ops(), [Op::FailPageAlloc(every)]);
        let filtered = Fault { cache_filter: true, ..one };
        assert_eq!(objects.write("probability=10 cache-filter=Y").unwrap().ops(), [Op::Failslab(filtered)]);
        let bad =
            ["", "10", "probability", "probability=", "probability=x", "times=1e1", "space=-1", "ignore-gfp-wait=2"];
        for text in bad {
            assert!(pages.write(text).is_err() && objects.write(text).is_err(), "{text}");
        }
        assert!(pages.write("cache-filter=Y").is_err() && objects.write("min-order=0").is_err());
    }
}
