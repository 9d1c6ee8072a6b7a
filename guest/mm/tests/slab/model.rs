//! Random use of several caches on several CPUs and nodes against a model: which objects are in use, and what is
//! written in them.

use std::collections::BTreeMap;

use pagevisor_mm::Mm;
use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};
use pagevisor_mm::slab::Cache;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::{NodeId, VirtAddr};
use proptest::prelude::*;

use crate::{MIB, assert_sound, free_pages, quiet, read, write};

const CPUS: usize = 3;
const NODES: usize = 2;
/// What the constructor leaves.
const CONSTRUCTED: u8 = 0xc7;

fn machine() -> Machine {
    let first = [(0, 640 << 10), (MIB, 48 * MIB)];
    quiet(Topology::new().node(&first, 2).node(&[(128 * MIB, 176 * MIB)], 1).boot())
}

fn construct(object: VirtAddr) {
    write(object, 48, CONSTRUCTED);
}

/// An object in use.
struct Held {
    cache: usize,
    size: usize,
    byte: u8,
}

#[derive(Clone, Debug)]
enum Step {
    Alloc { cache: usize, cpu: usize, node: Option<usize>, zero: bool },
    Bulk { cache: usize, cpu: usize, count: usize },
    Free { pick: usize, cpu: usize, count: usize },
    Kmalloc { size: usize, cpu: usize },
    Shrink { cache: usize },
    Tune { cache: usize, limit: u32, batch: u32, shared: u32 },
}

fn step() -> impl Strategy<Value = Step> {
    let (cache, cpu) = (0..SHAPES.len(), 0..CPUS);
    prop_oneof![
        8 => (cache.clone(), cpu.clone(), prop::option::weighted(0.2, 0..NODES), any::<bool>())
            .prop_map(|(cache, cpu, node, zero)| Step::Alloc { cache, cpu, node, zero }),
        3 => (cache.clone(), cpu.clone(), 1..200usize).prop_map(|(cache, cpu, count)| Step::Bulk { cache, cpu, count }),
        6 => (any::<usize>(), cpu.clone(), 1..150usize).prop_map(|(pick, cpu, count)| Step::Free { pick, cpu, count }),
        5 => (1..20_000usize, cpu).prop_map(|(size, cpu)| Step::Kmalloc { size, cpu }),
        1 => cache.clone().prop_map(|cache| Step::Shrink { cache }),
        1 => (cache, 1..200u32, 1..80u32, 0..9u32)
            .prop_map(|(cache, limit, batch, shared)| Step::Tune { cache, limit, batch, shared }),
    ]
}

/// Size, alignment, flags, with a constructor: lists in objects, on and off the slab, of several orders, debugged.
const SHAPES: &[(usize, usize, SlabFlags, bool)] = &[
    (8, 0, SlabFlags::NONE, false),
    (20, 0, SlabFlags::NONE, false),
    (48, 0, SlabFlags::NONE, true),
    (192, 0, SlabFlags::HWCACHE_ALIGN, false),
    (640, 128, SlabFlags::RECLAIM_ACCOUNT, false),
    (1400, 0, SlabFlags::NONE, true),
    (3000, 0, SlabFlags::NONE, false),
    (12_000, 4096, SlabFlags::NONE, true),
    (4096, 0, SlabFlags::RECLAIM_ACCOUNT, false),
    (8192, 0, SlabFlags::NONE, false),
    (16_384, 0, SlabFlags::NONE, false),
];

struct Model<'a> {
    machine: &'a Machine,
    caches: Vec<Cache>,
    held: BTreeMap<u64, Held>,
    next: u8,
}

