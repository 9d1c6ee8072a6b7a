//! The guest kernel of Pagevisor: boots by PVH on x86-64 and runs the memory stack.
//!
//! ```text
//! boot::entry    32-bit entry, long mode, the higher half
//! kernel_main    gates, clock, page tables, monitor device, ACPI, memblock, state region, other CPUs,
//!                memory stack, tasks; then the CPU idles
//! ready          the first task: ready, selftests, benchmarks
//! command        executing commands, until the host says otherwise
//! ```
//!
//! # Rules of ring 0
//! The kernel also runs where KVM emulates ring 0 instruction by instruction, so it keeps to what the emulator
//! knows: no SSE, x87, BMI or `popcnt`, and no choice of instructions by CPUID; no `int3` (panics are `ud2`), no
//! `invpcid`, no 1 GiB pages, no access below the stack pointer. The flags in `rustflags` see to the compiler's
//! part, and a test disassembles the result. Each instruction costs about a microsecond there, so boot does little:
//! nothing per page, no clearing of what is zero.
//!
//! # Unsafe code
//! is in [`arch`], [`boot`], [`heap`], [`smp`], [`sync`], [`platform`], [`region`], [`command`], [`task`], [`virtq`], [`direct_map`], [`exec`] and, for device
//! registers and deliberate faults, in [`monitor`], [`power`] and [`selftest`]; nowhere else.
#![no_std]
#![no_main]

extern crate alloc;

mod acpi;
mod arch;
mod bench;
mod bench_target;
mod boot;
mod clock;
mod command;
mod console;
mod direct_map;
mod dump;
mod exec;
mod fs;
mod heap;
mod idle;
mod log;
mod memory;
mod monitor;
mod oops;
mod platform;
mod power;
mod random;
mod region;
mod resources;
mod rseq;
mod selftest;
mod serial;
mod signal;
mod smp;
mod sync;
mod syscall;
mod sysctl;
mod task;
mod virtq;

use core::ops::Range;
use core::sync::atomic::Ordering;

use pagevisor_mm::memblock::Memblock;
use pagevisor_mm::percpu::FirstChunk;
use pagevisor_mm::platform::Level;
use pagevisor_mm::{BootConfig, Hooks, Mm};
use pagevisor_shared::device::shutdown;
use pagevisor_shared::layout::VMEMMAP_START;
use pagevisor_shared::page::PAGE_STRUCT_SIZE;
use pagevisor_shared::region::{GuestState, RegionRef};
use pagevisor_shared::units::{CpuId, PAGE_SHIFT, PAGE_SIZE, Pfn, VirtAddr};

use acpi::Machine;
use arch::{apic, cpu, entry, fpu, paging, percpu, traps};
use boot::cmdline::{self, Options};
use boot::start_info::StartInfo;
use log::pr_info;
use platform::Kernel;
use sync::Once;

/// Messages below this level go to the serial port when no host reads the region.
const CONSOLE_LOGLEVEL_DEFAULT: u8 = Level::Debug as u8;

/// The first Rust code, on the boot stack, with the early page tables, interrupts off. `tsc` is the time stamp of the
/// first instruction, `start_info` the address that the loader passed.
#[unsafe(no_mangle)]
extern "C" fn kernel_main(tsc: u64, start_info: u64) -> ! {
    percpu::init_boot(boot_apic_id());
    traps::init();
    clock::init(tsc);
    cpu::harden();
    cpu::init_pat();
    let Some(start_info) = StartInfo::at(start_info) else { panic!("no PVH start info at {start_info:#x}") };
    let options = cmdline::parse(start_info.command_line());
    paging::init();
    let (region, machine) = bring_up(start_info, &options);
    task::init();
    fpu::init(options.emulated);
    idle::set_clear(options.idle_clear);
    entry::init();
    cpu::irq_enable();
    smp::start(&machine);
    let initrd = start_info.modules().next().unwrap_or(0..0);
    paging::forget_low_memory();
    if let Some(mm) = platform::mm() {
        sysctl::apply(mm, region, start_info.command_line());
    }
    STARTED.set(Started { region, options, initrd });
    task::start(ready);
    command::start();
    idle::run()
}

/// What the first task needs to know.
#[derive(Debug)]
struct Started {
    region: &'static RegionRef<'static>,
    options: Options,
    /// Physical addresses of what the loader gave to unpack.
    initrd: Range<u64>,
}

static STARTED: Once<Started> = Once::new();

fn boot_apic_id() -> u32 {
    cpu::cpuid(1, 0).ebx >> 24
}

