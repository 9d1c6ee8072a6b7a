#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod hostile;

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use pagevisor_shared::layout::VMEMMAP_START;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page::{encode_next, encode_prev};
use pagevisor_shared::region::GuestState;
use pagevisor_shared::units::CpuId;
use pagevisor_shared::zone::ZoneIndex;

use super::fake::{DMA, DMA32, FakeGuest, GIB4, MIB, NORMAL, PFN4G, meta_gpa};
use super::*;

const ONCE: Patience = Patience { tries: 1, pause: Duration::ZERO, limit: Duration::ZERO };

fn memfd(size: u64) -> File {
    let file = File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    file
}

#[test]
fn memory_files_are_read_across_ranges() {
    let mut low = memfd(0x3000);
    low.write_all(&[1; 0x3000]).unwrap();
    let mut high = memfd(0x2000);
    high.write_all(&[2; 0x2000]).unwrap();
    let (low, high) = (Arc::new(low), Arc::new(high));
    let range = |start, size, file: &Arc<File>, offset| Backing { start, size, file: file.clone(), offset };
    let memory = MemfdMemory::new([range(0x5000, 0x1000, &high, 0x1000), range(0x4000, 0x1000, &low, 0x2000)]);
    assert_eq!(memory.size(), 0x2000);
    let mut bytes = [0; 4];
    memory.read(0x4ffe, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 1, 2, 2]);
    for (at, len) in [(0x3fff, 1), (0x5fff, 2), (0x6000, 1), (u64::MAX, 2)] {
        let error = memory.read(at, &mut [0; 4][..len]).unwrap_err();
        assert!(error.is_corrupt(), "{error}");
    }
    memory.read(u64::MAX, &mut []).unwrap();
}

#[test]
fn overlapping_ranges_are_cut() {
    let mut one = memfd(0x2000);
    one.write_all(&[1; 0x2000]).unwrap();
    let two = Arc::new(memfd(0x4000));
    let memory = MemfdMemory::new([
        Backing { start: 0, size: 0x2000, file: Arc::new(one), offset: 0 },
        Backing { start: 0x1000, size: 0x3000, file: two.clone(), offset: 0 },
        Backing { start: 0x1000, size: 0x800, file: two, offset: 0 },
    ]);
    assert_eq!(memory.size(), 0x4000);
    let mut bytes = [9; 2];
    memory.read(0x1fff, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 0]);
}

#[test]
fn reading_a_hole_leaves_it_one() {
    use std::os::unix::fs::MetadataExt;
    let file = Arc::new(memfd(1 << 30));
    let memory = MemfdMemory::new([Backing { start: 0, size: 1 << 30, file: file.clone(), offset: 0 }]);
    let mut bytes = vec![0; 1 << 20];
    memory.read(0, &mut bytes).unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), 0);
}

#[test]
fn a_region_is_checked_when_it_is_opened() {
    let open = |file: &File| StateView::open(file, Box::new(MemfdMemory::default())).unwrap_err();
    assert!(matches!(open(&memfd(0)), StateError::Map(_)));
    assert!(matches!(open(&memfd(0x10000)), StateError::Region(_)));
    let guest = FakeGuest::new();
    guest.file.set_len(0x10000).unwrap();
    assert!(matches!(open(&guest.file), StateError::Region(damage) if damage.what == "mapped size"));
}

#[test]
fn page_tables_are_walked() {
    let guest = FakeGuest::used();
    let view = guest.view();
    let small = view.translate(VMEMMAP_START + 0x3001 * 32).unwrap().unwrap();
    assert_eq!((small.gpa, small.size), (meta_gpa(0x3001), PageSize::Small));
    assert_eq!(small.rest(), 4096 - (0x3001 * 32) % 4096);
    let large = view.translate(VMEMMAP_START + u64::from(PFN4G + 7) * 32).unwrap().unwrap();
    assert_eq!((large.gpa, large.size), (meta_gpa(PFN4G + 7), PageSize::Large));
    assert_eq!(view.translate(VMEMMAP_START + 2 * MIB).unwrap(), None);
    assert_eq!(view.translate(0x0001_0000_0000_0000).unwrap(), None, "not canonical");
    assert_eq!(view.translate(0x7fff_ffff_f000).unwrap(), None);

    let mut bytes = [0; 64];
    // The last metadata of section 0 is followed by a hole.
    assert!(view.read_virtual(VMEMMAP_START + MIB - 64, &mut bytes).unwrap());
    assert!(!view.read_virtual(VMEMMAP_START + MIB - 32, &mut bytes).unwrap());
}

