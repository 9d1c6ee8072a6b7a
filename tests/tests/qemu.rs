//! The same ELF under another VMM: QEMU's PVH loader and firmware tables, without the monitor device.

use std::collections::BTreeMap;
use std::process::Command;

use pagevisor::boot::Init;
use pagevisor_tests::command::{kernel_elf, run};
use pagevisor_tests::linux;
use pagevisor_tests::views::{self, ZoneInfo, ZoneKey};

/// What the guest prints on the serial console, without carriage returns.
fn boot(machine: &[&str], append: &str) -> String {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args("-accel tcg -cpu qemu64,+rdrand -nodefaults -no-user-config -display none -no-reboot".split(' '))
        .args(["-serial", "stdio", "-append", append])
        .args(machine)
        .arg("-kernel")
        .arg(kernel_elf());
    run(&mut qemu).success().replace('\r', "")
}

/// The table that the guest printed under this name.
fn table(output: &str, name: &str) -> String {
    let start = format!("== {name}\n");
    let (_, rest) = output.split_once(&start).unwrap_or_else(|| panic!("no table {name} in\n{output}"));
    let (table, _) = rest.split_once("\n== ").unwrap_or_else(|| panic!("table {name} has no end in\n{output}"));
    format!("{table}\n")
}

/// Boots with `dump=buddyinfo,zoneinfo`, compares the two, and checks watermarks and reserves.
fn zones(machine: &[&str]) -> BTreeMap<ZoneKey, ZoneInfo> {
    let output = boot(machine, "dump=buddyinfo,zoneinfo");
    let (zones, _) = views::zoneinfo(&table(&output, "zoneinfo"));
    let blocks = views::buddyinfo(&table(&output, "buddyinfo"));
    let all: u64 = zones.values().map(|zone| zone.page("managed")).sum();
    for (key, zone) in &zones {
        let marks = ["min", "low", "high"].map(|field| zone.page(field));
        let managed = zone.page("managed");
        assert_eq!(marks, linux::watermarks(linux::min_free_kbytes(all), managed, all), "{key:?}");
        if zone.page("present") > 0 {
            assert_eq!(views::pages(&blocks[key]), zone.page("free"), "{key:?}");
        }
    }
    zones
}

fn present(zones: &BTreeMap<ZoneKey, ZoneInfo>, node: u32) -> u64 {
    zones.iter().filter(|((n, _), _)| *n == node).map(|(_, zone)| zone.page("present")).sum()
}

#[test]
fn one_node() {
    let zones = zones(&["-m", "512M"]);
    let pages = present(&zones, 0);
    // QEMU takes a little of the 512 MiB for itself: the legacy hole, and ACPI tables at the end.
    assert!((130_000..=131_072).contains(&pages), "{pages} pages");
    assert!(zones[&(0, "Normal".to_owned())].page("present") == 0 && zones[&(0, "DMA".to_owned())].page("present") > 0);
}

#[test]
fn the_kernels_own_heap_is_kmalloc() {
    let output = boot(&["-m", "256M"], "pagevisor.test=heap");
    assert!(output.contains("selftest: heap ok"), "{output}");
}

#[test]
fn two_nodes_with_a_distance() {
    let machine = [
        "-m",
        "5G",
        "-smp",
        "2",
        "-object",
        "memory-backend-ram,id=m0,size=2560M,reserve=off",
        "-object",
        "memory-backend-ram,id=m1,size=2560M,reserve=off",
        "-numa",
        "node,nodeid=0,memdev=m0,cpus=0",
        "-numa",
        "node,nodeid=1,memdev=m1,cpus=1",
        "-numa",
        "dist,src=0,dst=1,val=21",
    ];
    let zones = zones(&machine);
    assert!((653_000..=655_360).contains(&present(&zones, 0)), "{}", present(&zones, 0));
    // The PC's RAM below 4 GiB ends, with its tables, in node 1.
    assert!((655_000..=655_360).contains(&present(&zones, 1)), "{}", present(&zones, 1));
    for (key, zone) in zones.iter().filter(|(_, zone)| zone.page("present") > 0) {
        assert_eq!(zone.pagesets.len(), 2, "both CPUs are up: {key:?}");
    }
    let text = boot(&machine, "dump=numa loglevel=7");
    assert!(text.contains("Fallback order for Node 0: 0 1"), "{text}");
    assert!(text.contains("Fallback order for Node 1: 1 0"), "{text}");
}

