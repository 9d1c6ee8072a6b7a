//! Guests that lie: whatever is in the region and in memory, looking ends, and does not panic.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use pagevisor_shared::region::RegionLayout;
use proptest::prelude::*;

use super::super::fake::{FakeGuest, GIB4, MIB};
use super::super::{Patience, StateView};
use crate::report::{View, proc_tree, summary, summary_json};

/// Everything there is to look at, but `kmem -p` over all pages.
fn look(view: &StateView) {
    let mut views: Vec<View> = Vec::new();
    let names = "buddyinfo pagetypeinfo zoneinfo meminfo vmstat iomem numa kmem-f kmem-n kmem-V kmem-z kmem-g page_owner cma sysctl fail_page_alloc failslab slabinfo vmallocinfo kmem-v kmem-i kmem-s kmem-S";
    views.extend(names.split(' ').map(|name| name.parse::<View>().unwrap()));
    views.push("page_owner sites".parse().unwrap());
    for node in [0, 1, 2, 63] {
        for file in ["meminfo", "numastat", "vmstat", "distance", "cpulist", "cpumap"] {
            views.push(format!("node/{node}/{file}").parse().unwrap());
        }
    }
    for pfn in ["0", "0x3001", "0x100005", "0xfffffffff", "0xffffea0000060020"] {
        views.push(format!("kmem -p {pfn}").parse().unwrap());
    }
    for address in ["ffff888003102040", "3102040", "ffffea0000060020", "ffffffffffffffff", "0"] {
        views.push(format!("kmem {address}").parse().unwrap());
        views.push(format!("vtop {address}").parse().unwrap());
    }
    let files = ["maps", "smaps", "smaps_rollup", "status", "statm", "numa_maps", "pagemap"];
    views.push("ps".parse().unwrap());
    views.extend(files.map(|file| format!("pid/1/{file}").parse::<View>().unwrap()));
    views.extend(["vm 1", "vm -p 1", "vtop 1 400000"].map(|name| name.parse::<View>().unwrap()));
    for view_of in views {
        for json in [false, true] {
            let _ = view_of.render(view, json, &mut std::io::sink());
        }
    }
    let _ = proc_tree(view);
    let _ = summary(view, &mut String::new());
    let _ = summary_json(view);
    for cpu in 0..2 {
        for zone in 0..15 {
            let cpu = pagevisor_shared::units::CpuId::new(cpu).unwrap();
            let _ = view.walk_pcp(cpu, pagevisor_shared::zone::ZoneIndex(zone), 2);
        }
    }
}

/// Writes words into the region, past the header's fixed part as a guest may do after the host has opened it.
fn damage_region(guest: &FakeGuest, words: &[(u64, u64)]) {
    let region = guest.region();
    let base = NonNull::from(region.header()).cast::<AtomicU64>();
    for (place, value) in words {
        let word = place % (RegionLayout::new(3, 2).size / 8);
        // SAFETY: inside the mapped region, which is made of atomics and aligned.
        unsafe { base.add(word as usize).as_ref() }.store(*value, Relaxed);
    }
}

/// Numbers that are more likely to mislead than random ones.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        Just(0),
        Just(u64::MAX),
        Just(1 << 63),
        0..64u64,
        (0..0x11_0000u64).prop_map(|pfn| pfn << 32 | pfn),
        (0..160u64).prop_map(|mib| mib * MIB),
        (0..256u64).prop_map(|mib| GIB4 + mib * MIB),
    ]
}

/// Places in the region: anywhere, or among the tables of roots, nodes and zones.
fn place() -> impl Strategy<Value = u64> {
    let layout = RegionLayout::new(3, 2);
    let (nodes, zones) = (layout.tables[0].0 / 8, layout.tables[1].0 / 8);
    prop_oneof![any::<u64>(), 0..160u64, nodes..nodes + 1200, zones..zones + 15 * 120]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_region_and_memory_can_be_looked_at(
        region in prop::collection::vec((place(), value()), 1..64),
        memory in prop::collection::vec((0..32 * MIB / 8, value()), 0..64),
        tables in prop::collection::vec((0..0x2000u64, value()), 0..8),
        state in 0..7u32,
    ) {
        let guest = FakeGuest::used().with_programs();
        let view = guest.view();
        guest.region().header().state.store(state, Relaxed);
        damage_region(&guest, &region);
        for (word, value) in memory {
            // The memory map and what lies before it.
            guest.memory.write_u64(20 * MIB + word * 8 % (14 * MIB), value);
        }
        for (word, value) in tables {
            guest.memory.write_u64(20 * MIB + word * 8, value);
        }
        let start = Instant::now();
        look(&view);
        // Patience with a guest that seems to run is most of it.
        prop_assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    }

    #[test]
    fn any_memory_map_can_be_walked(
        words in prop::collection::vec((0x3000..0x3500u32, 0..8u64, any::<u32>()), 1..200),
    ) {
        let guest = FakeGuest::used().with_programs();
        for (pfn, word, value) in words {
            guest.set_meta(pfn, word, value);
        }
        let once = Patience { tries: 1, pause: Duration::ZERO, limit: Duration::ZERO };
        let walk = guest.view().walk_free_lists(once).unwrap();
        prop_assert!(walk.found_pages() <= guest.view().memory().size() >> 12);
    }
}
