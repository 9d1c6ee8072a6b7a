//! Exceptions and interrupts: the gates, and who handles what. The way in and out is in [`super::entry`].

use core::cell::UnsafeCell;

use pagevisor_mm::Mm;
use pagevisor_shared::layout::{PAGE_OFFSET, TASK_SIZE_MAX};
use pagevisor_shared::pgtable::Entry;
use pagevisor_shared::units::MAX_PHYSMEM_BITS;
use x86_64::structures::idt::InterruptDescriptorTable;
use x86_64::{PrivilegeLevel, VirtAddr};

use super::irq::Irq;
use super::percpu::Ist;
use super::{cpu, entry, fault, irq, uaccess};
use crate::platform::Kernel;
use crate::{direct_map, oops, platform, signal, task};

/// What the stubs and the processor leave on the stack.
#[repr(C)]
#[derive(Debug)]
pub struct TrapFrame {
    /// R15, R14, ..., R8.
    pub r15_to_r8: [u64; 8],
    /// Frame pointer.
    pub rbp: u64,
    /// General register.
    pub rdi: u64,
    /// General register.
    pub rsi: u64,
    /// General register.
    pub rdx: u64,
    /// General register.
    pub rcx: u64,
    /// General register.
    pub rbx: u64,
    /// General register.
    pub rax: u64,
    /// Vector.
    pub vector: u64,
    /// Error code, 0 for vectors without one.
    pub error_code: u64,
    /// Where it happened.
    pub rip: u64,
    /// Code segment.
    pub cs: u64,
    /// Flags.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack segment.
    pub ss: u64,
}

impl TrapFrame {
    /// Whether user mode was left with it.
    #[inline(always)]
    pub fn is_user(&self) -> bool {
        self.cs & 3 != 0
    }

    /// The arguments of a system call.
    #[inline(always)]
    pub fn arguments(&self) -> [u64; 6] {
        let [_, _, _, _, _, r10, r9, r8] = self.r15_to_r8;
        [self.rdi, self.rsi, self.rdx, r10, r8, r9]
    }
}

/// Vectors of exceptions that are named in this file.
pub mod vector {
    /// Non-maskable interrupt.
    pub const NMI: u64 = 2;
    /// Invalid opcode, which is also how the kernel panics.
    pub const INVALID_OPCODE: u64 = 6;
    /// Double fault.
    pub const DOUBLE_FAULT: u64 = 8;
    /// Machine check.
    pub const MACHINE_CHECK: u64 = 18;
    /// Page fault.
    pub const PAGE_FAULT: u64 = 14;
    /// No vector: what a frame has that a system call made.
    pub const SYSTEM_CALL: u64 = 256;
}

/// Error code of a page fault: the page was present, so rights were missing.
pub const FAULT_PRESENT: u64 = 1;
/// Error code of a page fault: it was a write.
pub const FAULT_WRITE: u64 = 1 << 1;
/// Error code of a page fault: it came from user mode.
pub const FAULT_USER: u64 = 1 << 2;
/// Error code of a page fault: an entry of a page table has bits that must be zero.
pub const FAULT_RESERVED: u64 = 1 << 3;
/// Error code of a page fault: it was an instruction fetch.
pub const FAULT_FETCH: u64 = 1 << 4;

unsafe extern "C" {
    #[link_name = "trap_stubs"]
    static TRAP_STUBS: [[u8; 16]; 256];
}

/// The gates, the same for every CPU.
struct Gates(UnsafeCell<InterruptDescriptorTable>);

// SAFETY: written by the boot processor before any other runs; only processors read it afterwards.
unsafe impl Sync for Gates {}

static GATES: Gates = Gates(UnsafeCell::new(InterruptDescriptorTable::new()));

fn stub(vector: u8) -> VirtAddr {
    VirtAddr::from_ptr((&raw const TRAP_STUBS).cast::<u8>().wrapping_add(16 * vector as usize))
}

