//! The vocabulary against Linux's numbers, and the region against damage.

use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::gfp::{FLAGS, Gfp};
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page::{decode_next, decode_prev, encode_next, encode_prev};
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::region::log::{LOG_LINE_MAX, LogRead};
use pagevisor_shared::region::{RegionLayout, RegionRef, Table};
use pagevisor_shared::units::{CpuId, CpuMask, NodeId, Order, Pfn, PhysAddr};
use pagevisor_shared::vmstat::{NodeStat, NumaStat, VmEvent, ZoneStat};
use pagevisor_shared::zone::{ZoneIndex, ZoneRef, ZoneType};
use proptest::prelude::*;

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Block([u8; 64]);

/// Zeroed memory for a region.
struct Memory(Vec<Block>);

impl Memory {
    fn new(layout: &RegionLayout) -> Self {
        Self(vec![Block([0; 64]); (layout.size / 64) as usize])
    }

    fn base(&mut self) -> NonNull<u8> {
        NonNull::new(self.0.as_mut_ptr().cast()).expect("a vector's pointer is not null")
    }
}

fn created(memory: &mut Memory, layout: RegionLayout) -> RegionRef<'_> {
    let base = memory.base();
    // SAFETY: the vector is aligned to 64, as long as the layout, zero, and borrowed for the view's life.
    unsafe {
        RegionRef::header_at(base).publish_early();
        RegionRef::create(base, layout)
    }
}

#[test]
fn gfp_names_are_those_of_linux_reports() {
    assert_eq!(Gfp::KERNEL.bits(), 0xcc0);
    assert_eq!((Gfp::KERNEL | Gfp::THISNODE).bits(), 0x0020_0cc0);
    assert_eq!((Gfp::KERNEL | Gfp::THISNODE).to_string(), "GFP_KERNEL|__GFP_THISNODE");
    assert_eq!((Gfp::ATOMIC_ALLOC | Gfp::DMA).to_string(), "GFP_ATOMIC|GFP_DMA");
    assert_eq!(Gfp::NONE.to_string(), "none");
    assert_eq!(Gfp::HIGHUSER_MOVABLE.bits(), 0x0010_0cca);
}

#[test]
fn gfp_chooses_zone_and_mobility_as_linux_does() {
    let cases = [
        (Gfp::KERNEL, ZoneType::Normal, MigrateType::Unmovable),
        (Gfp::KERNEL | Gfp::DMA, ZoneType::Dma, MigrateType::Unmovable),
        (Gfp::KERNEL | Gfp::DMA32, ZoneType::Dma32, MigrateType::Unmovable),
        (Gfp::HIGHUSER, ZoneType::Normal, MigrateType::Unmovable),
        (Gfp::KERNEL | Gfp::MOVABLE, ZoneType::Normal, MigrateType::Movable),
        (Gfp::HIGHUSER_MOVABLE, ZoneType::Movable, MigrateType::Movable),
        (Gfp::KERNEL | Gfp::RECLAIMABLE, ZoneType::Normal, MigrateType::Reclaimable),
        (Gfp::DMA32 | Gfp::MOVABLE, ZoneType::Dma32, MigrateType::Movable),
    ];
    for (gfp, zone, kind) in cases {
        assert_eq!((gfp.zone(), gfp.migratetype()), (zone, kind), "{gfp}");
    }
    assert_eq!(Gfp::from_bits(1 << 23), None);
}

#[test]
fn page_flags_have_linux_numbers() {
    assert_eq!(PageFlag::Reserved.mask(), 0x1000);
    assert_eq!(PageFlag::Slab.mask(), 0x200);
    assert_eq!(PageFlag::Head.mask(), 0x1_0000);
    assert_eq!(PageFlag::NAMES[PageFlag::Swapbacked as usize], "swapbacked");
}

#[test]
fn counters_keep_the_order_of_proc_vmstat() {
    assert_eq!(ZoneStat::NAMES[ZoneStat::NrFreeCma.index()], "nr_free_cma");
    assert_eq!(NumaStat::NAMES[NumaStat::NumaOther.index()], "numa_other");
    assert_eq!(NodeStat::NAMES[NodeStat::NrKernelStack.index()], "nr_kernel_stack");
    assert_eq!(VmEvent::NAMES[VmEvent::Pgfree.index()], "pgfree");
    assert_eq!(VmEvent::PgallocNormal.index(), VmEvent::PgallocDma.index() + ZoneType::Normal.index());
}

