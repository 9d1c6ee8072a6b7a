//! The direct map: all RAM at [`PAGE_OFFSET`], in 2 MiB pages, 4 KiB ones where RAM starts or ends inside a block.
//!
//! Filling it costs a store per 2 MiB, half a million for a terabyte, so boot fills only the first GiB. Every other
//! GiB gets its page directory's address noted in an entry that is not present; the page-fault handler fills the
//! directory on the first touch and makes the entry present. Two CPUs may do so at once: both write the same.
//!
//! The kernel's text and read-only data may not be written through the direct map either.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::Release};

use pagevisor_mm::memblock::Memblock;
use pagevisor_shared::layout::{PAGE_OFFSET, START_KERNEL_MAP};
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE, PhysAddr};

use crate::arch::paging::{
    self, DATA, DIRECT_IMAGE_PT, DIRECT_PD, GIB, GIB_SHIFT, LARGE, LARGE_SHIFT, LARGE_SIZE, PRESENT, Table, WRITABLE,
    table_at,
};
use crate::memory::LOWEST;

/// Most separate ranges of RAM. The firmware's memory map is bounded by it too.
pub const MAX_RANGES: usize = 256;

/// Ranges of RAM as physical addresses, whole pages, ascending, neighbours merged: start, end, start, end...
static RAM: [AtomicU64; 2 * MAX_RANGES] = [const { AtomicU64::new(0) }; 2 * MAX_RANGES];
static RANGES: AtomicUsize = AtomicUsize::new(0);

/// The part of an entry that is no address, as far as it concerns tables.
const PAGE_MASK: u64 = PAGE_SIZE - 1;

/// Bytes mapped by pages of one size.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// In 4 KiB pages.
    pub small: u64,
    /// In 2 MiB pages.
    pub large: u64,
}

/// Notes a range of RAM; ranges come in ascending order. Those beyond [`MAX_RANGES`] are refused.
pub fn add_ram(range: Range<u64>) -> bool {
    let count = RANGES.load(Relaxed);
    if count > 0 && RAM[2 * count - 1].load(Relaxed) == range.start {
        RAM[2 * count - 1].store(range.end, Relaxed);
        return true;
    }
    if count == MAX_RANGES {
        return false;
    }
    RAM[2 * count].store(range.start, Relaxed);
    RAM[2 * count + 1].store(range.end, Relaxed);
    RANGES.store(count + 1, Relaxed);
    true
}

/// The ranges of RAM.
pub fn ram() -> impl Iterator<Item = Range<u64>> + Clone {
    RAM[..2 * RANGES.load(Relaxed)].chunks_exact(2).map(|pair| pair[0].load(Relaxed)..pair[1].load(Relaxed))
}

/// The 2 MiB blocks that lie wholly in `range`, or nothing.
fn whole_blocks(range: &Range<u64>) -> Range<u64> {
    let start = range.start.next_multiple_of(LARGE_SIZE);
    start..(range.end & !(LARGE_SIZE - 1)).max(start)
}

fn cut(range: Range<u64>, to: &Range<u64>) -> Range<u64> {
    range.start.max(to.start)..range.end.min(to.end)
}

/// The block that holds the kernel image, which gets 4 KiB pages.
fn image_block() -> u64 {
    (paging::image().text - START_KERNEL_MAP) & !(LARGE_SIZE - 1)
}

/// Fills the whole blocks of the GiB at `gib` into its directory.
fn fill_directory(pd: &Table, gib: u64) {
    let image = image_block();
    for range in ram() {
        let blocks = whole_blocks(&cut(range, &(gib..gib + GIB)));
        // The image's block has a table of its own, in front of which and behind which all is alike.
        let (before, behind) = if blocks.contains(&image) {
            (blocks.start..image, image + LARGE_SIZE..blocks.end)
        } else {
            (0..0, blocks)
        };
        for part in [before, behind] {
            pd.fill(part.start, part.end - part.start, LARGE_SHIFT, part.start | DATA | LARGE, LARGE_SIZE);
        }
    }
}

/// The page-fault handler's part: makes physical address `phys` reachable if it is RAM; false when it cannot.
pub fn fill(phys: u64) -> bool {
    if !ram().any(|range| range.contains(&phys)) {
        return false;
    }
    let top = paging::direct_pml4_entry(phys).load(Relaxed);
    if top & PRESENT == 0 {
        return false;
    }
    let slot = table_at(top).entry(phys, 2);
    let entry = slot.load(Relaxed);
    if entry == 0 {
        return false;
    }
    let pd = table_at(entry);
    fill_directory(pd, phys & !(GIB - 1));
    // Release: who walks through this entry finds the directory filled.
    slot.store(paging::table_entry(entry & !PAGE_MASK), Release);
    pd.entry(phys, 1).load(Relaxed) != 0
}

/// Maps the first GiB, but for blocks that are not wholly RAM. Needs no memory: it is what memory for tables is
/// reached through.
pub fn init_first_gib() {
    fill_directory(&DIRECT_PD, 0);
    fill_ragged(&DIRECT_IMAGE_PT, image_block());
    DIRECT_PD.entry(image_block(), 1).store(paging::table_entry(DIRECT_IMAGE_PT.phys()), Relaxed);
}

