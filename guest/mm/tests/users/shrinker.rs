//! Shrinkers, and reclaim by them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};

use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};
use pagevisor_mm::shrinker::{DEFAULT_SEEKS, OldShrinker, SHRINK_BATCH, ShrinkControl, Shrinker};
use pagevisor_mm::slab::Cache;
use pagevisor_mm::{Hooks, Mm, NodeReclaim, ReclaimRequest};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::{NodeId, Order, VirtAddr};
use pagevisor_shared::vmstat::{NodeStat, VmEvent};

use crate::{MIB, assert_sound, boot, exhaust, free_pages};

/// Pretends to have objects, and notes what it is asked.
#[derive(Default)]
struct Fake {
    objects: AtomicI64,
    seeks: AtomicU32,
    batch: AtomicU64,
    numa_aware: AtomicBool,
    stopped: AtomicBool,
    /// Looks at more than it is asked for, by that many.
    more: AtomicU64,
    scans: Mutex<Vec<(usize, u64)>>,
}

impl Fake {
    fn new(objects: i64) -> &'static Self {
        let fake = Self { objects: objects.into(), seeks: DEFAULT_SEEKS.into(), ..Self::default() };
        Box::leak(Box::new(fake))
    }

    /// Numbers of objects it was asked to look at since the last time.
    fn scans(&self) -> Vec<u64> {
        self.scans.lock().unwrap().drain(..).map(|(_, count)| count).collect()
    }
}

impl Shrinker<HostPlatform> for Fake {
    fn count_objects(&self, _: &Mm<HostPlatform>, _: &ShrinkControl) -> u64 {
        self.objects.load(Relaxed).max(0) as u64
    }

    fn scan_objects(&self, _: &Mm<HostPlatform>, control: &mut ShrinkControl) -> Option<u64> {
        if self.stopped.load(Relaxed) {
            return None;
        }
        self.scans.lock().unwrap().push((control.node.index(), control.nr_to_scan));
        control.nr_scanned += self.more.load(Relaxed);
        self.objects.fetch_sub(control.nr_to_scan as i64, Relaxed);
        Some(control.nr_to_scan)
    }

    fn seeks(&self) -> u32 {
        self.seeks.load(Relaxed)
    }

    fn batch(&self) -> u64 {
        self.batch.load(Relaxed)
    }

    fn numa_aware(&self) -> bool {
        self.numa_aware.load(Relaxed)
    }
}

fn node(number: usize) -> NodeId {
    NodeId::new(number).expect("a node")
}

fn deferred(mm: &Mm<HostPlatform>, number: usize) -> u64 {
    let mut found = 0;
    assert!(mm.for_each_shrinker(node(number), |_, _, deferred| found = deferred));
    found
}

#[test]
fn the_share_is_linuxs() {
    let machine = boot(1);
    let mm = machine.mm();
    let fake = Fake::new(100_000);
    let id = mm.register_shrinker("fake", fake).expect("memory");
    // 100,000 >> 12 is 24, by 4, by 2 seeks is 48: less than a batch, so it is only remembered.
    assert_eq!(mm.shrink_slab(Gfp::KERNEL, node(0), 12), 0);
    assert_eq!((fake.scans(), deferred(mm, 0)), (vec![], 48));
    assert_eq!(mm.shrink_slab(Gfp::KERNEL, node(0), 12), 0);
    assert_eq!((fake.scans(), deferred(mm, 0)), (vec![], 96));
    // 100,000 >> 8 is 390, twice that 780, and 96 >> 8 is nothing: six batches, 12 are left, and the 96.
    assert_eq!(mm.shrink_slab(Gfp::KERNEL, node(0), 8), 768);
    assert_eq!((fake.scans(), deferred(mm, 0)), (vec![SHRINK_BATCH; 6], 96 + 12));
    assert_eq!(mm.vm_event(VmEvent::SlabsScanned), 768);
    // With priority 0, all of twice as many as there are is due, as long as there are batches.
    fake.objects.store(1000, Relaxed);
    assert_eq!(mm.shrink_slab(Gfp::KERNEL, node(0), 0), 2000 / SHRINK_BATCH * SHRINK_BATCH);
    // 108 + 2000 were due, at most 2000 were to be done.
    assert_eq!((fake.scans().len(), deferred(mm, 0)), (15, 108 + 2000 - 1920));
    mm.unregister_shrinker(id);
    mm.unregister_shrinker(id);
    assert_eq!(mm.shrink_slab(Gfp::KERNEL, node(0), 0), 0);
    assert_eq!(fake.scans(), []);
    assert_sound(&machine);
}

