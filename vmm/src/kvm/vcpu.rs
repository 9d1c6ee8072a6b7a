//! A virtual CPU, and the loop that runs it.

use std::sync::Arc;

use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
    KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::exit::{Cause, CpuState};
use super::kick::{Kick, VcpuGate};
use super::regs::CpuRegisters;
use crate::devices::{Bus, PowerRequest};
use crate::memory::GuestMemory;

/// What the vCPUs' accesses reach.
#[derive(Debug, Default)]
pub(crate) struct Buses {
    pub ports: Bus,
    pub mmio: Bus,
}

/// Who decides when a vCPU runs.
pub(crate) trait Supervisor {
    /// Whether the machine has ended: the vCPU does not enter the guest again.
    fn ended(&self) -> bool;

    /// Keeps the calling thread, that of vCPU `cpu`, for as long as the machine is paused. Called after every kick, when
    /// the vCPU has finished what it was doing and `registers` can read it.
    fn hold(&self, cpu: u32, registers: &dyn Fn() -> CpuRegisters);
}

/// A virtual CPU.
#[derive(Debug)]
pub(crate) struct Vcpu {
    fd: VcpuFd,
    id: u32,
    memory: Arc<GuestMemory>,
}

/// What an exit, whose borrow of the vCPU is over, asks for.
enum Next {
    Run,
    /// It was kicked.
    Kicked,
    TripleFault,
    InternalError,
    Power(PowerRequest),
    Unexpected(String),
}

impl Vcpu {
    pub(super) fn new(fd: VcpuFd, id: u32, memory: Arc<GuestMemory>) -> Self {
        Self { fd, id, memory }
    }

    pub(super) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Runs the guest on the calling thread until `supervisor` says after a kick that it has ended, or something ends
    /// it, which is given back.
    pub(crate) fn run(mut self, kick: &Kick, buses: &Buses, supervisor: &dyn Supervisor) -> Option<Cause> {
        // Closed before `self` is dropped, however this function is left: locals go before arguments.
        let gate = match VcpuGate::open(kick, &mut self.fd) {
            Ok(gate) => gate,
            Err(error) => {
                return Some(Cause::Host(format!("the thread of vCPU {} cannot be signalled: {error}", self.id)));
            }
        };
        // A kick that came before the gate was open went nowhere.
        supervisor.hold(self.id, &|| self.registers());
        while !supervisor.ended() {
            match self.enter(buses) {
                Next::Run => {}
                Next::Kicked => {
                    gate.admit();
                    supervisor.hold(self.id, &|| self.registers());
                }
                next => return Some(self.cause(next)),
            }
        }
        None
    }

    /// The vCPU's registers; zeros if KVM does not tell.
    fn registers(&self) -> CpuRegisters {
        match (self.fd.get_regs(), self.fd.get_sregs(), self.fd.get_mp_state()) {
            (Ok(regs), Ok(sregs), Ok(state)) => CpuRegisters::new(&regs, &sregs, state),
            _ => CpuRegisters::default(),
        }
    }

    /// Enters the guest once and serves the access it comes back with.
    fn enter(&mut self, buses: &Buses) -> Next {
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => buses.ports.write(port.into(), data),
            Ok(VcpuExit::IoIn(port, data)) => buses.ports.read(port.into(), data),
            Ok(VcpuExit::MmioWrite(address, data)) => buses.mmio.write(address, data),
            Ok(VcpuExit::MmioRead(address, data)) => buses.mmio.read(address, data),
            Ok(VcpuExit::Intr) => return Next::Kicked,
            Ok(VcpuExit::Shutdown) => return Next::TripleFault,
            Ok(VcpuExit::InternalError) => return Next::InternalError,
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => return Next::Power(PowerRequest::Off(0)),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => return Next::Power(PowerRequest::Reset),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return Next::Unexpected(format!(
                    "the host's CPU {cpu} refused to enter the guest (reason {reason:#x})"
                ));
            }
            Ok(exit) => return Next::Unexpected(format!("KVM gave back the unexpected exit {exit:?}")),
            Err(error) => match error.errno() {
                // A kick; or a vCPU that waited for INIT or SIPI, which KVM wants to be run again. It sleeps in KVM.
                libc::EINTR | libc::EAGAIN => return Next::Kicked,
                _ => return Next::Unexpected(format!("KVM could not run the guest: {error}")),
            },
        }
        Next::Run
    }

    /// Reads all that is to be known about an end.
    fn cause(&mut self, next: Next) -> Cause {
        let mut cpu = CpuState::read(self.id, &self.fd, &self.memory);
        match next {
            Next::Power(request) => Cause::Power(request),
            Next::TripleFault => Cause::TripleFault(cpu),
            Next::Unexpected(what) => Cause::Unexpected { cpu, what },
            Next::Run | Next::Kicked | Next::InternalError => {
                let (suberror, code) = self.internal_error();
                if !code.is_empty() {
                    cpu.code = code;
                }
                Cause::InternalError { cpu, suberror }
            }
        }
    }

    /// The reason of an internal error, and the instruction bytes if KVM tells them.
    fn internal_error(&mut self) -> (u32, Vec<u8>) {
        let run = self.fd.get_kvm_run();
        if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
            return (0, Vec::new());
        }
        // SAFETY: the exit reason says that this is the member of the union that KVM filled; any bytes are valid.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        // For an emulation failure the data are: flags; then the number of instruction bytes, and these.
        let [flags, low, high, ..] = internal.data;
        let told = internal.suberror == KVM_INTERNAL_ERROR_EMULATION
            && internal.ndata >= 3
            && flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
        if !told {
            return (internal.suberror, Vec::new());
        }
        let bytes: Vec<u8> = low.to_le_bytes().into_iter().chain(high.to_le_bytes()).collect();
        let len = usize::from(bytes[0]).min(bytes.len() - 1);
        (internal.suberror, bytes[1..=len].to_vec())
    }
}
