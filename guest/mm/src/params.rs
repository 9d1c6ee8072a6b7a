//! What the kernel's command line says about memory, in Linux's words and syntax.
//!
//! | word | |
//! |---|---|
//! | `kernelcore=SIZE\|N%`, `movablecore=SIZE\|N%` | how much memory is not, or is, ZONE_MOVABLE |
//! | `cma=SIZE[@BASE[-LIMIT]]` | a contiguous memory area |
//! | `fail_page_alloc=INTERVAL,PROBABILITY,SPACE,TIMES` | allocations that fail |
//! | `failslab=INTERVAL,PROBABILITY,SPACE,TIMES` | allocations of objects that fail |
//! | `page_owner=BOOL` | noting who allocated and freed each page |
//! | `page_poison=BOOL` | a pattern in free pages |
//! | `trace_event=KIND[,KIND...]` | recording events |
//! | `init_on_alloc=BOOL`, `init_on_free=BOOL` | clearing pages and objects when they are allocated, or freed |
//!
//! A size has a suffix `K`, `M`, `G` or `T`; numbers may be hexadecimal or octal as in C.

use core::fmt;

use pagevisor_shared::region::event::EventKind;
use pagevisor_shared::region::zone::hot;
use pagevisor_shared::units::{PAGE_SHIFT, PhysAddr};

use crate::contig::CmaRequest;
use crate::instrument::FaultAttr;
use crate::zone::{Core, MovableRequest};

/// What the command line says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Params {
    pub(crate) movable: MovableRequest,
    pub(crate) cma: Option<CmaRequest>,
    pub(crate) fail_page_alloc: Option<FaultAttr>,
    pub(crate) failslab: Option<FaultAttr>,
    /// Instrumentation that is to be on from the start, as [`hot`] bits.
    pub(crate) hot: u32,
    /// Kinds of events that are to be recorded from the start, as a mask.
    pub(crate) events: u64,
}

/// A word that cannot be obeyed. It is as if it were not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused<'a> {
    /// There is no mirrored memory.
    Mirror,
    /// The value is not of the word's syntax.
    Malformed(&'a str),
}

impl fmt::Display for Refused<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mirror => f.write_str("The system has no mirror memory, ignore kernelcore=mirror."),
            Self::Malformed(word) => write!(f, "Malformed early option '{word}'"),
        }
    }
}

impl Params {
    /// Reads `line`; tells `refused` what cannot be obeyed.
    pub(crate) fn parse<'a>(line: &'a str, refused: &mut dyn FnMut(Refused<'a>)) -> Self {
        let mut params = Self::default();
        for word in line.split_ascii_whitespace() {
            let Some((name, value)) = word.split_once('=') else { continue };
            let known = match name {
                "kernelcore" if value == "mirror" => {
                    refused(Refused::Mirror);
                    Some(())
                }
                "kernelcore" => core(value).map(|core| params.movable.kernelcore = core),
                "movablecore" => core(value).map(|core| params.movable.movablecore = core),
                "cma" => cma(value).map(|request| params.cma = Some(request)),
                "fail_page_alloc" => FaultAttr::parse(value).map(|attr| params.fail_page_alloc = Some(attr)),
                "failslab" => FaultAttr::parse(value).map(|attr| params.failslab = Some(attr)),
                "trace_event" => events(value).map(|events| params.events |= events),
                "page_owner" => params.switch(hot::PAGE_OWNER, value),
                "page_poison" => params.switch(hot::POISON, value),
                "init_on_alloc" => params.switch(hot::INIT_ON_ALLOC, value),
                "init_on_free" => params.switch(hot::INIT_ON_FREE, value),
                _ => Some(()),
            };
            if known.is_none() {
                refused(Refused::Malformed(word));
            }
        }
        params
    }

    fn switch(&mut self, bit: u32, value: &str) -> Option<()> {
        self.hot = if boolean(value)? { self.hot | bit } else { self.hot & !bit };
        Some(())
    }
}

/// The mask of the kinds named in a list; some have the name of their group before them (`kmem:mm_page_alloc`).
fn events(list: &str) -> Option<u64> {
    list.split(',').try_fold(0, |mask, name| {
        let name = name.rsplit_once(':').map_or(name, |(_, name)| name);
        Some(mask | EventKind::named(name)?.bit())
    })
}

/// `kstrtobool`.
fn boolean(text: &str) -> Option<bool> {
    match text.as_bytes() {
        [b'y' | b'Y' | b't' | b'T' | b'1', ..] | [b'o' | b'O', b'n' | b'N', ..] => Some(true),
        [b'n' | b'N' | b'f' | b'F' | b'0', ..] | [b'o' | b'O', b'f' | b'F', ..] => Some(false),
        _ => None,
    }
}