#[test]
fn page_tables_that_leave_memory_are_corrupt() {
    let guest = FakeGuest::new();
    let entry = 20 * MIB + (VMEMMAP_START >> 39 & 0x1ff) * 8;
    guest.memory.write_u64(entry, 0x000f_ffff_ffff_f000 | 3);
    let error = guest.view().translate(VMEMMAP_START).unwrap_err();
    assert!(matches!(error, StateError::Corrupt(Corrupt { what: "page table", found: 0x000f_ffff_ffff_f000, .. })));
    guest.region().header().roots.pgd.store(u64::MAX, Relaxed);
    assert!(guest.view().translate(VMEMMAP_START).unwrap_err().is_corrupt());
}

#[test]
fn sections_say_what_a_frame_is() {
    let guest = FakeGuest::new();
    let view = guest.view();
    let sections = view.sections().unwrap();
    assert_eq!(sections.present().collect::<Vec<_>>(), [0, 32, 33]);
    assert_eq!(sections.end_pfn(), 34 << 15);
    assert!(!sections.is_present(1 << 15) && !sections.is_present(u64::MAX >> 12));
    for (pfn, owner, zone) in [
        (0, PageOwner::Hole, Some(DMA)),
        (1, PageOwner::Memory, Some(DMA)),
        (0xa0, PageOwner::Hole, Some(DMA)),
        (0x1000, PageOwner::Reserved, Some(DMA32)),
        (0x3000, PageOwner::Memory, Some(DMA32)),
        (0x8000, PageOwner::Hole, None),
        // The last page of the reserved range is only covered in part.
        (0x10_0000 + 2047, PageOwner::Reserved, Some(NORMAL)),
        (0x10_0000 + 2048, PageOwner::Memory, Some(NORMAL)),
    ] {
        assert_eq!(sections.owner(pfn), owner, "{pfn:#x}");
        assert_eq!(sections.zone_of(pfn).map(ZoneIndex::index), zone, "{pfn:#x}");
    }
}

#[test]
fn page_blocks_are_counted_by_zone() {
    let guest = FakeGuest::new();
    let view = guest.view();
    let sections = view.sections().unwrap();
    let counts = |zone| view.block_counts(&sections, ZoneIndex(zone as u16)).unwrap();
    // From frame 1 on: blocks 0 to 7.
    assert_eq!(counts(DMA), [0, 8, 0, 0, 0, 0]);
    assert_eq!(counts(DMA32), [1, 54, 1, 0, 0, 0]);
    assert_eq!(counts(NORMAL), [0, 128, 0, 0, 0, 0]);
    assert_eq!(counts(2), [0; 6]);
}

#[test]
fn free_lists_are_walked_and_verified() {
    let guest = FakeGuest::used();
    let walk = guest.view().walk_free_lists(ONCE).unwrap();
    assert_eq!(walk.zones.len(), 15);
    assert!(walk.is_verified(), "{walk:#?}");
    assert_eq!(walk.free_pages(), 16 + 32 + 3 * 1024 + 2 + 2 + 512 + 19 * 1024 + 62 * 1024);
    let dma32 = &walk.zones[DMA32];
    assert_eq!(dma32.found.0[0][MigrateType::Unmovable.index()], 2);
    assert_eq!(dma32.found.0[10][MigrateType::Movable.index()], 19);
}

#[test]
fn equal_free_lists_have_equal_digests() {
    let guest = FakeGuest::used();
    let digest = guest.view().free_list_digest().unwrap();
    assert_eq!((digest.len(), &guest.view().free_list_digest().unwrap()), (64, &digest));
    assert_eq!(FakeGuest::used().view().free_list_digest().unwrap(), digest);
    // Two lists of one order change places.
    let list = &guest.region().zones()[DMA32].free_area[0].free_list;
    let [from, to] = [MigrateType::Unmovable, MigrateType::Reclaimable].map(|kind| &list[kind.index()].first);
    to.store(from.swap(0, Relaxed), Relaxed);
    let swapped = guest.view().free_list_digest().unwrap();
    assert_ne!(swapped, digest);
    // A cycle ends.
    guest.set_meta(0x3005, 4, encode_next(0x3005, 0x3001));
    assert_ne!(guest.view().free_list_digest().unwrap(), swapped);
}

#[test]
fn what_cpus_hold_back_counts_as_free() {
    let guest = FakeGuest::used();
    let region = guest.region();
    region.zones()[NORMAL].vm_stat[0].fetch_sub(10, Relaxed);
    assert!(!guest.view().walk_free_lists(ONCE).unwrap().is_verified());
    region.pcps()[15 + NORMAL].vm_stat_diff[0].store(10, Relaxed);
    assert!(guest.view().walk_free_lists(ONCE).unwrap().is_verified());
}

/// The fault of the only damaged list.
fn fault(guest: &FakeGuest) -> ListFault {
    let walk = guest.view().walk_free_lists(ONCE).unwrap();
    assert!(!walk.is_verified());
    let mut faults: Vec<_> = walk.zones.into_iter().flat_map(|zone| zone.faults).collect();
    assert_eq!(faults.len(), 1, "{faults:?}");
    faults.remove(0).fault
}

