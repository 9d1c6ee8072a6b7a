//! Kinds of damage, each with the rule that must tell.

use std::sync::atomic::Ordering::SeqCst;

use pagevisor::verify::Rule;
use pagevisor_shared::layout::{
    KERNEL_PHYS, PAGE_OFFSET, START_KERNEL_MAP, STATE_REGION_VIRT, VMALLOC_START, VMEMMAP_START,
};
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page::{PG_BUDDY, encode_next};
use pagevisor_shared::page_flags::{PG_NOTZERO, PG_ORDER_MASK, PageFlag};
use pagevisor_shared::region::records::ResourceKind;
use pagevisor_shared::vmstat::ZoneStat;

use super::{Bench, Field, Free};

/// What it is, who must find it, how it is done.
pub type Mutation = (&'static str, Rule, fn(&Bench<'_>));

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const NO_EXECUTE: u64 = 1 << 63;

fn small(free: &Free) -> bool {
    free.order < 9
}

fn any(_: &Free) -> bool {
    true
}

/// Flips bits of the entry that maps `address`.
fn flip_entry(bench: &Bench<'_>, address: u64, bits: u64) {
    let (at, entry) = bench.leaf(address);
    bench.poke(at, &(entry ^ bits).to_le_bytes());
}

pub const FREE_LISTS: &[Mutation] = &[
    ("a forward link that skips a block", Rule::FreeListBackLink, |bench| {
        let free = bench.free(3, any);
        let behind = bench.next(bench.next(free.pfn));
        bench.set_meta(free.pfn, Field::Next, encode_next(free.pfn, behind));
    }),
    ("a backward link to elsewhere", Rule::FreeListBackLink, |bench| {
        let free = bench.free(2, any);
        bench.set_meta(bench.next(free.pfn), Field::Prev, 0x77);
    }),
    ("a list that comes back to its start", Rule::FreeListLength, |bench| {
        let free = bench.free(3, any);
        let second = bench.next(free.pfn);
        bench.set_meta(second, Field::Next, encode_next(second, free.pfn));
    }),
    ("a list that ends early", Rule::FreeListEnd, |bench| {
        let free = bench.free(2, any);
        bench.set_meta(free.pfn, Field::Next, encode_next(free.pfn, 0));
    }),
    ("a last block that is none", Rule::FreeListEnd, |bench| {
        let free = bench.free(1, any);
        bench.change(&bench.list(free).last, |last| last + (1 << free.order));
    }),
    ("a link into a hole", Rule::FreeListZone, |bench| {
        let free = bench.free(2, any);
        bench.set_meta(free.pfn, Field::Next, encode_next(free.pfn, 0xffff_fc00));
    }),
    ("a first block of another zone", Rule::FreeListZone, |bench| {
        let mine = bench.free(1, any);
        let other = bench.free(1, |free| free.zone != mine.zone && free.order == mine.order);
        bench.set(&bench.list(mine).first, other.pfn);
    }),
    ("a block that is not aligned", Rule::FreeListAlign, |bench| {
        let free = bench.free(1, |free| free.order > 0 && small(free));
        bench.change(&bench.list(free).first, |first| first + 1);
    }),
    ("a block without its mark", Rule::FreeListMark, |bench| {
        bench.set_meta(bench.free(1, small).pfn, Field::Mapcount, 0);
    }),
    ("a block of another order", Rule::FreeListMark, |bench| {
        let free = bench.free(1, small);
        bench.set_meta(free.pfn, Field::Private, free.order as u32 + 1);
    }),
    ("a block that names another list", Rule::FreeListType, |bench| {
        let free = bench.free(1, |free| small(free) && free.kind != MigrateType::Unmovable);
        bench.set_meta(free.pfn, Field::Index, MigrateType::Unmovable.block_byte().into());
    }),
    ("a reference to a free block", Rule::FreeListReferences, |bench| {
        bench.set_meta(bench.free(1, small).pfn, Field::Refcount, 1);
    }),
    ("a free block with a flag", Rule::FreeListFlags, |bench| {
        bench.set_meta(bench.free(1, small).pfn, Field::Flags, PageFlag::Dirty.mask());
    }),
    ("a page block that became isolated without its pages", Rule::FreeListPageblock, |bench| {
        let free = bench.free(1, |free| free.order == 10);
        bench.poke(bench.block_gpa(free.pfn), &[MigrateType::Isolate.block_byte()]);
    }),
    ("a free buddy that was not merged", Rule::FreeListBuddy, |bench| {
        // A block of some order becomes its two halves.
        let free = bench.free(1, |free| (1..9).contains(&free.order) && bench.one_block(*free));
        let (lower, upper) = (free.pfn, free.pfn + (1 << (free.order - 1)));
        let below = Free { order: free.order - 1, ..free };
        bench.unlist(free);
        bench.list_alone(below, lower);
        bench.append(below, upper);
    }),
    ("a wrong count of blocks", Rule::FreeListCount, |bench| {
        let free = bench.free(1, any);
        bench.change(&bench.area(free).nr_free[free.kind.index()], |count| count + 1);
    }),
    ("a mark on a page that is on no list", Rule::BuddyMarkStray, |bench| {
        let pfn = bench.in_use().0;
        bench.set_meta(pfn + 1, Field::Mapcount, PG_BUDDY);
    }),
    ("a count of free pages too large", Rule::ZoneNrFreePages, |bench| {
        bench.change(&bench.used_zone().vm_stat[ZoneStat::NrFreePages.index()], |pages| pages + 1);
    }),
    ("a CPU's part of the count of free pages", Rule::ZoneNrFreePages, |bench| {
        let pcp = &bench.region.pcps()[bench.used_zone_index()];
        bench.change(&pcp.vm_stat_diff[ZoneStat::NrFreePages.index()], |pages| pages - 3);
    }),
    ("a count of free pages of contiguous areas", Rule::ZoneNrFreeCma, |bench| {
        bench.change(&bench.used_zone().vm_stat[ZoneStat::NrFreeCma.index()], |pages| pages + 512);
    }),
    ("a counter of things there are not", Rule::ZoneCounter, |bench| {
        bench.set(&bench.used_zone().vm_stat[ZoneStat::NrZoneWritePending.index()], 7);
    }),
];

