//! What machines leave behind: nothing. In a file of its own, because it counts what its process has. Needs /dev/kvm.

mod possessions;
mod tiny;

use std::fs;
use std::time::Duration;

use pagevisor::config::Size;
use pagevisor::error::StartError;
use pagevisor::machine::{Deadline, KernelImage, Machine, MachineConfig};
use pagevisor::topology::{Memory, Node, Topology, ZoneAmounts, uniform_distances};
use possessions::Possessions;
use tiny::{Code, config, start, stop_event};

fn rss() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Bits of a physical address.
fn address_bits() -> u32 {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
    let line = cpuinfo.lines().find(|line| line.starts_with("address sizes")).unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap()
}

/// A node with `normal` bytes above 4 GiB, whose kernel writes its first and its last page below.
fn huge(normal: u64) -> Result<Machine, StartError> {
    let memory = Memory::Zones(ZoneAmounts { dma: 16 << 20, dma32: 112 << 20, normal });
    let nodes = vec![Node { memory, cpus: vec![0] }];
    let topology = Topology::new(nodes, uniform_distances(1)).unwrap();
    let code = Code::default().store(0x1000, 1).store((128 << 20) - 4, 1).halt();
    let mut config = MachineConfig::new(topology).unwrap();
    config.kernel = KernelImage::Bytes(code.elf().into());
    Machine::start(config)
}

/// A tebibyte in one node, or what comes near it on a host whose addresses end there. (They may, and KVM yet take more,
/// when it shadows the guest's page tables.)
fn huge_machine() -> Machine {
    const TIB: u64 = 1 << 40;
    match huge(TIB - (128 << 20)) {
        Ok(machine) => machine,
        Err(error) => {
            assert!(address_bits() <= 40 && error.to_string().contains("bits on this host"), "{error}");
            huge((1 << address_bits()) - (8 << 30)).unwrap()
        }
    }
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
    let before = Possessions::now();
    for code in ends {
        let machine = start(config(code()));
        let more = Possessions::now();
        for kind in ["thread", "descriptor", "mapping"] {
            assert!(more.count(kind) > before.count(kind), "no {kind} to give back");
        }
        let _ = machine.wait(Deadline::after(Duration::from_millis(200)), &stop_event());
        drop(machine);
        before.assert_nothing_left("after an end");
    }
    let mut bad = config(Code::default());
    bad.kernel = KernelImage::Bytes(b"no kernel".as_slice().into());
    assert!(Machine::start(bad).is_err());
    before.assert_nothing_left("after a start that failed");

    let idle = rss();
    let machine = huge_machine();
    let _ = machine.wait(Deadline::after(Duration::from_millis(200)), &stop_event());
    let used = rss().saturating_sub(idle);
    assert!(used < 8 << 20, "a huge machine that touches two pages takes {}", Size(used));
    let files = machine.memory().read_only_nodes().unwrap();
    assert!(files[0].1.metadata().unwrap().len() >= 1 << (address_bits().min(40) - 1));
    drop(files);
    drop(machine);
    before.assert_nothing_left("after a huge machine");
}
