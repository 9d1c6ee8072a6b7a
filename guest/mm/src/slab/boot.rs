//! The first caches (`kmem_cache_init`, `create_kmalloc_caches`).

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Release;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::slab::{SlabFlags, cache_size};
use pagevisor_shared::units::{Order, PhysAddr};
use pagevisor_shared::vmstat::NodeStat;

use super::Cache;
use super::kmalloc::{CLASS_SIZES, KMALLOC_CLASSES, KMALLOC_TYPES};
use super::layout::Request;
use crate::Mm;
use crate::platform::Platform;

/// Classes in the order in which they are made: Linux's, smallest first.
const ORDER: [usize; KMALLOC_CLASSES - 1] = [3, 4, 5, 6, 1, 7, 2, 8, 9, 10, 11, 12, 13];

/// Names of the caches, by type and class (`kmalloc_info`).
const NAMES: [[&str; KMALLOC_CLASSES]; KMALLOC_TYPES] = {
    macro_rules! names {
        ($prefix:literal) => {
            [
                "",
                concat!($prefix, "96"),
                concat!($prefix, "192"),
                concat!($prefix, "8"),
                concat!($prefix, "16"),
                concat!($prefix, "32"),
                concat!($prefix, "64"),
                concat!($prefix, "128"),
                concat!($prefix, "256"),
                concat!($prefix, "512"),
                concat!($prefix, "1k"),
                concat!($prefix, "2k"),
                concat!($prefix, "4k"),
                concat!($prefix, "8k"),
            ]
        };
    }
    [names!("kmalloc-"), names!("kmalloc-rcl-"), names!("dma-kmalloc-")]
};

/// What the caches of each type are told to be.
const TYPE_FLAGS: [SlabFlags; KMALLOC_TYPES] = [SlabFlags::NONE, SlabFlags::RECLAIM_ACCOUNT, SlabFlags::CACHE_DMA];

impl<P: Platform> Mm<P> {
    /// Makes the cache of caches and those of `kmalloc`. Once, when every CPU has the record that
    /// [`Self::cpu_local`] makes. Before it nothing can be had from here.
    ///
    /// # Panics
    /// When there is no memory for them: nothing else can work.
    pub fn slab_init(&self) {
        assert!(self.make_cache_of_caches().is_some(), "Cannot create slab kmem_cache: out of memory");
        for (kind, flags) in TYPE_FLAGS.into_iter().enumerate() {
            for class in ORDER {
                let (name, size) = (NAMES[kind][class], CLASS_SIZES[class]);
                let align = if size.is_power_of_two() { size } else { 0 };
                // A list would not fit into an object of those.
                let flags = if size <= 32 { flags.with(SlabFlags::LINKED) } else { flags };
                match self.create_cache(name, size, align, flags, None) {
                    Ok(cache) => self.slab.kmalloc[kind][class].set(cache),
                    Err(error) => {
                        panic!("Creation of kmalloc slab {name} size={size} failed. Reason {}", error.errno())
                    }
                }
            }
        }
        // Release: whoever makes an array finds the caches that it comes from.
        self.slab.up.store(1, Release);
    }

    /// Makes the cache of caches: its descriptor is the first object of its own first slab.
    fn make_cache_of_caches(&self) -> Option<Cache> {
        let object_size = cache_size(self.slab.shape.nr_cpus, self.slab.shape.nr_nodes) as u32;
        let flags = SlabFlags::HWCACHE_ALIGN.with(SlabFlags::PANIC);
        // Descriptors are descriptors, and zero, also while they are free.
        let request = Request { object_size, align: 0, flags, keeps_content: true, max_order: self.slab_max_order() };
        let layout = self.layout_of(&request).ok()?;
        let order = Order::new(layout.order).ok()?;
        let first = self.alloc_pages(Gfp::NOWAIT | Gfp::ZERO | Gfp::COMP, order)?;
        let node = self.page_to_nid(first)?;
        let cache = Cache::at(self.slab_memory(), self.virt(PhysAddr::new(first.addr().raw())).raw())?;
        self.fill_record(cache, "kmem_cache", object_size, &layout, 0);
        self.shut_gates(cache);
        self.publish_cache(cache, 1);
        self.slab.caches.set(cache);
        let pfn = first.raw() as u32;
        self.mark_slab(cache, pfn, order, node);
        let slab = self.slab_page(cache, pfn);
        slab.init_list(0, 0);
        // The descriptor itself.
        slab.take(&[const { AtomicU64::new(0) }; 1]);
        self.mod_node_page_state(node, NodeStat::NrSlabUnreclaimable, order.pages() as i64);
        self.cache_grow_end(cache, &slab);
        Some(cache)
    }
}
