//! Programs' memory: page tables against areas, pages and counters.

use core::fmt;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use pagevisor_shared::mm_types::{MappingId, VmaFlags};
use pagevisor_shared::page::{PG_TABLE, Page};
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::pgtable::{Entry, level_size};
use pagevisor_shared::report::counters;
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE, Pfn};
use pagevisor_shared::vmstat::{NodeStat, ZoneStat};

use crate::Mm;
use crate::memory::{Pte, is_anon, is_exclusive, mm_counter};
use crate::mmap::{Space, Vma};
use crate::platform::Platform;
use crate::raw::{AnonFamily, Chain, PageTable, Pgd, UserTable, first_chain};
use crate::sync::Plain;

/// Something about programs' memory that is not as it must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserViolation {
    /// What is wrong.
    pub what: &'static str,
    /// Number of the address space (`ctx_id`); 0 for what is about all of them.
    pub space: u64,
    /// The address or the frame it is about; 0 for counters.
    pub at: u64,
    /// What was found.
    pub found: u64,
    /// What was expected.
    pub expected: u64,
}

impl fmt::Display for UserViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, space, at, found, expected } = self;
        write!(f, "space {space}, {at:#x}: {what}: found {found:#x}, expected {expected:#x}")
    }
}

/// Bits of [`UserTable`] entries that lead on.
const LEADS_ON: u64 = Entry::PRESENT;

struct Recount<'a, P: Platform> {
    mm: &'a Mm<P>,
    found: Vec<UserViolation>,
    /// Entries by frame.
    mapped: BTreeMap<u32, u64>,
    /// Entries by frame that lock it.
    locked: BTreeMap<u32, u64>,
    /// Families that areas are linked to, with their links and the areas whose they are.
    families: BTreeMap<u64, (AnonFamily, BTreeSet<u64>, u32)>,
    /// Tables of all spaces.
    tables: BTreeSet<u64>,
    space: u64,
}

/// Recounts the memory of all programs of a machine at rest.
pub fn user_violations<P: Platform>(mm: &Mm<P>) -> Vec<UserViolation> {
    let mut recount = Recount {
        mm,
        found: Vec::new(),
        mapped: BTreeMap::new(),
        locked: BTreeMap::new(),
        families: BTreeMap::new(),
        tables: BTreeSet::new(),
        space: 0,
    };
    let mut space = Space::list(&mm.region.header().roots).get();
    while let Some(now) = space {
        recount.space = now.record().ctx_id.get();
        recount.space(now);
        space = now.next_mm();
    }
    recount.space = 0;
    recount.families();
    recount.pages();
    recount.found
}

