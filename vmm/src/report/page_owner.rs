//! `page_owner`: who allocated each page, as Linux's `/sys/kernel/debug/page_owner` has it; and summed up by the places
//! that allocate.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::Write;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page::PG_BUDDY;
use pagevisor_shared::page_flags::{NR_PAGEFLAGS, PageFlag};
use pagevisor_shared::units::PAGEBLOCK_ORDER;
use pagevisor_shared::zone::MAX_NR_ZONES;
use serde_json::{Value, json};

use super::error::ReportError;
use super::view::write_json;
use crate::machine::kernel_elf;
use crate::state::{Memmap, Owned, PageMeta, Sections, StateView};
use crate::symbols::{Location, Symbols};

/// Text is written in pieces of about this size.
const CHUNK: usize = 64 << 10;
/// Most call traces that are kept once they were read.
const KNOWN_TRACES: usize = 1 << 16;

/// Linux's `%pGp`: `0x10000(head|node=0|zone=2)`.
struct Flags {
    flags: u32,
    zone: usize,
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}(", self.flags)?;
        let set = PageFlag::NAMES.iter().zip(0..).filter(|(_, bit)| self.flags >> bit & 1 != 0);
        set.map(|(name, _)| name).try_for_each(|name| write!(f, "{name}|"))?;
        write!(f, "node={}|zone={})", self.zone / MAX_NR_ZONES, self.zone % MAX_NR_ZONES)
    }
}

/// Linux's `%pGg`, of flags that may be anything.
fn gfp_text(bits: u32) -> String {
    Gfp::from_bits(bits).map_or_else(|| format!("{bits:#x}"), |gfp| gfp.to_string())
}

/// What is known about a block beside its owner.
struct Place {
    meta: PageMeta,
    zone: usize,
    block_type: MigrateType,
}

/// Reads what belongs to a block.
struct Reader<'a> {
    state: &'a StateView,
    sections: Sections,
    memmap: Memmap<'a>,
    symbols: Symbols,
    traces: BTreeMap<u32, Vec<Location>>,
}

impl<'a> Reader<'a> {
    fn new(state: &'a StateView) -> Result<Self, ReportError> {
        if !state.has_owners() {
            return Err(ReportError::Off { what: "who allocates its pages", option: "page_owner=on" });
        }
        Ok(Self {
            state,
            sections: state.sections()?,
            memmap: state.memmap(),
            symbols: Symbols::of_guest(kernel_elf(), state.memory()),
            traces: BTreeMap::new(),
        })
    }

    /// Calls `found` for every block whose owner is known.
    fn all(&mut self, mut found: impl FnMut(&mut Self, Owned) -> Result<(), ReportError>) -> Result<(), ReportError> {
        let (state, end) = (self.state, self.sections.end_pfn());
        state.owners(end, &mut |owned| found(self, owned))
    }

    /// `None` for what is no memory, or is free by now.
    fn place(&mut self, owned: Owned) -> Result<Option<Place>, ReportError> {
        let Some(zone) = self.sections.zone_of(owned.pfn) else { return Ok(None) };
        let Some(meta) = self.memmap.get(owned.pfn)? else { return Ok(None) };
        if meta.mapcount == PG_BUDDY {
            return Ok(None);
        }
        let block_type = self.state.migratetype_of(owned.pfn)?;
        Ok(Some(Place { meta, zone: zone.index(), block_type }))
    }

    /// The calls behind a handle.
    fn trace(&mut self, handle: u32) -> Result<Vec<Location>, ReportError> {
        if let Some(trace) = self.traces.get(&handle) {
            return Ok(trace.clone());
        }
        let trace: Vec<_> =
            self.state.stack(handle)?.into_iter().map(|address| self.symbols.locate_return(address)).collect();
        if self.traces.len() < KNOWN_TRACES {
            self.traces.insert(handle, trace.clone());
        }
        Ok(trace)
    }
}

/// Who called the memory stack: the first call that is not its own.
fn call_site(trace: &[Location]) -> Option<&Location> {
    let own = |location: &&Location| {
        let name = location.symbol.as_ref().map_or("", |symbol| symbol.name.as_str());
        name.starts_with("pagevisor_mm::") || name.starts_with("<pagevisor_mm::") || name.contains("::Platform>::")
    };
    trace.iter().find(|location| !own(location)).or(trace.last())
}

