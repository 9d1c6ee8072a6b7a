//! Address spaces: trees against lists, gaps, counters, and areas that should be one.

use pagevisor_shared::mm_types::{AddressSpace, VmaFlags};
use pagevisor_shared::units::PAGE_SIZE;
use pagevisor_shared::vmstat::NodeStat;

use super::{AreaSink, AreaViolation};
use crate::Mm;
use crate::mmap::{Space, Vma};
use crate::platform::Platform;
use crate::raw::Handle;
use crate::sync::Plain;
use crate::tree::TreeNode;

/// No red-black tree of as many nodes as there may be is higher.
const MAX_HEIGHT: u32 = 64;

struct Checker<'a> {
    sink: AreaSink<'a>,
    /// The area before, in order.
    last: Option<Vma>,
    areas: u64,
    /// Pages: all, locked, data, text, stack; and those that count as promised.
    pages: [u64; 6],
}

/// Recounts all address spaces of a machine at rest.
pub fn verify_spaces<P: Platform>(mm: &Mm<P>, sink: AreaSink<'_>) {
    let roots = &mm.region.header().roots;
    let (mut space, mut before, mut promised) = (Space::list(roots).get(), None, 0);
    while let Some(now) = space {
        let mut checker = Checker { sink: &mut *sink, last: None, areas: 0, pages: [0; 6] };
        checker.equal("previous space", 0, addr(now.prev_mm()), addr(before));
        promised += checker.space(now);
        (before, space) = (space, now.next_mm());
    }
    promised = promised.wrapping_add(promised_to_files(mm));
    let mut checker = Checker { sink, last: None, areas: 0, pages: [0; 6] };
    checker.equal("pages promised", 0, roots.committed_as.get() as u64, promised);
}

/// Pages that are promised because files of shared memory have them, or will: a file whose pages are promised from the start
/// is mapped by somebody, for it has no name.
fn promised_to_files<P: Platform>(mm: &Mm<P>) -> u64 {
    let mut promised = 0u64;
    let spaces = core::iter::successors(Space::list(&mm.region.header().roots).get(), |space| space.next_mm());
    for vma in spaces.flat_map(|space| core::iter::successors(space.first_vma(), |vma| vma.next())) {
        let Some(mapping) = vma.file().and_then(|file| file.mapping()) else { continue };
        let reserved = mapping.flags.get() & (AddressSpace::SHMEM | AddressSpace::NORESERVE) == AddressSpace::SHMEM;
        // Once for each file, whoever else maps it.
        if reserved && mapping.first_area() == Some(vma) {
            let size = mapping.i_size.get().div_ceil(PAGE_SIZE);
            promised = promised.wrapping_add(size).wrapping_sub(mapping.nrpages.get());
        }
    }
    let shmem = NodeStat::NrShmem.index();
    let in_cpus = mm.node_cpus.iter().map(|cpu| i64::from(cpu.vm_node_stat_diff[shmem].get())).sum::<i64>();
    let present = mm.nodes.iter().map(|node| node.vm_stat[shmem].get()).sum::<i64>() + in_cpus;
    promised.wrapping_add(present as u64)
}

fn addr<T>(record: Option<Handle<T>>) -> u64 {
    record.map_or(0, |record| record.addr().raw())
}

impl Checker<'_> {
    fn equal(&mut self, what: &'static str, addr: u64, found: u64, expected: u64) {
        if found != expected {
            (self.sink)(AreaViolation { what, addr, found, expected });
        }
    }

    /// Gives the pages promised to it.
    fn space(&mut self, space: Space) -> u64 {
        let record = space.record();
        self.equal("lock of a space at rest", 0, record.mmap_lock.get().into(), 0);
        self.equal("lock of a tree at rest", 0, record.tree_lock.get().into(), 0);
        self.equal("sequence counter of a tree at rest", 0, u64::from(record.seq.get() & 1), 0);
        self.subtree(space, <Vma as TreeNode>::follow(space.roots()[0]), None, MAX_HEIGHT);
        let first = self.last.and_then(|last| core::iter::successors(Some(last), |vma| vma.prev()).last());
        self.equal("first of a list", 0, addr(space.first_vma()), addr(first));
        self.equal("end of a list", 0, addr(self.last.and_then(Vma::next)), 0);
        self.equal("end of the highest area", 0, record.highest_vm_end.get(), self.last.map_or(0, Vma::end));
        self.equal("areas", 0, record.map_count.get().into(), self.areas);
        let counters = [&record.total_vm, &record.locked_vm, &record.data_vm, &record.exec_vm, &record.stack_vm];
        let names = ["total_vm", "locked_vm", "data_vm", "exec_vm", "stack_vm"];
        for ((name, counter), pages) in names.into_iter().zip(counters).zip(self.pages) {
            self.equal(name, 0, counter.get(), pages);
        }
        self.pages[5]
    }

    /// Checks a subtree; gives its black height and its largest gap.
    fn subtree(&mut self, space: Space, node: Option<Vma>, parent: Option<Vma>, height: u32) -> (u64, u64) {
        let Some(vma) = node else { return (1, 0) };
        let at = vma.start();
        if height == 0 {
            self.equal("height of a tree", at, 0, 1);
            return (1, 0);
        }
        self.equal("parent of an area", at, addr(vma.parent()), addr(parent));
        let red = vma.is_red();
        self.equal("red under red", at, u64::from(red && parent.is_none_or(Vma::is_red)), 0);
        let (left, left_max) = self.subtree(space, vma.left(), node, height - 1);
        self.area(space, vma);
        let (right, right_max) = self.subtree(space, vma.right(), node, height - 1);
        self.equal("black height", at, left, right);
        let max = vma.gap().max(left_max).max(right_max);
        self.equal("largest gap below", at, vma.max(), max);
        (left + u64::from(!red), max)
    }

    /// An area, in order.
    fn area(&mut self, space: Space, vma: Vma) {
        let (start, end, flags) = (vma.start(), vma.end(), vma.flags());
        self.equal("bounds of an area", start, (start | end) & (PAGE_SIZE - 1), 0);
        self.equal("size of an area", start, u64::from(start < end), 1);
        self.equal("space of an area", start, addr(vma.mm()), addr(Some(space)));
        self.equal("lock of an area at rest", start, vma.record().vm_lock.get().into(), 0);
        self.equal("previous area", start, addr(vma.prev()), addr(self.last));
        if let Some(last) = self.last {
            self.equal("next area", start, addr(last.next()), addr(Some(vma)));
            self.equal("areas overlap", start, u64::from(last.end() > start), 0);
        }
        self.last = Some(vma);
        self.areas += 1;
        let pages = vma.pages();
        let stack = flags.contains(VmaFlags::GROWSDOWN);
        let writable = flags.contains(VmaFlags::WRITE);
        let text = flags.contains(VmaFlags::EXEC) && !writable && !stack;
        let data = writable && !stack && !flags.contains(VmaFlags::SHARED);
        let kinds = [true, flags.contains(VmaFlags::LOCKED), data, text, stack, flags.contains(VmaFlags::ACCOUNT)];
        for (sum, is_kind) in self.pages.iter_mut().zip(kinds) {
            *sum += if is_kind { pages } else { 0 };
        }
    }
}