impl<P: Platform> Recount<'_, P> {
    fn equal(&mut self, what: &'static str, at: u64, found: u64, expected: u64) {
        if found != expected {
            self.found.push(UserViolation { what, space: self.space, at, found, expected });
        }
    }

    fn space(&mut self, space: Space) {
        let record = space.record();
        let areas: Vec<Vma> = core::iter::successors(space.first_vma(), |vma| vma.next()).collect();
        for vma in &areas {
            self.links(*vma);
        }
        let map = self.mm.direct_map();
        let mut rss = [0; 4];
        let mut tables = 0;
        if let Some(root) = Pgd::root(map, record) {
            self.table(root.pfn(map));
            for virt in (0..256).map(|index| index * level_size(3)) {
                let Some(pud) = root.next(map, virt) else { continue };
                tables += 1;
                self.table(pud.pfn(map));
                tables += self.pud(pud, virt, &areas, &mut rss);
            }
        } else {
            self.equal("areas of a space without tables", 0, areas.len() as u64, 0);
        }
        for (item, count) in rss.into_iter().enumerate() {
            self.equal("rss_stat", item as u64, record.rss_stat[item].get() as u64, count);
        }
        self.equal("pgtables_bytes", 0, record.pgtables_bytes.get(), tables * PAGE_SIZE);
        self.equal("page_table_lock at rest", 0, record.page_table_lock.get().into(), 0);
    }

    fn table(&mut self, pfn: Pfn) {
        let page = self.mm.memmap().page(pfn.raw() as u32);
        self.equal("type of a table's page", pfn.raw(), page._mapcount.get().into(), PG_TABLE.into());
        self.equal("references to a table", pfn.raw(), page._refcount.get().into(), 1);
        self.equal("lock of a table at rest", pfn.raw(), page.private.get().into(), 0);
        if !self.tables.insert(pfn.raw()) {
            self.equal("a table in two places", pfn.raw(), 1, 0);
        }
    }

    fn pud(&mut self, pud: UserTable<2>, base: u64, areas: &[Vma], rss: &mut [u64; 4]) -> u64 {
        let map = self.mm.direct_map();
        let mut tables = 0;
        for virt in (0..512).map(|index| base + index * level_size(2)) {
            let Some(pmd) = pud.next(map, virt) else { continue };
            tables += 1;
            self.table(pmd.pfn(map));
            for virt in (0..512).map(|index| virt + index * level_size(1)) {
                let Some(table) = pmd.next(map, virt) else { continue };
                tables += 1;
                self.equal("flags of an entry for a table", virt, pmd.get(virt).0 & LEADS_ON, LEADS_ON);
                self.table(table.pfn(map));
                self.entries(table, virt, areas, rss);
            }
        }
        tables
    }

    fn entries(&mut self, table: PageTable, base: u64, areas: &[Vma], rss: &mut [u64; 4]) {
        for (word, index) in table.words(base, 512).iter().zip(0..) {
            let (pte, virt) = (Pte(word.get()), base + index * PAGE_SIZE);
            if pte.is_none() {
                continue;
            }
            let Some(vma) = areas.iter().find(|vma| vma.start() <= virt && virt < vma.end()) else {
                self.equal("entry outside of areas", virt, pte.0, 0);
                continue;
            };
            self.entry(pte, virt, *vma, rss);
        }
    }

    fn entry(&mut self, pte: Pte, virt: u64, vma: Vma, rss: &mut [u64; 4]) {
        let flags = vma.flags();
        self.equal("entry that keeps no page", virt, pte.keeps_page().into(), 1);
        self.equal("accessible", virt, (!pte.is_protnone()).into(), flags.intersects(VmaFlags::ACCESS).into());
        self.equal("writable", virt, (pte.is_writable() && !flags.contains(VmaFlags::WRITE)).into(), 0);
        let executable = !pte.is_protnone() && !pte.has(Entry::NO_EXECUTE);
        self.equal("executable", virt, executable.into(), flags.contains(VmaFlags::EXEC).into());
        if pte.is_special() {
            let zero = self.mm.region.header().roots.zero_pfn.get();
            self.equal("zero page", virt, pte.frame().into(), zero);
            self.equal("writable zero page", virt, pte.is_writable().into(), 0);
            return;
        }
        *self.mapped.entry(pte.frame()).or_default() += 1;
        self.equal("locked", virt, pte.has(Entry::MLOCKED).into(), flags.contains(VmaFlags::LOCKED).into());
        if pte.has(Entry::MLOCKED) {
            *self.locked.entry(pte.frame()).or_default() += 1;
        }
        let page = self.mm.user_page(pte.frame());
        rss[mm_counter(page) as usize] += 1;
        if flags.contains(VmaFlags::SHARED) {
            self.equal("anonymous page in shared memory", virt, is_anon(page).into(), 0);
        } else if pte.is_writable() {
            self.equal("writable page is its own", virt, (is_anon(page) && is_exclusive(page)).into(), 1);
        }
        if vma.is_anonymous() {
            self.equal("page of a file without one", virt, is_anon(page).into(), 1);
        }
        if is_anon(page) {
            self.equal("index", virt, page.index.get().into(), vma.index_of(virt) & u64::from(u32::MAX));
            let id = page.mapping.get();
            let linked = links_of(vma)
                .any(|link| link.family().is_some_and(|family| MappingId::anon(family.id.get()).word() == id));
            self.equal("family of a page is its area's", virt, linked.into(), 1);
        }
    }

    /// Notes what `vma` is linked to.
    fn links(&mut self, vma: Vma) {
        for link in links_of(vma) {
            let Some(family) = link.family() else {
                self.equal("link without a family", vma.start(), 0, 1);
                continue;
            };
            self.equal(
                "area of a link",
                vma.start(),
                link.area().map_or(0, |area| area.addr().raw()),
                vma.addr().raw(),
            );
            let known = self.families.entry(family.addr().raw()).or_insert((family, BTreeSet::new(), 0));
            known.1.insert(link.addr().raw());
        }
        if let Some(own) = vma.anon_vma() {
            match self.families.get_mut(&own.addr().raw()) {
                Some(known) => known.2 += 1,
                None => self.equal("link to the area's own family", vma.start(), 0, 1),
            }
        }
    }

    fn families(&mut self) {
        let families = core::mem::take(&mut self.families);
        let mut children: BTreeMap<u64, u64> = BTreeMap::new();
        let mut members: BTreeMap<u64, u64> = BTreeMap::new();
        for (family, _, _) in families.values() {
            let [parent, root] = [family.parent(), family.root()].map(|of| of.map_or(0, |of| of.addr().raw()));
            *children.entry(parent).or_default() += 1;
            *members.entry(root).or_default() += 1;
        }
        for (at, (family, links, own)) in &families {
            let listed: Vec<Chain> = core::iter::successors(family.first_link(), |link| link.next_link()).collect();
            let listed: BTreeSet<u64> = listed.iter().map(|link| link.addr().raw()).collect();
            self.equal("links of a family", *at, listed.len() as u64, links.len() as u64);
            self.equal("the same links", *at, (listed == *links).into(), 1);
            self.equal("num_active_vmas", *at, family.num_active_vmas.get().into(), (*own).into());
            self.equal("num_children", *at, family.num_children.get().into(), children.get(at).copied().unwrap_or(0));
            let is_root = family.root().is_some_and(|root| root.addr().raw() == *at);
            let references = if is_root { members[at] } else { 1 };
            self.equal("references to a family", *at, family.refcount.get().into(), references);
            let word = self.mm.number_word(family.id.get()).map_or(0, |word| word.get());
            self.equal("family by its number", *at, word, *at);
            self.equal("lock of a family at rest", *at, family.lock.get().into(), 0);
        }
    }

    /// Compares pages' counts with the entries that were found, and the nodes' counters with both.
    fn pages(&mut self) {
        let mut by_node: BTreeMap<usize, [i64; 2]> = BTreeMap::new();
        let mapped = core::mem::take(&mut self.mapped);
        for (frame, count) in &mapped {
            let page = self.mm.user_page(*frame);
            self.equal("_mapcount", (*frame).into(), page._mapcount.get().into(), *count);
            if is_anon(page) {
                self.equal("_refcount", (*frame).into(), page._refcount.get().into(), *count);
                if is_exclusive(page) {
                    self.equal("entries of an exclusive page", (*frame).into(), *count, 1);
                }
            }
            if let Some(node) = self.mm.page_to_nid(Pfn::new((*frame).into())) {
                by_node.entry(node.index()).or_default()[usize::from(!is_anon(page))] += 1;
            }
        }
        for range in self.mm.region().memory() {
            let start = range.base.get().div_ceil(PAGE_SIZE);
            for frame in start..(range.base.get() + range.size.get()) >> PAGE_SHIFT {
                let page = self.mm.user_page(frame as u32);
                // Slabs have numbers of their own there.
                let of_a_program = page.flags.get() & (PageFlag::Uptodate.mask() | PageFlag::Slab.mask());
                let lost = page._refcount.get() != 0 && is_anon(page) && of_a_program == PageFlag::Uptodate.mask();
                if lost && !mapped.contains_key(&(frame as u32)) {
                    self.equal("anonymous page that nobody maps", frame, 1, 0);
                }
                self.lock_of_page(page, frame as u32);
            }
        }
        self.locked_counts();
        for (index, node) in self.mm.nodes.iter().enumerate() {
            let expected = by_node.get(&index).copied().unwrap_or_default();
            for (item, expected) in [NodeStat::NrAnonPages, NodeStat::NrMapped].into_iter().zip(expected) {
                let per_cpu = self.mm.node_cpus.iter().skip(index).step_by(self.mm.nodes.len());
                let pending: i64 = per_cpu.map(|cpu| i64::from(cpu.vm_node_stat_diff[item.index()].get())).sum();
                let found = node.vm_stat[item.index()].get() + pending;
                self.equal(NodeStat::NAMES[item.index()], index as u64, found as u64, expected as u64);
            }
        }
    }
}

