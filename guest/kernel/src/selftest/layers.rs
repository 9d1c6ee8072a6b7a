//! Everything that kernel memory can be, some of it in use and some of it free again: for those who look from outside.

use pagevisor_mm::Mm;
use pagevisor_mm::percpu::PerCpuPtr;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::pgtable::{PMD_SIZE, Protection};
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::{NodeId, Order, PAGE_SIZE, VirtAddr};

use crate::log::{pr_err, pr_info};
use crate::platform;
use crate::platform::Kernel;

/// Most objects that are taken at once.
const OBJECTS: usize = 48;

#[inline(never)]
pub(super) fn run() {
    let Some(mm) = platform::mm() else { return };
    match objects(mm).and_then(|()| areas(mm)).and_then(|()| per_cpu(mm)) {
        Ok(()) => pr_info!("selftest: layers ok"),
        Err(what) => pr_err!("selftest: layers failed: no {what}"),
    }
}

/// Objects of all kinds of slabs, in all kinds of arrays.
fn objects(mm: &Mm<Kernel>) -> Result<(), &'static str> {
    for size in [8, 32, 64, 96, 192, 256, 1024, 4096, 8192] {
        for gfp in [Gfp::KERNEL, Gfp::KERNEL | Gfp::RECLAIMABLE] {
            let mut taken = [VirtAddr::new(0); OBJECTS];
            for slot in &mut taken {
                *slot = mm.kmalloc(size, gfp).ok_or("object of kmalloc")?;
            }
            // Whole slabs, so that some become free, and then every third.
            taken[..OBJECTS * 2 / 3].iter().for_each(|&object| mm.kfree(object));
            taken[OBJECTS * 2 / 3..].iter().step_by(3).for_each(|&object| mm.kfree(object));
        }
    }
    // Freed far from home.
    let other = mm.region().nodes().len() - 1;
    for _ in 0..5 {
        let object = mm.kmalloc_node(96, Gfp::KERNEL, NodeId::new(other)).ok_or("object of another node")?;
        let next = mm.kmalloc_node(96, Gfp::KERNEL, NodeId::new(other)).ok_or("object of another node")?;
        mm.kfree(object);
        mm.kfree(next);
    }
    mm.kmalloc(5 * PAGE_SIZE as usize, Gfp::KERNEL).ok_or("large block")?;
    // With a constructor, the lists of free objects cannot lie in them.
    let cache = mm.kmem_cache_create("layers", 256, 0, SlabFlags::NONE, Some(|_| ())).map_err(|_| "cache")?;
    for turn in 0..OBJECTS {
        let object = mm.kmem_cache_alloc(cache, Gfp::KERNEL).ok_or("object of a cache")?;
        if turn % 4 == 0 {
            mm.kmem_cache_free(cache, object);
        }
    }
    Ok(())
}

/// Areas in use, some by large pages and some for somebody's pages, free ones between them, and lazily freed ones.
fn areas(mm: &Mm<Kernel>) -> Result<(), &'static str> {
    let mut areas = [VirtAddr::new(0); 12];
    for (area, pages) in areas.iter_mut().zip([1, 3, 21, 2, 5, 1, 8, 70, 1, 4, 2, 6]) {
        *area = mm.vmalloc(pages * PAGE_SIZE).ok_or("area")?;
    }
    areas[..9].iter().step_by(2).for_each(|&area| mm.vfree(area));
    mm.purge_vmap_areas();
    mm.vmalloc(PMD_SIZE + PAGE_SIZE).ok_or("large area")?;
    let page = || mm.alloc_pages(Gfp::KERNEL, Order::ZERO).ok_or("page");
    mm.vmap(&[page()?, page()?], Protection::KERNEL).ok_or("area for pages")?;
    mm.vfree(areas[9]);
    mm.vfree(areas[11]);
    Ok(())
}

fn per_cpu(mm: &Mm<Kernel>) -> Result<(), &'static str> {
    let mut taken = [PerCpuPtr::new(0); 6];
    for (slot, size) in taken.iter_mut().zip([8, 64, 512, 4096, 20, 8]) {
        *slot = mm.alloc_percpu(size, 8).ok_or("per-CPU memory")?;
    }
    mm.free_percpu(taken[1]);
    mm.free_percpu(taken[4]);
    mm.alloc_reserved_percpu(24, 8).map(|_| ()).ok_or("reserved per-CPU memory")
}
