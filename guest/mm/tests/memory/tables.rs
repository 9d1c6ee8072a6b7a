//! Page tables against a flat map of addresses.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::pgtable::Entry;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};
use proptest::prelude::*;

use crate::{assert_sound, in_use, load, machine, private, rss, store};

/// Ends of areas: two behind one table, two behind one directory, and far away ones.
const TOPS: [u64; 6] =
    [0x40_0000, 0x3f_0000, 0x1234_5678_9000, 0x7000_0010_0000, 0x7000_0000_0000 + (1 << 30), 0x7fff_ffff_f000];
const PAGES: u64 = 8;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mapped {
    Zero,
    Own(u8),
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_was_touched_is_mapped_and_nothing_else(
        touches in prop::collection::vec((0..TOPS.len(), 0..PAGES, any::<bool>(), any::<u8>()), 0..120),
    ) {
        let machine = machine();
        let mm = machine.mm();
        let space = mm.mm_alloc().expect("a space");
        let before = in_use(mm);
        let bases: Vec<u64> = TOPS.iter().map(|top| private(mm, space, *top, PAGES)).collect();
        let mut flat: BTreeMap<u64, Mapped> = BTreeMap::new();
        for (area, page, write, byte) in touches {
            let addr = bases[area] + page * PAGE_SIZE;
            if write {
                store(mm, space, addr, byte);
                flat.insert(addr, Mapped::Own(byte));
            } else {
                let expected = match flat.entry(addr).or_insert(Mapped::Zero) {
                    Mapped::Zero => 0,
                    Mapped::Own(byte) => *byte,
                };
                prop_assert_eq!(load(mm, space, addr).0, expected);
            }
        }
        for base in &bases {
            for addr in (0..PAGES).map(|page| base + page * PAGE_SIZE) {
                let walked = mm.walk_user(space, VirtAddr::new(addr + 17));
                match flat.get(&addr) {
                    None => prop_assert!(walked.is_none()),
                    Some(mapped) => {
                        let walked = walked.expect("it was touched");
                        prop_assert_eq!((walked.phys.raw() & 0xfff, walked.rest), (17, PAGE_SIZE - 17));
                        prop_assert_eq!(walked.entry.0 & Entry::SPECIAL != 0, *mapped == Mapped::Zero);
                    }
                }
            }
        }
        let own = flat.values().filter(|mapped| **mapped != Mapped::Zero).count();
        prop_assert_eq!(rss(space), own as i64);
        // As many tables as there are different prefixes.
        let tables: usize = [39, 30, 21]
            .into_iter()
            .map(|shift| flat.keys().map(|addr| addr >> shift).collect::<std::collections::BTreeSet<_>>().len())
            .sum();
        prop_assert_eq!(space.pgtables_bytes.load(Relaxed), tables as u64 * PAGE_SIZE);
        assert_sound(mm);
        mm.mmput(space);
        prop_assert!(in_use(mm) <= before + 4);
        assert_sound(mm);
    }
}
