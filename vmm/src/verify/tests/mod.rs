//! The verifier on guests made by hand: sound ones, damaged ones, hostile ones.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod image;
mod programs;

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use pagevisor_shared::layout::PAGE_OFFSET;
use pagevisor_shared::page::{PG_BUDDY, encode_next};
use pagevisor_shared::region::GuestState;

use super::{MAX_FINDINGS, Rule, verify};
use crate::state::fake::{DMA32, FakeGuest, MIB, NORMAL, PFN4G, meta_gpa};
use image::{Random, TABLES, slot, sound};

fn findings(guest: &FakeGuest) -> Vec<String> {
    verify(&guest.view(), &[]).unwrap().findings.iter().map(ToString::to_string).collect()
}

#[test]
fn nothing_is_found_in_sound_guests() {
    for seed in 0..16 {
        let guest = sound(seed);
        assert_eq!(findings(&guest), [""; 0], "seed {seed}");
    }
}

#[test]
fn the_summary_says_what_was_looked_at() {
    let report = verify(&sound(7).view(), &[]).unwrap();
    assert_eq!(report.checked.pages, 159 + (127 << 8) + (256 << 8));
    assert_eq!((report.checked.zones, report.checked.tables), (3, 14));
    assert!(report.checked.blocks > 32 && report.checked.touched > 100, "{:?}", report.checked);
    assert!(report.summary().starts_with("sound: 98"), "{}", report.summary());
    assert_eq!(report.json()["sound"], true);
}

/// First frame of a free list that is not empty, with the zone and order.
fn some_list(guest: &FakeGuest, order: std::ops::Range<usize>) -> (usize, usize, usize, u32) {
    let region = guest.region();
    for zone in [DMA32, NORMAL] {
        for order in order.clone() {
            for kind in 0..3 {
                let list = &region.zones()[zone].free_area[order].free_list[kind];
                let (first, last) = (list.first.load(Relaxed), list.last.load(Relaxed));
                if first != last {
                    return (zone, order, kind, first);
                }
            }
        }
    }
    panic!("all lists are empty");
}

type Damage = (Rule, fn(&FakeGuest));

#[test]
fn damage_is_found() {
    let damages: [Damage; 12] = [
        (Rule::FreeListMark, |guest| guest.set_meta(some_list(guest, 0..9).3, 2, 0)),
        (Rule::FreeListReferences, |guest| guest.set_meta(some_list(guest, 0..9).3, 1, 1)),
        (Rule::FreeListEnd, |guest| {
            let first = some_list(guest, 0..11).3;
            guest.set_meta(first, 4, encode_next(first, 0));
        }),
        (Rule::FreeListLength, |guest| {
            let first = some_list(guest, 0..11).3;
            guest.set_meta(first, 4, encode_next(first, first));
        }),
        (Rule::FreeListCount, |guest| {
            let (zone, order, kind, _) = some_list(guest, 0..11);
            guest.region().zones()[zone].free_area[order].nr_free[kind].fetch_add(1, Relaxed);
        }),
        // Inside the run that nobody has touched.
        (Rule::FreeListMark, |guest| guest.set_meta(PFN4G + 2048 + 40 * 1024, 3, 5)),
        (Rule::PageTwoStates, |guest| guest.set_meta(PFN4G + 2048 + 40 * 1024 + 5, 1, 1)),
        (Rule::BuddyMarkStray, |guest| guest.set_meta(PFN4G + 2048 + 40 * 1024 + 6, 2, PG_BUDDY)),
        (Rule::ReservedReferences, |guest| guest.set_meta(0x1003, 1, 1)),
        (Rule::FreePageZero, |guest| guest.memory.write((u64::from(PFN4G) + 2048 + 41 * 1024) << 12, b"x")),
        (Rule::DirectMapHole, |guest| guest.memory.write_u64(slot(TABLES + 0x5000, PAGE_OFFSET + 64 * MIB, 21), 0)),
        (Rule::ZoneNrFreePages, |guest| {
            guest.region().zones()[NORMAL].vm_stat[0].fetch_sub(1, Relaxed);
        }),
    ];
    for (number, (rule, damage)) in damages.into_iter().enumerate() {
        let guest = sound(number as u64);
        damage(&guest);
        assert!(verify(&guest.view(), &[]).unwrap().has(rule), "{rule}: {:#?}", findings(&guest));
    }
}

#[test]
fn findings_are_capped() {
    let guest = sound(1);
    for pfn in 0..3000 {
        guest.set_meta(0x1000 + pfn, 1, 1);
    }
    let report = verify(&guest.view(), &[]).unwrap();
    assert_eq!(report.findings.len(), MAX_FINDINGS);
    assert_eq!(report.count(), 3000);
}

/// Whatever a guest writes where, a verification ends soon and in order.
#[test]
fn hostile_guests_are_verified_to_the_end() {
    let mut random = Random(0x5eed);
    for seed in 0..12 {
        let guest = sound(seed);
        for _ in 0..10 {
            for _ in 0..1 + random.below(20) {
                attack(&guest, &mut random);
            }
            let started = Instant::now();
            // A region that is none is refused; all else is a report.
            if let Ok(view) = crate::state::StateView::open(&guest.file, Box::new(guest.memory.clone())) {
                let report = verify(&view, &[]).unwrap();
                assert!(report.findings.len() <= MAX_FINDINGS);
            }
            assert!(started.elapsed() < Duration::from_secs(20));
        }
    }
}

/// Writes a word somewhere that the verifier looks at.
fn attack(guest: &FakeGuest, random: &mut Random) {
    let value = match random.below(4) {
        0 => 0,
        1 => u64::MAX,
        2 => random.below(1 << 20),
        _ => random.below(u64::MAX >> 12),
    };
    match random.below(6) {
        0 => guest.memory.write_u64(TABLES + random.below(14 * 512) * 8, value),
        1 => guest.memory.write_u64(24 * MIB + random.below(16) * 8, value),
        2 | 3 => {
            let pfn = if random.below(2) == 0 { 0x3000 } else { PFN4G + 2048 } + random.below(0x2000) as u32;
            guest.memory.write_u32(meta_gpa(pfn) + random.below(8) * 4, value as u32);
        }
        4 => {
            let region = guest.region();
            let range =
                &[region.memory_slots(), region.reserved_slots()][random.below(2) as usize][random.below(4) as usize];
            [&range.base, &range.size][random.below(2) as usize].store(value, Relaxed);
            region.header().nr_memory.store(random.below(2000) as u32, Relaxed);
        }
        _ => {
            let region = guest.region();
            let zone = &region.zones()[random.below(15) as usize];
            let words = [&zone.zone_start_pfn, &zone.spanned_pages, &zone.present_pages, &zone.managed_pages];
            words[random.below(4) as usize].store(value, Relaxed);
            zone.free_area[random.below(11) as usize].free_list[random.below(6) as usize]
                .first
                .store(value as u32, Relaxed);
            region.header().roots.nr_sections.store(random.below(200_000), Relaxed);
            region.header().state.store(GuestState::Ready as u32, Relaxed);
        }
    }
}