/// Prepares the rest, with tables from `memblock`. Gives what is mapped in the end.
pub fn init(memblock: &mut Memblock) -> Totals {
    prepare_directories(memblock);
    let mut totals = Totals::default();
    let mut done = 0;
    for range in ram() {
        let blocks = whole_blocks(&range);
        let large = blocks.end - blocks.start;
        totals.large += large;
        totals.small += range.end - range.start - large;
        if blocks.contains(&image_block()) {
            totals.large -= LARGE_SIZE;
            totals.small += LARGE_SIZE;
        }
        for edge in [range.start, range.end] {
            let block = edge & !(LARGE_SIZE - 1);
            if edge != block && block >= done && block != image_block() {
                prepare_ragged(memblock, block);
                done = block + LARGE_SIZE;
            }
        }
    }
    totals
}

/// `pages` zeroed pages for tables, next to each other.
fn new_tables(memblock: &mut Memblock, pages: u64) -> u64 {
    match memblock.alloc_try_nid(pages * PAGE_SIZE, PAGE_SIZE, LOWEST, PhysAddr::new(GIB), None) {
        Ok(table) => table.raw(),
        Err(error) => panic!("no memory for page tables: {error}"),
    }
}

/// A zeroed page for a table.
pub fn new_table(memblock: &mut Memblock) -> PhysAddr {
    PhysAddr::new(new_tables(memblock, 1))
}

/// Calls `each` with the runs of `unit`s of address space, from address `from` up, that hold RAM: first address, and
/// number of units.
fn runs_with_ram(unit: u64, from: u64, mut each: impl FnMut(u64, u64)) {
    let mut next = from;
    for range in ram() {
        let start = next.max(range.start & !(unit - 1));
        if start < range.end {
            let count = (range.end - start).div_ceil(unit);
            each(start, count);
            next = start + count * unit;
        }
    }
}

/// Notes a directory for every GiB but the first.
fn prepare_directories(memblock: &mut Memblock) {
    const TOP_SHIFT: u32 = 39;
    runs_with_ram(1 << TOP_SHIFT, 1 << TOP_SHIFT, |start, count| {
        for top in (0..count).map(|index| start + (index << TOP_SHIFT)) {
            paging::direct_pml4_entry(top).store(paging::table_entry(new_tables(memblock, 1)), Relaxed);
        }
    });
    let mut pages = 0;
    runs_with_ram(GIB, GIB, |_, count| pages += count);
    if pages == 0 {
        return;
    }
    let mut directory = new_tables(memblock, pages);
    runs_with_ram(GIB, GIB, |start, count| {
        let end = start + count * GIB;
        let mut gib = start;
        while gib < end {
            // One table of the level above at a time.
            let stop = end.min((gib | ((1 << TOP_SHIFT) - 1)) + 1);
            let pdpt = table_at(paging::direct_pml4_entry(gib).load(Relaxed));
            pdpt.fill(gib, stop - gib, GIB_SHIFT, directory, PAGE_SIZE);
            directory += (stop - gib) / GIB * PAGE_SIZE;
            gib = stop;
        }
    });
}

/// Maps the RAM in the block at `block` by 4 KiB pages.
fn prepare_ragged(memblock: &mut Memblock, block: u64) {
    let table = new_tables(memblock, 1);
    fill_ragged(table_at(table), block);
    let pdpt = table_at(paging::direct_pml4_entry(block).load(Relaxed));
    let pd = table_at(pdpt.entry(block, 2).load(Relaxed));
    pd.entry(block, 1).store(paging::table_entry(table), Relaxed);
}

fn fill_ragged(pt: &Table, block: u64) {
    let within = block..block + LARGE_SIZE;
    for range in ram() {
        let part = cut(range, &within);
        if !part.is_empty() {
            pt.fill(part.start, part.end - part.start, PAGE_SHIFT, part.start | DATA, PAGE_SIZE);
        }
    }
    let image = paging::image();
    let fixed = image.text - START_KERNEL_MAP..image.data - START_KERNEL_MAP;
    let part = cut(fixed, &within);
    if !part.is_empty() {
        pt.fill(part.start, part.end - part.start, PAGE_SHIFT, part.start | (DATA & !WRITABLE), PAGE_SIZE);
    }
}

/// The RAM at `range`, which boot has reserved and nobody writes as long as somebody has the result; nothing if it is no RAM.
pub fn bytes(range: &Range<u64>) -> &'static [u8] {
    if range.is_empty() || !ram().any(|ram| ram.start <= range.start && range.end <= ram.end) {
        return &[];
    }
    let start = core::ptr::with_exposed_provenance((PAGE_OFFSET + range.start) as usize);
    // SAFETY: the direct map has all RAM, at the latest when it is touched; the caller's promise.
    unsafe { core::slice::from_raw_parts(start, (range.end - range.start) as usize) }
}
