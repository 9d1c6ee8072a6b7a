//! Random changes of one address space.

use std::collections::{BTreeMap, BTreeSet};

use pagevisor_mm::Mm;
use pagevisor_mm::hosted::HostPlatform;
use pagevisor_mm::pgtable::{MapError, PageTables};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::pgtable::{Entry, Protection, USER_END, level_size};
use pagevisor_shared::units::{PAGE_SIZE, PhysAddr, VirtAddr};
use proptest::prelude::*;

use super::{GIB, MIB, assert_sound, in_use, machine};

/// Addresses near which everything happens: borders of tables of all levels, and both ends.
const PLACES: [u64; 6] = [0, 0x40_0000, GIB - 4 * MIB, 512 * GIB - 4 * MIB, 0x5555_5540_0000, USER_END - 8 * MIB];

#[derive(Clone, Debug)]
enum Step {
    Map {
        virt: u64,
        large: bool,
        frame: u64,
        protection: usize,
    },
    /// Notes where a page went.
    Note {
        virt: u64,
        word: u64,
    },
    Take {
        start: u64,
        end: u64,
    },
    Protect {
        start: u64,
        end: u64,
        protection: usize,
    },
    /// The processor reads or writes.
    Use {
        virt: u64,
        write: bool,
    },
    Age {
        start: u64,
        end: u64,
    },
    Clean {
        start: u64,
        end: u64,
    },
    Split {
        virt: u64,
    },
    FreeTables {
        start: u64,
        end: u64,
    },
}

const PROTECTIONS: [Protection; 4] =
    [Protection::SHARED, Protection::SHARED_EXEC, Protection::READONLY, Protection::READONLY_EXEC];

fn address() -> impl Strategy<Value = u64> {
    (0..PLACES.len(), 0..8 * MIB / PAGE_SIZE, prop_oneof![Just(true), Just(false)]).prop_map(|(place, page, near)| {
        let page = if near { page % 4 + page / 512 * 512 } else { page };
        PLACES[place] + page * PAGE_SIZE
    })
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    let length = prop_oneof![4 => 1..40u64, 3 => 500..1100u64, 1 => Just(300 * GIB / PAGE_SIZE), 1 => Just(USER_END)];
    (address(), length).prop_map(|(start, pages)| (start, (start + pages.saturating_mul(PAGE_SIZE)).min(USER_END)))
}

fn step() -> impl Strategy<Value = Step> {
    let protection = || 0..PROTECTIONS.len();
    let map = (address(), prop::bool::weighted(0.2), 1..1u64 << 30, protection());
    prop_oneof![
        8 => map.prop_map(|(virt, large, frame, protection)| Step::Map { virt, large, frame, protection }),
        1 => (address(), 1..1u64 << 40).prop_map(|(virt, word)| Step::Note { virt, word: word << 1 }),
        2 => range().prop_map(|(start, end)| Step::Take { start, end }),
        2 => (range(), protection()).prop_map(|((start, end), protection)| Step::Protect { start, end, protection }),
        4 => (address(), any::<bool>()).prop_map(|(virt, write)| Step::Use { virt, write }),
        1 => range().prop_map(|(start, end)| Step::Age { start, end }),
        1 => range().prop_map(|(start, end)| Step::Clean { start, end }),
        1 => address().prop_map(|virt| Step::Split { virt }),
        2 => range().prop_map(|(start, end)| Step::FreeTables { start, end }),
    ]
}

/// What is mapped, by address, with the level; and the tables by level and the address they begin at.
#[derive(Default)]
struct Model {
    pages: BTreeMap<u64, (Entry, u32)>,
    tables: [BTreeSet<u64>; 3],
}

const fn floor(virt: u64, level: u32) -> u64 {
    virt & !(level_size(level) - 1)
}

impl Model {
    /// The page that holds `virt`.
    fn at(&self, virt: u64) -> Option<u64> {
        let (start, (_, level)) = self.pages.range(..=virt).next_back()?;
        (virt - start < level_size(*level)).then_some(*start)
    }