#[test]
fn fresh_pageblock_bytes_are_movable() {
    assert_eq!(MigrateType::of_block(0), MigrateType::Movable);
    for kind in MigrateType::ALL {
        assert_eq!(MigrateType::decode_block(kind.block_byte()), Some(kind));
    }
    assert_eq!(MigrateType::decode_block(0xff), None);
}

#[test]
fn untouched_links_join_adjacent_blocks_of_the_largest_order() {
    assert_eq!(decode_next(0x10_0000, 0), 0x10_0400);
    assert_eq!(decode_prev(0x10_0400, 0), 0x10_0000);
}

#[test]
fn masks_print_as_linux_lists() {
    assert_eq!(CpuMask(0b10_1111).to_string(), "0-3,5");
    assert_eq!(CpuMask(0).to_string(), "");
    assert_eq!(CpuMask(u64::MAX).to_string(), "0-63");
    assert_eq!(CpuMask(0).with(CpuId::new(63).expect("below the limit")).to_string(), "63");
}

#[test]
fn orders_hold_what_they_say() {
    assert_eq!(Order::for_bytes(4096), Some(Order::ZERO));
    assert_eq!(Order::for_bytes(4097).map(Order::raw), Some(1));
    assert_eq!(Order::for_bytes(4 << 20), Some(Order::MAX));
    assert_eq!(Order::for_bytes((4 << 20) + 1), None);
    assert!(Order::new(11).is_err());
    assert_eq!(Pfn::at_or_above(PhysAddr::new(1)).raw(), 1);
    assert_eq!(Pfn::containing(PhysAddr::new(4095)).raw(), 0);
}

#[test]
fn log_records_come_back_in_order_and_old_ones_are_lost() {
    let layout = RegionLayout::new(1, 1);
    let mut memory = Memory::new(&layout);
    let ring = created(&mut memory, layout).log();
    let line = [b'x'; LOG_LINE_MAX];
    for number in 0..1000 {
        ring.write(6, 3, number, &line[..number as usize]);
    }
    let mut text = [0; LOG_LINE_MAX];
    let LogRead::Lost(mut position) = ring.read(0, &mut text) else { panic!("the first record should be gone") };
    assert_eq!(position, ring.oldest());
    let mut expected = None;
    while let LogRead::Record(record, next) = ring.read(position, &mut text) {
        assert_eq!(record.nanos, expected.unwrap_or(record.nanos));
        assert_eq!((record.level, record.cpu, record.text.len() as u64), (6, 3, record.nanos));
        expected = Some(record.nanos + 1);
        position = next;
    }
    assert_eq!(expected, Some(1000));
    assert_eq!(ring.read(position, &mut text), LogRead::End);
}

#[test]
fn a_region_opens_only_as_it_was_laid_out() {
    let layout = RegionLayout::new(3, 5);
    let mut memory = Memory::new(&layout);
    let base = memory.base();
    let region = created(&mut memory, layout.clone());
    assert_eq!((region.zones().len(), region.pcps().len(), region.distances().len()), (15, 75, 9));
    let zone = region.zone(NodeId::new(2).expect("below"), ZoneType::Dma32).expect("exists");
    assert!(core::ptr::eq(zone, &region.zones()[11]));
    assert_eq!(region.pcps_of(CpuId::new(5).expect("below")).len(), 0);
    // SAFETY: the memory outlives the views and is only accessed atomically.
    let open = |len| unsafe { RegionRef::open(base, len) };
    assert_eq!(open(layout.size).expect("whole").layout(), &layout);
    assert_eq!(open(4096).expect_err("cut off").what, "mapped size");
    region.header().tables[Table::Zone as usize].offset.store(u64::MAX, Relaxed);
    assert_eq!(open(layout.size).expect_err("bad table").what, "table offset");
    region.header().nr_cpus.store(65, Relaxed);
    assert_eq!(open(layout.size).expect_err("bad count").what, "number of CPUs");
}

