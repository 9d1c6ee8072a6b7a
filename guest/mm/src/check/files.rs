//! Files' pages: trees against pages, and counters against both.

use std::collections::BTreeMap;
use std::vec::Vec;

use pagevisor_shared::mm_types::{AddressSpace, MappingId};
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE, Pfn};
use pagevisor_shared::vmstat::NodeStat;

use super::UserViolation;
use crate::Mm;
use crate::filemap::FileMapping;
use crate::platform::Platform;
use crate::sync::Plain;

/// Pages that files have by what their metadata says: frames by number and index.
type Pages = BTreeMap<(u32, u32), u32>;

struct Recount<'a, P: Platform> {
    mm: &'a Mm<P>,
    found: Vec<UserViolation>,
}

/// Recounts the pages of all files of a machine at rest, which are `mappings`.
pub fn file_violations<P: Platform>(mm: &Mm<P>, mappings: &[FileMapping]) -> Vec<UserViolation> {
    let mut recount = Recount { mm, found: Vec::new() };
    let mut pages = recount.pages();
    let mut expected: BTreeMap<usize, [i64; 2]> = BTreeMap::new();
    for mapping in mappings {
        recount.mapping(*mapping, &mut pages, &mut expected);
    }
    for ((number, index), frame) in pages {
        recount.equal("page of no file", frame.into(), number.into(), index.into());
    }
    recount.counters(&expected);
    recount.found
}

impl<P: Platform> Recount<'_, P> {
    fn equal(&mut self, what: &'static str, at: u64, found: u64, expected: u64) {
        if found != expected {
            self.found.push(UserViolation { what, space: 0, at, found, expected });
        }
    }

    fn pages(&mut self) -> Pages {
        let mut pages = Pages::new();
        for range in self.mm.region().memory() {
            let start = range.base.get().div_ceil(PAGE_SIZE);
            for frame in start..(range.base.get() + range.size.get()) >> PAGE_SHIFT {
                let page = self.mm.user_page(frame as u32);
                let kind = page.flags.get() & (PageFlag::Uptodate.mask() | PageFlag::Slab.mask());
                let Some(id) = MappingId::from_word(page.mapping.get()).filter(|id| !id.is_anon()) else { continue };
                if page._refcount.get() == 0 || kind != PageFlag::Uptodate.mask() {
                    continue;
                }
                let twice = pages.insert((id.number(), page.index.get()), frame as u32).is_some();
                self.equal("pages at one place of a file", frame, twice.into(), 0);
                let references = u64::from(page._mapcount.get()) + 1;
                self.equal("references to a file's page", frame, page._refcount.get().into(), references);
                self.equal("lock of a page at rest", frame, (page.flags.get() & PageFlag::Locked.mask()).into(), 0);
            }
        }
        pages
    }

    /// Takes the pages of `mapping` out of `pages`.
    fn mapping(&mut self, mapping: FileMapping, pages: &mut Pages, expected: &mut BTreeMap<usize, [i64; 2]>) {
        let (record, mm) = (mapping.record(), self.mm);
        let number = record.id.get();
        self.equal("locks of a file at rest", number.into(), (record.lock.get() | record.i_mmap_lock.get()).into(), 0);
        let (mut count, mut from) = (0, 0);
        while let Some((index, frame)) = mm.find_next_page(mapping, from) {
            mm.put_file_page(frame);
            let known = pages.remove(&(number, index as u32));
            self.equal("page in a file's tree", index, frame.into(), known.unwrap_or(0).into());
            self.equal("the same page by its index", index, mm.is_cached_at(mapping, index).into(), 1);
            let in_use = expected.entry(mm.page_to_nid(Pfn::new(frame.into())).map_or(0, |n| n.index())).or_default();
            in_use[0] += 1;
            let shmem = record.flags.get() & AddressSpace::SHMEM != 0;
            in_use[1] += i64::from(shmem);
            let swapbacked = mm.user_page(frame).flags.get() & PageFlag::Swapbacked.mask() != 0;
            self.equal("kind of a file's page", frame.into(), swapbacked.into(), shmem.into());
            self.equal("page behind the end", index, (index >= record.i_size.get().div_ceil(PAGE_SIZE)).into(), 0);
            (count, from) = (count + 1, index + 1);
        }
        self.equal("nrpages", number.into(), record.nrpages.get(), count);
        self.equal("i_blocks", number.into(), record.i_blocks.get(), count * (PAGE_SIZE / 512));
        self.equal(
            "nodes of a tree without pages",
            number.into(),
            (record.i_pages.get() != 0).into(),
            (count != 0).into(),
        );
        let areas = || core::iter::successors(mapping.first_area(), |vma| vma.shared_next());
        let writable =
            areas().filter(|vma| vma.flags().contains(pagevisor_shared::mm_types::VmaFlags::SHARED)).count() as u64;
        self.equal("i_mmap_writable", number.into(), record.i_mmap_writable.get().into(), writable);
        for vma in areas() {
            let file = vma.file().and_then(|file| file.mapping());
            self.equal("file of an area on its list", vma.start(), (file == Some(mapping)).into(), 1);
        }
    }

    fn counters(&mut self, expected: &BTreeMap<usize, [i64; 2]>) {
        for (index, node) in self.mm.nodes.iter().enumerate() {
            let expected = expected.get(&index).copied().unwrap_or_default();
            for (item, expected) in [NodeStat::NrFilePages, NodeStat::NrShmem].into_iter().zip(expected) {
                let per_cpu = self.mm.node_cpus.iter().skip(index).step_by(self.mm.nodes.len());
                let pending: i64 = per_cpu.map(|cpu| i64::from(cpu.vm_node_stat_diff[item.index()].get())).sum();
                let found = node.vm_stat[item.index()].get() + pending;
                self.equal(NodeStat::NAMES[item.index()], index as u64, found as u64, expected as u64);
            }
        }
    }
}