    /// The pages that a range has a part of.
    fn within(&mut self, start: u64, end: u64) -> Vec<u64> {
        let first = self.at(start).unwrap_or(start);
        self.pages.range(first..end.max(first)).map(|(virt, _)| *virt).collect()
    }

    fn set(&mut self, virt: u64, level: u32, entry: Entry) -> Result<Entry, MapError> {
        let blocked = match level {
            0 => self.pages.get(&floor(virt, 1)).is_some_and(|(_, level)| *level == 1),
            _ => self.tables[0].contains(&virt),
        };
        if blocked {
            return Err(MapError::Occupied);
        }
        for level in level..3 {
            self.tables[level as usize].insert(floor(virt, level + 1));
        }
        Ok(self.pages.insert(virt, (entry, level)).map_or(Entry::NONE, |(old, _)| old))
    }

    fn change(&mut self, virt: u64, change: impl FnOnce(Entry) -> Entry) {
        let (entry, _) = self.pages.get_mut(&virt).expect("it is there");
        if entry.is_present() {
            *entry = change(*entry);
        }
    }

    fn split(&mut self, virt: u64) {
        let Some(start) = self.at(virt).filter(|start| self.pages[start].1 == 1) else { return };
        let (large, _) = self.pages.remove(&start).expect("just seen");
        self.tables[0].insert(start);
        for page in 0..512 {
            let phys = large.address(1).raw() + page * PAGE_SIZE;
            let small = Entry(phys | large.0 & !Entry::ADDRESS & !Entry::LARGE);
            self.pages.insert(start + page * PAGE_SIZE, (small, 0));
        }
    }

    fn free_tables(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        for level in 0..3 {
            let bytes = level_size(level + 1);
            let met: Vec<_> = self.tables[level as usize].range(floor(start, level + 1)..end).copied().collect();
            for table in met {
                let mapped = self.pages.range(table..table + bytes).next().is_some();
                let below = level > 0 && self.tables[level as usize - 1].range(table..table + bytes).next().is_some();
                if !mapped && !below {
                    self.tables[level as usize].remove(&table);
                }
            }
        }
    }

    fn check(&self, mm: &Mm<HostPlatform>, tables: &PageTables) {
        let mut found = BTreeMap::new();
        let mut last = None;
        mm.walk_page_range(tables, VirtAddr::new(0), VirtAddr::new(USER_END), |leaf| {
            assert!(last < Some(leaf.virt()), "{} comes again", leaf.virt());
            last = Some(leaf.virt());
            assert_eq!(PAGE_SIZE << leaf.order().raw(), leaf.bytes());
            found.insert(leaf.virt().raw(), (leaf.entry(), leaf.level()));
        });
        assert_eq!(found, self.pages);
        let expected: usize = self.tables.iter().map(BTreeSet::len).sum();
        assert_eq!(tables.bytes(), expected as u64 * PAGE_SIZE);
    }
}

