//! Backs the page metadata of every section that has memory (`sparse_init`).
//!
//! A section (128 MiB) needs 1 MiB of metadata. Two neighbours make a 2 MiB page of it; a section whose neighbour is
//! absent or another node's is backed by 4 KiB pages. The metadata of a node lies in the node's own memory where
//! there is room. The cost is per run of sections, not per section, but for the page-table entries the platform
//! writes.

use pagevisor_shared::page::PAGE_STRUCT_SIZE;
use pagevisor_shared::units::{NodeId, PAGES_PER_SECTION, Pfn, PhysAddr};

use crate::memblock::{AllocError, MEMBLOCK_ALLOC_ACCESSIBLE, Memblock};

/// Bytes of metadata of a section.
const SECTION_BYTES: u64 = PAGES_PER_SECTION * PAGE_STRUCT_SIZE;
/// Metadata stays out of ZONE_DMA (`MAX_DMA_ADDRESS`).
const LOWEST: PhysAddr = PhysAddr::new(16 << 20);

/// A piece of page metadata for the platform to map: `bytes` of it, from that of frame `first`, are at `backing`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemmapChunk {
    /// The first frame it describes.
    pub first: Pfn,
    /// Its size, a multiple of 2 MiB or of 1 MiB.
    pub bytes: u64,
    /// The memory it is to be kept in.
    pub backing: PhysAddr,
    /// Whether size, backing and virtual address are multiples of 2 MiB.
    pub huge: bool,
}

/// Maps a chunk; takes the page tables it needs from memblock.
pub type MapMemmap<'a> = &'a mut dyn FnMut(&mut Memblock, MemmapChunk) -> Result<(), AllocError>;

/// Sections of one node side by side.
#[derive(Clone, Copy, Debug)]
struct Run {
    node: NodeId,
    start: u64,
    end: u64,
}

/// Backs and maps the metadata of all memory.
///
/// # Errors
/// [`AllocError`] when memory for metadata or for the platform's tables is short.
pub(crate) fn sparse_init(memblock: &mut Memblock, map: MapMemmap<'_>) -> Result<(), AllocError> {
    let bottom_up = memblock.bottom_up();
    memblock.set_bottom_up(true);
    let mut next = 0;
    let result = loop {
        let Some(run) = next_run(memblock, next) else { break Ok(()) };
        next = run.end;
        if let Err(error) = populate_run(memblock, map, run) {
            break Err(error);
        }
    };
    memblock.set_bottom_up(bottom_up);
    result
}

/// The first run of sections at or above section `from`. A section belongs to the node of its first memory.
fn next_run(memblock: &Memblock, from: u64) -> Option<Run> {
    let mut run: Option<Run> = None;
    for range in memblock.mem_pfn_ranges(None) {
        let start = range.start.section().max(from);
        let end = (range.end.raw() - 1) / PAGES_PER_SECTION + 1;
        if start >= end {
            continue;
        }
        let node = range.nid.unwrap_or_default();
        match &mut run {
            None => run = Some(Run { node, start, end }),
            Some(run) if start <= run.end && run.node == node => run.end = run.end.max(end),
            Some(_) => break,
        }
    }
    run
}

/// Backs one run: its section pairs at once, what is left at its ends section by section.
fn populate_run(memblock: &mut Memblock, map: MapMemmap<'_>, run: Run) -> Result<(), AllocError> {
    let (first_pair, last_pair) = (run.start.next_multiple_of(2), run.end & !1);
    if first_pair >= last_pair {
        return (run.start..run.end).try_for_each(|section| populate(memblock, map, run.node, section, section + 1));
    }
    if run.start < first_pair {
        populate(memblock, map, run.node, run.start, first_pair)?;
    }
    let mut section = first_pair;
    let mut step = last_pair - first_pair;
    while section < last_pair {
        step = step.min(last_pair - section);
        match populate(memblock, map, run.node, section, section + step) {
            Ok(()) => section += step,
            // No room for all of it in one piece: in halves.
            Err(_) if step > 2 => step = (step / 2).next_multiple_of(2),
            Err(error) => return Err(error),
        }
    }
    if last_pair < run.end {
        populate(memblock, map, run.node, last_pair, run.end)?;
    }
    Ok(())
}

/// Backs sections `[start, end)`: one, or pairs.
fn populate(memblock: &mut Memblock, map: MapMemmap<'_>, node: NodeId, start: u64, end: u64) -> Result<(), AllocError> {
    let huge = (end - start).is_multiple_of(2);
    let bytes = (end - start) * SECTION_BYTES;
    let align = if huge { 2 * SECTION_BYTES } else { 4096 };
    let backing = memblock.alloc_try_nid(bytes, align, LOWEST, MEMBLOCK_ALLOC_ACCESSIBLE, Some(node))?;
    map(memblock, MemmapChunk { first: Pfn::new(start * PAGES_PER_SECTION), bytes, backing, huge })
}
