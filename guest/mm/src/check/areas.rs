//! The vmalloc space: trees against lists against each other, page tables against areas and counters.

use core::fmt;

use pagevisor_shared::layout::{VMALLOC_END, VMALLOC_START};
use pagevisor_shared::page::PG_TABLE;
use pagevisor_shared::pgtable::{PTRS_PER_TABLE, TOP_LEVEL, level_shift, level_size};
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE};
use pagevisor_shared::vmalloc::VmFlags;
use pagevisor_shared::vmstat::NodeStat;

use crate::Mm;
use crate::platform::Platform;
use crate::raw::{AreaRef, AreaWord, Space, Table};
use crate::sync::Plain;
use crate::vmalloc::AreaTree;

/// Something about the vmalloc space that is not as it must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AreaViolation {
    /// What is wrong.
    pub what: &'static str,
    /// The address it is about; 0 for counters.
    pub addr: u64,
    /// What was found.
    pub found: u64,
    /// What was expected.
    pub expected: u64,
}

impl fmt::Display for AreaViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}: {}: found {:#x}, expected {:#x}", self.addr, self.what, self.found, self.expected)
    }
}

/// Receives violations.
pub type AreaSink<'a> = &'a mut dyn FnMut(AreaViolation);

/// No red-black tree of fewer nodes than there are addresses is higher.
const MAX_HEIGHT: u32 = 128;

struct Checker<'a, P: Platform> {
    mm: &'a Mm<P>,
    busy: AreaTree<false>,
    sink: AreaSink<'a>,
    /// Tables below the top, and pages mapped.
    tables: u64,
    pages: u64,
}

/// Recounts the vmalloc space of a machine at rest.
pub fn verify_vmalloc<P: Platform>(mm: &Mm<P>, sink: AreaSink<'_>) {
    let state = &mm.region.header().roots.vmalloc;
    let [busy, free, purge] = [&state.busy, &state.free, &state.purge].map(AreaWord::of);
    let mut checker = Checker { mm, busy: AreaTree::new(busy), sink, tables: 0, pages: 0 };
    checker.equal("lock of purges at rest", 0, state.purge_lock.get().into(), 0);
    for tree in [&state.busy, &state.free, &state.purge] {
        checker.equal("lock of areas at rest", 0, tree.lock.get().into(), 0);
        checker.equal("sequence counter of areas at rest", 0, u64::from(tree.seq.get() & 1), 0);
    }
    for (root, augmented) in [(busy, false), (free, true), (purge, false)] {
        let mut last = None;
        checker.subtree(root[0].get(), None, augmented, MAX_HEIGHT, &mut last);
        let first = last.map(|last| core::iter::successors(Some(last), |area| area.prev()).last());
        checker.equal("first of a list", 0, addr(root[1].get()), addr(first.flatten()));
        checker.equal("end of a list", 0, addr(last.and_then(AreaRef::next)), 0);
    }
    checker.cover([busy[1], free[1], purge[1]]);
    checker.lazy(purge[1], state.lazy_nr.get());
    let root = Table::root(mm.platform);
    let mut virt = VMALLOC_START;
    while virt < VMALLOC_END {
        checker.below(root, virt);
        virt += level_size(TOP_LEVEL);
    }
    checker.totals(busy[1]);
}

fn addr(area: Option<AreaRef>) -> u64 {
    area.map_or(0, |area| area.addr().raw())
}

