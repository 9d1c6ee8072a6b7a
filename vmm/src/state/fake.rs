//! A guest made by hand, for tests: a state region in a memfd, and sparse memory with page tables, a memory map, a
//! section table and page blocks as a guest lays them out.
//!
//! ```text
//! node 0   0 - 640 KiB, 1 MiB - 128 MiB     zones DMA, DMA32     CPU 0
//! node 1   4 GiB - 4.25 GiB                 zone Normal          CPU 1
//! node 2   nothing, but online
//! ```
//!
//! The memory map of node 0's only section is mapped by 4 KiB pages, that of node 1's pair by a 2 MiB page. Node 0's
//! memory is mapped directly, by 2 MiB pages.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

pub(crate) mod areas;
pub(crate) mod programs;
pub(crate) mod slabs;

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use nix::sys::memfd::{MFdFlags, memfd_create};
use pagevisor_shared::layout::{PAGE_OFFSET, STATE_REGION_VIRT, VMEMMAP_START};
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page::{PAGE_STRUCT_SIZE, PG_BUDDY, encode_next, encode_prev};
use pagevisor_shared::region::zone::{ListHead, SECTION_MIXED};
use pagevisor_shared::region::{GuestState, RegionLayout, RegionRef};
use pagevisor_shared::units::{CpuId, MAX_ORDER_NR_PAGES};
use pagevisor_shared::vmstat::ZoneStat;
use vm_memory::FileOffset;
use vm_memory::mmap::MmapRegion;

use super::{Corrupt, GuestMemory, StateError, StateView};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB4: u64 = 4 << 30;
/// Frame at 4 GiB.
pub(crate) const PFN4G: u32 = (GIB4 >> 12) as u32;

/// Zone indices.
pub(crate) const DMA: usize = 0;
pub(crate) const DMA32: usize = 1;
pub(crate) const NORMAL: usize = 5 + 2;

const TABLES: u64 = 20 * MIB;
const PGD: u64 = TABLES;
const SECTIONS: u64 = 24 * MIB;
const PAGEBLOCKS: u64 = 25 * MIB;
const MEMMAP0: u64 = 32 * MIB;
const MEMMAP1: u64 = GIB4 + 2 * MIB;

/// Sparse memory in ranges.
#[derive(Debug)]
pub(crate) struct FakeMemory {
    ranges: Vec<(u64, u64)>,
    pages: Mutex<BTreeMap<u64, Box<[u8; 4096]>>>,
}

impl FakeMemory {
    pub(crate) fn new(ranges: &[(u64, u64)]) -> Self {
        Self { ranges: ranges.to_vec(), pages: Mutex::default() }
    }

    fn has(&self, gpa: u64) -> bool {
        self.ranges.iter().any(|(start, end)| (*start..*end).contains(&gpa))
    }

    pub(crate) fn write(&self, gpa: u64, bytes: &[u8]) {
        let mut pages = self.pages.lock().unwrap();
        for (at, byte) in (gpa..).zip(bytes) {
            assert!(self.has(at), "no memory at {at:#x}");
            pages.entry(at & !0xfff).or_insert_with(|| Box::new([0; 4096]))[(at & 0xfff) as usize] = *byte;
        }
    }

    pub(crate) fn write_u64(&self, gpa: u64, word: u64) {
        self.write(gpa, &word.to_le_bytes());
    }

    pub(crate) fn read_u64(&self, gpa: u64) -> u64 {
        let pages = self.pages.lock().unwrap();
        let offset = (gpa & 0xfff) as usize;
        let word = pages.get(&(gpa & !0xfff)).map_or([0; 8], |page| page[offset..offset + 8].try_into().unwrap());
        u64::from_le_bytes(word)
    }

    pub(crate) fn write_u32(&self, gpa: u64, word: u32) {
        self.write(gpa, &word.to_le_bytes());
    }
}

impl GuestMemory for Arc<FakeMemory> {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), StateError> {
        let pages = self.pages.lock().unwrap();
        let mut done = 0;
        while done < buf.len() {
            let at = gpa.wrapping_add(done as u64);
            // Ranges are whole pages.
            if !self.has(at) {
                return Err(Corrupt { what: "guest-physical address", at: gpa, found: at }.into());
            }
            let inside = (at & 0xfff) as usize;
            let part = &mut buf[done..];
            let len = part.len().min(4096 - inside);
            match pages.get(&(at & !0xfff)) {
                Some(page) => part[..len].copy_from_slice(&page[inside..inside + len]),
                None => part[..len].fill(0),
            }
            done += len;
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }

