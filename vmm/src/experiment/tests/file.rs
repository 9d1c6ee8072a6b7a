use super::*;

#[test]
fn every_combination_is_a_run() {
    let experiment = parsed(EIGHT);
    let runs: Vec<String> = experiment.runs.iter().map(Run::to_string).collect();
    let expected = |name: &str, order, seed| {
        format!("{name} fragment:gfp=KERNEL,order={order},seed={seed} vm.min_free_kbytes=4096")
    };
    let mut all = Vec::new();
    for name in ["two", "one"] {
        for order in [3, 9] {
            all.extend([1, 2].map(|seed| expected(name, order, seed)));
        }
    }
    assert_eq!(runs, all);
    assert_eq!(experiment.timeout.as_secs(), 60);
}

#[test]
fn keys_tell_runs_apart_and_are_the_same_each_time() {
    let keys = |text: &str| parsed(text).runs.into_iter().map(|run| run.key).collect::<std::collections::BTreeSet<_>>();
    let all = keys(EIGHT);
    assert_eq!((all.len(), keys(EIGHT)), (8, all.clone()));
    for (from, to) in [("9]", "8]"), ("4096", "4097"), ("KERNEL", "HIGHUSER"), ("seeds = 2", "seeds = [1, 3]")] {
        let changed = keys(&EIGHT.replace(from, to));
        assert_eq!(changed.len(), 8);
        assert!(changed.intersection(&all).count() <= 4, "{from} {to}");
    }
    let folder = tempfile::tempdir().unwrap();
    let one = |kernel: &str, latency: &str| {
        std::fs::write(folder.path().join("m.toml"), TWO.replace("100", latency)).unwrap();
        let text = "topologies = [\"m.toml\"]\n[[workload]]\nname = \"boot\"\n";
        Experiment::parse(text, "e.toml", folder.path(), kernel).unwrap().runs.remove(0).key
    };
    assert_eq!(one("a", "100"), one("a", "100"));
    assert_ne!(one("a", "100"), one("b", "100"), "another kernel");
    assert_ne!(one("a", "100"), one("a", "101"), "another machine");
}

#[test]
fn an_axis_of_cpus_makes_smaller_machines() {
    let text = "topologies = [\"two.toml\"]\n[[workload]]\nname = \"boot\"\n[settings]\ncpus = [1, 2]\n";
    let cpus = |run: &Run| run.topology.nodes.iter().map(|node| node.cpus.clone()).collect::<Vec<_>>();
    let runs = parsed(text).runs;
    assert_eq!(runs.iter().map(cpus).collect::<Vec<_>>(), [vec![vec![0], vec![]], vec![vec![0], vec![1]]]);
    let error = parse(&text.replace("[1, 2]", "3")).unwrap_err();
    assert_eq!(error.to_string(), "e.toml: settings, cpus: two has 2 CPUs, not 3");
}

#[test]
fn equal_runs_are_one() {
    let text =
        "topologies = [\"two.toml\"]\nseeds = [4, 4]\n[[workload]]\nname = \"boot\"\n[[workload]]\nname = \"boot\"\n";
    assert_eq!(parsed(text).runs.len(), 1);
}

#[track_caller]
fn refused(text: &str, message: &str) {
    let error = parse(text).unwrap_err();
    assert_eq!((error.to_string().as_str(), error.exit_status()), (message, crate::error::exit_status::USAGE));
}

#[test]
fn mistakes_are_named_with_their_place() {
    let start = "topologies = [\"two.toml\"]\n";
    let seq = "[[workload]]\nname = \"boot\"\n";
    refused("", "e.toml:1: missing field `topologies`");
    refused(
        &format!("{start}topology = 3\n{seq}"),
        "e.toml:2: unknown field `topology`, expected one of `topologies`, `seeds`, `timeout`, `workload`, `settings`",
    );
    refused(&format!("topologies = []\n{seq}"), "e.toml: topologies: there must be at least one");
    refused(&format!("{start}workload = []\n"), "e.toml: workload: there must be at least one [[workload]]");
    refused(&format!("{start}seeds = []\n{seq}"), "e.toml:2: seeds: there must be at least one");
    refused(&format!("{start}seeds = 0\n{seq}"), "e.toml:2: seeds: there must be at least one");
    refused(&format!("{start}seeds = \"x\"\n{seq}"), "e.toml:2: expected a number of seeds, or a list of seeds");
    refused(&format!("{start}timeout = 0\n{seq}"), "e.toml:2: timeout: it must be more than 0 seconds");
    refused(&format!("{start}[[workload]]\nname = \"boot\"\nseed = 3\n"), {
        "e.toml:2: workload \"boot\", seed: it comes from `seeds`"
    });
    refused(&format!("{start}{seq}order = []\n"), "e.toml:2: workload \"boot\", order: the list is empty");
    refused(&format!("{start}[[workload]]\nname = \"sequel\"\n"), {
        "e.toml:2: workload \"sequel\", there is no workload \"sequel\"; there are boot, sequential, random, \
         producer-consumer, fragment, dma-exhaust, node-exhaust, pcp-pingpong, replay, access, slab-mix, vmalloc-mix, \
         memory-mix, scull, scullc, scullp, scullv, fault"
    });
    refused(&format!("{start}{seq}[settings]\n\"vm.swappiness\" = 3\n"), {
        "e.toml:5: unknown setting \"vm.swappiness\"; the settings are append, cpus, vm.lowmem_reserve_ratio, \
         vm.min_free_kbytes, vm.percpu_pagelist_high_fraction, vm.watermark_scale_factor, vm.zone_reclaim_mode"
    });
    refused(&format!("{start}{seq}[settings]\n\"vm.min_free_kbytes\" = \"many\"\n"), {
        "e.toml:5: settings, vm.min_free_kbytes: \"many\" is not a number"
    });
    refused(&format!("{start}{seq}[settings]\ncpus = []\n"), "e.toml:5: settings, cpus: the list is empty");
    refused(&format!("{start}{seq}[settings]\ncpus = 1.5\n"), {
        "e.toml:5: expected a number, a string, or a list of these"
    });
    refused(&format!("topologies = [\"two.toml\",\n\"two.toml\"]\n{seq}"), {
        "e.toml:2: topologies: there is another one called \"two\""
    });
    refused(&format!("{start}seeds = 4000000000\n{seq}"), "e.toml: its matrix has more than 100000 runs");
}

#[test]
fn a_broken_topology_is_refused_as_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("m.toml"), "[[node]]\nmem = 0\n").unwrap();
    let read = |name: &str| {
        let text = format!("topologies = [\"{name}\"]\n[[workload]]\nname = \"boot\"\n");
        parse_in(folder.path(), &text).unwrap_err()
    };
    let (broken, missing) = (read("m.toml"), read("none.toml"));
    assert!(broken.to_string().contains("m.toml:2: node 0, mem: the size is zero"), "{broken}");
    assert!(missing.to_string().contains("none.toml: cannot be read: No such file"), "{missing}");
    assert_eq!((broken.exit_status(), missing.exit_status()), (2, 2));
}

#[test]
fn example_experiments_are_sound() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments");
    let mut used = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let experiment = Experiment::read(&path, "kernel").unwrap_or_else(|error| panic!("{error}"));
        used.extend(experiment.runs.into_iter().map(|run| run.name));
    }
    let shipped = crate::config::tests::shipped();
    for (name, _) in &shipped {
        assert!(used.contains(name.trim_end_matches(".toml")), "no experiment uses {name}");
    }
}
