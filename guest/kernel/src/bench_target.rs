//! The page allocator as [`crate::bench`] measures it.

use core::hint::black_box;
use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::AtomicU64;

use pagevisor_mm::Mm;
use pagevisor_mm::percpu::PerCpuPtr;
use pagevisor_mm::slab::Cache;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::layout::PAGE_OFFSET;
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::{Order, PAGE_SIZE, Pfn, VirtAddr};

use crate::bench::{Objects, Pages, PerCpuMemory};
use crate::command;
use crate::platform::Kernel;

/// The memory stack under test.
#[derive(Debug)]
pub struct Target(pub &'static Mm<Kernel>);

fn virt(pfn: u64) -> *mut u8 {
    with_exposed_provenance_mut((PAGE_OFFSET + pfn * PAGE_SIZE) as usize)
}

impl Pages for Target {
    #[inline(always)]
    fn alloc(&self, gfp: Gfp, order: Order) -> u64 {
        self.0.alloc_pages(gfp, order).map_or(0, Pfn::raw)
    }

    #[inline(always)]
    fn free(&self, pfn: u64, order: Order) {
        self.0.free_pages(Pfn::new(pfn), order);
    }

    fn alloc_bulk(&self, gfp: Gfp, pages: &mut [u64]) -> usize {
        let mut slots = [None; 256];
        let slots = &mut slots[..pages.len().min(256)];
        let mut got = 0;
        // Each call gives what one look at the free lists gives.
        while got < slots.len() {
            let more = self.0.alloc_pages_bulk(gfp, None, None, slots);
            if more == got {
                break;
            }
            got = more;
        }
        for (page, slot) in pages.iter_mut().zip(slots) {
            *page = slot.map_or(0, Pfn::raw);
        }
        got
    }

    fn release(&self, pages: &mut [u64]) {
        for pages in pages.chunks_mut(32) {
            let mut frames = [Pfn::new(0); 32];
            frames.iter_mut().zip(&*pages).for_each(|(frame, page)| *frame = Pfn::new(*page));
            self.0.release_pages(&mut frames[..pages.len()]);
        }
    }

    fn clear(&self, pfn: u64) {
        // The black box keeps the compiler from clearing a page once that is cleared a thousand times.
        // SAFETY: the benchmark allocated the page; the direct map reaches it.
        unsafe { black_box(virt(pfn)).write_bytes(0, PAGE_SIZE as usize) };
    }

    fn copy(&self, to: u64, from: u64) {
        // SAFETY: the benchmark allocated both pages; the direct map reaches them.
        unsafe { black_box(virt(to)).copy_from_nonoverlapping(virt(from), PAGE_SIZE as usize) };
    }

    fn words(&self, pfn: u64, order: Order) -> &[AtomicU64] {
        let len = order.bytes() as usize / 8;
        // SAFETY: the benchmark allocated the block and accesses it as these words only; any bytes are valid.
        unsafe { core::slice::from_raw_parts(virt(pfn).cast(), len) }
    }

    fn vmalloc(&self, bytes: u64) -> u64 {
        self.0.vmalloc(bytes).map_or(0, VirtAddr::raw)
    }

    fn vfree(&self, addr: u64) {
        self.0.vfree(VirtAddr::new(addr));
    }

    fn kvmalloc(&self, bytes: u64) -> u64 {
        self.0.kvmalloc(bytes as usize, Gfp::KERNEL).map_or(0, VirtAddr::raw)
    }

    fn kvfree(&self, addr: u64) {
        self.0.kvfree(VirtAddr::new(addr));
    }

    fn free_pages(&self) -> u64 {
        self.0.nr_free_pages(Gfp::KERNEL)
    }

    fn command(&self, message: &[AtomicU64], len: usize, reply: &[AtomicU64]) {
        let len = len.min(8 * message.len());
        // SAFETY: the words are there, and nobody writes them while the command is executed.
        let bytes = unsafe { core::slice::from_raw_parts(message.as_ptr().cast(), len) };
        command::measure(self.0, bytes, reply);
    }
}

impl PerCpuMemory for Target {
    #[inline(always)]
    fn alloc_percpu(&self, size: u64) -> u64 {
        self.0.alloc_percpu(size, 8).map_or(0, PerCpuPtr::raw)
    }

    #[inline(always)]
    fn free_percpu(&self, ptr: u64) {
        self.0.free_percpu(PerCpuPtr::new(ptr));
    }

    fn balance_percpu(&self) {
        self.0.percpu_balance();
    }
}

impl Objects for Target {
    #[inline(always)]
    fn kmalloc<const SIZE: usize>(&self, gfp: Gfp) -> u64 {
        self.0.kmalloc(SIZE, gfp).map_or(0, VirtAddr::raw)
    }

    #[inline(always)]
    fn kfree(&self, addr: u64) {
        self.0.kfree(VirtAddr::new(addr));
    }

    fn create(&self, name: &str, size: usize, flags: SlabFlags) -> Option<Cache> {
        self.0.kmem_cache_create(name, size, 0, flags, None).ok()
    }

    fn destroy(&self, cache: Cache) {
        self.0.kmem_cache_destroy(cache);
    }

    #[inline(always)]
    fn cache_alloc(&self, cache: Cache, gfp: Gfp) -> u64 {
        self.0.kmem_cache_alloc(cache, gfp).map_or(0, VirtAddr::raw)
    }

    #[inline(always)]
    fn cache_free(&self, cache: Cache, addr: u64) {
        self.0.kmem_cache_free(cache, VirtAddr::new(addr));
    }

    fn cache_alloc_bulk(&self, cache: Cache, gfp: Gfp, objects: &mut [VirtAddr]) -> usize {
        self.0.kmem_cache_alloc_bulk(cache, gfp, objects)
    }

    fn cache_free_bulk(&self, cache: Cache, objects: &[VirtAddr]) {
        self.0.kmem_cache_free_bulk(cache, objects);
    }
}
