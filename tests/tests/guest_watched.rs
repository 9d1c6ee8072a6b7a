//! What watches allocations: who owns each page, with the names of the kernel's functions; fault injection; settings.

use std::time::{Duration, Instant};

use pagevisor_shared::page_owner::STACK_DEPTH;
use pagevisor_tests::command::{Guest, run};

/// Boots with `line`, and lets the guest allocate until 48 blocks stay in use.
fn scattered(line: &str) -> Guest {
    let guest = Guest::keep("owner", &["--append", &format!("{line} pagevisor.test=scatter")]);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let log = run(&mut guest.command(&["log", guest.name()])).success();
        if log.contains("selftest: scatter ok, 48 blocks kept") {
            return guest;
        }
        assert!(Instant::now() < deadline, "{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn every_page_has_an_owner_with_a_name() {
    let guest = scattered("page_owner=on");
    let text = guest.show(&["page_owner"]);
    let blocks: Vec<&str> = text.split_terminator("\n\n").collect();
    // Boot's own are slabs and page tables, of the top level as many as the vmalloc space needs.
    const TOP_LEVEL: usize = 64;
    let scatter = "pagevisor_kernel::selftest::scatter";
    let scattered = blocks.iter().filter(|block| block.contains(&format!(" {scatter}+0x"))).count();
    assert!(scattered >= 48 && blocks.len() < scattered + 48 + TOP_LEVEL, "{scattered} of {} blocks", blocks.len());
    for block in &blocks {
        let lines: Vec<&str> = block.lines().collect();
        assert!(lines[0].starts_with("Page allocated via order "), "{block}");
        assert!(lines[1].starts_with("PFN "), "{block}");
        assert!(lines[2..].iter().all(|line| line.starts_with(' ')), "{block}");
        // A trace that is cut off does not get down there.
        let whole = lines.len() < 2 + STACK_DEPTH;
        // Boot itself, or where a task begins.
        let ends = [" kernel_main+0x", " pagevisor_kernel::task::kthread::begin+0x"];
        assert!(!whole || lines.iter().any(|line| ends.iter().any(|end| line.starts_with(end))), "{block}");
    }
    let orders = |order: u32| text.matches(&format!("via order {order},")).count();
    assert!(orders(0) > 20 && orders(9) > 0);
    assert!(text.contains("type Movable Block ") && text.contains("GFP_HIGHUSER_MOVABLE"));
    let sites = guest.show(&["page_owner", "sites"]);
    let count = |line: &str| line.split_whitespace().next().map_or(0, number);
    assert_eq!(sites.lines().skip(1).map(count).sum::<usize>(), blocks.len());
    let here = sites.lines().skip(1).filter(|line| line.contains(scatter));
    assert_eq!(here.map(count).sum::<usize>(), scattered, "{sites}");
    guest.stop();
}

fn number(word: &str) -> usize {
    word.parse().unwrap_or_else(|_| panic!("not a number: '{word}'"))
}

#[test]
fn without_the_option_there_are_none() {
    let guest = Guest::keep("owner", &["--append", "page_owner=off"]);
    let output = guest.try_show(&["page_owner"]);
    assert_eq!(output.code(), 2, "{}", output.stderr);
    assert!(output.stderr.contains("'page_owner=on'"), "{}", output.stderr);
    guest.stop();
}

/// Linux's attributes spare allocations that may reclaim, and those of user pages.
#[test]
fn kernel_allocations_do_not_fail_by_chance() {
    let guest = scattered("fail_page_alloc=1,100,0,-1");
    let want = "\
ignore-gfp-highmem Y
ignore-gfp-wait    Y
interval           1
min-order          1
probability        100
space              0
times              -1
gfp                0x0(none)
nth                0
nth-cpu            any
nth-min-order      0
nth-gfp            0x0(none)
";
    let found = guest.show(&["fail_page_alloc"]);
    assert!(found.starts_with(want), "{found}");
    // Only what vmalloc tries first for the stacks of the first four tasks, in larger blocks: it does not wait for those, and
    // has another way.
    let failed =
        found.lines().last().and_then(|line| line.strip_prefix("failed")).map_or(usize::MAX, |n| number(n.trim()));
    assert!(failed <= 2 * 4 && !found.contains("looked-at          0\n"), "{found}");
    assert_eq!(guest.stop().code(), 0);
}

#[test]
fn settings_are_shown_as_sysctl_does() {
    let guest = Guest::keep("sysctl", &[]);
    let found = guest.show(&["sysctl"]);
    let lines: Vec<&str> = found.lines().filter(|line| !line.contains("min_free_kbytes")).collect();
    let want = [
        "vm.lowmem_reserve_ratio = 256\t256\t32\t0\t0",
        "vm.max_map_count = 65530",
        "vm.mmap_min_addr = 65536",
        "vm.numa_zonelist_order = Node",
        "vm.overcommit_kbytes = 0",
        "vm.overcommit_memory = 0",
        "vm.overcommit_ratio = 50",
        "vm.percpu_pagelist_high_fraction = 0",
        "vm.watermark_boost_factor = 15000",
        "vm.watermark_scale_factor = 10",
        "vm.zone_reclaim_mode = 0",
    ];
    assert_eq!(lines, want);
    guest.stop();
}