#[test]
fn a_cycle_is_found_and_says_what_was_seen() {
    let guest = FakeGuest::used();
    guest.set_meta(0x3005, 4, encode_next(0x3005, 0x3001));
    let fault = fault(&guest);
    assert_eq!(fault.kind, ListFaultKind::BackLink { found: 0 });
    assert_eq!((fault.pfn, fault.seen.as_slice()), (0x3001, &[0x3001, 0x3005][..]));
    assert_eq!(fault.to_string(), "frame 0x3001 links back to 0x0, reached from 0x3005");
}

#[test]
fn damaged_lists_are_told_apart() {
    type Case<'c> = (&'c dyn Fn(&FakeGuest), ListFaultKind);
    let cases: [Case<'_>; 6] = [
        (&|guest| guest.set_meta(0x3005, 4, encode_next(0x3005, 0x10)), ListFaultKind::OutOfZone),
        (&|guest| guest.set_meta(0x3200, 4, encode_next(0x3200, 0x3401)), ListFaultKind::Misaligned),
        (&|guest| guest.set_meta(0x3001, 2, 0), ListFaultKind::NotFree),
        (&|guest| guest.set_meta(0x3001, 1, 1), ListFaultKind::NotFree),
        (&|guest| guest.set_meta(0x3001, 4, encode_next(0x3001, 0)), ListFaultKind::End { expected: 0x3005 }),
        (
            &|guest| {
                // The zone claims memory that has no memory map.
                guest.region().zones()[DMA32].spanned_pages.store(1 << 30, Relaxed);
                guest.set_meta(0x3005, 4, encode_next(0x3005, 0x9000));
            },
            ListFaultKind::Hole,
        ),
    ];
    for (damage, kind) in cases {
        let guest = FakeGuest::used();
        damage(&guest);
        assert_eq!(fault(&guest).kind, kind);
    }
}

#[test]
fn lists_that_share_memory_end_when_all_memory_is_used_up() {
    let guest = FakeGuest::used();
    let region = guest.region();
    // Every zone claims the untouched run of node 1, in every migrate type.
    for zone in region.zones() {
        zone.zone_start_pfn.store(PFN4G.into(), Relaxed);
        zone.spanned_pages.store(65536, Relaxed);
        for list in &zone.free_area[10].free_list {
            list.first.store(PFN4G + 2048, Relaxed);
            list.last.store(PFN4G + 2048 + 61 * 1024, Relaxed);
        }
    }
    let walk = guest.view().walk_free_lists(ONCE).unwrap();
    let kinds: Vec<_> = walk.zones.iter().flat_map(|zone| &zone.faults).map(|damaged| damaged.fault.kind).collect();
    assert!(kinds.contains(&ListFaultKind::TooLong));
    assert!(walk.found_pages() <= guest.view().memory().size() >> 12);
}

#[test]
fn pagesets_are_walked() {
    let guest = FakeGuest::used();
    let view = guest.view();
    let walk = |cpu, zone: usize| view.walk_pcp(CpuId::new(cpu).unwrap(), ZoneIndex(zone as u16), 3).unwrap();
    let found = walk(0, DMA32).unwrap();
    assert!(found.is_sound(), "{found:?}");
    assert_eq!((found.count, found.lists[0].blocks, found.lists[10].blocks), (10, 2, 1));
    assert!(walk(1, NORMAL).unwrap().is_sound());
    assert_eq!(walk(5, DMA32), None);
    guest.region().pcps()[DMA32].count.store(11, Relaxed);
    assert!(!walk(0, DMA32).unwrap().is_sound());
    // Nothing but the count shows a cycle through the first page.
    guest.set_meta(0x3010, 5, encode_prev(0x3010, 0x3011));
    guest.set_meta(0x3011, 4, encode_next(0x3011, 0x3010));
    let fault = walk(0, DMA32).unwrap().lists[0].fault.clone().unwrap();
    assert_eq!((fault.kind, fault.seen.len()), (ListFaultKind::TooLong, 11));
}

#[test]
fn a_dead_guest_is_read_though_it_died_in_a_change() {
    let guest = FakeGuest::used();
    let region = guest.region();
    region.zones()[NORMAL].seq.store(7, Relaxed);
    region.header().state.store(GuestState::Panicked as u32, Relaxed);
    let patience = Patience { pause: Duration::from_secs(10), ..Patience::default() };
    let walk = guest.view().walk_free_lists(patience).unwrap();
    assert!(walk.is_verified());
    assert!(!walk.zones[NORMAL].stable && walk.zones[DMA].stable);
}

