//! KVM: the machine's virtual hardware, and what makes its vCPUs run and stop.

mod cpuid;
mod exit;
mod interrupts;
mod kick;
mod regs;
mod system;
mod vcpu;
mod vm;

pub use exit::{Cause, CpuState};
pub(crate) use kick::Kick;
pub use regs::{CpuRegisters, REGISTERS, Registers, USER_REGISTERS};
pub use system::{KVM_DEVICE, KvmError, KvmSystem, has_hardware_virtualization};
pub(crate) use vcpu::{Buses, Supervisor, Vcpu};
pub use vm::VmError;
pub(crate) use vm::{Interrupter, Vm};