/// Fills the gates and loads them into the boot processor.
pub fn init() {
    // SAFETY: only the boot processor runs, once, and no gate is loaded yet. Every stub ends in `handle_trap` with
    // a complete frame, and the stacks named exist in every CPU's task state.
    unsafe {
        let idt = &mut *GATES.0.get();
        macro_rules! gates {
            ($($name:ident $vector:literal $(on $ist:ident)?,)*) => {
                $(let _options = idt.$name.set_handler_addr(stub($vector));
                $(_options.set_stack_index(Ist::$ist as u16);)?)*
            };
        }
        gates! {
            divide_error 0, debug 1, non_maskable_interrupt 2 on Nmi, breakpoint 3, overflow 4,
            bound_range_exceeded 5, invalid_opcode 6, device_not_available 7, double_fault 8 on DoubleFault,
            invalid_tss 10, segment_not_present 11, stack_segment_fault 12, general_protection_fault 13,
            page_fault 14, x87_floating_point 16, alignment_check 17, machine_check 18 on MachineCheck,
            simd_floating_point 19, virtualization 20, cp_protection_exception 21, hv_injection_exception 28,
            vmm_communication_exception 29, security_exception 30,
        }
        // Programs may raise these two by an instruction.
        idt.breakpoint.set_handler_addr(stub(3)).set_privilege_level(PrivilegeLevel::Ring3);
        idt.overflow.set_handler_addr(stub(4)).set_privilege_level(PrivilegeLevel::Ring3);
        for irq in Irq::ALL {
            idt[irq.vector()].set_handler_addr(stub(irq.vector()));
        }
    }
    load();
}

/// Loads the gates into this CPU.
pub fn load() {
    // SAFETY: the table lives for ever; `init` has filled it.
    unsafe { (*GATES.0.get()).load_unsafe() };
}

/// Everything but system calls ends up here, interrupts being off.
#[unsafe(no_mangle)]
extern "C" fn handle_trap(frame: &mut TrapFrame) {
    if frame.is_user() {
        task::enter_kernel(&task::current());
    }
    match frame.vector {
        vector::PAGE_FAULT => page_fault(frame),
        vector::NMI | vector::DOUBLE_FAULT | vector::MACHINE_CHECK => oops::die(frame),
        0..32 if frame.is_user() => {
            cpu::irq_enable();
            signal::exception(frame);
        }
        0..32 => {
            if !uaccess::fix(frame) {
                oops::bad_access(frame);
            }
        }
        other => {
            irq::handle(other);
            if !frame.is_user() {
                frame.rip = cpu::after_interrupt(frame.rip);
            }
        }
    }
}

fn page_fault(frame: &mut TrapFrame) {
    let address = cpu::cr2();
    if frame.is_user() {
        if entry::is_system_call(frame, address) {
            entry::system_call_by_fault(frame);
        } else {
            fault::by_program(frame, address);
        }
        return;
    }
    let offset = address.wrapping_sub(PAGE_OFFSET);
    let missing = frame.error_code & (FAULT_PRESENT | FAULT_FETCH) == 0;
    let handled = if address < TASK_SIZE_MAX {
        fault::by_kernel(frame, address)
    } else {
        missing && (offset >> MAX_PHYSMEM_BITS == 0 && direct_map::fill(offset) || is_spurious(frame, address))
    };
    if !handled {
        fault::tell_bad(frame, address);
        oops::bad_access(frame);
    }
}

/// Whether an address of the vmalloc space is mapped after all (`spurious_kernel_fault`): a page table was taken out just
/// before it got another, and this CPU still remembered it. The fault made it forget.
fn is_spurious(frame: &TrapFrame, address: u64) -> bool {
    let address = pagevisor_shared::units::VirtAddr::new(address);
    let Some(mm) = platform::mm() else { return false };
    // Nobody who holds the lock that walking takes uses such an address.
    if !Mm::<Kernel>::is_vmalloc_addr(address) {
        return false;
    }
    let write = frame.error_code & FAULT_WRITE != 0;
    mm.walk_kernel(address).is_some_and(|mapping| !write || mapping.entry.0 & Entry::WRITABLE != 0)
}