    fn ranges(&self) -> Vec<Range<u64>> {
        self.ranges.iter().map(|(start, end)| *start..*end).collect()
    }

    fn next_data(&self, within: Range<u64>) -> Result<Option<Range<u64>>, StateError> {
        let pages = self.pages.lock().unwrap();
        let first = pages.range(within.start & !0xfff..within.end).next();
        Ok(first.map(|(page, _)| (*page).max(within.start)..(page + 4096).min(within.end)))
    }
}

/// The guest.
pub(crate) struct FakeGuest {
    pub memory: Arc<FakeMemory>,
    pub file: File,
    map: MmapRegion,
}

/// A page's place in the memory map.
pub(crate) fn meta_gpa(pfn: u32) -> u64 {
    let offset = |first: u32| u64::from(pfn - first) * PAGE_STRUCT_SIZE;
    if pfn < PFN4G { MEMMAP0 + offset(0) } else { MEMMAP1 + offset(PFN4G) }
}

impl FakeGuest {
    /// A guest that is up, with nothing on its free lists.
    pub fn new() -> Self {
        let layout = RegionLayout::new(3, 2);
        let file = File::from(memfd_create("fake", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(layout.size).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let map = MmapRegion::build(Some(offset), layout.size as usize, prot, libc::MAP_SHARED).unwrap();
        let ranges = [(0, 640 << 10), (MIB, 128 * MIB), (GIB4, GIB4 + 256 * MIB)];
        let guest = Self { memory: Arc::new(FakeMemory::new(&ranges)), file, map };
        let base = NonNull::new(guest.map.as_ptr()).unwrap();
        // SAFETY: the mapping is fresh, page-aligned, `layout.size` bytes long and only accessed through atomics.
        unsafe {
            RegionRef::header_at(base).publish_early();
            RegionRef::create(base, layout);
        }
        guest.fill_header();
        guest.fill_nodes();
        guest.fill_ranges();
        guest.map_memmap();
        guest
    }

    pub fn region(&self) -> RegionRef<'_> {
        // SAFETY: as in `new`; the mapping lives as long as `self`.
        unsafe { RegionRef::open(NonNull::new(self.map.as_ptr()).unwrap(), self.map.size() as u64) }.unwrap()
    }

    pub fn view(&self) -> StateView {
        self.try_view().unwrap()
    }

    pub fn try_view(&self) -> Result<StateView, StateError> {
        StateView::open(&self.file, Box::new(self.memory.clone()))
    }

    fn atomic(&self, offset: u64) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.map.size() as u64);
        // SAFETY: checked to be inside the mapping, aligned, and only accessed through atomics.
        unsafe { &*self.map.as_ptr().add(offset as usize).cast::<AtomicU64>() }
    }

    /// The word at `offset` in the state region.
    pub fn word(&self, offset: u64) -> u64 {
        self.atomic(offset).load(Relaxed)
    }

    pub fn set_word(&self, offset: u64, value: u64) {
        self.atomic(offset).store(value, Relaxed);
    }

    fn fill_header(&self) {
        let region = self.region();
        let header = region.header();
        region.sysctl().overcommit_ratio.store(50, Relaxed);
        header.state.store(GuestState::Ready as u32, Relaxed);
        header.nodes_online.store(0b111, Relaxed);
        header.cpus_online.store(0b11, Relaxed);
        let roots = &header.roots;
        roots.pgd.store(PGD, Relaxed);
        roots.vmemmap.store(VMEMMAP_START, Relaxed);
        roots.page_offset.store(PAGE_OFFSET, Relaxed);
        roots.sections.store(SECTIONS, Relaxed);
        roots.nr_sections.store(34, Relaxed);
        roots.pageblocks.store(PAGEBLOCKS, Relaxed);
        roots.max_pfn.store((GIB4 + 256 * MIB) >> 12, Relaxed);
        roots.region_virt.store(STATE_REGION_VIRT, Relaxed);
        for (number, entry) in [(0, SECTION_MIXED), (32, NORMAL as u16 + 1), (33, NORMAL as u16 + 1)] {
            self.memory.write(SECTIONS + number * 2, &entry.to_le_bytes());
        }
        // The kernel's block is unmovable, the next reclaimable.
        self.memory.write(PAGEBLOCKS + 8, &[MigrateType::Unmovable.block_byte()]);
        self.memory.write(PAGEBLOCKS + 9, &[MigrateType::Reclaimable.block_byte()]);
    }

    fn fill_nodes(&self) {
        let region = self.region();
        let frames = |bytes: u64| bytes >> 12;
        for (node, start, end, present) in
            [(0, 1, frames(128 * MIB), 159 + frames(127 * MIB)), (1, frames(GIB4), frames(GIB4 + 256 * MIB), 65536)]
        {
            let record = &region.nodes()[node];
            record.node_start_pfn.store(start, Relaxed);
            record.node_spanned_pages.store(end - start, Relaxed);
            record.node_present_pages.store(present, Relaxed);
            record.cpus.store(1 << node, Relaxed);
            record.fallback_order[0].store(node as u8, Relaxed);
            record.fallback_order[1].store(1 - node as u8, Relaxed);
            record.nr_fallback.store(2, Relaxed);
        }
        region.nodes()[2].fallback_order[1].store(1, Relaxed);
        region.nodes()[2].nr_fallback.store(2, Relaxed);
        let distances = [10, 20, 30, 20, 10, 40, 30, 40, 10];
        region.distances().iter().zip(distances).for_each(|(slot, distance)| slot.store(distance, Relaxed));
        for (zone, start, end, present) in [
            (DMA, 1, 4096, 159 + 3840),
            (DMA32, 4096, frames(128 * MIB), frames(112 * MIB)),
            (NORMAL, frames(GIB4), frames(GIB4 + 256 * MIB), 65536),
        ] {
            let record = &region.zones()[zone];
            record.zone_start_pfn.store(start, Relaxed);
            record.spanned_pages.store(end - start, Relaxed);
            record.present_pages.store(present, Relaxed);
            record.managed_pages.store(present - 100, Relaxed);
            record.watermark.iter().zip([10, 20, 30, 40]).for_each(|(mark, pages)| mark.store(pages, Relaxed));
        }
    }

    fn fill_ranges(&self) {
        let region = self.region();
        let memory = [(0x1000, 0x9f000, 0), (MIB, 127 * MIB, 0), (GIB4, 256 * MIB, 1)];
        let reserved = [(16 * MIB, 32 * MIB, 0), (GIB4, 8 * MIB - 1, 1)];
        for (slots, count, ranges) in [
            (region.memory_slots(), &region.header().nr_memory, &memory[..]),
            (region.reserved_slots(), &region.header().nr_reserved, &reserved[..]),
        ] {
            for (slot, (base, size, node)) in slots.iter().zip(ranges) {
                slot.base.store(*base, Relaxed);
                slot.size.store(*size, Relaxed);
                slot.node.store(*node, Relaxed);
                count.fetch_add(1, Relaxed);
            }
        }
        for (slot, (start, end, kind)) in
            region.resource_slots().iter().zip([(0x1000, 0x9ffff, 1), (GIB4, GIB4 + 256 * MIB - 1, 1)])
        {
            slot.start.store(start, Relaxed);
            slot.end.store(end, Relaxed);
            slot.kind.store(kind, Relaxed);
            region.header().nr_resources.fetch_add(1, Relaxed);
        }
    }

    fn map_memmap(&self) {
        let index = |address: u64, shift: u32| (address >> shift & 0x1ff) * 8;
        let (pdpt, pd, table) = (TABLES + 0x1000, TABLES + 0x2000, TABLES + 0x3000);
        let section32 = VMEMMAP_START + 32 * MIB;
        self.memory.write_u64(PGD + index(VMEMMAP_START, 39), pdpt | 3);
        self.memory.write_u64(pdpt + index(VMEMMAP_START, 30), pd | 3);
        self.memory.write_u64(pd + index(VMEMMAP_START, 21), table | 3);
        self.memory.write_u64(pd + index(section32, 21), MEMMAP1 | 0x83);
        for page in 0..256 {
            self.memory.write_u64(table + page * 8, (MEMMAP0 + page * 4096) | 3);
        }
        let (pdpt, pd) = (TABLES + 0x4000, TABLES + 0x5000);
        self.memory.write_u64(PGD + index(PAGE_OFFSET, 39), pdpt | 0x63);
        self.memory.write_u64(pdpt + index(PAGE_OFFSET, 30), pd | 0x63);
        for page in 0..64 {
            self.memory.write_u64(pd + page * 8, (page * 2 * MIB) | 1 << 63 | 0x1e3);
        }
    }

    /// Writes a field of a page's metadata: `word` is its index.
    pub fn set_meta(&self, pfn: u32, word: u64, value: u32) {
        self.memory.write_u32(meta_gpa(pfn) + word * 4, value);
    }

    fn append(&self, list: &ListHead, pfn: u32) {
        let last = list.last.load(Relaxed);
        self.set_meta(pfn, 5, encode_prev(pfn, last));
        self.set_meta(pfn, 4, encode_next(pfn, 0));
        if last == 0 {
            list.first.store(pfn, Relaxed);
        } else {
            self.set_meta(last, 4, encode_next(last, pfn));
        }
        list.last.store(pfn, Relaxed);
    }

    /// Puts a marked block at the end of a free list.
    pub fn free_block(&self, zone: usize, pfn: u32, order: usize, kind: MigrateType) {
        let region = self.region();
        let area = &region.zones()[zone].free_area[order];
        self.append(&area.free_list[kind.index()], pfn);
        self.set_meta(pfn, 2, PG_BUDDY);
        self.set_meta(pfn, 3, order as u32);
        self.count(zone, order, kind, 1);
    }

    /// Makes an untouched run of blocks of the largest order an (empty so far) list.
    pub fn free_run(&self, zone: usize, pfn: u32, blocks: u32, kind: MigrateType) {
        let region = self.region();
        let list = &region.zones()[zone].free_area[10].free_list[kind.index()];
        let last = pfn + (blocks - 1) * MAX_ORDER_NR_PAGES as u32;
        self.set_meta(pfn, 5, encode_prev(pfn, 0));
        self.set_meta(last, 4, encode_next(last, 0));
        list.first.store(pfn, Relaxed);
        list.last.store(last, Relaxed);
        self.count(zone, 10, kind, u64::from(blocks));
    }

    fn count(&self, zone: usize, order: usize, kind: MigrateType, blocks: u64) {
        let region = self.region();
        let record = &region.zones()[zone];
        record.free_area[order].nr_free[kind.index()].fetch_add(blocks, Relaxed);
        record.vm_stat[ZoneStat::NrFreePages.index()].fetch_add((blocks << order) as i64, Relaxed);
    }

    /// Puts a block on list `list` of a pageset. As the guest does, it leaves the first page's backward link alone.
    pub fn pcp_block(&self, cpu: usize, zone: usize, pfn: u32, list: usize, order: u32) {
        let region = self.region();
        let pcp = &region.pcps_of(CpuId::new(cpu).unwrap())[zone];
        let first = pcp.lists[list].first.load(Relaxed) == 0;
        self.append(&pcp.lists[list], pfn);
        if first {
            self.set_meta(pfn, 5, 0x1234);
        }
        pcp.count.fetch_add(1 << order, Relaxed);
    }

    /// A guest with free memory as after boot and some use.
    pub fn used() -> Self {
        let guest = Self::new();
        guest.free_block(DMA, 0x10, 4, MigrateType::Movable);
        guest.free_block(DMA, 0x20, 5, MigrateType::Movable);
        guest.free_run(DMA, 0x400, 3, MigrateType::Movable);
        for (pfn, order) in [(0x3001, 0), (0x3005, 0), (0x3002, 1), (0x3200, 9)] {
            guest.free_block(DMA32, pfn, order, MigrateType::Unmovable);
        }
        guest.free_run(DMA32, 0x3400, 19, MigrateType::Movable);
        guest.free_run(NORMAL, PFN4G + 2048, 62, MigrateType::Movable);
        guest.pcp_block(0, DMA32, 0x3010, 0, 0);
        guest.pcp_block(0, DMA32, 0x3011, 0, 0);
        guest.pcp_block(0, DMA32, 0x3020, 3 * 3 + 1, 3);
        // An empty list that once had a page.
        guest.region().pcps()[DMA32].lists[5].last.store(0x3040, Relaxed);
        guest
    }
}