pub const PAGES: &[Mutation] = &[
    ("a pageset that counts a page more", Rule::PagesetCount, |bench| {
        bench.change(&bench.cached().0.count, |count| count + 1);
    }),
    ("a pageset's list that ends early", Rule::PagesetCount, |bench| {
        let (pcp, number) = bench.cached();
        let first = pcp.lists[number].first.load(SeqCst);
        bench.set_meta(first, Field::Next, encode_next(first, 0));
    }),
    ("a backward link on a pageset", Rule::PagesetLink, |bench| {
        let (pcp, number) = bench.cached();
        let second = bench.next(pcp.lists[number].first.load(SeqCst));
        bench.set_meta(second, Field::Prev, 5);
    }),
    ("a pageset that is not unlocked", Rule::PagesetLock, |bench| {
        bench.set(&bench.cached().0.hot_lock, 1);
    }),
    ("a reference to a page on a pageset", Rule::PagesetReferences, |bench| {
        let (pcp, number) = bench.cached();
        bench.set_meta(pcp.lists[number].first.load(SeqCst), Field::Refcount, 1);
    }),
    ("a page on a pageset with a flag", Rule::PagesetFlags, |bench| {
        let (pcp, number) = bench.cached();
        bench.set_meta(pcp.lists[number].first.load(SeqCst), Field::Flags, PageFlag::Locked.mask());
    }),
    ("a page on the pageset list of another type", Rule::PagesetType, |bench| {
        let (pcp, number) = bench.cached();
        bench.set_meta(pcp.lists[number].first.load(SeqCst), Field::Index, (number as u32 + 1) % 3);
    }),
    ("a pageset page of another zone", Rule::PagesetBlock, |bench| {
        let (mine, number) = bench.cached();
        let zone = bench.used_zone_index();
        let other = bench.region.pcps().iter().enumerate().find(|(index, pcp)| {
            *index != zone
                && !std::ptr::eq(*pcp, mine)
                && pcp.count.load(SeqCst) == 0
                && *index < bench.region.zones().len()
        });
        let (_, other) = other.expect("another zone of CPU 0");
        let first = mine.lists[number].first.load(SeqCst);
        bench.set(&other.lists[number].first, first);
        bench.set(&other.lists[number].last, mine.lists[number].last.load(SeqCst));
        bench.set(&mine.lists[number].first, 0);
    }),
    ("a page both in use and free", Rule::PageTwoStates, |bench| {
        let free = bench.free(1, |free| free.order > 0);
        bench.set_meta(free.pfn + 1, Field::Refcount, 1);
    }),
    ("a page in use that nobody holds", Rule::PageNoState, |bench| {
        bench.set_meta(bench.in_use().0, Field::Refcount, 0);
    }),
    ("a block in use of another order", Rule::ZoneAccounting, |bench| {
        let (pfn, page) = bench.in_use_of(0);
        // One more page than was allocated, at a place where that fits.
        let flags = page.flags & !PG_ORDER_MASK | 1 << pagevisor_shared::page_flags::PG_ORDER_SHIFT;
        bench.set_meta(pfn & !1, Field::Flags, flags);
        bench.set_meta(pfn & !1, Field::Refcount, 1);
    }),
    ("an order that does not fit", Rule::PageInUse, |bench| {
        let (pfn, page) = bench.in_use_of(0);
        bench.set_meta(pfn, Field::Flags, page.flags | 0xf << pagevisor_shared::page_flags::PG_ORDER_SHIFT);
    }),
    ("a compound page of one page", Rule::PageInUse, |bench| {
        let (pfn, page) = bench.find_in_use(|page| page.flags & PageFlag::Head.mask() != 0);
        bench.set_meta(pfn, Field::Flags, page.flags & !PG_ORDER_MASK);
    }),
    ("a reference to what is no memory", Rule::PageOutsideMemory, |bench| {
        // The hole below 1 MiB.
        bench.set_meta(0xa5, Field::Refcount, 1);
    }),
    ("a page that says it is mapped", Rule::PageMapcount, |bench| {
        bench.set_meta(bench.in_use().0, Field::Mapcount, 1);
    }),
    ("a reference to reserved memory", Rule::ReservedReferences, |bench| {
        bench.set_meta((KERNEL_PHYS >> 12) as u32 + 3, Field::Refcount, 1);
    }),
    ("a free page that is not as zero as it says", Rule::FreePageZero, |bench| {
        let free = bench.free(1, |free| bench.meta(free.pfn).flags & PG_NOTZERO == 0);
        bench.poke((u64::from(free.pfn) << 12) + 77, b"x");
    }),
];

