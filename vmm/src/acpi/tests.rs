use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::layout::{LEGACY_HOLE, MAX_RAM_RANGES};
use crate::topology::{AddrRange, MAX_BANDWIDTH_MBPS, MAX_LATENCY_NS, Memory, Node};

/// A folder of a test's own, gone when the test is over.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pagevisor-acpi-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs `iasl` on `file` and fails if it has anything to say against it. What it said.
fn iasl(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("iasl")
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("iasl must be installed: it is in Debian's package acpica-tools");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "iasl {arguments:?}: {text}");
    let counts = text.replace("0 Errors", "").replace("0 Warnings", "");
    assert!(!counts.contains("Error") && !counts.contains("Warning"), "iasl {arguments:?}: {text}");
    text.into_owned()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The table at a guest-physical address, with its length and checksum checked.
fn table_at(tables: &AcpiTables, address: u64) -> &[u8] {
    assert_eq!(address % TABLE_ALIGN as u64, 0);
    let bytes = &tables.bytes[(address - tables.base) as usize..];
    let table = &bytes[..u32_at(bytes, 4) as usize];
    assert_eq!(sum(table), 0, "checksum of {}", String::from_utf8_lossy(&table[..4]));
    table
}

/// All tables by signature, found as a guest finds them: RSDP, XSDT, then FADT's DSDT.
fn walk(tables: &AcpiTables) -> Vec<(String, &[u8])> {
    let rsdp = &tables.bytes[(tables.rsdp_addr - tables.base) as usize..];
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!(rsdp[15], 2, "revision");
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp[..36])), (0, 0), "checksums of the RSDP");
    let xsdt = table_at(tables, u64_at(rsdp, 24));
    let mut found: Vec<_> = vec![xsdt];
    found.extend(xsdt[36..].chunks_exact(8).map(|entry| table_at(tables, u64_at(entry, 0))));
    let fadt = found.iter().find(|table| &table[..4] == b"FACP").unwrap();
    found.push(table_at(tables, u64_at(fadt, 140)));
    found.into_iter().map(|table| (String::from_utf8(table[..4].to_vec()).unwrap(), table)).collect()
}

fn tables_of(topology: &Topology) -> (Layout, AcpiTables) {
    topology.validate().unwrap();
    let layout = Layout::place(topology).unwrap();
    let tables = build(topology, &layout).unwrap();
    (layout, tables)
}

/// Disassembles every table of `topology` and compiles the result again; both must pass without a complaint, and the
/// second must give the table back.
fn check_with_iasl(name: &str, topology: &Topology) {
    let (_, tables) = tables_of(topology);
    let scratch = Scratch::new(name);
    let tables = walk(&tables);
    let names: Vec<_> = tables.iter().map(|(name, _)| name.as_str()).collect();
    let costs = topology.latencies.is_some() || topology.bandwidths.is_some();
    let hmat = costs.then_some("HMAT");
    assert!(
        names.iter().eq(["XSDT", "FACP", "APIC", "SRAT", "SLIT"].iter().chain(&hmat).chain(&["DSDT"])),
        "{names:?}"
    );
    for (signature, bytes) in &tables {
        let (file, source) = (format!("{signature}.dat"), format!("{signature}.dsl"));
        std::fs::write(scratch.0.join(&file), bytes).unwrap();
        iasl(&scratch.0, &["-d", &file]);
        let said = iasl(&scratch.0, &["-ve", "-p", "again", &source]);
        let again = std::fs::read(scratch.0.join("again.aml")).unwrap();
        // The compiler puts its own name and version (28..36) into the header, and so has another checksum.
        let body = |table: &[u8]| [&table[..9], &table[10..28], &table[36..]].concat();
        assert_eq!(body(&again), body(bytes), "{signature} of {name}: {said}");
    }
}