#[test]
fn seeks_and_batches_count() {
    let machine = boot(1);
    let mm = machine.mm();
    let fake = Fake::new(1 << 20);
    mm.register_shrinker("fake", fake).expect("memory");
    // 256 objects are due at priority 12: once for 4 seeks, a quarter for 16, and half of all for none.
    fake.batch.store(256, Relaxed);
    fake.seeks.store(4, Relaxed);
    assert_eq!(mm.shrink_slab(Gfp::KERNEL, node(0), 12), 256);
    assert_eq!((fake.scans(), deferred(mm, 0)), (vec![256], 0));
    fake.objects.store(1 << 20, Relaxed);
    fake.seeks.store(16, Relaxed);
    assert_eq!(mm.shrink_slab(Gfp::KERNEL, node(0), 12), 0);
    assert_eq!((fake.scans(), deferred(mm, 0)), (vec![], 64));
    fake.seeks.store(0, Relaxed);
    fake.batch.store(1 << 17, Relaxed);
    assert_eq!(mm.shrink_slab(Gfp::KERNEL, node(0), 12), 1 << 19);
    assert_eq!(fake.scans(), [1 << 17; 4]);
    // Fewer objects than a batch, but all of them are due.
    fake.objects.store(10, Relaxed);
    fake.seeks.store(2, Relaxed);
    mm.shrink_slab(Gfp::KERNEL, node(0), 0);
    assert_eq!(fake.scans(), [20]);
}

#[test]
fn one_that_cannot_now_is_left_alone_and_owes_it() {
    let machine = boot(1);
    let mm = machine.mm();
    let fake = Fake::new(1000);
    mm.register_shrinker("fake", fake).expect("memory");
    fake.stopped.store(true, Relaxed);
    for round in 1..=5 {
        assert_eq!(mm.shrink_slab(Gfp::KERNEL, node(0), 2), 0);
        // Never more than twice as many as there are.
        assert_eq!(deferred(mm, 0), (round * 500).min(2000));
    }
    fake.stopped.store(false, Relaxed);
    // A quarter of what it owes, and 500.
    mm.shrink_slab(Gfp::KERNEL, node(0), 2);
    assert_eq!(fake.scans(), [SHRINK_BATCH; 1000 / SHRINK_BATCH as usize]);
    // One that looks at more than it was asked for is done earlier.
    fake.objects.store(100_000, Relaxed);
    fake.more.store(872, Relaxed);
    let before = mm.vm_event(VmEvent::SlabsScanned);
    mm.shrink_slab(Gfp::KERNEL, node(0), 5);
    let rounds = fake.scans().len() as u64;
    assert_eq!(rounds, 7, "of 6300 that are due");
    assert_eq!(mm.vm_event(VmEvent::SlabsScanned) - before, rounds * 1000);
}

#[test]
fn debts_are_kept_by_node_if_the_shrinker_tells_nodes_apart() {
    let topology = Topology::new().node(&[(16 * MIB, 48 * MIB)], 1).node(&[(48 * MIB, 80 * MIB)], 1);
    for aware in [false, true] {
        let machine = topology.boot();
        let mm = machine.mm();
        let fake = Fake::new(4096);
        fake.numa_aware.store(aware, Relaxed);
        mm.register_shrinker("fake", fake).expect("memory");
        mm.shrink_slab(Gfp::KERNEL, node(1), 8);
        assert_eq!((deferred(mm, 0), deferred(mm, 1)), if aware { (0, 32) } else { (32, 32) });
    }
}