/// Writes every block whose owner is known.
///
/// # Errors
/// [`ReportError::Off`] when the guest does not note owners, or when guest memory cannot be read.
pub fn blocks(state: &StateView, json: bool, out: &mut dyn Write) -> Result<(), ReportError> {
    let mut text = String::new();
    let mut first = true;
    let mut reader = Reader::new(state)?;
    if json {
        text += "{\"pages\":[";
    }
    reader.all(|reader, owned| {
        let Some(place) = reader.place(owned)? else { return Ok(()) };
        let trace = reader.trace(owned.stack)?;
        if json {
            let free_trace = reader.trace(owned.free_stack)?;
            let _ = write!(text, "{}{}", if first { "\n" } else { ",\n" }, as_json(owned, &place, &trace, &free_trace));
            first = false;
        } else if !trace.is_empty() {
            // As in Linux, what nobody can be named for is left out. Writing to a string cannot fail.
            let _ = as_text(owned, &place, &trace, &mut text);
        }
        if text.len() >= CHUNK {
            out.write_all(text.as_bytes()).map_err(ReportError::Write)?;
            text.clear();
        }
        Ok(())
    })?;
    if json {
        text += "\n]}\n";
    }
    out.write_all(text.as_bytes()).map_err(ReportError::Write)
}

/// `print_page_owner`
fn as_text(owned: Owned, place: &Place, trace: &[Location], out: &mut String) -> fmt::Result {
    let Owned { pfn, gfp, cpu, ts_nsec, free_ts_nsec, .. } = owned;
    writeln!(
        out,
        "Page allocated via order {}, mask {gfp:#x}({}), pid 0, tgid 0 (swapper/{cpu}), ts {ts_nsec} ns, free_ts {free_ts_nsec} ns",
        owned.order.raw(),
        gfp_text(gfp),
    )?;
    let flags = Flags { flags: place.meta.flags & ((1 << NR_PAGEFLAGS) - 1), zone: place.zone };
    writeln!(
        out,
        "PFN {pfn} type {} Block {} type {} Flags {flags}",
        mobility(gfp).name(),
        pfn >> PAGEBLOCK_ORDER,
        place.block_type.name(),
    )?;
    trace.iter().try_for_each(|location| writeln!(out, " {location}"))?;
    out.write_char('\n')
}

/// The migrate type that flags ask for.
fn mobility(gfp: u32) -> MigrateType {
    Gfp::from_bits(gfp & (Gfp::MOVABLE | Gfp::RECLAIMABLE).bits()).map_or(MigrateType::Unmovable, Gfp::migratetype)
}

fn as_json(owned: Owned, place: &Place, trace: &[Location], free_trace: &[Location]) -> Value {
    let text = |trace: &[Location]| trace.iter().map(Location::to_string).collect::<Vec<_>>();
    json!({
        "pfn": owned.pfn,
        "order": owned.order.raw(),
        "gfp": owned.gfp,
        "gfp_names": gfp_text(owned.gfp),
        "cpu": owned.cpu,
        "ts_ns": owned.ts_nsec,
        "free_ts_ns": owned.free_ts_nsec,
        "node": place.zone / MAX_NR_ZONES,
        "zone": place.zone % MAX_NR_ZONES,
        "type": mobility(owned.gfp).name(),
        "block_type": place.block_type.name(),
        "flags": place.meta.flags & ((1 << NR_PAGEFLAGS) - 1),
        "call_site": call_site(trace).map(Location::to_string),
        "stack": text(trace),
        "free_stack": text(free_trace),
    })
}

