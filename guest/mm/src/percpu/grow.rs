//! Further chunks: addresses in the vmalloc space at which units are as far apart as in the first chunk, and pages of the
//! CPUs' nodes behind what is allocated (`mm/percpu-vm.c`). Each group of units has an area of its own, which knows its
//! chunk: so a pointer leads to its chunk as fast as an address to its area.
//!
//! Whoever adds chunks or pages, or takes them away, holds the mutex. Only pages of blocks without allocations are taken
//! away, and they are marked as gone, under the lock, before they are.

use pagevisor_shared::NR_CPUS;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::percpu::{PCPU_BLOCK_BITS, PCPU_MAX_UNIT_PAGES, PcpuRoot};
use pagevisor_shared::pgtable::Protection;
use pagevisor_shared::units::{NodeId, Order, PAGE_SIZE, Pfn, VirtAddr};

use super::{Locked, area, bits, hints, slots};
use crate::Mm;
use crate::platform::Platform;
use crate::raw::Chunk;
use crate::sync::{self, Plain};
use crate::vmalloc::Group;

/// Flags that count for what a chunk is made of (`pcpu_alloc`).
const KEPT: Gfp = Gfp::KERNEL.with(Gfp::NORETRY).with(Gfp::NOWARN);

/// Where the groups of CPUs have their units in every chunk.
fn groups<'a>(root: &PcpuRoot, groups: &'a mut [Group; NR_CPUS]) -> &'a [Group] {
    let count = (root.nr_groups.get() as usize).min(NR_CPUS);
    for ((group, offset), size) in groups.iter_mut().zip(&root.group_offsets).zip(&root.group_sizes).take(count) {
        *group = Group { offset: offset.get(), size: size.get() };
    }
    &groups[..count]
}

/// What is kept of the caller's flags.
pub(super) fn memory_gfp(gfp: Gfp) -> Gfp {
    Gfp::from_bits(gfp.bits() & KEPT.bits()).unwrap_or(Gfp::KERNEL)
}

impl<P: Platform> Mm<P> {
    /// Runs `work` with the mutex held. Not from interrupts.
    pub(super) fn with_pcpu_mutex<R>(&self, root: &PcpuRoot, work: impl FnOnce() -> R) -> R {
        sync::lock(&root.alloc_mutex, || self.platform.relax());
        let result = work();
        sync::unlock(&root.alloc_mutex);
        result
    }

    /// A chunk without pages, on no list (`pcpu_create_chunk`).
    pub(super) fn create_chunk(&self, root: &PcpuRoot, gfp: Gfp) -> Option<Chunk> {
        let pages = ((root.unit_size.get() / PAGE_SIZE) as usize).min(PCPU_MAX_UNIT_PAGES);
        let chunk = Chunk::new(self, pages, gfp)?;
        let Some(base) = self.get_percpu_areas(groups(root, &mut [Group::default(); NR_CPUS]), gfp) else {
            chunk.free(self);
            return None;
        };
        chunk.base_addr.set(base.raw());
        chunk.free_bytes.set((pages as u64 * PAGE_SIZE) as u32);
        chunk.slot.set(slots::NO_SLOT);
        hints::init(chunk, &chunk.maps());
        Some(chunk)
    }

    /// Gives back a chunk that is on no list and has no pages (`pcpu_destroy_chunk`).
    pub(super) fn destroy_chunk(&self, root: &PcpuRoot, chunk: Chunk) {
        let base = VirtAddr::new(chunk.base_addr.get());
        self.free_percpu_areas(groups(root, &mut [Group::default(); NR_CPUS]), base);
        chunk.free(self);
    }

    /// Takes a chunk from among all, under the lock: from here on nobody finds it.
    pub(super) fn leave_chunk(&self, root: &PcpuRoot, chunk: Chunk) {
        slots::leave(root, chunk);
        let base = VirtAddr::new(chunk.base_addr.get());
        self.set_area_chunk(groups(root, &mut [Group::default(); NR_CPUS]), base, 0);
    }

    /// Enters a new chunk, under the lock.
    pub(super) fn enter_chunk(&self, root: &PcpuRoot, chunk: Chunk) {
        let base = VirtAddr::new(chunk.base_addr.get());
        self.set_area_chunk(groups(root, &mut [Group::default(); NR_CPUS]), base, chunk.addr());
        slots::enter(root, chunk);
        slots::add(root, chunk, slots::slot_of(root, chunk), true);
    }

    /// Where page `page` of CPU `cpu`'s unit is mapped.
    fn page_addr(root: &PcpuRoot, chunk: Chunk, cpu: usize, page: usize) -> u64 {
        chunk.base_addr.get() + root.unit_off[cpu].get() + page as u64 * PAGE_SIZE
    }

