//! A recount of everything the allocator keeps twice: lists against counters against metadata.
//!
//! Slow, and only exact while nothing else runs; for tests and for a guest at rest. It trusts nothing it checks: walks
//! are bounded by what the counters promise.

mod areas;
#[cfg(feature = "hosted")]
mod files;
mod free_lists;
#[cfg(feature = "hosted")]
mod lists;
mod pages;
mod pagesets;
mod percpu;
mod slab;
mod spaces;
#[cfg(feature = "hosted")]
mod user;

pub use areas::{AreaSink, AreaViolation, verify_vmalloc};
#[cfg(feature = "hosted")]
pub use files::file_violations;
#[cfg(feature = "hosted")]
pub use lists::{
    area_violations, chunk_violations, free_list, pageset_list, space_violations, unmerged_areas, violations,
};
pub use percpu::{ChunkSink, ChunkViolation, verify_percpu};
pub use spaces::verify_spaces;
#[cfg(feature = "hosted")]
pub use user::{UserViolation, user_violations};

use core::fmt;

use pagevisor_shared::zone::ZoneIndex;

use crate::Mm;
use crate::platform::Platform;

/// Something that is not as it must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Violation {
    /// What is wrong.
    pub what: &'static str,
    /// The zone it is in.
    pub zone: ZoneIndex,
    /// The frame, or 0 where it is about a list or a counter.
    pub pfn: u64,
    /// What was found.
    pub found: u64,
    /// What was expected.
    pub expected: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zone {}", self.zone.0)?;
        if self.pfn != 0 {
            write!(f, ", frame {:#x}", self.pfn)?;
        }
        write!(f, ": {}: found {:#x}, expected {:#x}", self.what, self.found, self.expected)
    }
}

/// Receives violations.
pub type Sink<'a> = &'a mut dyn FnMut(Violation);

/// Checks a zone, and passes what it finds on.
struct Checker<'a, 'b> {
    zone: ZoneIndex,
    sink: Sink<'a>,
    pages: &'b mut Pages,
}

/// Pages counted while walking.
#[derive(Clone, Copy, Default, Debug)]
struct Pages {
    /// On free lists.
    free: u64,
    /// On free lists of isolated page blocks, which do not count as free.
    isolated: u64,
    /// On free lists of contiguous memory areas.
    cma: u64,
    /// On pagesets.
    pagesets: u64,
}

impl Checker<'_, '_> {
    fn report(&mut self, what: &'static str, pfn: u64, found: u64, expected: u64) {
        (self.sink)(Violation { what, zone: self.zone, pfn, found, expected });
    }

    fn equal(&mut self, what: &'static str, pfn: u64, found: u64, expected: u64) {
        if found != expected {
            self.report(what, pfn, found, expected);
        }
    }
}

/// Recounts everything and reports what is not as it must be.
pub fn verify<P: Platform>(mm: &Mm<P>, sink: Sink<'_>) {
    for (index, zone) in mm.populated_zones() {
        let mut pages = Pages::default();
        let mut checker = Checker { zone: index, sink: &mut *sink, pages: &mut pages };
        checker.free_lists(mm, zone);
        checker.pagesets(mm);
        checker.counters(mm, zone);
        checker.all_pages(mm, zone);
    }
    slab::verify(mm, sink);
}