/// Writes how much each place that allocates holds, most first.
///
/// # Errors
/// As [`blocks`].
pub fn sites(state: &StateView, json: bool, out: &mut dyn Write) -> Result<(), ReportError> {
    let mut by_site: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut reader = Reader::new(state)?;
    reader.all(|reader, owned| {
        if reader.place(owned)?.is_none() {
            return Ok(());
        }
        let trace = reader.trace(owned.stack)?;
        let site = call_site(&trace).map_or_else(|| "unknown".to_owned(), Location::to_string);
        if by_site.len() < KNOWN_TRACES || by_site.contains_key(&site) {
            let (blocks, pages) = by_site.entry(site).or_default();
            *blocks += 1;
            *pages = pages.saturating_add(owned.order.pages());
        }
        Ok(())
    })?;
    let mut rows: Vec<_> = by_site.into_iter().collect();
    rows.sort_by_key(|(site, (_, pages))| (std::cmp::Reverse(*pages), site.clone()));
    if json {
        let row = |(site, (blocks, pages))| json!({ "call_site": site, "blocks": blocks, "pages": pages });
        return write_json(&json!({ "sites": rows.into_iter().map(row).collect::<Vec<_>>() }), out);
    }
    let mut text = format!("{:>10} {:>10}  CALL SITE\n", "BLOCKS", "PAGES");
    for (site, (blocks, pages)) in rows {
        let _ = writeln!(text, "{blocks:>10} {pages:>10}  {site}");
    }
    out.write_all(text.as_bytes()).map_err(ReportError::Write)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use pagevisor_shared::page_owner::{OWNER_RECORD_SIZE, OwnerState, STACK_RECORD_SIZE};

    use super::*;
    use crate::report::View;
    use crate::state::fake::{FakeGuest, MIB, PFN4G};

    const OWNERS: u64 = 48 * MIB;
    const STACKS: u64 = 96 * MIB;

    /// A guest with the tables, and one call trace.
    fn guest() -> FakeGuest {
        let guest = FakeGuest::new();
        let region = guest.region();
        let roots = &region.header().roots;
        roots.page_owner.store(OWNERS, Relaxed);
        roots.stacks.store(STACKS, Relaxed);
        roots.nr_stacks.store(2, Relaxed);
        let at = STACKS + STACK_RECORD_SIZE;
        guest.memory.write_u32(at, 2);
        guest.memory.write_u64(at + 8, 0x1234);
        guest.memory.write_u64(at + 16, 0xffff_ffff_8100_0000);
        guest
    }

    fn own(guest: &FakeGuest, pfn: u64, order: u8, gfp: u32, stack: u32) {
        let at = OWNERS + pfn * OWNER_RECORD_SIZE;
        let state = OwnerState { allocated: true, order, cpu: 3, free_cpu: 0 };
        guest.memory.write_u32(at, gfp);
        guest.memory.write_u32(at + 4, state.pack());
        guest.memory.write_u64(at + 8, 1234);
        guest.memory.write_u64(at + 16, 99);
        guest.memory.write_u32(at + 24, stack);
    }

    fn show(guest: &FakeGuest, view: &str, json: bool) -> String {
        let mut out = Vec::new();
        view.parse::<View>().unwrap().render(&guest.view(), json, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_page_is_shown_as_linux_shows_it() {
        let guest = guest();
        let pfn = u64::from(PFN4G) + 8;
        own(&guest, pfn, 3, (Gfp::HIGHUSER_MOVABLE | Gfp::COMP).bits(), 2);
        guest.set_meta(PFN4G + 8, 0, 1 << 16);
        let want = "\
Page allocated via order 3, mask 0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), pid 0, tgid 0 (swapper/3), ts 1234 ns, free_ts 99 ns
PFN 1048584 type Movable Block 2048 type Movable Flags 0x10000(head|node=1|zone=2)
 0x0000000000001234
 0xffffffff81000000

";
        assert_eq!(show(&guest, "page_owner", false), want);
        let json: Value = serde_json::from_str(&show(&guest, "page_owner", true)).unwrap();
        let page = &json["pages"][0];
        assert_eq!((&page["pfn"], &page["call_site"]), (&json!(pfn), &json!("0x0000000000001234")));
        own(&guest, pfn + 8, 0, 0xcc0, 2);
        let sites = "    BLOCKS      PAGES  CALL SITE\n         2          9  0x0000000000001234\n";
        assert_eq!(show(&guest, "page_owner sites", false), sites);
    }

    #[test]
    fn what_is_no_owner_is_left_out() {
        let guest = guest();
        let first = u64::from(PFN4G);
        own(&guest, first + 1, 3, 0, 2); // not aligned
        own(&guest, first + 2, 11, 0, 2); // no such order
        own(&guest, first + 3, 0, 0, 0); // nobody known
        own(&guest, first + 4, 0, 0, 3); // beyond the table
        own(&guest, first + 5, 0, 0, u32::MAX);
        own(&guest, first + 6, 0, 0, 2); // free by now
        guest.set_meta(PFN4G + 6, 2, PG_BUDDY);
        own(&guest, 0x4_0000, 0, 0, 2); // no memory
        assert_eq!(show(&guest, "page_owner", false), "");
        // Flags without a meaning.
        own(&guest, first, 0, u32::MAX, 2);
        assert!(show(&guest, "page_owner", false).contains("mask 0xffffffff(0xffffffff)"));
    }

    #[test]
    fn a_guest_that_notes_nothing_says_how_it_would() {
        let guest = FakeGuest::new();
        let error = blocks(&guest.view(), false, &mut Vec::new()).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains("'page_owner=on'"), "{error}");
        let lying = self::guest();
        let region = lying.region();
        region.header().roots.page_owner.store(u64::MAX - 5, Relaxed);
        assert_eq!(show(&lying, "page_owner", false), "");
        region.header().roots.page_owner.store(7, Relaxed);
        region.header().roots.max_pfn.store(u64::MAX, Relaxed);
        let _ = blocks(&lying.view(), true, &mut Vec::new());
    }
}
