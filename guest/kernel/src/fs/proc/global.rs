//! Files of `/proc` about the machine.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::slab::Cache;
use pagevisor_shared::errno::Errno;
use pagevisor_shared::region::RegionRef;
use pagevisor_shared::report::counters;
use pagevisor_shared::report::slabinfo::{self, SlabInfo};
use pagevisor_shared::sched::TaskState;
use pagevisor_shared::units::CpuId;

use super::text::Text;
use crate::arch::cpu;
use crate::sync::SpinLock;
use crate::task::{self, CpuTime};
use crate::{clock, dump, platform, region, smp};

macro_rules! files {
    ($($name:ident = $text:literal;)*) => {
        /// A file.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[allow(missing_docs, reason = "named as the files are")]
        pub enum Global { $($name),* }

        impl Global {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

files! {
    Buddyinfo = "buddyinfo";
    Cpuinfo = "cpuinfo";
    Filesystems = "filesystems";
    Iomem = "iomem";
    Loadavg = "loadavg";
    Meminfo = "meminfo";
    Pagetypeinfo = "pagetypeinfo";
    Slabinfo = "slabinfo";
    Stat = "stat";
    Swaps = "swaps";
    Uptime = "uptime";
    Version = "version";
    Vmstat = "vmstat";
    Zoneinfo = "zoneinfo";
}

const SECOND: u64 = 1_000_000_000;
/// Nanoseconds of a tick as `/proc` counts them.
const TICK: u64 = SECOND / 100;

impl Global {
    /// What it says.
    ///
    /// # Errors
    /// EIO before there is a region, ENOMEM.
    pub fn text(self) -> Result<Vec<u8>, Errno> {
        let region = region::get().ok_or(Errno::EIO)?;
        let mut text = Text::default();
        let out = &mut text;
        let done = match self {
            Self::Cpuinfo => cpuinfo(region, out),
            Self::Filesystems => out.write_str("nodev\trootfs\nnodev\tramfs\nnodev\ttmpfs\nnodev\tproc\n"),
            Self::Loadavg => loadavg(out),
            Self::Slabinfo => slabs(region, out),
            Self::Stat => stat(out),
            Self::Swaps => out.write_str("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"),
            Self::Uptime => uptime(out),
            Self::Version => {
                writeln!(out, "Linux version 6.1.0 (Pagevisor {}) #1 SMP", env!("CARGO_PKG_VERSION"))
            }
            Self::Buddyinfo | Self::Iomem | Self::Meminfo | Self::Pagetypeinfo | Self::Vmstat | Self::Zoneinfo => {
                dump::table(region, self.name(), out).ok_or(Errno::EIO)?
            }
        };
        done.map_err(|_| Errno::ENOMEM)?;
        Ok(text.into_bytes())
    }
}

fn online() -> impl Iterator<Item = CpuId> {
    smp::online().iter()
}

/// `/proc/uptime`: seconds since boot, and what CPUs have idled.
fn uptime(out: &mut dyn Write) -> fmt::Result {
    let idle: u64 = online().map(|cpu| CpuTime::of(cpu).idle).sum();
    let [up, idle] = [clock::nanos(), idle].map(|nanos| (nanos / SECOND, nanos % SECOND / TICK));
    writeln!(out, "{}.{:02} {}.{:02}", up.0, up.1, idle.0, idle.1)
}

/// `/proc/stat` (`show_stat`), as far as it is counted here.
fn stat(out: &mut dyn Write) -> fmt::Result {
    let line = |name: fmt::Arguments<'_>, time: CpuTime, out: &mut dyn Write| {
        let [user, system, idle] = [time.user, time.system, time.idle].map(|nanos| nanos / TICK);
        writeln!(out, "{name} {user} 0 {system} {idle} 0 0 0 0 0 0")
    };
    let mut all = CpuTime::default();
    for cpu in online() {
        let time = CpuTime::of(cpu);
        all.user += time.user;
        all.system += time.system;
        all.idle += time.idle;
    }
    // A blank more, for what is about all of them.
    line(format_args!("cpu "), all, out)?;
    for cpu in online() {
        line(format_args!("cpu{}", cpu.index()), CpuTime::of(cpu), out)?;
    }
    let (mut running, mut switches) = (0u64, 0u64);
    task::for_each(|task| {
        let record = &task.record;
        let state = record.state.load(Relaxed);
        running += u64::from(state == TaskState::Running as u32);
        switches += record.nvcsw.load(Relaxed) + record.nivcsw.load(Relaxed);
    });
    // Nobody waits for a device.
    writeln!(out, "ctxt {switches}\nbtime 0\nprocs_running {running}\nprocs_blocked 0")
}

/// Fraction bits of load averages (`FSHIFT`), and how much of one stays after five seconds (`EXP_1`, `EXP_5`, `EXP_15`).
const LOAD_SHIFT: u32 = 11;
const LOAD_STAYS: [u64; 3] = [1884, 2014, 2037];
const LOAD_PERIOD: u64 = 5 * SECOND;
/// After so many periods nothing is left of what was.
const LOAD_FORGETS: u64 = 5000;

/// Load averages, and up to when.
static LOAD: SpinLock<([u64; 3], u64)> = SpinLock::new(([0; 3], 0));

/// `/proc/loadavg`. As there is no tick the averages are brought up to date when somebody asks, with what runs then
/// (`calc_load_n`); whoever asks is left out.
fn loadavg(out: &mut dyn Write) -> fmt::Result {
    let (mut active, mut running, mut last) = (0u64, 0u64, 0);
    task::for_each(|task| {
        let state = task.record.state.load(Relaxed);
        running += u64::from(state == TaskState::Running as u32);
        active +=
            u64::from([TaskState::Running, TaskState::Uninterruptible].iter().any(|active| state == *active as u32));
        last = last.max(task.pid());
    });
    let loads = {
        let mut load = LOAD.lock();
        let periods = clock::nanos().saturating_sub(load.1) / LOAD_PERIOD;
        load.1 += periods * LOAD_PERIOD;
        for _ in 0..periods.min(LOAD_FORGETS) {
            for (load, stays) in load.0.iter_mut().zip(LOAD_STAYS) {
                let now = active.saturating_sub(1) << LOAD_SHIFT;
                *load = (*load * stays + now * ((1 << LOAD_SHIFT) - stays)) >> LOAD_SHIFT;
            }
        }
        load.0
    };
    for load in loads {
        let rounded = load + (1 << LOAD_SHIFT) / 200;
        write!(out, "{}.{:02} ", rounded >> LOAD_SHIFT, ((rounded & ((1 << LOAD_SHIFT) - 1)) * 100) >> LOAD_SHIFT)?;
    }
    writeln!(out, "{running}/{} {last}", task::count())
}

/// Text that CPUID gives in registers.
fn letters(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).take_while(|byte| *byte != 0).collect();
    String::from(String::from_utf8_lossy(&bytes).trim())
}

/// `/proc/cpuinfo` (`show_cpuinfo`), as this CPU tells it; all are alike.
fn cpuinfo(region: &RegionRef<'_>, out: &mut dyn Write) -> fmt::Result {
    let (vendor, signature) = (cpu::cpuid(0, 0), cpu::cpuid(1, 0).eax);
    let vendor = letters(&[vendor.ebx, vendor.edx, vendor.ecx]);
    let name = (0x8000_0002..=0x8000_0004u32).map(|leaf| cpu::cpuid(leaf, 0));
    let name = letters(&name.flat_map(|part| [part.eax, part.ebx, part.ecx, part.edx]).collect::<Vec<u32>>());
    let (family, model) = (signature >> 8 & 15, signature >> 4 & 15);
    let family = if family == 15 { family + (signature >> 20 & 0xff) } else { family };
    let model = if family >= 6 { model | (signature >> 16 & 15) << 4 } else { model };
    for cpu in online() {
        let khz = clock::tsc_khz();
        let node = region.cpus().get(cpu.index()).map_or(0, |record| record.node.load(Relaxed));
        writeln!(out, "processor\t: {}\nvendor_id\t: {vendor}\ncpu family\t: {family}", cpu.index())?;
        writeln!(out, "model\t\t: {model}\nmodel name\t: {name}\nstepping\t: {}", signature & 15)?;
        if khz != 0 {
            writeln!(out, "cpu MHz\t\t: {}.{:03}", khz / 1000, khz % 1000)?;
        }
        writeln!(out, "physical id\t: {node}\ncore id\t\t: {}", cpu.index())?;
        writeln!(out, "address sizes\t: {} bits physical, 48 bits virtual\n", cpu::cpuid(0x8000_0008, 0).eax & 0xff)?;
    }
    Ok(())
}

/// `/proc/slabinfo`.
fn slabs(region: &RegionRef<'_>, out: &mut dyn Write) -> fmt::Result {
    let Some(mm) = platform::mm() else { return Ok(()) };
    slabinfo::header(out)?;
    mm.kmem_caches().try_for_each(|cache| slab_line(region, cache, out))
}

fn slab_line(region: &RegionRef<'_>, cache: Cache, out: &mut dyn Write) -> fmt::Result {
    let Some(mm) = platform::mm() else { return Ok(()) };
    let record = mm.kmem_cache_record(cache);
    let bytes: Vec<u8> = record.name.iter().flat_map(|word| word.load(Relaxed).to_le_bytes()).collect();
    let name = bytes.split(|byte| *byte == 0).next().and_then(|name| core::str::from_utf8(name).ok()).unwrap_or("?");
    let (mut slabs, mut free_slabs, mut free_objects, mut shared) = (0, 0, 0, 0);
    for node in counters::online_nodes(region).iter() {
        let node = mm.kmem_cache_node(cache, node);
        slabs += node.total_slabs.load(Relaxed);
        free_slabs += node.free_slabs.load(Relaxed);
        free_objects += node.free_objects.load(Relaxed);
        shared += u64::from(node.shared.avail.load(Relaxed));
    }
    let num = record.num.load(Relaxed);
    let num_objs = slabs * u64::from(num);
    SlabInfo {
        name,
        active_objs: num_objs.saturating_sub(free_objects),
        num_objs,
        objsize: record.size.load(Relaxed),
        objperslab: num,
        pagesperslab: 1 << record.gfporder.load(Relaxed),
        limit: record.limit.load(Relaxed),
        batchcount: record.batchcount.load(Relaxed),
        sharedfactor: record.shared.load(Relaxed),
        active_slabs: slabs.saturating_sub(free_slabs),
        num_slabs: slabs,
        sharedavail: shared,
    }
    .line(out)
}