    /// Unmaps page `page` of the first `cpus` units and frees what was behind. Processors may remember the addresses.
    fn unmap_unit_pages(&self, root: &PcpuRoot, chunk: Chunk, page: usize, cpus: usize) {
        let all = self.cpus.len();
        for (cpu, frame) in chunk.pages(all).iter().skip(page * all).take(cpus).enumerate() {
            let addr = Self::page_addr(root, chunk, cpu, page);
            self.unmap_range(addr, addr + PAGE_SIZE, |_| 1, |_, _| {});
            frame.set(0);
        }
    }

    /// Gives page `page` of all units memory of their nodes (`pcpu_populate_chunk`). False, with nothing changed, when
    /// there is none. Under the mutex.
    pub(super) fn populate_page(&self, root: &PcpuRoot, chunk: Chunk, page: usize, gfp: Gfp) -> bool {
        let all = self.cpus.len();
        let frames = chunk.pages(all);
        for (cpu, state) in self.cpus.iter().enumerate() {
            let node = NodeId::new(state.mem_node.get() as usize);
            let memory = self.alloc_pages_node(node, gfp | Gfp::HIGHMEM, Order::ZERO);
            let mapped = memory.filter(|memory| {
                let addr = Self::page_addr(root, chunk, cpu, page);
                self.map_single(addr, memory.addr(), Protection::KERNEL, gfp)
            });
            if let (Some(memory), Some(frame)) = (mapped, frames.get(page * all + cpu)) {
                frame.set(memory.raw() as u32);
                continue;
            }
            if let Some(memory) = memory {
                self.free_pages(memory, Order::ZERO);
            }
            self.depopulate_page(root, chunk, page, cpu);
            return false;
        }
        true
    }

    /// Takes the memory of page `page` away from the first `cpus` units (`pcpu_depopulate_chunk`). Under the mutex.
    pub(super) fn depopulate_page(&self, root: &PcpuRoot, chunk: Chunk, page: usize, cpus: usize) {
        if cpus == 0 {
            return;
        }
        let all = self.cpus.len();
        let mut frames = [0; pagevisor_shared::NR_CPUS];
        for (slot, frame) in frames.iter_mut().zip(chunk.pages(all).iter().skip(page * all).take(cpus)) {
            *slot = frame.get();
        }
        self.unmap_unit_pages(root, chunk, page, cpus);
        // The page may get other memory before its addresses are given up.
        let start = Self::page_addr(root, chunk, 0, page);
        let ends = (0..cpus).map(|cpu| Self::page_addr(root, chunk, cpu, page));
        let (low, high) = ends.fold((start, start), |(low, high), addr| (low.min(addr), high.max(addr)));
        self.platform.flush_kernel_range(VirtAddr::new(low), VirtAddr::new(high + PAGE_SIZE));
        for frame in frames.into_iter().take(cpus).filter(|frame| *frame != 0) {
            self.free_pages(Pfn::new(frame.into()), Order::ZERO);
        }
    }

    /// Notes, under the lock, that page `page` has memory (`pcpu_chunk_populated`) or has none any more
    /// (`pcpu_chunk_depopulated`).
    pub(super) fn note_populated(&self, root: &PcpuRoot, chunk: Chunk, page: usize, has: bool) {
        let maps = chunk.maps();
        bits::write(maps.populated, page, page + 1, has);
        let empty = u32::from(maps.blocks[page].left_free.get() == PCPU_BLOCK_BITS as u32);
        if has {
            chunk.nr_populated.bump(1);
            root.nr_populated.bump(1);
            area::update_empty_pages(root, chunk, 0, empty);
        } else {
            chunk.nr_populated.drop_by(1);
            root.nr_populated.drop_by(1);
            area::update_empty_pages(root, chunk, empty, 0);
        }
        let pages = root.nr_populated.get() * u64::from(root.nr_units.get());
        self.region.header().nr_percpu_pages.set(pages);
    }

    /// Gives the pages of the area of `len` bits at bit `at` memory. False when there is none; some may have got it then,
    /// which stays.
    pub(super) fn populate_area(&self, root: &PcpuRoot, chunk: Chunk, at: usize, len: usize, gfp: Gfp) -> bool {
        let (first, last) = (at / PCPU_BLOCK_BITS, (at + len - 1) / PCPU_BLOCK_BITS);
        let maps = chunk.maps();
        // Bits are only set under the mutex, and cleared only where nothing is allocated.
        if (first..=last).all(|page| bits::test(maps.populated, page)) {
            return true;
        }
        self.with_pcpu_mutex(root, || {
            (first..=last).filter(|&page| !bits::test(maps.populated, page)).all(|page| {
                let done = self.populate_page(root, chunk, page, gfp);
                if done {
                    let locked = Locked::new(self.platform, root);
                    self.note_populated(root, chunk, page, true);
                    locked.unlock();
                }
                done
            })
        })
    }
}
