//! What machines leave behind: nothing. In a file of its own, because it counts what its process has. Needs /dev/kvm.

mod tiny;

use std::fs;
use std::time::Duration;

use pagevisor::config::Size;
use pagevisor::machine::{Deadline, KernelImage, Machine, MachineConfig};
use pagevisor::topology::{Memory, Node, Topology, ZoneAmounts, uniform_distances};
use tiny::{Code, config, start, stop_event};

fn count(directory: &str) -> usize {
    fs::read_dir(directory).unwrap().count()
}

/// Descriptors, threads, and mappings of guest memory.
fn possessions() -> [usize; 3] {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let ours = maps.lines().filter(|line| line.contains("pagevisor-") && line.contains("memfd")).count();
    [count("/proc/self/fd"), count("/proc/self/task"), ours + maps.matches("kvm-vcpu").count()]
}

fn rss() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// A node with a tebibyte: the kernel writes its first and its last page.
fn huge_machine() -> Machine {
    let memory = Memory::Zones(ZoneAmounts { dma: 16 << 20, dma32: 112 << 20, normal: (1 << 40) - (128 << 20) });
    let nodes = vec![Node { memory, cpus: vec![0] }];
    let topology = Topology::new(nodes, uniform_distances(1)).unwrap();
    assert_eq!(topology.nodes[0].memory.bytes(), 1 << 40);
    let code = Code::default().store(0x1000, 1).store((128 << 20) - 4, 1).halt();
    let mut config = MachineConfig::new(topology).unwrap();
    config.kernel = KernelImage::Bytes(code.elf().into());
    start(config)
}

#[test]
fn every_kind_of_end_gives_everything_back() {
    let ends: [fn() -> Code; 5] = [
        || Code::default().power_off(0),
        || Code::default().power_off(1),
        || Code::default().bytes(&[0x0f, 0x0b]),
        || Code::default().bytes(&[0xf3, 0x0f, 0xb8, 0xc1]).halt(),
        || Code::default().spin(),
    ];
    // Once, so that whatever the process keeps for good is there.
    drop(start(config(ends[0]())));
    let before = possessions();
    for code in ends {
        let machine = start(config(code()));
        assert!(possessions().iter().zip(before).all(|(now, before)| *now > before), "nothing to give back");
        let _ = machine.wait(Deadline::after(Duration::from_millis(200)), &stop_event());
        drop(machine);
        assert_eq!(possessions(), before);
    }
    let mut bad = config(Code::default());
    bad.kernel = KernelImage::Bytes(b"no kernel".as_slice().into());
    assert!(Machine::start(bad).is_err());
    assert_eq!(possessions(), before, "after a start that failed");

    let idle = rss();
    let machine = huge_machine();
    let _ = machine.wait(Deadline::after(Duration::from_millis(200)), &stop_event());
    let used = rss().saturating_sub(idle);
    assert!(used < 8 << 20, "a machine of 1 TiB that touches two pages takes {}", Size(used));
    let files = machine.memory().read_only_nodes().unwrap();
    assert!(files[0].1.metadata().unwrap().len() >= 1 << 40);
    drop(files);
    drop(machine);
    assert_eq!(possessions(), before);
}