pub const ZONES: &[Mutation] = &[
    ("a zone of another node", Rule::ZoneIdentity, |bench| bench.change(&bench.used_zone().node, |node| node + 1)),
    ("a zone that is not unlocked", Rule::ZoneLock, |bench| bench.change(&bench.used_zone().seq, |seq| seq + 1)),
    ("a zone that starts later", Rule::ZoneSpan, |bench| {
        bench.change(&bench.used_zone().zone_start_pfn, |pfn| pfn + 512);
    }),
    ("a present page too many", Rule::ZonePresentPages, |bench| {
        bench.change(&bench.used_zone().present_pages, |pages| pages + 1);
    }),
    ("a managed page too few", Rule::ZoneManagedPages, |bench| {
        bench.change(&bench.used_zone().managed_pages, |pages| pages - 1);
    }),
    ("a watermark", Rule::ZoneWatermark, |bench| bench.change(&bench.used_zone().watermark[1], |mark| mark + 1)),
    ("a boost without end", Rule::ZoneWatermarkBoost, |bench| bench.set(&bench.used_zone().watermark_boost, 1 << 40)),
    ("a mark that is not the sum", Rule::ZoneAllocMark, |bench| {
        bench.change(&bench.used_zone().alloc_mark, |mark| mark - 1)
    }),
    ("a reserve against higher zones", Rule::ZoneLowmemReserve, |bench| {
        bench.change(&bench.zone(0).lowmem_reserve[2], |pages| pages + 1);
    }),
    ("a contiguous area without page blocks", Rule::ZoneCmaPages, |bench| {
        bench.change(&bench.used_zone().cma_pages, |pages| pages + 1);
    }),
    ("a high-order reserve of part of a page block", Rule::ZoneHighatomic, |bench| {
        bench.change(&bench.used_zone().nr_reserved_highatomic, |pages| pages + 100);
    }),
    ("a pageset that may grow too large", Rule::PagesetHigh, |bench| {
        bench.change(&bench.cached().0.high, |high| high * 2)
    }),
    ("a pageset that moves too much", Rule::PagesetBatch, |bench| {
        bench.change(&bench.cached().0.batch, |batch| batch + 1)
    }),
    ("a zone's copy of the pageset size", Rule::ZonePageset, |bench| {
        bench.change(&bench.used_zone().pageset_high, |high| high + 1);
    }),
    ("a threshold", Rule::StatThreshold, |bench| bench.change(&bench.cached().0.stat_threshold, |value| value + 1)),
    ("a drift mark", Rule::PercpuDriftMark, |bench| {
        bench.change(&bench.used_zone().percpu_drift_mark, |mark| if mark == 0 { 1 } else { 0 });
    }),
    ("a setting out of range", Rule::SysctlRange, |bench| {
        bench.set(&bench.region.sysctl().watermark_scale_factor, 4000);
    }),
    ("a node of another size", Rule::NodeSizes, |bench| {
        bench.change(&bench.region.nodes()[0].node_present_pages, |pages| pages + 5);
    }),
    ("a CPU that a node does not know", Rule::NodeCpus, |bench| bench.set(&bench.region.nodes()[0].cpus, 0)),
    ("a node that is nearer to another than to itself", Rule::NodeDistance, |bench| {
        bench.set(&bench.region.distances()[1], 10);
    }),
    ("another fallback order", Rule::NodeFallbackOrder, |bench| {
        let order = &bench.region.nodes()[0].fallback_order;
        let (first, second) = (order[0].load(SeqCst), order[1].load(SeqCst));
        bench.set(&order[0], second);
        bench.set(&order[1], first);
    }),
    ("a zonelist that lacks a zone", Rule::NodeZonelist, |bench| {
        bench.set(&bench.region.nodes()[0].node_zonelists[0][1], 0);
    }),
    ("a zonelist that starts elsewhere", Rule::NodeFirstZone, |bench| {
        bench.change(&bench.region.nodes()[1].first_zone[0][2], |start| start + 1);
    }),
    ("a CPU that allocates from afar", Rule::CpuMemNode, |bench| bench.set(&bench.region.cpus()[0].mem_node, 1)),
];