#[test]
fn a_running_guest_is_waited_for() {
    let guest = FakeGuest::used();
    let region = guest.region();
    let zone = &region.zones()[NORMAL];
    zone.seq.store(1, Relaxed);
    zone.vm_stat[0].fetch_sub(5, Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(30));
            zone.vm_stat[0].fetch_add(5, Relaxed);
            zone.seq.store(2, Relaxed);
        });
        let walk = guest.view().walk_free_lists(Patience { tries: u32::MAX, ..Patience::default() }).unwrap();
        assert!(walk.is_verified() && walk.zones[NORMAL].stable);
    });
    // But not for ever.
    zone.seq.store(3, Relaxed);
    let start = Instant::now();
    let patience = Patience { tries: u32::MAX, limit: Duration::from_millis(50), ..Patience::default() };
    assert!(!guest.view().walk_free_lists(patience).unwrap().zones[NORMAL].stable);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn page_metadata_is_read_one_by_one_and_in_chunks() {
    let guest = FakeGuest::used();
    guest.set_meta(0x3010, 0, 0x8000_1001);
    guest.set_meta(0x3010, 6, 42);
    let view = guest.view();
    let mut memmap = view.memmap();
    let page = memmap.get(0x3010).unwrap().unwrap();
    assert_eq!((page.flags, page.mapping, page.refcount), (0x8000_1001, 42, 0));
    assert_eq!(memmap.get(0x8000).unwrap(), None);
    let mut pages = Vec::new();
    assert!(memmap.get_chunk(0x3010, &mut pages).unwrap());
    assert_eq!((pages.len(), pages[0]), (128 - 16, page));
    assert!(memmap.get_chunk(0x10_0000 + 100, &mut pages).unwrap());
    assert_eq!(pages.len(), 28);
    assert!(!memmap.get_chunk(0x8000, &mut pages).unwrap());
    assert!(pages.is_empty());
    assert_eq!(view.page_at(view.page_address(0x3010)), Some(0x3010));
    assert_eq!(view.page_at(VMEMMAP_START + 16), None);
    assert_eq!(view.page_at(GIB4), None);
}

/// What a machine of 1 TiB costs: its largest zone is one untouched run.
#[test]
fn a_run_of_262144_blocks_is_walked_in_a_moment() {
    let guest = FakeGuest::new();
    let region = guest.region();
    let tib = 1u64 << 40;
    let (first, blocks) = (PFN4G, (tib >> 22) as u32);
    let zone = &region.zones()[NORMAL];
    zone.spanned_pages.store(tib >> 12, Relaxed);
    zone.free_area[10].nr_free[1].store(blocks.into(), Relaxed);
    zone.vm_stat[0].store((tib >> 12) as i64, Relaxed);
    let last = first + (blocks - 1) * 1024;
    zone.free_area[10].free_list[1].first.store(first, Relaxed);
    zone.free_area[10].free_list[1].last.store(last, Relaxed);
    // 8 GiB of memory map: eight page directories of large pages, in a file of their own.
    let file = Arc::new(memfd(9 << 30));
    let base = GIB4;
    let write = |gpa: u64, bytes: &[u8]| std::os::unix::fs::FileExt::write_all_at(&*file, bytes, gpa - base).unwrap();
    let (pgd, pdpt, pd, memmap) = (base, base + 0x1000, base + 0x2000, base + (1 << 30));
    let start = VMEMMAP_START + u64::from(first) * 32;
    write(pgd + (start >> 39 & 0x1ff) * 8, &(pdpt | 3).to_le_bytes());
    for number in 0..(8u64 << 30) / (2 << 20) + 1 {
        let address = (start & !(2 * MIB - 1)) + number * 2 * MIB;
        let directory = pd + (number + (start >> 21 & 0x1ff)) / 512 * 0x1000;
        write(pdpt + (address >> 30 & 0x1ff) * 8, &(directory | 3).to_le_bytes());
        write(directory + (address >> 21 & 0x1ff) * 8, &((memmap + number * 2 * MIB) | 0x83).to_le_bytes());
    }
    let meta = |pfn: u32| memmap + (start & (2 * MIB - 1)) + u64::from(pfn - first) * 32;
    write(meta(first) + 20, &encode_prev(first, 0).to_le_bytes());
    write(meta(last) + 16, &encode_next(last, 0).to_le_bytes());
    region.header().roots.pgd.store(pgd, Relaxed);

    // The budget is the memory there is: a second range, never read, makes up the rest of it.
    let rest = Arc::new(memfd(tib));
    let memory = MemfdMemory::new([
        Backing { start: base, size: 9 << 30, file, offset: 0 },
        Backing { start: base + (9 << 30), size: tib, file: rest, offset: 0 },
    ]);
    let view = StateView::open(&guest.file, Box::new(memory)).unwrap();
    let start = Instant::now();
    let walk = view.walk_free_lists(ONCE).unwrap();
    assert!(walk.is_verified(), "{:?}", walk.zones[NORMAL].faults);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}
