//! Starting a machine: memory, what lies in it, virtual hardware, threads.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};
use pagevisor_shared::device::{SERIAL_PORT, SHUTDOWN_PORT};
use pagevisor_shared::region::GuestState;

use super::lifecycle::{Lifecycle, Running};
use super::{KernelImage, KernelSource, Machine, MachineConfig, kernel_elf};
use crate::boot::{BootPlan, CommandLine, Init};
use crate::devices::monitor::{Monitor, MonitorHooks, MonitorWorker, Notice};
use crate::devices::{
    Console, I8042_COMMAND, Input, InputReader, PowerSink, ResetPort, SERIAL_PORTS, SerialConsole, ShutdownPort, Tty,
    TtyWriter,
};
use crate::error::StartError;
use crate::kvm::{Buses, Cause, KvmSystem, Vcpu, Vm, has_hardware_virtualization};
use crate::layout::{MONITOR, PVH_START_INFO};
use crate::memory::GuestMemory;
use crate::sandbox::{self, Role};

/// Stack of a vCPU's thread: it only moves bytes between KVM and devices.
const VCPU_STACK: usize = 256 << 10;

fn host(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::Host { what, source }
}

pub(super) fn start(config: MachineConfig) -> Result<Machine, StartError> {
    let exec_to_start = process_age();
    let started = Instant::now();
    let system = KvmSystem::open(&config.kvm_device)?;
    let (kernel, bytes) = read_kernel(&config.kernel)?;
    let memory = Arc::new(GuestMemory::new(&config.layout)?);
    let entry = prepare_memory(&config, &bytes, &memory)?;
    drop(bytes);

    let vm = Vm::new(&system, memory.clone())?;
    let lifecycle = Lifecycle::new(config.topology.nr_cpus(), vm.interrupter()).map_err(host("make an eventfd"))?;
    let lifecycle = Arc::new(lifecycle);
    let tty = Arc::new(Tty::default());
    let input = Arc::new(Input::default());
    let ends = Ends { tty: tty.clone(), input: input.clone() };
    let monitor = monitor(&vm, &memory, &lifecycle, config.notice.clone(), ends)?;
    let buses = Arc::new(buses(config.console, &monitor, &lifecycle));
    let vcpus = create_vcpus(&vm, &config.topology, entry)?;
    let worker = MonitorWorker::start(monitor.clone(), config.sandbox).map_err(host("start the monitor's thread"))?;
    let worker = Some(worker);
    let tty = TtyWriter::start(tty, config.tty, config.sandbox).map_err(host("start the console's thread"))?;
    let reader = |source| InputReader::start(input, source, config.notice, config.sandbox);
    let input = config.input.map(reader).transpose().map_err(host("start the thread of the programs' input"))?;
    let mut machine = Machine {
        lifecycle,
        vcpus: Vec::new(),
        worker,
        tty,
        _input: input,
        monitor,
        memory,
        kernel,
        started,
        exec_to_start,
    };
    for vcpu in vcpus {
        // If this fails, dropping the machine ends the threads that run already.
        machine.run(vcpu, buses.clone(), config.sandbox)?;
    }
    Ok(machine)
}

/// Reads the kernel, and keeps what its symbols can be read from later.
fn read_kernel(image: &KernelImage) -> Result<(KernelSource, Cow<'static, [u8]>), StartError> {
    match image {
        KernelImage::Embedded => Ok((KernelSource::Bytes(kernel_elf().into()), kernel_elf().into())),
        KernelImage::Bytes(bytes) => Ok((KernelSource::Shared(bytes.clone()), bytes.to_vec().into())),
        KernelImage::File(path) => {
            let (file, bytes) =
                read_file(path).map_err(|source| StartError::KernelFile { path: path.clone(), source })?;
            Ok((KernelSource::File(file), bytes.into()))
        }
    }
}

fn read_file(path: &Path) -> io::Result<(File, Vec<u8>)> {
    let mut file = File::open(path)?;
    // Reading a device or a pipe might never end.
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok((file, bytes))
}