fn apply(mm: &Mm<HostPlatform>, tables: &PageTables, model: &mut Model, step: Step) {
    let virt_of = VirtAddr::new;
    let walk = |start: u64, end: u64, visit: &mut dyn FnMut(&pagevisor_mm::pgtable::Leaf)| {
        mm.walk_page_range(tables, virt_of(start), virt_of(end), visit);
    };
    match step {
        Step::Map { virt, large, frame, protection } => {
            let (level, protection) = (u32::from(large), PROTECTIONS[protection]);
            let (virt, phys) = (floor(virt, level), PhysAddr::new(floor(frame * PAGE_SIZE, level)));
            let entry = if large { Entry::to_large_page(phys, protection) } else { Entry::to_page(phys, protection) };
            let found = mm.set_entry(tables, virt_of(virt), level, entry, Gfp::KERNEL);
            assert_eq!(found, model.set(virt, level, entry));
        }
        Step::Note { virt, word } => {
            let found = mm.set_entry(tables, virt_of(virt), 0, Entry(word), Gfp::KERNEL);
            assert_eq!(found, model.set(virt, 0, Entry(word)));
        }
        Step::Take { start, end } => {
            let mut taken = Vec::new();
            walk(start, end, &mut |leaf| {
                taken.push((leaf.virt().raw(), (leaf.take(), leaf.level())));
                // Once is enough.
                assert_eq!((leaf.take(), leaf.update(|_| Entry(2))), (Entry::NONE, Entry::NONE));
            });
            let expected = model.within(start, end);
            let removed: Vec<_> =
                expected.into_iter().map(|virt| (virt, model.pages.remove(&virt).expect("seen"))).collect();
            assert_eq!(taken, removed);
        }
        Step::Protect { start, end, protection } => {
            walk(start, end, &mut |leaf| {
                leaf.protect(PROTECTIONS[protection]);
            });
            for virt in model.within(start, end) {
                model.change(virt, |entry| {
                    let rights = Entry::WRITABLE | Entry::NO_EXECUTE;
                    Entry(entry.0 & !rights | PROTECTIONS[protection].bits() & rights)
                });
            }
        }
        Step::Use { virt, write } => {
            let noted = if write { Entry::ACCESSED | Entry::DIRTY } else { Entry::ACCESSED };
            walk(virt, virt + 1, &mut |leaf| {
                leaf.update(|entry| if entry.is_present() { entry.with(noted) } else { entry });
            });
            if let Some(page) = model.at(virt) {
                model.change(page, |entry| Entry(entry.0 | noted));
            }
            let expected = model.at(virt).map(|page| model.pages[&page]);
            assert_eq!(mm.lookup_entry(tables, virt_of(virt)), expected);
        }
        Step::Age { start, end } => {
            let mut young = Vec::new();
            walk(start, end, &mut |leaf| young.push(leaf.test_and_clear_young()));
            let met = model.within(start, end);
            let expected: Vec<_> = met.iter().map(|virt| model.pages[virt].0.is_young()).collect();
            met.into_iter().for_each(|virt| model.change(virt, |entry| Entry(entry.0 & !Entry::ACCESSED)));
            // Bit 5 of a note means nothing, and stays.
            assert_eq!(young, expected);
        }
        Step::Clean { start, end } => {
            let mut dirty = 0;
            walk(start, end, &mut |leaf| dirty += usize::from(leaf.clean()));
            let met = model.within(start, end);
            let was = |virt: &&u64| model.pages[virt].0.is_present() && model.pages[virt].0.is_dirty();
            assert_eq!(dirty, met.iter().filter(was).count());
            let rest = !(Entry::DIRTY | Entry::WRITABLE);
            met.into_iter().for_each(|virt| model.change(virt, |entry| Entry(entry.0 & rest)));
        }
        Step::Split { virt } => {
            mm.split_large(tables, virt_of(virt), Gfp::KERNEL).expect("memory");
            model.split(virt);
        }
        Step::FreeTables { start, end } => {
            let chain = mm.free_pgtables(tables, virt_of(start), virt_of(end));
            mm.free_tables(chain);
            model.free_tables(start, end);
        }
    }
}

fn run(steps: Vec<Step>) {
    let machine = machine();
    let mm = machine.mm();
    // The kernel's tables are made for the first one.
    mm.pgd_free(mm.pgd_alloc(Gfp::KERNEL).expect("memory"));
    let before = in_use(mm);
    let tables = mm.pgd_alloc(Gfp::KERNEL).expect("memory");
    let mut model = Model::default();
    for (round, step) in steps.into_iter().enumerate() {
        apply(mm, &tables, &mut model, step);
        if round % 4 == 0 {
            model.check(mm, &tables);
        }
    }
    model.check(mm, &tables);
    assert_eq!(in_use(mm).1 - before.1, (tables.bytes() / PAGE_SIZE) as i64, "NR_PAGETABLE");
    assert!(mm.has_kernel_half(&tables), "the kernel's half has changed");
    mm.pgd_free(tables);
    assert_eq!(in_use(mm), before, "something is left");
    assert_sound(mm);
    assert_eq!(machine.log_text(), "");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_mapped_is_what_a_flat_map_says(steps in prop::collection::vec(step(), 1..120)) {
        run(steps);
    }
}