#[test]
fn a_node_without_cpus_and_one_without_memory() {
    let machine = [
        "-m",
        "768M",
        "-smp",
        "2",
        "-object",
        "memory-backend-ram,id=m0,size=512M",
        "-object",
        "memory-backend-ram,id=m1,size=256M",
        "-numa",
        "node,nodeid=0,memdev=m0,cpus=0",
        "-numa",
        "node,nodeid=1,memdev=m1",
        "-numa",
        "node,nodeid=2,cpus=1",
    ];
    let zones = zones(&machine);
    // QEMU's tables at the end of RAM are in node 1, which keeps its number although the SRAT names it last.
    assert!((65_000..=65_536).contains(&present(&zones, 1)), "{}", present(&zones, 1));
    assert_eq!(present(&zones, 2), 0);
}

/// QEMU's processors remember translations till they are told to forget them, which emulated ring 0 on KVM does not.
#[test]
fn no_processor_remembers_what_was_unmapped() {
    let output = boot(&["-m", "256M", "-smp", "4"], "pagevisor.test=vmalloc");
    assert!(output.contains("selftest: vmalloc ok"), "{output}");
}

/// Runs `program` with `arguments`, on two processors of the kind `cpu`; what it printed. It is to end with 42.
#[track_caller]
fn run_program(cpu: &str, name: &str, program: &[u8], arguments: &str) -> String {
    let init = Init {
        path: format!("/bin/{name}"),
        program: Some(program.to_vec()),
        arguments: arguments.split_whitespace().map(|part| part.as_bytes().to_vec()).collect(),
    };
    let archive = std::env::temp_dir().join(format!("pagevisor-qemu-{name}-{}.cpio", std::process::id()));
    std::fs::write(&archive, init.archive()).unwrap();
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args("-accel tcg -nodefaults -no-user-config -display none -no-reboot -m 256M -smp 2".split(' '))
        .args(["-cpu", cpu, "-serial", "stdio", "-append", &format!("rdinit=/bin/{name}"), "-initrd"])
        .arg(&archive)
        // Its exit status is twice the code that the guest ends with, and 1.
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-kernel"])
        .arg(kernel_elf());
    let output = run(&mut qemu);
    std::fs::remove_file(&archive).unwrap();
    assert_eq!(output.code(), 42 << 1 | 1, "{cpu}: {}", output.stdout);
    output.stdout
}

/// On KVM without hardware virtualization `syscall` comes as a page fault; here it enters the kernel itself.
#[test]
fn programs_run_with_system_calls_by_the_instruction() {
    let parts = "hello files faults exceptions addresses memory stack heap children vfork threads signals pipes registers \
                 unknown exec";
    for cpu in ["qemu64,+rdrand", "qemu64,+rdrand,+smep"] {
        let printed = run_program(cpu, "user", include_bytes!(concat!(env!("OUT_DIR"), "/user")), parts);
        assert_eq!(printed.matches("hello, world").count(), 2, "{cpu}: {printed}");
    }
}

/// With XSAVE where there is AVX, and with FXSAVE.
#[test]
fn threads_keep_their_registers_avx_s_among_them() {
    for (cpu, told) in [("max", "with AVX"), ("qemu64,+rdrand", "without AVX")] {
        let program = include_bytes!(concat!(env!("OUT_DIR"), "/registers"));
        let printed = run_program(cpu, "registers", program, "5");
        assert!(
            printed.contains(&format!("\n{told}\n")) || printed.contains(&format!("\r\n{told}\r\n")),
            "{cpu}: {printed}"
        );
    }
}
