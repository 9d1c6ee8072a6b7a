//! The verifier on live guests: nothing to find in sound ones, and every damage found. Needs /dev/kvm.

mod damage;
mod tiny;

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use damage::areas::AREAS;
use damage::mutations::{FREE_LISTS, MAPS, Mutation, PAGES, ZONES};
use damage::percpu::{ADDED, PERCPU};
use damage::program::guest_with_programs;
use damage::programs::{TASKS, USER_AREAS, USER_PAGES};
use damage::slabs::SLABS;
use damage::{Bench, guest_with_added_chunks, used_guest};
use pagevisor::machine::{Deadline, Machine, MachineConfig, PauseError};
use pagevisor::topology::Topology;
use pagevisor::verify::{Report, Rule, verify};
use pagevisor_shared::percpu::PcpuChunk;
use tiny::{Code, PATIENCE, start, stop_event};

#[track_caller]
fn assert_sound(report: &Report) {
    let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    assert!(report.is_sound(), "{}", findings.join("\n"));
}

/// Does each kind of damage, expects its rule to tell, takes it back and expects nothing.
fn check_mutations(mutations: &[Mutation]) {
    check_mutations_of(&used_guest(), mutations);
}

fn check_mutations_of(machine: &Machine, mutations: &[Mutation]) {
    let paused = machine.pause().unwrap();
    let bench = Bench::new(machine);
    let check = || verify(&bench.view, paused.registers()).unwrap();
    assert_sound(&check());
    let mut missed = Vec::new();
    for (what, rule, damage) in mutations.iter().copied() {
        damage(&bench);
        let report = check();
        if !report.has(rule) {
            let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
            missed.push(format!("{what}: no finding of {rule} but:\n{}", findings.join("\n")));
        }
        bench.restore();
        assert_sound(&check());
    }
    assert!(missed.is_empty(), "{}", missed.join("\n\n"));
}

#[test]
fn damaged_free_lists_are_found() {
    check_mutations(FREE_LISTS);
}

#[test]
fn damaged_pages_and_pagesets_are_found() {
    check_mutations(PAGES);
}

#[test]
fn damaged_zones_and_nodes_are_found() {
    check_mutations(ZONES);
}

#[test]
fn damaged_maps_and_memory_tables_are_found() {
    check_mutations(MAPS);
}

#[test]
fn damaged_slab_caches_are_found() {
    check_mutations(SLABS);
}

#[test]
fn damaged_areas_and_page_tables_are_found() {
    check_mutations(AREAS);
}

#[test]
fn damaged_per_cpu_memory_is_found() {
    check_mutations(PERCPU);
}

#[test]
fn damaged_chunks_that_were_added_are_found() {
    let machine = guest_with_added_chunks();
    let bench = Bench::new(&machine);
    let added = |chunk: &&u64| bench.field(**chunk, at!(PcpuChunk, immutable)) == 0;
    assert!(bench.chunks().iter().filter(added).count() >= 2);
    check_mutations_of(&machine, PERCPU);
    check_mutations_of(&machine, ADDED);
}

#[test]
fn damaged_tasks_and_programs_are_found() {
    let machine = guest_with_programs();
    for mutations in [TASKS, USER_AREAS, USER_PAGES] {
        check_mutations_of(&machine, mutations);
    }
}

#[test]
fn a_foreign_page_table_root_is_found() {
    let machine = used_guest();
    let paused = machine.pause().unwrap();
    let bench = Bench::new(&machine);
    let mut registers = paused.registers().to_vec();
    assert!(registers.iter().all(|registers| registers.has_paging()));
    // The next page is no table of the kernel's.
    registers[1].control[2] += 0x1000;
    let report = verify(&bench.view, &registers).unwrap();
    assert_eq!(report.findings.iter().map(|finding| finding.rule).collect::<Vec<_>>(), [Rule::PageTableRoot]);
}

#[test]
fn every_rule_has_its_damage() {
    let all = [FREE_LISTS, PAGES, ZONES, MAPS, SLABS, AREAS, PERCPU, ADDED, TASKS, USER_AREAS, USER_PAGES];
    let damaged = |rule: &Rule| all.iter().flat_map(|kinds| kinds.iter()).any(|(_, tells, _)| tells == rule);
    let missing: Vec<_> = Rule::ALL.iter().filter(|rule| !damaged(rule)).collect();
    // That of the root has a test of its own.
    assert_eq!(missing, [&Rule::PageTableRoot]);
}

#[test]
fn a_paused_guest_stands_still_and_goes_on() {
    // Counts in memory, for ever.
    let counter = 0x20_0000;
    let machine = start(tiny::config(Code::default().store(counter, 0).count(counter)));
    let value = || {
        use vm_memory::{Bytes, GuestAddress};
        machine.memory().ram().read_obj::<u32>(GuestAddress(counter.into())).unwrap()
    };
    let moves = || {
        let (before, deadline) = (value(), Instant::now() + PATIENCE);
        while value() == before {
            assert!(Instant::now() < deadline, "the guest does not run");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    moves();
    for _ in 0..20 {
        let paused = machine.pause().unwrap();
        let before = value();
        let registers = paused.registers()[0];
        assert!(registers.rip() >= tiny::KERNEL && registers.rip() < tiny::KERNEL + 0x1000, "{registers:?}");
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(value(), before, "a paused guest ran");
        // A second one keeps it paused when the first lets go.
        let second = machine.pause().unwrap();
        drop(paused);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(value(), before, "a guest that is still paused ran");
        drop(second);
        moves();
    }
    let paused = machine.pauser();
    drop(machine);
    assert_eq!(paused.pause().unwrap_err(), PauseError::Ended);
}

#[test]
fn a_guest_that_hangs_is_told_and_can_be_taken_where_it_is() {
    let mut config = MachineConfig::new(Topology::default()).unwrap();
    config.append = "pagevisor.test=hang".into();
    let machine = start(config);
    machine.wait_ready(Deadline::after(PATIENCE), &stop_event()).unwrap_or_else(|end| panic!("{end}"));
    // Until it hangs it may be anywhere.
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(machine.pause().unwrap_err(), PauseError::Unsafe(0));
    let request = machine.memory().state().header().unwrap().park_request.load(SeqCst);
    assert_eq!(request, 0, "nobody asks any more");
    let paused = machine.pauser().pause_anywhere().unwrap();
    assert_eq!(paused.registers().iter().map(|cpu| cpu.waits).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn a_paused_machine_can_be_dropped() {
    let machine = used_guest();
    let request = || machine.memory().state().header().unwrap().park_request.load(SeqCst);
    assert_eq!(request(), 0);
    let paused = machine.pause().unwrap();
    let second = machine.pause().unwrap();
    assert_eq!((paused.registers().len(), request()), (2, 1));
    drop(second);
    assert_eq!(request(), 1, "somebody else still wants it to stand still");
    drop(machine);
    drop(paused);
}
