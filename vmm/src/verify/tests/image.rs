//! A guest made by hand whose structures are all sound: [`FakeGuest`] with everything filled in that it leaves out, and
//! its memory in a random but well-formed state.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::layout::{PAGE_OFFSET, START_KERNEL_MAP, STATE_REGION_VIRT, VMEMMAP_START};
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page_flags::{PG_NOTZERO, PG_ORDER_SHIFT, PageFlag};
use pagevisor_shared::region::records::{ResourceKind, ZONELIST_FALLBACK, ZONELIST_NOFALLBACK};
use pagevisor_shared::region::zone::NR_PCP_LISTS;
use pagevisor_shared::zone::{MAX_NR_ZONES, ZoneIndex, ZoneRef, ZoneType};

use crate::state::fake::{DMA, DMA32, FakeGuest, GIB4, MIB, NORMAL, PFN4G};
use crate::verify::settings::{Machine, batchsize, calculate_min_free_kbytes, highsize, normal_threshold, watermarks};

/// Where [`FakeGuest`] keeps its tables; those made here follow.
pub const TABLES: u64 = 20 * MIB;
const REGION_PHYS: u64 = 0xe000_0000;
const KERNEL: u64 = 16 * MIB;
const DATA: u64 = 3 | 1 << 63;
const LARGE: u64 = 1 << 7;

/// Pages that each zone's allocator has, by zone index.
const MANAGED: [(usize, u64); 3] = [(DMA, 159 + 3840), (DMA32, 28672 - 8192), (NORMAL, 65536 - 2048)];
/// Frames that are not reserved.
const FREE: [(usize, u32, u32); 5] = [
    (DMA, 1, 160),
    (DMA, 256, 4096),
    (DMA32, 48 << 8, 128 << 8),
    // What is behind is a run that nobody has touched.
    (NORMAL, PFN4G + 2048, PFN4G + 2048 + 30 * 1024),
    (NORMAL, PFN4G + 2048 + 30 * 1024, PFN4G + 2048 + 30 * 1024),
];

