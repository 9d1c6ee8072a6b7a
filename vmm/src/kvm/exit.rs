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
    /// Return addresses, innermost first, if it keeps frame pointers.
    pub returns: Vec<u64>,
}

impl CpuState {
    /// Reads the state of a vCPU that is not running.
    pub(super) fn read(cpu: u32, vcpu: &VcpuFd, memory: &GuestMemory) -> Self {
        let unknown = Self { cpu, registers: None, bitness: 64, code: Vec::new(), returns: Vec::new() };
        let (Ok(regs), Ok(sregs)) = (vcpu.get_regs(), vcpu.get_sregs()) else { return unknown };
        let registers = Registers::new(&regs, &sregs);
        if registers.are_of_reset() {
            // AMD-V leaves nothing of a vCPU that shut down, and KVM resets it.
            return unknown;
        }
        let bitness = bitness(&sregs);
        let base = if bitness == 64 { 0 } else { sregs.cs.base };
        let code = read_code(vcpu, memory, base.wrapping_add(regs.rip));
        let returns = if bitness == 64 { walk_frames(vcpu, memory, regs.rsp, regs.rbp) } else { Vec::new() };
        Self { cpu, registers: Some(registers), bitness, code, returns }
    }
}

fn bitness(sregs: &kvm_sregs) -> u32 {
    match (sregs.efer & EFER_LMA != 0 && sregs.cs.l != 0, sregs.cs.db != 0) {
        (true, _) => 64,
        (false, true) => 32,
        (false, false) => 16,
    }
}

/// Most frames that are walked.
const MAX_FRAMES: usize = 32;
/// Largest distance between two frames that is believed: what a kernel has for a stack.
const MAX_FRAME_SIZE: u64 = 64 << 10;

/// Follows saved frame pointers. Each must lie above the one before, so this ends whatever the guest wrote.
fn walk_frames(vcpu: &VcpuFd, memory: &GuestMemory, rsp: u64, rbp: u64) -> Vec<u64> {
    let word = |linear: u64| {
        let physical = physical(vcpu, linear).filter(|_| linear.is_multiple_of(8))?;
        memory.ram().read_obj::<u64>(GuestAddress(physical)).ok()
    };
    let (mut below, mut frame) = (rsp, rbp);
    let mut returns = Vec::new();
    while returns.len() < MAX_FRAMES && frame >= below && frame - below < MAX_FRAME_SIZE {
        let (Some(next), Some(address)) = (word(frame), frame.checked_add(8).and_then(word)) else { break };
        if address == 0 {
            break;
        }
        returns.push(address);
        (below, frame) = (frame + 8, next);
    }
    returns
}

fn physical(vcpu: &VcpuFd, linear: u64) -> Option<u64> {
    match vcpu.translate_gva(linear) {
        Ok(kvm_translation { physical_address, valid: 1.., .. }) => Some(physical_address),
        _ => None,
    }
}

/// The bytes at a linear address, up to the end of its page.
fn read_code(vcpu: &VcpuFd, memory: &GuestMemory, linear: u64) -> Vec<u8> {
    let Some(start) = physical(vcpu, linear) else { return Vec::new() };
    let in_page = (PAGE_MASK + 1 - (start & PAGE_MASK)) as usize;
    let mut code = vec![0; MAX_INSTRUCTION.min(in_page)];
    match memory.ram().read_slice(&mut code, GuestAddress(start)) {
        Ok(()) => code,
        Err(_) => Vec::new(),
    }
}
