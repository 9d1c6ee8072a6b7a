//! Workloads as users name them: `fragment:order=9,seed=1`.
//!
//! A workload runs in the guest. Here are its name and its parameters, as flags and files give them, and what the guest
//! reports.

mod params;
mod replay;
mod report;
mod trace;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use pagevisor_shared::command::workload::Kind;
use serde::{Deserialize, Serialize};

pub use replay::Messages;
pub use report::{BadReport, WorkloadReport};
pub use trace::{Action, BadTrace, Trace, TraceRecord};

/// The value of a parameter.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// A number.
    Number(u64),
    /// Anything else.
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// Decimal digits are a number, all else is text.
impl From<&str> for Value {
    fn from(text: &str) -> Self {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_| digits).map_or_else(|| Self::Text(text.to_owned()), Self::Number)
    }
}

/// A workload and its parameters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Workload {
    /// What is to be done.
    pub name: String,
    /// How; what is not said has a default.
    pub params: BTreeMap<String, Value>,
}

/// The workload that is nothing but booting: the machine as it is before anything has happened in it.
pub const BOOT: &str = "boot";

impl Workload {
    /// Whether there is such a workload, with such parameters.
    ///
    /// # Errors
    /// Why not, in one line, with the key.
    pub fn check(&self) -> Result<(), String> {
        if self.is_boot() {
            return match self.params.keys().find(|key| *key != "seed") {
                None => Ok(()),
                Some(key) => Err(format!("{key}: booting has no parameters")),
            };
        }
        self.encode().map(|_| ())
    }

    /// Whether there is nothing to be done but booting.
    pub fn is_boot(&self) -> bool {
        self.name == BOOT
    }
}

fn unknown(name: &str) -> String {
    let names: Vec<_> = [BOOT].into_iter().chain(Kind::ALL.map(Kind::name)).collect();
    format!("there is no workload {name:?}; there are {}", names.join(", "))
}

/// Text that names no workload.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is not a workload: {reason}; one is written NAME:KEY=VALUE,..., such as fragment:order=9,seed=1")]
pub struct BadWorkload {
    text: String,
    reason: String,
}

impl FromStr for Workload {
    type Err = BadWorkload;

    fn from_str(text: &str) -> Result<Self, BadWorkload> {
        let bad = |reason: String| BadWorkload { text: text.to_owned(), reason };
        let (name, list) = text.split_once(':').unwrap_or((text, ""));
        if !is_word(name) {
            return Err(bad("it has no name".to_owned()));
        }
        let mut params = BTreeMap::new();
        for part in list.split(',').filter(|_| !list.is_empty()) {
            let (key, value) = part
                .split_once('=')
                .filter(|(key, value)| is_word(key) && !value.is_empty())
                .ok_or_else(|| bad(format!("{part:?} is not KEY=VALUE")))?;
            if params.insert(key.to_owned(), Value::from(value)).is_some() {
                return Err(bad(format!("{key} is given twice")));
            }
        }
        Ok(Self { name: name.to_owned(), params })
    }
}

/// Whether `text` can be a name or a key.
fn is_word(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
    text.bytes().all(word) && text.starts_with(|first: char| first.is_ascii_lowercase())
}

/// As [`FromStr`] takes it, parameters in alphabetical order.
impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        for ((key, value), index) in self.params.iter().zip(0..) {
            write!(f, "{}{key}={value}", if index == 0 { ':' } else { ',' })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_read_as_they_are_written() {
        let workload: Workload = "fragment:seed=1,order=9,gfp=KERNEL|DMA32".parse().unwrap();
        assert_eq!(workload.name, "fragment");
        assert_eq!(workload.params["order"], Value::Number(9));
        assert_eq!(workload.params["gfp"], Value::Text("KERNEL|DMA32".to_owned()));
        assert_eq!(workload.to_string(), "fragment:gfp=KERNEL|DMA32,order=9,seed=1");
        assert_eq!(workload.to_string().parse(), Ok(workload));
        assert_eq!("seq".parse::<Workload>().unwrap().to_string(), "seq");
    }

    #[test]
    fn what_is_no_workload_says_why() {
        let reason = |text: &str| text.parse::<Workload>().unwrap_err().to_string();
        for text in ["", ":", ":order=9", "9", "Fragment", "a b"] {
            assert!(reason(text).contains("it has no name"), "{text}");
        }
        for (text, part) in [("seq:order", "order"), ("seq:a=1,", ""), ("seq:=3", "=3"), ("seq:a=", "a=")] {
            assert!(reason(text).contains(&format!("{part:?} is not KEY=VALUE")), "{text}");
        }
        assert!(reason("seq:a=1,a=2").contains("a is given twice"));
        assert!(reason("seq:a=1,a=2").ends_with("such as fragment:order=9,seed=1"));
    }
}
