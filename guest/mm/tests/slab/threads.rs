//! Threads as CPUs, that free what others allocated.

use std::sync::Mutex;

use pagevisor_mm::hosted::Topology;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::random::mix;
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::VirtAddr;

use crate::{MIB, assert_sound, free_pages, quiet, read, write};

#[test]
fn objects_cross_cpus_and_nodes() {
    let first = [(0, 640 << 10), (MIB, 64 * MIB)];
    let machine = quiet(Topology::new().node(&first, 2).node(&[(128 * MIB, 192 * MIB)], 2).boot());
    let mm = machine.mm();
    let caches = [40, 256, 1000, 5000]
        .map(|size| mm.kmem_cache_create("crossing", size, 0, SlabFlags::NONE, None).expect("a cache"));
    mm.kmem_cache_shrink_all();
    let start = free_pages(mm);
    // What waits to be freed by whoever comes next: cache, or the number of caches for kmalloc, and size.
    let waiting = Mutex::new(Vec::<(usize, u64, usize)>::new());
    let free = |mm: &pagevisor_mm::Mm<_>, (cache, raw, size): (usize, u64, usize)| {
        let addr = VirtAddr::new(raw);
        assert!(read(addr, size).iter().all(|byte| *byte == raw.wrapping_mul(31) as u8), "an object was damaged");
        match caches.get(cache) {
            Some(cache) => mm.kmem_cache_free(*cache, addr),
            None => mm.kfree(addr),
        }
    };
    std::thread::scope(|scope| {
        for cpu in 0..4 {
            let (machine, waiting, free) = (&machine, &waiting, &free);
            scope.spawn(move || {
                machine.on_cpu(cpu, |mm| {
                    for step in 0..6000u64 {
                        let random = mix(step << 8 | cpu as u64);
                        let cache = (random % 5) as usize;
                        let size = [40, 256, 1000, 5000, 1 + (random >> 8) as usize % 3000][cache];
                        let addr = match caches.get(cache) {
                            Some(cache) => mm.kmem_cache_alloc(*cache, Gfp::KERNEL),
                            None => mm.kmalloc(size, Gfp::KERNEL),
                        };
                        let raw = addr.expect("memory is not short").raw();
                        write(VirtAddr::new(raw), size, raw.wrapping_mul(31) as u8);
                        let mut shelf = waiting.lock().expect("nobody failed");
                        shelf.push((cache, raw, size));
                        let at = (random >> 20) as usize % shelf.len();
                        let gone = if random >> 40 & 3 != 0 { Some(shelf.swap_remove(at)) } else { None };
                        drop(shelf);
                        if let Some(gone) = gone {
                            free(mm, gone);
                        }
                        if step % 1024 == 512 && cpu == 0 {
                            mm.kmem_cache_shrink(caches[(random >> 30) as usize % 4]);
                        }
                    }
                });
            });
        }
    });
    assert_sound(mm);
    for gone in waiting.into_inner().expect("nobody failed") {
        free(mm, gone);
    }
    mm.kmem_cache_shrink_all();
    for cache in caches {
        assert!(!mm.kmem_cache_shrink(cache), "slabs are left");
    }
    assert_eq!(free_pages(mm), start);
    assert_sound(mm);
    assert_eq!(machine.log_text(), "");
}
