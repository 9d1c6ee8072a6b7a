//! What the command line makes of memory: ZONE_MOVABLE and contiguous memory areas, seen from the host.

use pagevisor_tests::command::{Guest, run};
use pagevisor_tests::views;

const TWO_NODES: [&str; 5] =
    ["--node", "dma=16M,dma32=112M,normal=128M,cpus=1", "--node", "normal=256M,cpus=1", "--append"];

const MIB: u64 = 256;

fn boots(line: &str) -> Guest {
    let args: Vec<&str> = TWO_NODES.into_iter().chain([line]).collect();
    Guest::keep("bootmem", &args)
}

/// All views agree about how many pages are free, and the walk of guest memory with them; the verifier finds nothing.
fn check(guest: &Guest) {
    let verdict = run(&mut guest.command(&["verify", guest.name()])).success();
    assert!(verdict.starts_with("sound: "), "{verdict}");
    let (zones, _) = views::zoneinfo(&guest.show(&["zoneinfo"]));
    let buddy = views::buddyinfo(&guest.show(&["buddyinfo"]));
    let (kmem, last) = views::kmem_free(&guest.show(&["kmem", "-f"]));
    assert!(last.ends_with("(verified)"), "{last}");
    for (key, zone) in &zones {
        let Some(by_order) = buddy.get(key) else {
            assert_eq!(zone.page("present"), 0, "{key:?}");
            continue;
        };
        assert_eq!(views::pages(by_order), zone.page("free"), "{key:?}");
        assert_eq!(kmem[key].free, zone.page("free"), "{key:?}");
    }
}

#[test]
fn kernelcore_makes_a_movable_zone() {
    let guest = boots("kernelcore=96M");
    check(&guest);
    let (zones, _) = views::zoneinfo(&guest.show(&["zoneinfo"]));
    let zone = |node: u32, name: &str| &zones[&(node, name.to_owned())];
    // Node 0 has more than 96 MiB below 4 GiB, so everything above is movable, and node 1 wholly.
    assert_eq!(zone(0, "Movable").page("present"), 128 * MIB);
    assert_eq!(zone(0, "Movable").start_pfn, Some(4096 * MIB));
    assert_eq!(zone(0, "Normal").page("present"), 0);
    assert_eq!(zone(1, "Movable").page("present"), 256 * MIB);
    let present: u64 = zones.values().map(|zone| zone.page("present")).sum();
    assert_eq!(present, 512 * MIB - 1 - 96, "all but page 0 and the hole below 1 MiB");
    let movable = zone(0, "Movable").page("managed");
    assert_eq!(zone(0, "DMA32").protection[3], movable / 256);
    assert!(guest.stop().code() == 0);
}

#[test]
fn movablecore_leaves_the_rest_to_the_kernel() {
    let guest = boots("movablecore=25%");
    check(&guest);
    let (zones, _) = views::zoneinfo(&guest.show(&["zoneinfo"]));
    let present = |name: &str| -> u64 {
        zones.iter().filter(|((_, zone), _)| zone == name).map(|(_, zone)| zone.page("present")).sum()
    };
    let (movable, all) = (present("Movable"), zones.values().map(|zone| zone.page("present")).sum::<u64>());
    assert!(movable.abs_diff(all / 4) <= 2 * 1024, "{movable} of {all}");
    assert!(present("Normal") > 0);
    guest.stop();
}

#[test]
fn an_area_is_shown_where_linux_shows_it() {
    let guest = boots("cma=16M");
    check(&guest);
    let meminfo = views::meminfo(&guest.show(&["meminfo"]));
    assert_eq!(views::counter(&meminfo, "CmaTotal"), 16 << 10);
    assert_eq!(views::counter(&meminfo, "CmaFree"), 16 << 10);
    let areas =
        "cma-reserved\n  base_pfn       1048576\n  count          4096\n  order_per_bit  0\n  used           0\n";
    assert_eq!(guest.show(&["cma"]), areas);
    let (zones, _) = views::zoneinfo(&guest.show(&["zoneinfo"]));
    let normal = &zones[&(0, "Normal".to_owned())];
    assert_eq!(normal.page("cma"), 16 * MIB);
    assert_eq!(views::counter(&normal.counters, "nr_free_cma"), 16 * MIB);
    guest.stop();
}

#[test]
fn watched_memory_is_sound() {
    for line in ["page_poison=1", "page_owner=on", "init_on_free=1 init_on_alloc=1", "fail_page_alloc=1,100,0,-1"] {
        let guest = boots(line);
        check(&guest);
        guest.stop();
    }
}

#[test]
fn mirrored_memory_is_refused() {
    let guest = boots("kernelcore=mirror");
    check(&guest);
    let (zones, _) = views::zoneinfo(&guest.show(&["zoneinfo"]));
    assert_eq!(zones[&(1, "Movable".to_owned())].page("present"), 0);
    guest.stop();
}