/// Numbers that look random (xorshift).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// A guest whose memory is in the state that `seed` says.
pub fn sound(seed: u64) -> FakeGuest {
    let guest = FakeGuest::new();
    map(&guest);
    header(&guest);
    sizes(&guest);
    settings(&guest);
    zonelists(&guest);
    fill(&guest, &mut Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
    guest
}

/// Where the entry for `address` is in the table at `table`.
pub const fn slot(table: u64, address: u64, shift: u32) -> u64 {
    table + (address >> shift & 0x1ff) * 8
}

fn map(guest: &FakeGuest) {
    let table = |number: u64| TABLES + number * 0x1000;
    let put = |number: u64, address: u64, shift: u32, entry: u64| {
        guest.memory.write_u64(slot(table(number), address, shift), entry);
    };
    // What the fake maps, without the right to execute.
    put(2, VMEMMAP_START + 32 * MIB, 21, (GIB4 + 2 * MIB) | LARGE | DATA);
    for page in 0..256 {
        guest.memory.write_u64(table(3) + page * 8, (32 * MIB + page * 4096) | DATA);
    }
    // The direct map: 4 KiB pages around the hole below 1 MiB and for the kernel's image.
    put(0, PAGE_OFFSET, 39, table(4) | 3);
    put(4, PAGE_OFFSET, 30, table(5) | 3);
    put(4, PAGE_OFFSET + GIB4, 30, table(8) | 3);
    for block in 0..64 {
        let at = block * 2 * MIB;
        let entry = match at {
            0 => table(6) | 3,
            KERNEL => table(7) | 3,
            _ => at | LARGE | DATA,
        };
        put(5, at, 21, entry);
    }
    for page in (1..160).chain(256..512u64) {
        put(6, page << 12, 12, page << 12 | DATA);
    }
    for block in 0..128 {
        put(8, block * 2 * MIB, 21, (GIB4 + block * 2 * MIB) | LARGE | DATA);
    }
    // The image: 16 pages of text, 8 of constants, the rest data, with a page for a guard.
    put(0, START_KERNEL_MAP, 39, table(9) | 3);
    put(9, START_KERNEL_MAP, 30, table(10) | 3);
    put(10, START_KERNEL_MAP + KERNEL, 21, table(11) | 3);
    for page in 0..512u64 {
        let at = KERNEL + (page << 12);
        put(7, at, 12, at | if page < 24 { DATA & !2 } else { DATA });
        let entry = match page {
            0..16 => at | 1,
            16..24 => at | 1 | 1 << 63,
            40 => 0,
            _ => at | DATA,
        };
        put(11, at, 12, if page < 64 { entry } else { 0 });
    }
    put(9, STATE_REGION_VIRT, 30, table(12) | 3);
    put(12, STATE_REGION_VIRT, 21, table(13) | 3);
    for page in 0..guest.region().layout().size >> 12 {
        put(13, STATE_REGION_VIRT + (page << 12), 12, (REGION_PHYS + (page << 12)) | DATA);
    }
}

fn header(guest: &FakeGuest) {
    let region = guest.region();
    let header = region.header();
    header.roots.region_phys.store(REGION_PHYS, Relaxed);
    header.nodes_online.store(0b11, Relaxed);
    header.pages_total.store(159 + (127 << 8) + (256 << 8), Relaxed);
    let image = [
        (ResourceKind::KernelCode, 0, 16),
        (ResourceKind::KernelRodata, 16, 24),
        (ResourceKind::KernelData, 24, 32),
        (ResourceKind::KernelBss, 32, 64),
    ];
    let used = header.nr_resources.load(Relaxed) as usize;
    for (record, (kind, first, end)) in region.resource_slots().iter().skip(used).zip(image) {
        record.start.store(KERNEL + first * 4096, Relaxed);
        record.end.store(KERNEL + end * 4096 - 1, Relaxed);
        record.kind.store(kind as u32, Relaxed);
        header.nr_resources.fetch_add(1, Relaxed);
    }
    for (number, cpu) in region.cpus().iter().enumerate() {
        cpu.node.store(number as u32, Relaxed);
        cpu.mem_node.store(number as u32, Relaxed);
        cpu.online.store(1, Relaxed);
    }
}

fn sizes(guest: &FakeGuest) {
    let region = guest.region();
    for (index, zone) in region.zones().iter().enumerate() {
        zone.node.store((index / MAX_NR_ZONES) as u32, Relaxed);
        zone.zone_type.store((index % MAX_NR_ZONES) as u32, Relaxed);
    }
    for (zone, managed) in MANAGED {
        region.zones()[zone].managed_pages.store(managed, Relaxed);
    }
}

fn settings(guest: &FakeGuest) {
    let region = guest.region();
    let managed: u64 = MANAGED.iter().map(|(_, pages)| pages).sum();
    let min_free_kbytes = calculate_min_free_kbytes(managed);
    let machine = Machine { min_free_kbytes, scale_factor: 10, managed, cpus: 2 };
    let sysctl = region.sysctl();
    sysctl.min_free_kbytes.store(min_free_kbytes, Relaxed);
    sysctl.watermark_scale_factor.store(10, Relaxed);
    sysctl.watermark_boost_factor.store(15_000, Relaxed);
    sysctl.lowmem_reserve_ratio.iter().zip([256, 256, 32, 0, 0]).for_each(|(slot, ratio)| slot.store(ratio, Relaxed));
    for (index, pages) in MANAGED {
        let zone = &region.zones()[index];
        let marks = watermarks(&machine, pages);
        zone.watermark.iter().zip(marks).for_each(|(slot, mark)| slot.store(mark, Relaxed));
        zone.alloc_mark.store(marks[1] as i64, Relaxed);
        let batch = batchsize(pages);
        let (high, threshold) = (highsize(marks[1], pages, batch, 0, 1), normal_threshold(pages, 2));
        zone.pageset_high.store(high as u32, Relaxed);
        zone.pageset_batch.store(batch as u32, Relaxed);
        let most = 2 * threshold;
        zone.percpu_drift_mark.store(if most > marks[1] - marks[0] { marks[2] + most } else { 0 }, Relaxed);
        for pcp in region.pcps().iter().skip(index).step_by(region.zones().len()) {
            pcp.high.store(high as u32, Relaxed);
            pcp.batch.store(batch as u32, Relaxed);
            pcp.stat_threshold.store(threshold as u32, Relaxed);
        }
        for pending in region.node_cpus().iter().skip(index / MAX_NR_ZONES).step_by(region.nr_nodes()) {
            pending.stat_threshold.fetch_max(threshold as i32, Relaxed);
        }
    }
    // ZONE_DMA keeps a part from who could have used the zone above.
    for upper in 1..MAX_NR_ZONES {
        region.zones()[DMA].lowmem_reserve[upper].store(MANAGED[1].1 / 256, Relaxed);
    }
}

fn zonelists(guest: &FakeGuest) {
    let region = guest.region();
    let zones: [&[(usize, ZoneType)]; 3] =
        [&[(DMA32, ZoneType::Dma32), (DMA, ZoneType::Dma)], &[(NORMAL, ZoneType::Normal)], &[]];
    for (node, order) in [&[0, 1][..], &[1, 0], &[2, 0, 1]].into_iter().enumerate() {
        let record = &region.nodes()[node];
        record.nr_fallback.store(order.len() as u32, Relaxed);
        record.fallback_order.iter().zip(order).for_each(|(slot, member)| slot.store(*member as u8, Relaxed));
        for (list, members) in [(ZONELIST_FALLBACK, order), (ZONELIST_NOFALLBACK, &[node][..])] {
            let refs: Vec<_> = members.iter().flat_map(|member| zones[*member]).collect();
            for (slot, (zone, kind)) in record.node_zonelists[list].iter().zip(&refs) {
                slot.store(ZoneRef::new(ZoneIndex(*zone as u16), *kind).0, Relaxed);
            }
            for (kind, slot) in record.first_zone[list].iter().enumerate() {
                let first = refs.iter().position(|(_, zone)| zone.index() <= kind).unwrap_or(refs.len());
                slot.store(first as u16, Relaxed);
            }
        }
    }
}

/// Gives every frame that is not reserved a state.
fn fill(guest: &FakeGuest, random: &mut Random) {
    guest.free_run(NORMAL, PFN4G + 2048 + 30 * 1024, 32, MigrateType::Movable);
    for (zone, start, end) in FREE {
        let mut pfn = start;
        let mut free = Vec::new();
        while pfn < end {
            let most = pfn.trailing_zeros().min((end - pfn).ilog2()).min(10);
            let order = most - random.below(4).min(random.below(4)).min(most.into()) as u32;
            // What merges with the block before it has merged.
            let merges = pfn >> order & 1 == 1 && free.contains(&(pfn - (1 << order), order));
            match random.below(6) {
                0..=2 if !merges => {
                    free_block(guest, zone, pfn, order, MigrateType::ALL[random.below(3) as usize], random);
                    free.push((pfn, order));
                }
                3 if order < 4 || order == 9 => cache(guest, zone, pfn, order, random),
                _ => take(guest, pfn, order, random),
            }
            pfn += 1 << order;
        }
    }
}

fn free_block(guest: &FakeGuest, zone: usize, pfn: u32, order: u32, kind: MigrateType, random: &mut Random) {
    guest.free_block(zone, pfn, order as usize, kind);
    guest.set_meta(pfn, 0, if random.below(2) == 0 { PG_NOTZERO } else { 0 });
    guest.set_meta(pfn, 7, kind.block_byte().into());
}

fn cache(guest: &FakeGuest, zone: usize, pfn: u32, order: u32, random: &mut Random) {
    let kind = random.below(3);
    let list = if order == 9 { NR_PCP_LISTS - 1 } else { order as usize * 3 + kind as usize };
    guest.pcp_block(random.below(2) as usize, zone, pfn, list, order);
    guest.set_meta(pfn, 0, PG_NOTZERO | order << PG_ORDER_SHIFT);
    guest.set_meta(pfn, 7, kind as u32);
}

fn take(guest: &FakeGuest, pfn: u32, order: u32, random: &mut Random) {
    let compound = order != 0 && random.below(2) == 0;
    let head = if compound { PageFlag::Head.mask() } else { 0 };
    guest.set_meta(pfn, 0, PG_NOTZERO | order << PG_ORDER_SHIFT | head);
    guest.set_meta(pfn, 1, 1 + random.below(3) as u32);
    if random.below(4) == 0 && order != 0 {
        // What an earlier owner left in a tail means nothing.
        guest.set_meta(pfn + 1, 0, PG_NOTZERO | 3 << PG_ORDER_SHIFT);
        guest.set_meta(pfn + 1, 7, 0xdead);
    }
}