#[test]
fn the_old_way_of_asking_works() {
    let machine = boot(1);
    let mm = machine.mm();
    static OBJECTS: AtomicI64 = AtomicI64::new(1000);
    static QUERIES: AtomicU64 = AtomicU64::new(0);
    static BUSY: AtomicBool = AtomicBool::new(false);
    fn shrink(_: &Mm<HostPlatform>, control: &ShrinkControl) -> i64 {
        if control.nr_to_scan == 0 {
            QUERIES.fetch_add(1, Relaxed);
            return OBJECTS.load(Relaxed);
        }
        if BUSY.load(Relaxed) {
            return -1;
        }
        // It finds every other one in use.
        OBJECTS.fetch_sub(control.nr_to_scan as i64 / 2, Relaxed) - control.nr_to_scan as i64 / 2
    }
    let shrinker = OldShrinker::new(shrink).with_seeks(4).with_batch(100);
    let id = mm.register_shrinker("old", Box::leak(Box::new(shrinker))).expect("memory");
    assert_eq!(mm.shrink_slab(Gfp::KERNEL, node(0), 1), 250);
    assert_eq!(OBJECTS.load(Relaxed), 750);
    assert_eq!(mm.vm_event(VmEvent::SlabsScanned), 500);
    assert_eq!(QUERIES.load(Relaxed), 1 + 5);
    BUSY.store(true, Relaxed);
    assert_eq!(mm.shrink_slab(Gfp::KERNEL, node(0), 0), 0);
    assert_eq!((OBJECTS.load(Relaxed), deferred(mm, 0)), (750, 750));
    mm.unregister_shrinker(id);
    // -1 to the query, too, means that nothing can be done.
    static NEVER: OldShrinker<fn(&Mm<HostPlatform>, &ShrinkControl) -> i64> = OldShrinker::new(|_, _| -1);
    mm.register_shrinker("never", &NEVER).expect("memory");
    assert_eq!(mm.shrink_slab(Gfp::KERNEL, node(0), 0), 0);
    assert_eq!(mm.vm_event(VmEvent::SlabsScanned), 500);
}

/// Keeps objects of a cache, and gives them up when asked.
struct Keeper {
    cache: Cache,
    objects: Mutex<Vec<VirtAddr>>,
    /// What the allocations allowed that it was asked for.
    asked: Mutex<Vec<Gfp>>,
}

impl Keeper {
    /// Fills a cache of that many objects of 1 KiB that can be reclaimed.
    fn new(mm: &Mm<HostPlatform>, count: usize) -> &'static Self {
        let cache = mm.kmem_cache_create("keeper", 1024, 0, SlabFlags::RECLAIM_ACCOUNT, None).expect("a cache");
        let objects = (0..count).map(|_| mm.kmem_cache_alloc(cache, Gfp::KERNEL).expect("an object")).collect();
        let keeper: &'static Self =
            Box::leak(Box::new(Self { cache, objects: Mutex::new(objects), asked: Mutex::default() }));
        mm.register_shrinker("keeper", keeper).expect("memory");
        keeper
    }

    fn len(&self) -> usize {
        self.objects.lock().unwrap().len()
    }
}

impl Shrinker<HostPlatform> for Keeper {
    fn count_objects(&self, _: &Mm<HostPlatform>, _: &ShrinkControl) -> u64 {
        self.len() as u64
    }

    fn scan_objects(&self, mm: &Mm<HostPlatform>, control: &mut ShrinkControl) -> Option<u64> {
        self.asked.lock().unwrap().push(control.gfp);
        let mut objects = self.objects.lock().unwrap();
        let rest = objects.len().saturating_sub(control.nr_to_scan as usize);
        let gone = objects.split_off(rest);
        drop(objects);
        gone.iter().for_each(|object| mm.kmem_cache_free(self.cache, *object));
        Some(gone.len() as u64)
    }
}