/// `simple_strtoull`: the number at the start of `text` and what is behind it.
fn number(text: &str) -> Option<(u64, &str)> {
    let (radix, digits) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, text.get(2..)?),
        [b'0', b'0'..=b'7', ..] => (8, text.get(1..)?),
        _ => (10, text),
    };
    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    Some((u64::from_str_radix(digits.get(..end)?, radix).ok()?, digits.get(end..)?))
}

/// `memparse`: as [`number`], with a suffix.
fn size(text: &str) -> Option<(u64, &str)> {
    let (value, rest) = number(text)?;
    let shift = match rest.as_bytes().first().map(u8::to_ascii_uppercase) {
        Some(b'K') => 10,
        Some(b'M') => 20,
        Some(b'G') => 30,
        Some(b'T') => 40,
        _ => return Some((value, rest)),
    };
    Some((value.checked_mul(1 << shift)?, rest.get(1..)?))
}

/// `cmdline_parse_core`.
fn core(text: &str) -> Option<Core> {
    let (value, rest) = number(text)?;
    if rest.starts_with('%') {
        return if value <= 100 { Some(Core::Percent(value)) } else { None };
    }
    size(text).map(|(bytes, _)| Core::Pages(bytes >> PAGE_SHIFT))
}

/// `early_cma`.
fn cma(text: &str) -> Option<CmaRequest> {
    let (bytes, rest) = size(text)?;
    let mut request = CmaRequest::of_size(bytes);
    if let Some(at) = rest.strip_prefix('@') {
        let (base, rest) = size(at)?;
        let limit = match rest.strip_prefix('-') {
            Some(limit) => size(limit)?.0,
            None => base.checked_add(bytes)?,
        };
        request.base = PhysAddr::new(base);
        request.limit = PhysAddr::new(limit);
        request.fixed = base.checked_add(bytes)? == limit;
    }
    Some(request)
}

#[cfg(test)]
mod tests {
    use std::string::{String, ToString};
    use std::vec::Vec;

    use super::*;

    fn parse(line: &str) -> (Params, Vec<String>) {
        let mut refused = Vec::new();
        let params = Params::parse(line, &mut |why| refused.push(why.to_string()));
        (params, refused)
    }

    #[test]
    fn sizes_and_percentages() {
        let core = |line| {
            let (params, refused) = parse(line);
            assert!(refused.is_empty(), "{refused:?}");
            (params.movable.kernelcore, params.movable.movablecore)
        };
        assert_eq!(core("kernelcore=96M quiet"), (Core::Pages(96 << 8), Core::Pages(0)));
        assert_eq!(core("movablecore=0x1g"), (Core::Pages(0), Core::Pages(1 << 18)));
        assert_eq!(core("kernelcore=30% movablecore=010K"), (Core::Percent(30), Core::Pages(2)));
        assert_eq!(core("kernelcore=8191"), (Core::Pages(1), Core::Pages(0)));
    }

    #[test]
    fn what_cannot_be_obeyed_is_told() {
        let (params, refused) =
            parse("kernelcore=mirror movablecore=x kernelcore=101% cma= fail_page_alloc=1 loglevel=x");
        assert_eq!(params.movable, MovableRequest::default());
        assert_eq!(params.cma, None);
        assert_eq!(
            refused,
            [
                "The system has no mirror memory, ignore kernelcore=mirror.",
                "Malformed early option 'movablecore=x'",
                "Malformed early option 'kernelcore=101%'",
                "Malformed early option 'cma='",
                "Malformed early option 'fail_page_alloc=1'",
            ]
        );
    }

    #[test]
    fn areas_have_a_place_if_it_is_given() {
        let cma = |text| parse(text).0.cma.map(|c| (c.size, c.base.raw(), c.limit.raw(), c.fixed));
        assert_eq!(cma("cma=64M"), Some((64 << 20, 0, 0, false)));
        assert_eq!(cma("cma=64M@256M"), Some((64 << 20, 256 << 20, 320 << 20, true)));
        assert_eq!(cma("cma=64M@256M-1G"), Some((64 << 20, 256 << 20, 1 << 30, false)));
        assert_eq!(cma("cma=64M@x"), None);
    }

    #[test]
    fn switches_are_read_as_linux_reads_them() {
        assert_eq!(parse("init_on_alloc=1 init_on_free=on").0.hot, hot::INIT_ON_ALLOC | hot::INIT_ON_FREE);
        assert_eq!(parse("init_on_alloc=y init_on_alloc=off init_on_free=0").0.hot, 0);
        assert_eq!(parse("init_on_free=maybe").1.len(), 1);
    }
}