/// A machine that has as much of everything as there can be.
fn largest() -> Topology {
    let mib = |start: u64| AddrRange { start: start << 20, size: 1 << 20 };
    let nodes = (0..64).map(|node| {
        // The legacy hole makes two pieces of node 0's first range.
        let far = if node == 0 { 6 } else { 7 };
        let mut ranges: Vec<_> = (0..far).map(|piece| mib(4096 + piece * 64 + node)).collect();
        ranges.push(if node == 0 { AddrRange::between(0, 32 << 20) } else { mib(63 + node) });
        Node { memory: Memory::Ranges(ranges), cpus: vec![63 - node as u32] }
    });
    let distance = |from: usize, to: usize| if from == to { 10 } else { (11 + (from * 64 + to) % 244) as u8 };
    let distances = (0..64).map(|from| (0..64).map(|to| distance(from, to)).collect()).collect();
    let cost = |from: usize, to: usize, max: u32| max - ((from * 64 + to) % 244) as u32;
    let costs = |max| Some((0..64).map(|from| (0..64).map(|to| cost(from, to, max)).collect()).collect());
    let machine = Topology::new(nodes.collect(), distances).unwrap();
    machine.with_costs(costs(MAX_LATENCY_NS), costs(MAX_BANDWIDTH_MBPS)).unwrap()
}

#[test]
fn iasl_accepts_every_shipped_topology() {
    for (name, topology) in crate::config::tests::shipped() {
        check_with_iasl(&name, &topology);
    }
}

#[test]
fn iasl_accepts_the_default_and_the_largest() {
    check_with_iasl("default", &Topology::default());
    check_with_iasl("largest", &largest());
}

#[test]
fn the_largest_machine_fits() {
    let (layout, tables) = tables_of(&largest());
    assert_eq!(layout.ram.len(), MAX_RAM_RANGES);
    assert!(tables.bytes.len() as u64 <= ACPI_TABLES.size);
    assert!(LEGACY_HOLE.contains(&AddrRange { start: tables.base, size: tables.bytes.len() as u64 }));
}

#[test]
fn too_many_tables_are_refused() {
    let topology = Topology::default();
    let mut layout = Layout::place(&topology).unwrap();
    layout.ram = vec![layout.ram[0]; 4000];
    let error = build(&topology, &layout).unwrap_err();
    assert!(error.to_string().starts_with("the ACPI tables of this machine take 16"), "{error}");
    assert!(error.to_string().ends_with(" bytes, more than the 131072 at 0xe0000"), "{error}");
}

/// The structures behind a table's fixed part: type, and bytes.
fn structures(table: &[u8], fixed: usize) -> Vec<(u8, &[u8])> {
    let mut rest = &table[fixed..];
    let mut found = Vec::new();
    while let [kind, length, ..] = *rest {
        found.push((kind, &rest[..length as usize]));
        rest = &rest[length as usize..];
    }
    found
}

#[test]
fn tables_say_what_the_topology_says() {
    let mut machines = crate::config::tests::shipped();
    machines.push(("largest".into(), largest()));
    for (name, topology) in machines {
        let (layout, tables) = tables_of(&topology);
        let tables = walk(&tables);
        let find = |wanted: &str| tables.iter().find(|(name, _)| name == wanted).unwrap().1;

        let lapics: Vec<_> = structures(find("APIC"), 44).into_iter().filter(|(kind, _)| *kind == 0).collect();
        assert_eq!(lapics.len(), topology.nr_cpus(), "{name}");
        for (cpu, (_, lapic)) in lapics.iter().enumerate() {
            assert_eq!((lapic[2], lapic[3], u32_at(lapic, 4)), (cpu as u8, cpu as u8, 1), "{name}");
        }

        let affinities = structures(find("SRAT"), 48);
        let cpus = affinities.iter().filter(|(kind, _)| *kind == 0);
        for (_, entry) in cpus.clone() {
            assert_eq!(topology.node_of_cpu(entry[3].into()), Some(entry[2].into()), "{name}");
            assert_eq!(u32_at(entry, 4), 1, "{name}");
        }
        assert_eq!(cpus.count(), topology.nr_cpus(), "{name}");
        let memory = affinities.iter().filter(|(kind, _)| *kind == 1);
        let memory: Vec<_> = memory
            .map(|(_, entry)| (u32_at(entry, 2) as usize, u64_at(entry, 8), u64_at(entry, 16), u32_at(entry, 28)))
            .collect();
        let expected: Vec<_> = layout.ram.iter().map(|ram| (ram.node, ram.start, ram.size, 1)).collect();
        assert_eq!(memory, expected, "{name}");

        let slit = find("SLIT");
        assert_eq!(u64_at(slit, 36), topology.nr_nodes() as u64, "{name}");
        assert_eq!(slit[44..], topology.distances.concat(), "{name}");
    }
}