pub const MAPS: &[Mutation] = &[
    ("memory that memblock does not know", Rule::MemblockTotals, |bench| {
        bench.change(&bench.region.memory_slots()[0].size, |size| size - 0x1000);
    }),
    ("memblock ranges in disorder", Rule::MemblockMemory, |bench| {
        bench.set(&bench.region.memory_slots()[1].base, 0x1000);
    }),
    ("memory that the machine does not have", Rule::MemblockBacking, |bench| {
        let last = bench.region.header().nr_memory.load(SeqCst) as usize - 1;
        bench.change(&bench.region.memory_slots()[last].size, |size| size + (1 << 30));
    }),
    ("an empty reserved range", Rule::MemblockReserved, |bench| bench.set(&bench.region.reserved_slots()[0].size, 0)),
    ("a section of another zone", Rule::SectionTable, |bench| {
        let sections = bench.region.header().roots.sections.load(SeqCst);
        bench.poke(sections + 2, &[0x55, 0]);
    }),
    ("a page block of no type", Rule::PageblockType, |bench| bench.poke(bench.block_gpa(0x3000), &[0x99])),
    ("a table that is used twice", Rule::PageTable, |bench| {
        let (at, entry) = bench.entry(PAGE_OFFSET, 2);
        bench.poke(at + 8, &entry.to_le_bytes());
    }),
    ("a table outside memory", Rule::PageTable, |bench| {
        let (at, _) = bench.entry(VMEMMAP_START, 3);
        bench.poke(at, &(0xf_ffff_f000 | PRESENT | WRITABLE).to_le_bytes());
    }),
    ("text that can be written", Rule::MapWritableExecutable, |bench| {
        flip_entry(bench, START_KERNEL_MAP + KERNEL_PHYS, WRITABLE);
    }),
    ("a mapping in the user's half", Rule::MapUserHalf, |bench| {
        let (_, entry) = bench.entry(START_KERNEL_MAP + KERNEL_PHYS, 3);
        let root = bench.region.header().roots.pgd.load(SeqCst);
        bench.poke(root + 8 * 5, &entry.to_le_bytes());
    }),
    ("a direct map that leads elsewhere", Rule::DirectMapTarget, |bench| {
        flip_entry(bench, PAGE_OFFSET + (64 << 20), 1 << 21);
    }),
    ("a direct map beyond RAM", Rule::DirectMapNotRam, |bench| {
        let (at, entry) = bench.leaf(PAGE_OFFSET + (64 << 20));
        let end = bench.last_below_4g();
        let slot = at - ((64 << 20) >> 21) * 8 + (end >> 21) * 8;
        bench.poke(slot, &(entry - (64 << 20) + end).to_le_bytes());
    }),
    ("a hole in the direct map", Rule::DirectMapHole, |bench| flip_entry(bench, PAGE_OFFSET + (64 << 20), PRESENT)),
    ("a direct map that can be executed", Rule::DirectMapProtection, |bench| {
        flip_entry(bench, PAGE_OFFSET + (64 << 20), NO_EXECUTE | WRITABLE);
    }),
    ("an image that leads elsewhere", Rule::KernelMapTarget, |bench| {
        let rodata = bench.resource(ResourceKind::KernelRodata).start;
        flip_entry(bench, START_KERNEL_MAP + rodata, 1 << 30);
    }),
    ("constants that can be executed", Rule::KernelMapProtection, |bench| {
        let rodata = bench.resource(ResourceKind::KernelRodata).start;
        flip_entry(bench, START_KERNEL_MAP + rodata, NO_EXECUTE);
    }),
    ("an image with a hole", Rule::KernelMapExtent, |bench| {
        flip_entry(bench, START_KERNEL_MAP + KERNEL_PHYS + 0x2000, PRESENT);
    }),
    ("a state region that is mapped elsewhere", Rule::RegionMap, |bench| flip_entry(bench, STATE_REGION_VIRT, 1 << 21)),
    ("a section without metadata", Rule::MemmapMissing, |bench| {
        flip_entry(bench, bench.view.page_address(bench.last_frame()), PRESENT);
    }),
    ("metadata of what does not exist", Rule::MemmapStray, |bench| {
        let (at, entry) = bench.leaf(bench.view.page_address(bench.last_frame()));
        bench.poke(at + 8, &entry.to_le_bytes());
    }),
    ("metadata in a free page", Rule::MemmapBacking, |bench| {
        let (at, entry) = bench.leaf(bench.view.page_address(bench.last_frame()));
        let free = bench.free(1, |free| free.order == 10);
        let entry = entry & 0xfff0_0000_0000_0fff | u64::from(free.pfn) << 12;
        bench.poke(at, &entry.to_le_bytes());
    }),
    ("a free page that somebody maps", Rule::FreePageMapped, |bench| {
        // A table of the kernel's image in the vmalloc area, with the free page in it.
        let root = bench.region.header().roots.pgd.load(SeqCst);
        let free = bench.free(2, |free| free.order == 10);
        let table = (u64::from(bench.next(free.pfn)) + 512) << 12;
        let (leaf, flags) = (u64::from(free.pfn) << 12, PRESENT | WRITABLE);
        let index = |shift: u32| (VMALLOC_START >> shift & 0x1ff) * 8;
        bench.poke(root + index(39), &(table | flags).to_le_bytes());
        bench.poke(table + index(30), &((table + 0x1000) | flags).to_le_bytes());
        bench.poke(table + 0x1000 + index(21), &(leaf | flags | 1 << 7 | NO_EXECUTE).to_le_bytes());
    }),
];