proptest! {
    #[test]
    fn links_round_trip(this in 1u32.., target: u32) {
        prop_assert_eq!(decode_next(this, encode_next(this, target)), target);
        prop_assert_eq!(decode_prev(this, encode_prev(this, target)), target);
    }

    #[test]
    fn zonerefs_round_trip(node in 0usize..64, kind in 0usize..5) {
        let kind = ZoneType::new(kind).expect("below");
        let zone = ZoneIndex::of(NodeId::new(node).expect("below"), kind);
        let entry = ZoneRef::new(zone, kind);
        prop_assert_eq!((entry.zone(), entry.zone_idx()), (Some(zone), kind.index()));
    }

    #[test]
    fn tables_never_overlap(nodes in 1u32..=64, cpus in 1u32..=64) {
        let layout = RegionLayout::new(nodes, cpus);
        let mut end = RegionLayout::LOG_OFFSET;
        for (offset, stride, count) in layout.tables {
            prop_assert!(offset >= end && offset % 64 == 0);
            end = offset + u64::from(stride) * u64::from(count);
        }
        prop_assert!(end <= layout.size);
    }

    #[test]
    fn a_damaged_log_is_read_without_a_panic_and_to_an_end(
        head: u64, tail: u64, small in any::<bool>(), words in prop::collection::vec(any::<u64>(), 64)
    ) {
        let layout = RegionLayout::new(1, 1);
        let mut memory = Memory::new(&layout);
        let base = memory.base();
        let start = (RegionLayout::LOG_OFFSET / 64) as usize;
        let (head, tail) = if small { (head % 4096, tail % 4096) } else { (head, tail) };
        memory.0[start].0[..8].copy_from_slice(&head.to_le_bytes());
        memory.0[start].0[8..16].copy_from_slice(&tail.to_le_bytes());
        for (index, word) in words.iter().enumerate() {
            let record = if index % 2 == 0 { word & 0xffff_03ff | 0x4c4f_4752 << 32 } else { *word };
            memory.0[start + 1 + index / 8].0[index % 8 * 8..][..8].copy_from_slice(&record.to_le_bytes());
        }
        // SAFETY: the memory outlives the view and nobody writes to it now.
        let ring = unsafe { RegionRef::log_at(base) };
        let mut text = [0; LOG_LINE_MAX];
        let mut position = 0;
        while let LogRead::Record(_, next) | LogRead::Lost(next) = ring.read(position, &mut text) {
            prop_assert!(next > position && next <= head);
            position = next;
        }
    }

    #[test]
    fn a_random_header_is_refused_without_a_panic(words in prop::collection::vec(any::<u64>(), 64)) {
        let layout = RegionLayout::new(2, 2);
        let mut memory = Memory::new(&layout);
        let base = memory.base();
        for (block, word) in memory.0.iter_mut().zip(words) {
            block.0[..8].copy_from_slice(&word.to_le_bytes());
        }
        // SAFETY: the memory outlives the view and nobody writes to it now.
        let opened = unsafe { RegionRef::open(base, layout.size) };
        prop_assert!(opened.is_err());
    }
}

#[test]
fn gfp_flags_are_read_as_they_are_printed() {
    for text in ["GFP_KERNEL", "GFP_KERNEL|__GFP_THISNODE", "GFP_HIGHUSER_MOVABLE|__GFP_ZERO", "GFP_DMA", "none"] {
        let flags: Gfp = text.parse().unwrap();
        assert_eq!(flags.to_string(), text);
    }
    for &(flag, name) in FLAGS {
        assert_eq!(name.parse(), Ok(flag), "{name}");
    }
    // Of the short names GFP_ATOMIC has the one it shares with __GFP_ATOMIC.
    assert_eq!("ATOMIC".parse(), Ok(Gfp::ATOMIC_ALLOC));
    assert_eq!("THISNODE".parse(), Ok(Gfp::THISNODE));
    assert_eq!("KERNEL|DMA32".parse(), Ok(Gfp::KERNEL | Gfp::DMA32));
    assert_eq!("KERNEL|0x4".parse(), Ok(Gfp::KERNEL | Gfp::DMA32));
    for bad in ["", "KERNEL|", "kernel", "0x", "GFP", "4"] {
        assert!(bad.parse::<Gfp>().is_err(), "{bad}");
    }
}
