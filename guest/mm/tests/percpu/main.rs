//! Per-CPU memory against a model of it.
#![allow(unsafe_code, reason = "instances are read and written")]

mod areas;
mod chunks;
mod first_chunk;
mod model;
mod soak;

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use pagevisor_mm::Mm;
use pagevisor_mm::check::{chunk_violations, violations};
use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};
use pagevisor_mm::percpu::PerCpuPtr;
use pagevisor_shared::report::counters::{global_node_page_state, global_zone_page_state};
use pagevisor_shared::units::{CpuId, VirtAddr};
use pagevisor_shared::vmstat::{NodeStat, ZoneStat};

/// Sizes of the first chunk: static, reserved, dynamic, atom.
pub const SMALL: [u64; 4] = [1500, 8 << 10, 28 << 10, 4096];

/// Two nodes with three CPUs and one, and a node without CPUs.
pub fn topology() -> Topology {
    let mib = |start: u64, end: u64| (start << 20, end << 20);
    Topology::new().node(&[mib(0, 64)], 3).node(&[mib(64, 128)], 1).node(&[mib(128, 160)], 0)
}

/// Groups of CPUs: nodes that have any.
pub const GROUPS: u64 = 2;
/// Records of areas with one further chunk: one for each group, and for the addresses before, between and behind them.
const RECORDS: u64 = 2 * GROUPS + 1;

/// A machine with the first chunk of `sizes`.
pub fn machine(sizes: [u64; 4]) -> Machine {
    let [fixed, reserved, dynamic, atom] = sizes;
    topology().percpu(fixed, reserved, dynamic, atom).boot()
}

/// The CPUs of `mm`.
pub fn cpus(mm: &Mm<HostPlatform>) -> impl Iterator<Item = CpuId> + use<> {
    (0..mm.region().nr_cpus()).filter_map(CpuId::new)
}

/// The bytes of an instance.
pub fn bytes(addr: VirtAddr, len: usize) -> &'static [AtomicU8] {
    // SAFETY: an instance lies in the arena, which stays mapped; bytes may hold anything.
    unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(addr.raw() as usize), len) }
}

/// The bytes of CPU `cpu`'s instance of `ptr`, page by page: further chunks are not mapped in this process.
fn parts(mm: &Mm<HostPlatform>, ptr: PerCpuPtr, len: usize, cpu: CpuId) -> impl Iterator<Item = &'static [AtomicU8]> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let left = len - from;
        let addr = (left > 0).then(|| mm.per_cpu_phys(ptr, from as u64, cpu).expect("it has memory"))?;
        let now = left.min(4096 - addr.raw() as usize % 4096);
        from += now;
        Some(bytes(mm.virt(addr), now))
    })
}

/// Fills all instances of `ptr`, each CPU's with something else.
pub fn fill(mm: &Mm<HostPlatform>, ptr: PerCpuPtr, len: usize, seed: u8) {
    for cpu in cpus(mm) {
        let value = seed.wrapping_mul(31).wrapping_add(cpu.index() as u8);
        parts(mm, ptr, len, cpu).flatten().for_each(|byte| byte.store(value, Relaxed));
    }
}

/// Whether all instances hold what [`fill`] wrote.
pub fn is_filled(mm: &Mm<HostPlatform>, ptr: PerCpuPtr, len: usize, seed: u8) -> bool {
    cpus(mm).all(|cpu| {
        let value = seed.wrapping_mul(31).wrapping_add(cpu.index() as u8);
        parts(mm, ptr, len, cpu).flatten().all(|byte| byte.load(Relaxed) == value)
    })
}

/// Whether all instances hold zero.
pub fn is_zero(mm: &Mm<HostPlatform>, ptr: PerCpuPtr, len: usize) -> bool {
    cpus(mm).all(|cpu| parts(mm, ptr, len, cpu).flatten().all(|byte| byte.load(Relaxed) == 0))
}

/// Recounts everything.
#[track_caller]
pub fn assert_sound(mm: &Mm<HostPlatform>) {
    assert_eq!(chunk_violations(mm), []);
    assert_eq!(violations(mm), []);
}

/// Where the pages of a machine at rest are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pages {
    /// With nothing on pagesets.
    free: u64,
    /// Records of chunks and of areas among them.
    slab: u64,
    /// Of page tables.
    tables: u64,
    /// Of units.
    units: u64,
}

impl Pages {
    /// After giving back what is only kept for the next one.
    pub fn of(mm: &Mm<HostPlatform>) -> Self {
        mm.purge_vmap_areas();
        mm.kmem_cache_shrink_all();
        mm.drain_all_pages(None);
        let region = mm.region();
        Self {
            free: global_zone_page_state(region, ZoneStat::NrFreePages),
            slab: global_node_page_state(region, NodeStat::NrSlabUnreclaimable),
            tables: global_node_page_state(region, NodeStat::NrPageTablePages),
            units: mm.pcpu_nr_pages(),
        }
    }

    /// Fails unless these are all the pages there were `before`, and what stays of chunks that came and went is what may.
    #[track_caller]
    pub fn assert_back(self, before: Self) {
        let all = |pages: Self| pages.free + pages.slab + pages.tables + pages.units;
        assert_eq!(all(self), all(before), "{self:?}, and before {before:?}");
        // One chunk is kept, without memory or with pages too few to be worth taking; where its units are, there may be a
        // table more or less of both lower levels.
        assert!(self.tables.abs_diff(before.tables) <= 2 * GROUPS, "{self:?}, and before {before:?}");
        // Its record and those of areas may each be all that is left in a slab.
        assert!(self.slab <= before.slab + 1 + RECORDS, "{self:?}, and before {before:?}");
    }
}