/// What a System Locality structure says: data type, base unit, initiators, targets, entries.
type Locality = (u8, u64, Vec<u32>, Vec<u32>, Vec<u16>);

/// The structures of an HMAT: node of the CPUs and node of the memory of each attribute structure; the matrices.
fn read_hmat(table: &[u8]) -> (Vec<(u32, u32)>, Vec<Locality>) {
    let (mut attached, mut localities) = (Vec::new(), Vec::new());
    let mut rest = &table[40..];
    while !rest.is_empty() {
        let (structure, behind) = rest.split_at(u32_at(rest, 4) as usize);
        rest = behind;
        if structure[0] == 0 {
            assert_eq!((structure.len(), structure[8]), (40, 1), "a valid initiator");
            attached.push((u32_at(structure, 12), u32_at(structure, 16)));
            continue;
        }
        let (rows, columns) = (u32_at(structure, 12) as usize, u32_at(structure, 16) as usize);
        let domains: Vec<u32> =
            structure[32..].chunks_exact(4).take(rows + columns).map(|word| u32_at(word, 0)).collect();
        let entries = structure[32 + 4 * (rows + columns)..].chunks_exact(2);
        let entries: Vec<u16> = entries.map(|entry| u16::from_le_bytes([entry[0], entry[1]])).collect();
        assert_eq!(entries.len(), rows * columns);
        let (initiators, targets) = domains.split_at(rows);
        localities.push((structure[9], u64_at(structure, 24), initiators.into(), targets.into(), entries));
    }
    (attached, localities)
}

#[test]
fn costs_are_in_the_hmat() {
    let node = |mem: Memory, cpus: &[u32]| Node { memory: mem, cpus: cpus.to_vec() };
    let nodes = vec![node(Memory::Plain(1 << 30), &[0]), node(Memory::None, &[1]), node(Memory::Plain(1 << 30), &[])];
    let distances = vec![vec![10, 20, 40], vec![20, 10, 30], vec![40, 30, 10]];
    let machine = Topology::new(nodes, distances).unwrap();
    let hmat = |machine: &Topology| {
        let (_, tables) = tables_of(machine);
        walk(&tables).iter().find(|(name, _)| name == "HMAT").map(|(_, table)| read_hmat(table))
    };
    assert_eq!(hmat(&machine), None, "nothing said, nothing in the tables");

    // CPUs in nodes 0 and 1, memory in 0 and 2; node 1 reaches node 2 sooner.
    let latencies = Some(vec![vec![80, 99, 300], vec![140, 80, 250], vec![300, 250, 99]]);
    let latent = machine.clone().with_costs(latencies.clone(), None).unwrap();
    let expected = (0, 1000, vec![0, 1], vec![0, 2], vec![80, 300, 140, 250]);
    assert_eq!(hmat(&latent), Some((vec![(0, 0), (1, 2)], vec![expected.clone()])));

    let bandwidths = Some(vec![vec![100_000, 1, 40_004], vec![50_006, 1, 4], vec![1, 1, 1]]);
    let both = machine.with_costs(latencies, bandwidths).unwrap();
    let bandwidth = (3, 10, vec![0, 1], vec![0, 2], vec![10_000, 4_000, 5_001, 1]);
    assert_eq!(hmat(&both), Some((vec![(0, 0), (1, 2)], vec![expected, bandwidth])));
    check_with_iasl("costs", &both);
}