impl<P: Platform> Checker<'_, P> {
    fn equal(&mut self, what: &'static str, addr: u64, found: u64, expected: u64) {
        if found != expected {
            (self.sink)(AreaViolation { what, addr, found, expected });
        }
    }

    /// Checks a subtree; gives its black height and the largest of its areas. `last` is the area before it in order, then
    /// the last of it.
    fn subtree(
        &mut self,
        node: Option<AreaRef>,
        parent: Option<AreaRef>,
        augmented: bool,
        height: u32,
        last: &mut Option<AreaRef>,
    ) -> (u64, u64) {
        let Some(area) = node else { return (1, 0) };
        if height == 0 {
            self.equal("height of a tree", area.start(), 0, 1);
            return (1, 0);
        }
        self.equal("parent of an area", area.start(), addr(area.parent()), addr(parent));
        let red = area.is_red();
        self.equal("red under red", area.start(), u64::from(red && parent.is_none_or(AreaRef::is_red)), 0);
        let (left, left_max) = self.subtree(area.left(), node, augmented, height - 1, last);
        self.equal("order of areas", area.start(), u64::from(last.is_some_and(|last| last.end() > area.start())), 0);
        self.equal("size of an area", area.start(), u64::from(area.start() < area.end()), 1);
        self.equal("previous area", area.start(), addr(area.prev()), addr(*last));
        if let Some(last) = *last {
            self.equal("next area", last.start(), addr(last.next()), area.addr().raw());
        }
        *last = node;
        let (right, right_max) = self.subtree(area.right(), node, augmented, height - 1, last);
        self.equal("black height", area.start(), left, right);
        let max = area.size().max(left_max).max(right_max);
        if augmented {
            self.equal("largest free area below", area.start(), area.max(), max);
        }
        (left + u64::from(!red), max)
    }

    /// All areas together are the space, without holes and overlaps; free ones do not touch.
    fn cover(&mut self, lists: [AreaWord; 3]) {
        let mut heads = lists.map(AreaWord::get);
        let (mut next, mut was_free) = (VMALLOC_START, false);
        while heads.iter().any(Option::is_some) {
            let Some(list) = heads.iter().position(|head| head.is_some_and(|area| area.start() == next)) else {
                let lowest = heads.iter().flatten().map(|area| area.start()).min();
                return self.equal("start of the next area", next, lowest.unwrap_or(0), next);
            };
            let Some(area) = heads[list] else { return };
            self.equal("free areas that touch", next, u64::from(was_free && list == 1), 0);
            was_free = list == 1;
            next = area.end().max(next + 1);
            heads[list] = area.next();
        }
        if lists[1].get().is_some() || lists[0].get().is_some() {
            self.equal("end of the last area", next, next, VMALLOC_END + 1);
        }
    }

    /// What is to be purged is counted.
    fn lazy(&mut self, first: AreaWord, counted: u64) {
        let pages = core::iter::successors(first.get(), |area| area.next()).map(|area| area.size() >> PAGE_SHIFT);
        self.equal("pages of addresses to be purged", 0, counted, pages.sum());
    }

    /// What is behind the entry of `table` for `virt`.
    fn below(&mut self, table: Table, virt: u64) {
        let entry = table.get(virt);
        if !entry.is_present() {
            return;
        }
        match table.next(self.mm.direct_map(), virt) {
            Some(next) => self.table(next, virt),
            None => {
                let pages = level_size(table.level()) >> PAGE_SHIFT;
                self.pages += pages;
                let area = self.busy.find(virt);
                let end = area
                    .and_then(AreaRef::vm)
                    .map_or(0, |vm| vm.addr.get() + (u64::from(vm.nr_pages.get()) << PAGE_SHIFT));
                let inside = virt + (pages << PAGE_SHIFT) <= end;
                self.equal("mapped outside of areas", virt, u64::from(!inside), 0);
            }
        }
    }

    /// A table that addresses from `virt` on go through.
    fn table(&mut self, table: Table, virt: u64) {
        self.tables += 1;
        let page = self.mm.memmap().page(table.pfn().raw() as u32);
        self.equal("type of a table's page", virt, page._mapcount.get() as u64, PG_TABLE as u64);
        let entries = (0..PTRS_PER_TABLE as u64).map(|index| virt + (index << level_shift(table.level())));
        let present = entries.clone().filter(|virt| table.get(*virt).is_present()).count();
        self.equal("entries counted of a table", virt, page.private.get() as u64, present as u64);
        entries.for_each(|virt| self.below(table, virt));
    }

    /// What was found is what is counted.
    fn totals(&mut self, busy: AreaWord) {
        let (mut mapped, mut own) = (0, 0);
        for vm in core::iter::successors(busy.get(), |area| area.next()).filter_map(AreaRef::vm) {
            let (pages, flags) = (u64::from(vm.nr_pages.get()), VmFlags(vm.flags.get()));
            mapped += pages;
            own += if flags.contains(VmFlags::ALLOC) { pages } else { 0 };
            self.equal(
                "area of a record",
                vm.addr.get(),
                self.busy.find(vm.addr.get()).map_or(0, AreaRef::start),
                vm.addr.get(),
            );
        }
        self.equal("pages mapped", 0, self.pages, mapped);
        self.equal("pages of areas", 0, self.mm.region.header().nr_vmalloc_pages.get(), own);
        let item = NodeStat::NrPageTablePages.index();
        let nodes: i64 = self.mm.nodes.iter().map(|node| node.vm_stat[item].get()).sum();
        let held: i64 = self.mm.node_cpus.iter().map(|cpu| i64::from(cpu.vm_node_stat_diff[item].get())).sum();
        // Programs' tables, and a top one for each address space.
        let spaces = core::iter::successors(Space::list(&self.mm.region.header().roots).get(), |space| space.next_mm());
        let users = spaces.map(|space| space.pgtables_bytes.get() / PAGE_SIZE + u64::from(space.pgd.get() != 0));
        let users: u64 = users.sum();
        self.equal("page tables", 0, (nodes + held) as u64, self.tables + users);
    }
}