/// From page tables to a memory stack, with the other CPUs on their way.
fn bring_up(start_info: StartInfo, options: &Options) -> (&'static RegionRef<'static>, Machine) {
    let monitor = options.monitor.and_then(monitor::probe);
    let console = if monitor.is_some() { 0 } else { CONSOLE_LOGLEVEL_DEFAULT };
    log::set_console_level(options.loglevel.unwrap_or(console));
    pr_info!("Pagevisor {}", env!("CARGO_PKG_VERSION"));
    pr_info!("Command line: {}", start_info.command_line());
    let mut machine = Machine::read(start_info.rsdp(), percpu::this().apic_id());
    power::init(machine.power);
    let mut memblock = memory::new_memblock(options.zeroed);
    memory::add_ram(start_info, &mut memblock);
    memory::reserve_used(start_info, &mut memblock);
    memory::set_nodes(&mut machine, &mut memblock);
    direct_map::init_first_gib();
    let mapped = direct_map::init(&mut memblock);
    let region = region::init(monitor.map(monitor::Monitor::shm), &machine, &mut memblock);
    let header = region.header();
    header.direct_map_4k.store((mapped.small >> 10) as u32, Ordering::Relaxed);
    header.direct_map_2m.store(mapped.large >> 10, Ordering::Relaxed);
    resources::publish(region, start_info, options, &machine);
    apic::init(pagevisor_shared::units::PhysAddr::new(machine.lapic));
    smp::set_online();
    monitor::start(&mut memblock);
    let first = match percpu::setup_areas(region, &mut memblock) {
        Ok(first) => first,
        Err(error) => panic!("no memory for per-CPU areas: {error}"),
    };
    smp::prepare(&machine, &mut memblock, &first);
    let mm = boot_mm(region, options, start_info.command_line(), &mut memblock, first);
    monitor::remap(mm);
    (region, machine)
}

/// Starts the memory stack and gives every CPU its record of it.
fn boot_mm(
    region: &RegionRef<'static>,
    options: &Options,
    command_line: &str,
    memblock: &mut Memblock,
    first: FirstChunk,
) -> &'static Mm<Kernel> {
    memblock.allow_resize();
    let booted = Mm::boot(BootConfig {
        platform: &platform::KERNEL,
        region: region.clone(),
        memblock,
        command_line,
        fresh_is_zero: options.zeroed,
        percpu: Some(first),
        hooks: Hooks::shrinkers(),
        map_memmap: &mut |memblock, chunk| {
            let virt = VirtAddr::new(VMEMMAP_START + chunk.first.raw() * PAGE_STRUCT_SIZE);
            let mapped = paging::map(virt, chunk.backing, chunk.bytes, &mut || Some(direct_map::new_table(memblock)));
            assert!(mapped.is_ok(), "no memory for page tables");
            Ok(())
        },
    });
    let mm = match booted {
        Ok(mm) => platform::set_mm(mm),
        Err(error) => panic!("{error}"),
    };
    for cpu in (0..region.nr_cpus()).filter_map(CpuId::new) {
        if let (Some(record), Some(local)) = (percpu::of(cpu), mm.cpu_local(cpu)) {
            record.set_local(cpu, local);
        }
    }
    mm.slab_init();
    mm.finish_boot();
    mm
}

/// The first task. Everything is up: tells so, does what the command line asks for.
fn ready(_: usize) -> i32 {
    let Some(Started { region, options, initrd }) = STARTED.get() else { return 1 };
    if options.test == Some(selftest::NEVER_READY) {
        return 0;
    }
    if let Some(mm) = platform::mm() {
        // Now, not when this CPU first idles: memory and counters are the same whenever the first command comes.
        mm.percpu_balance();
        mm.cache_reap_from_now();
        cpu::irq_disable();
        mm.quiet_vmstat();
        cpu::irq_enable();
    }
    let header = region.header();
    let now = cpu::rdtsc();
    header.tsc_ready.store(now, Ordering::Relaxed);
    header.tsc_khz.store(clock::tsc_khz(), Ordering::Relaxed);
    header.state.store(GuestState::Ready as u32, Ordering::Release);
    monitor::announce(GuestState::Ready);
    pr_info!("Ready: {} ticks since entry", now - clock::tsc_entry());
    if let Some(test) = options.test {
        selftest::run(test);
    }
    let hosted = monitor::get().is_some();
    if let (Some(names), Some(mm)) = (options.bench, platform::mm()) {
        bench::run(&bench_target::Target(mm), names);
    }
    if let Some(names) = options.dump {
        dump::print(region, names);
    }
    let asked = options.bench.is_some() || options.dump.is_some();
    if asked || options.rdinit.is_none() && (options.exit || !hosted) {
        power::off(shutdown::OK);
    }
    command::open();
    if let Some(path) = options.rdinit {
        task::set_notice(signal::child_ended);
        fs::init(direct_map::bytes(initrd));
        if let Some(mm) = platform::mm() {
            // All that was in it has pages of its own now (`free_initrd_mem`).
            mm.free_reserved_area(Pfn::new(initrd.start.div_ceil(PAGE_SIZE)), Pfn::new(initrd.end >> PAGE_SHIFT));
            // The watermarks follow the memory there is, as after memory hotplug.
            mm.recompute_reserves();
        }
        exec::start_init(path);
    } else {
        // There is always a task of number 1. And what its end would free stays as it is: whoever looks at a guest that is
        // ready finds the same memory and counters at any time.
        NEVER.wait_idle(|| false);
    }
    0
}

/// Nobody wakes those who wait here.
static NEVER: task::WaitQueue = task::WaitQueue::new();
