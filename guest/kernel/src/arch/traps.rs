//! Exceptions and interrupts: the gates, the way in and out, and who handles what.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use pagevisor_mm::Mm;
use pagevisor_shared::layout::PAGE_OFFSET;
use pagevisor_shared::pgtable::Entry;
use pagevisor_shared::units::MAX_PHYSMEM_BITS;
use x86_64::VirtAddr;
use x86_64::structures::idt::InterruptDescriptorTable;

use super::irq::Irq;
use super::percpu::Ist;
use super::{cpu, irq};
use crate::platform::Kernel;
use crate::{direct_map, oops, platform};

// A stub of 16 bytes for every vector: it makes the frame the same whether the processor pushed an error code or not.
global_asm!(
    r#"
    .text
    .balign 16
    .globl trap_stubs
    .type trap_stubs, @function
trap_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if vector != 8 && vector != 10 && vector != 11 && vector != 12 && vector != 13 && vector != 14 && vector != 17 && vector != 21 && vector != 29 && vector != 30
    pushq $0
    .endif
    pushq $vector
    jmp trap_common
    .set vector, vector + 1
    .endr

trap_common:
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq %rsp, %rdi
    call handle_trap
    .globl trap_return
trap_return:
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rbp
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rbx
    popq %rax
    addq $16, %rsp
    iretq
    "#,
    options(att_syntax)
);

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

/// Vectors of exceptions that are named in this file.
pub mod vector {
    /// Invalid opcode, which is also how the kernel panics.
    pub const INVALID_OPCODE: u64 = 6;
    /// Double fault.
    pub const DOUBLE_FAULT: u64 = 8;
    /// Page fault.
    pub const PAGE_FAULT: u64 = 14;
}

/// Error code of a page fault: the page was present, so rights were missing.
pub const FAULT_PRESENT: u64 = 1;
/// Error code of a page fault: it was a write.
pub const FAULT_WRITE: u64 = 1 << 1;
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

/// Everything ends up here, interrupts being off.
#[unsafe(no_mangle)]
extern "C" fn handle_trap(frame: &mut TrapFrame) {
    match frame.vector {
        vector::PAGE_FAULT => page_fault(frame),
        0..32 => oops::die(frame),
        other => {
            irq::handle(other);
            frame.rip = cpu::after_interrupt(frame.rip);
        }
    }
}

fn page_fault(frame: &TrapFrame) {
    let address = cpu::cr2();
    let offset = address.wrapping_sub(PAGE_OFFSET);
    let missing = frame.error_code & (FAULT_PRESENT | FAULT_FETCH) == 0;
    let handled =
        missing && (offset >> MAX_PHYSMEM_BITS == 0 && direct_map::fill(offset) || is_spurious(frame, address));
    if !handled {
        oops::die(frame);
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