impl<P: Platform> Recount<'_, P> {
    /// A page is marked and counts as the entries say that lock it.
    fn lock_of_page(&mut self, page: &Page, frame: u32) {
        let locks = self.locked.get(&frame).copied().unwrap_or_default();
        for flag in [PageFlag::Mlocked, PageFlag::Unevictable] {
            let is_set = page._refcount.get() != 0 && page.flags.get() & flag.mask() != 0;
            self.equal("mark of a locked page", frame.into(), is_set.into(), (locks != 0).into());
        }
        if locks != 0 {
            self.equal("mlock_count", frame.into(), page.prev.get().into(), locks);
        }
    }

    /// Compares the counters of locked pages with the entries that were found.
    fn locked_counts(&mut self) {
        let mut zones = BTreeMap::<usize, u64>::new();
        for frame in self.locked.keys() {
            if let Some(zone) = self.mm.page_zone(Pfn::new((*frame).into())) {
                *zones.entry(zone.index()).or_default() += 1;
            }
        }
        let mut unevictable = 0;
        for (zone, _) in self.mm.populated_zones() {
            let expected = zones.get(&zone.index()).copied().unwrap_or_default();
            for item in [ZoneStat::NrMlock, ZoneStat::NrZoneUnevictable] {
                let found = self.mm.zone_page_state_snapshot(zone, item);
                self.equal(ZoneStat::NAMES[item.index()], zone.index() as u64, found, expected);
            }
            unevictable += expected;
        }
        let found = counters::global_node_page_state(self.mm.region(), NodeStat::NrUnevictable);
        self.equal("nr_unevictable", 0, found, unevictable);
    }
}

fn links_of(vma: Vma) -> impl Iterator<Item = Chain> {
    core::iter::successors(first_chain(vma.record()), |link| link.next_of_area())
}