#[test]
fn drop_caches_drops_what_it_says() {
    let machine = boot(1);
    let mm = machine.mm();
    let start = free_pages(mm);
    let keeper = Keeper::new(mm, 5000);
    let reclaimable = || mm.region().nodes()[0].vm_stat[NodeStat::NrSlabReclaimable.index()].load(Relaxed);
    assert!(free_pages(mm) < start - 1200);
    for bad in [0, 5, u32::MAX] {
        assert!(mm.set_drop_caches(bad).is_err());
    }
    mm.set_drop_caches(1).expect("a good value");
    assert_eq!(keeper.len(), 5000);
    assert_eq!((mm.vm_event(VmEvent::DropPagecache), mm.vm_event(VmEvent::DropSlab)), (1, 0));
    let before = reclaimable();
    mm.set_drop_caches(2).expect("a good value");
    assert_eq!(keeper.len(), 0);
    assert!(before - reclaimable() > 1200, "slabs go back at once but for what CPUs and nodes keep");
    assert_eq!((mm.vm_event(VmEvent::DropPagecache), mm.vm_event(VmEvent::DropSlab)), (1, 1));
    assert!(mm.vm_event(VmEvent::SlabsScanned) >= 5000);
    mm.set_drop_caches(3).expect("a good value");
    assert_eq!((mm.vm_event(VmEvent::DropPagecache), mm.vm_event(VmEvent::DropSlab)), (2, 2));
    mm.set_drop_caches(4).expect("a good value");
    mm.set_drop_caches(3).expect("a good value");
    let log: String = (1..=4).map(|value| format!("swapper/0 (0): drop_caches: {value}\n")).collect();
    assert_eq!(machine.log_text(), log, "silence was asked for");
    machine.platform().clear_log();
    assert_sound(&machine);
}

/// One node with 32 MiB, and reclaim by shrinkers.
fn reclaiming() -> Machine {
    let machine = Topology::new().node(&[(16 * MIB, 48 * MIB)], 1).try_boot(Hooks::shrinkers()).expect("it boots");
    machine.platform().clear_log();
    machine
}

#[test]
fn an_allocation_that_runs_short_has_shrinkers_asked() {
    let machine = reclaiming();
    let mm = machine.mm();
    let keeper = Keeper::new(mm, 8000);
    let stall = VmEvent::AllocstallNormal;
    let mut pages = Vec::new();
    // All that can be had without reclaim, first.
    pages.extend(core::iter::from_fn(|| mm.alloc_pages(Gfp::NOWAIT | Gfp::NOWARN, Order::ZERO)));
    assert_eq!((keeper.len(), mm.vm_event(stall)), (8000, 0));
    let got = pages.len();
    let gfp = Gfp::NOFS | Gfp::NOWARN;
    pages.extend(core::iter::from_fn(|| mm.alloc_pages(gfp, Order::ZERO)));
    assert!(pages.len() - got > 1700, "{} pages of 2000 came back", pages.len() - got);
    assert_eq!(keeper.len(), 0);
    assert!(mm.vm_event(stall) > 10);
    assert!(keeper.asked.lock().unwrap().iter().all(|asked| *asked == gfp));
    // Nothing is left: it fails, and soon.
    assert_eq!(mm.alloc_pages(gfp, Order::ZERO), None);
    pages.iter().for_each(|page| mm.free_page(*page));
    assert_sound(&machine);
}

#[test]
fn without_shrinkers_reclaim_changes_nothing() {
    let machine = reclaiming();
    let mm = machine.mm();
    let gfp = Gfp::KERNEL | Gfp::NOWARN;
    let pages: Vec<_> = core::iter::from_fn(|| mm.alloc_pages(gfp, Order::ZERO)).collect();
    assert!(pages.len() > 7000);
    let rest = exhaust(mm);
    assert_eq!(mm.alloc_pages(gfp, Order::ZERO), None);
    assert_eq!(mm.vm_event(VmEvent::SlabsScanned), 0);
    pages.iter().chain(&rest).for_each(|page| mm.free_page(*page));
    assert_sound(&machine);
}

#[test]
fn what_a_shrinker_allocates_does_not_reclaim() {
    static DEPTH: AtomicU64 = AtomicU64::new(0);
    static DEEPEST: AtomicU64 = AtomicU64::new(0);
    struct Greedy;
    impl Shrinker<HostPlatform> for Greedy {
        fn count_objects(&self, _: &Mm<HostPlatform>, _: &ShrinkControl) -> u64 {
            1000
        }
        fn scan_objects(&self, mm: &Mm<HostPlatform>, _: &mut ShrinkControl) -> Option<u64> {
            DEEPEST.fetch_max(DEPTH.fetch_add(1, Relaxed) + 1, Relaxed);
            assert_eq!(mm.alloc_pages(Gfp::KERNEL | Gfp::NOWARN, Order::ZERO), None);
            DEPTH.fetch_sub(1, Relaxed);
            Some(0)
        }
    }
    let machine = reclaiming();
    let mm = machine.mm();
    mm.register_shrinker("greedy", &Greedy).expect("memory");
    let pages = exhaust(mm);
    assert_eq!(mm.alloc_pages(Gfp::KERNEL | Gfp::NOWARN, Order::ZERO), None);
    assert_eq!(DEEPEST.load(Relaxed), 1);
    pages.iter().for_each(|page| mm.free_page(*page));
    assert_sound(&machine);
}

