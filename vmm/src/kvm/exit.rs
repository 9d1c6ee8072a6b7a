//! Why a vCPU left the guest for good.

use kvm_bindings::{kvm_sregs, kvm_translation};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::regs::Registers;
use crate::devices::PowerRequest;
use crate::memory::GuestMemory;

/// Longest x86 instruction in bytes.
const MAX_INSTRUCTION: usize = 15;
const EFER_LMA: u64 = 1 << 10;
const PAGE_MASK: u64 = 0xfff;

/// What ended the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The guest asked for it.
    Power(PowerRequest),
    /// A fault while handling a double fault.
    TripleFault(CpuState),
    /// KVM could not go on.
    InternalError {
        /// The vCPU.
        cpu: CpuState,
        /// KVM's reason (`KVM_INTERNAL_ERROR_*`).
        suberror: u32,
    },
    /// An exit that this VMM has no use for.
    Unexpected {
        /// The vCPU.
        cpu: CpuState,
        /// What it was.
        what: String,
    },
    /// A thread of the VMM could not be set up.
    Host(String),
}

/// A vCPU as it was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuState {
    /// Its number.
    pub cpu: u32,
    /// Its registers, if they are those of the guest.
    pub registers: Option<Registers>,
    /// Width of the code it ran: 16, 32 or 64 bits.
    pub bitness: u32,
    /// The instruction it was at and what follows, as far as that is known.
    pub code: Vec<u8>,
}

impl CpuState {
    /// Reads the state of a vCPU that is not running.
    pub(super) fn read(cpu: u32, vcpu: &VcpuFd, memory: &GuestMemory) -> Self {
        let unknown = Self { cpu, registers: None, bitness: 64, code: Vec::new() };
        let (Ok(regs), Ok(sregs)) = (vcpu.get_regs(), vcpu.get_sregs()) else { return unknown };
        let registers = Registers::new(&regs, &sregs);
        if registers.are_of_reset() {
            // AMD-V leaves nothing of a vCPU that shut down, and KVM resets it.
            return unknown;
        }
        let bitness = bitness(&sregs);
        let base = if bitness == 64 { 0 } else { sregs.cs.base };
        let code = read_code(vcpu, memory, base.wrapping_add(regs.rip));
        Self { cpu, registers: Some(registers), bitness, code }
    }
}

fn bitness(sregs: &kvm_sregs) -> u32 {
    match (sregs.efer & EFER_LMA != 0 && sregs.cs.l != 0, sregs.cs.db != 0) {
        (true, _) => 64,
        (false, true) => 32,
        (false, false) => 16,
    }
}

/// The bytes at a linear address, up to the end of its page.
fn read_code(vcpu: &VcpuFd, memory: &GuestMemory, linear: u64) -> Vec<u8> {
    let Ok(kvm_translation { physical_address, valid: 1.., .. }) = vcpu.translate_gva(linear) else {
        return Vec::new();
    };
    let in_page = (PAGE_MASK + 1 - (physical_address & PAGE_MASK)) as usize;
    let mut code = vec![0; MAX_INSTRUCTION.min(in_page)];
    match memory.ram().read_slice(&mut code, GuestAddress(physical_address)) {
        Ok(()) => code,
        Err(_) => Vec::new(),
    }
}