impl Model<'_> {
    fn mm(&self) -> &Mm<HostPlatform> {
        self.machine.mm()
    }

    /// A new object overlaps none in use, lies right, and holds what it must.
    fn take(&mut self, addr: VirtAddr, cache: usize, size: usize, zero: bool) {
        let raw = addr.raw();
        if let Some((before, held)) = self.held.range(..=raw).next_back() {
            assert!(before + held.size as u64 <= raw, "an object of {size} bytes overlaps the one before");
        }
        if let Some((after, _)) = self.held.range(raw..).next() {
            assert!(raw + size as u64 <= *after, "an object of {size} bytes overlaps the one behind");
        }
        if let Some((_, align, _, ctor)) = SHAPES.get(cache) {
            assert!(raw.is_multiple_of((*align).max(8) as u64));
            if *ctor {
                assert!(read(addr, 48).iter().all(|byte| *byte == CONSTRUCTED), "the object is not as constructed");
            }
        }
        if zero {
            assert!(read(addr, size).iter().all(|byte| *byte == 0), "the object is not zero");
        }
        self.next = self.next.wrapping_add(1);
        let ctor = SHAPES.get(cache).is_some_and(|shape| shape.3);
        if !ctor {
            write(addr, size, self.next);
        }
        self.held.insert(raw, Held { cache, size, byte: if ctor { CONSTRUCTED } else { self.next } });
    }

    fn give(&mut self, raw: u64, cpu: usize) {
        let held = self.held.remove(&raw).expect("the model holds it");
        let addr = VirtAddr::new(raw);
        let len = if held.byte == CONSTRUCTED && SHAPES.get(held.cache).is_some_and(|s| s.3) { 48 } else { held.size };
        assert!(read(addr, len).iter().all(|byte| *byte == held.byte), "somebody wrote into an object in use");
        let cache = self.caches.get(held.cache).copied();
        self.machine.on_cpu(cpu, |mm| match cache {
            Some(cache) => mm.kmem_cache_free(cache, addr),
            None => mm.kfree(addr),
        });
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Alloc { cache, cpu, node, zero } => {
                let zero = zero && !SHAPES[cache].3;
                let gfp = if zero { Gfp::KERNEL | Gfp::ZERO } else { Gfp::KERNEL };
                let node = node.and_then(NodeId::new);
                let which = self.caches[cache];
                let got = self.machine.on_cpu(cpu, |mm| mm.kmem_cache_alloc_node(which, gfp, node));
                self.take(got.expect("memory is not short"), cache, SHAPES[cache].0, zero);
            }
            Step::Bulk { cache, cpu, count } => {
                let mut objects = vec![VirtAddr::new(0); count];
                let which = self.caches[cache];
                let got = self.machine.on_cpu(cpu, |mm| mm.kmem_cache_alloc_bulk(which, Gfp::KERNEL, &mut objects));
                assert_eq!(got, count);
                objects.into_iter().for_each(|addr| self.take(addr, cache, SHAPES[cache].0, false));
            }
            Step::Free { pick, cpu, count } => {
                for _ in 0..count.min(self.held.len()) {
                    let at = pick % self.held.len();
                    let raw = *self.held.keys().nth(at).expect("there are that many");
                    self.give(raw, cpu);
                }
            }
            Step::Kmalloc { size, cpu } => {
                let got = self.machine.on_cpu(cpu, |mm| mm.kmalloc(size, Gfp::KERNEL)).expect("memory is not short");
                assert!(self.mm().ksize(got) >= size);
                self.take(got, usize::MAX, size, false);
            }
            Step::Shrink { cache } => {
                self.mm().kmem_cache_shrink(self.caches[cache]);
            }
            Step::Tune { cache, limit, batch, shared } => {
                let accepted = self.mm().kmem_cache_tune(self.caches[cache], limit, batch, shared);
                assert_eq!(accepted, batch <= limit);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn objects_are_never_lost_nor_given_twice(steps in prop::collection::vec(step(), 1..120)) {
        let machine = machine();
        let mm = machine.mm();
        let start = free_pages(mm);
        let caches = SHAPES.iter().enumerate().map(|(at, (size, align, flags, ctor))| {
            let ctor = ctor.then_some(construct as fn(VirtAddr));
            mm.kmem_cache_create(&format!("model-{at}"), *size, *align, *flags, ctor).expect("a cache")
        }).collect();
        let mut model = Model { machine: &machine, caches, held: BTreeMap::new(), next: 0 };
        for (at, step) in steps.iter().enumerate() {
            model.step(step);
            if at % 16 == 0 {
                assert_sound(mm);
            }
        }
        while let Some((raw, _)) = model.held.first_key_value() {
            let raw = *raw;
            model.give(raw, raw as usize / 4096 % CPUS);
        }
        assert_sound(mm);
        model.caches.iter().for_each(|cache| mm.kmem_cache_destroy(*cache));
        mm.kmem_cache_shrink_all();
        prop_assert_eq!(mm.kmem_caches().count(), 40);
        // The cache of caches keeps its slabs.
        let kept = mm.kmem_cache_find("kmem_cache").expect("the cache of caches");
        let kept = mm.kmem_cache_node(kept, NodeId::default()).total_slabs.load(std::sync::atomic::Ordering::Relaxed);
        prop_assert!(start - free_pages(mm) <= kept, "pages are lost");
        assert_sound(mm);
        prop_assert_eq!(machine.log_text(), "");
    }
}