#[test]
fn a_node_is_reclaimed_when_much_of_it_is_in_slabs() {
    let machine = reclaiming();
    let mm = machine.mm();
    assert_eq!(mm.node_reclaim_slab(node(0), Gfp::KERNEL, Order::ZERO), NodeReclaim::Full);
    let keeper = Keeper::new(mm, 4000);
    assert_eq!(mm.node_reclaim_slab(node(0), Gfp::KERNEL, Order::ZERO), NodeReclaim::Success);
    let left = keeper.len();
    assert!((3000..4000).contains(&left), "as much as was wanted, not all: {left}");
    let order = Order::new(9).expect("an order");
    assert_eq!(mm.node_reclaim_slab(node(0), Gfp::KERNEL, order), NodeReclaim::Success);
    assert!(keeper.len() < left - 500 * 4);
    assert_eq!(mm.node_reclaim_slab(NodeId::new(7).unwrap(), Gfp::KERNEL, order), NodeReclaim::NoScan);
    assert_sound(&machine);
}

#[test]
fn only_nodes_that_help_are_asked() {
    let topology = Topology::new().node(&[(16 * MIB, 48 * MIB)], 1).node(&[(48 * MIB, 80 * MIB)], 1);
    let machine = topology.try_boot(Hooks::shrinkers()).expect("it boots");
    let mm = machine.mm();
    let fake = Fake::new(1 << 18);
    mm.register_shrinker("fake", fake).expect("memory");
    let zone = mm.populated_zones().map(|(index, _)| index).last();
    let mut request = ReclaimRequest {
        gfp: Gfp::KERNEL,
        order: Order::ZERO,
        highest_zone: Gfp::KERNEL.zone(),
        preferred: zone,
        nodemask: None,
    };
    mm.try_to_free_pages(&request);
    let asked: Vec<usize> = fake.scans.lock().unwrap().drain(..).map(|(node, _)| node).collect();
    assert_eq!(asked[0], 1, "the preferred zone's node first");
    assert!(asked.contains(&0));
    request.nodemask = Some(Default::default());
    request.nodemask = request.nodemask.map(|mask: pagevisor_shared::units::NodeMask| mask.with(node(0)));
    fake.objects.store(1 << 18, Relaxed);
    mm.try_to_free_pages(&request);
    assert!(fake.scans.lock().unwrap().iter().all(|(node, _)| *node == 0));
}

#[test]
fn shrinkers_come_and_go_while_memory_is_short() {
    let machine = Topology::new().node(&[(16 * MIB, 48 * MIB)], 3).try_boot(Hooks::shrinkers()).expect("it boots");
    let mm = machine.mm();
    let start = free_pages(mm);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for cpu in 1..3 {
            let (machine, done) = (&machine, &done);
            scope.spawn(move || {
                machine.on_cpu(cpu, |mm| {
                    while !done.load(Relaxed) {
                        mm.shrink_slab(Gfp::KERNEL, node(0), 3);
                    }
                });
            });
        }
        let fakes: Vec<_> = (0..3).map(|_| Fake::new(1 << 14)).collect();
        for _ in 0..20 {
            let ids: Vec<_> = fakes.iter().map(|fake| mm.register_shrinker("fake", *fake).expect("memory")).collect();
            for (id, fake) in ids.into_iter().zip(&fakes) {
                mm.unregister_shrinker(id);
                fake.scans();
                std::thread::yield_now();
                assert_eq!(fake.scans(), [], "it was asked after it had gone");
                fake.objects.store(1 << 14, Relaxed);
            }
        }
        done.store(true, Relaxed);
    });
    assert_eq!(free_pages(mm), start);
}