/// Writes all that the guest finds when it starts, and gives the address where it does.
fn prepare_memory(config: &MachineConfig, kernel: &[u8], memory: &GuestMemory) -> Result<u64, StartError> {
    let tables = crate::acpi::build(&config.topology, &config.layout)?;
    let plan = BootPlan {
        layout: &config.layout,
        kernel,
        kernel_name: match &config.kernel {
            KernelImage::Embedded => "(embedded)".into(),
            KernelImage::Bytes(_) => "(given bytes)".into(),
            KernelImage::File(path) => path.display().to_string(),
        },
        initrd: config.initrd.as_deref(),
        archive: config.init.as_ref().map(Init::archive).unwrap_or_default(),
        command_line: CommandLine {
            emulated: !has_hardware_virtualization(),
            exit: config.exit_when_ready,
            init: config.init.as_ref().map(|init| init.path.clone()),
            append: config.append.clone(),
        },
        rsdp: tables.rsdp_addr,
        tables_at: tables.base,
        tables: &tables.bytes,
    };
    Ok(plan.write(memory.ram())?)
}

/// The host's ends of the console.
struct Ends {
    tty: Arc<Tty>,
    input: Arc<Input>,
}

fn monitor(
    vm: &Vm,
    memory: &Arc<GuestMemory>,
    lifecycle: &Arc<Lifecycle>,
    notice: Notice,
    Ends { tty, input }: Ends,
) -> Result<Arc<Monitor>, StartError> {
    let progress = lifecycle.clone();
    let state = move |state| {
        if state == GuestState::Ready {
            progress.set_ready();
        }
    };
    let hooks = MonitorHooks { state: Box::new(state), notice, mailbox: lifecycle.mailbox.clone(), tty, input };
    let monitor = Monitor::new(memory.clone(), vm.msi_route(), hooks).map_err(host("make an eventfd"))?;
    vm.connect(&monitor)?;
    Ok(Arc::new(monitor))
}

/// Puts the devices at their addresses.
fn buses(console: Console, monitor: &Arc<Monitor>, lifecycle: &Arc<Lifecycle>) -> Buses {
    let ends = lifecycle.clone();
    let power: PowerSink = Arc::new(move |request| ends.end_by(Cause::Power(request)));
    let (serial, shutdown) = (u64::from(SERIAL_PORT), u64::from(SHUTDOWN_PORT));
    let mut buses = Buses::default();
    buses.ports.attach(serial..serial + SERIAL_PORTS, Arc::new(SerialConsole::new(console)));
    buses.ports.attach(shutdown..shutdown + 4, Arc::new(ShutdownPort(power.clone())));
    buses.ports.attach(I8042_COMMAND..I8042_COMMAND + 1, Arc::new(ResetPort(power)));
    buses.mmio.attach(MONITOR.start..MONITOR.end(), monitor.clone());
    buses
}

fn create_vcpus(vm: &Vm, topology: &crate::topology::Topology, entry: u64) -> Result<Vec<Vcpu>, StartError> {
    let mut vcpus = Vec::new();
    for id in 0..topology.nr_cpus() as u32 {
        let node = topology.node_of_cpu(id).unwrap_or(0);
        let vcpu = vm.create_vcpu(id, node as u32)?;
        if id == 0 {
            Vm::set_entry(&vcpu, entry, PVH_START_INFO)?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

impl Machine {
    /// Runs a vCPU on a thread of its own.
    fn run(&mut self, vcpu: Vcpu, buses: Arc<Buses>, mode: sandbox::Mode) -> Result<(), StartError> {
        let index = self.vcpus.len();
        let lifecycle = self.lifecycle.clone();
        let body = move || {
            let running = Running(&lifecycle);
            if let Some(cause) = vcpu.run(lifecycle.kick(index), &buses, &*lifecycle) {
                lifecycle.end_by(cause);
            }
            drop(running);
        };
        let thread = thread::Builder::new().name(format!("vcpu{index}")).stack_size(VCPU_STACK);
        let thread = sandbox::spawn(thread, Role::Vcpu, mode, body).map_err(host("start a vCPU's thread"))?;
        self.vcpus.push(thread);
        Ok(())
    }
}

/// How long ago this process was started: to the clock tick in which that was.
fn process_age() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in parentheses, may contain anything; the start time is the 20th field behind it.
    let start: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let ticks_per_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    let start = Duration::from_secs_f64(start as f64 / ticks_per_second as f64);
    Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?).checked_sub(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_of_this_process_is_that_of_a_test() {
        let age = process_age().unwrap();
        assert!(age < Duration::from_secs(3600), "{age:?}");
        assert!(process_age().unwrap() >= age);
    }
}
