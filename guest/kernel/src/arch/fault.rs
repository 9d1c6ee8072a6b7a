//! Page faults at addresses of programs (`arch/x86/mm/fault.c`, `do_user_addr_fault`).

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::memory::{FaultFlags, FaultResult};
use pagevisor_shared::layout::TASK_SIZE_MAX;
use pagevisor_shared::units::VirtAddr;

use super::entry::FLAG_INTERRUPTS;
use super::traps::{FAULT_RESERVED, FAULT_USER, TrapFrame};
use super::{cpu, uaccess};
use crate::signal::{self, Cause};
use crate::task::{self, Task};
use crate::{oops, platform, syscall};

/// A program's access has failed. Interrupts are off.
pub fn by_program(frame: &mut TrapFrame, address: u64) {
    if frame.error_code & FAULT_RESERVED != 0 {
        // A page table is damaged: more accesses would damage more.
        oops::die(frame);
    }
    cpu::irq_enable();
    let task = task::current();
    let cause = |number, code| Cause { number, code, address, trap: frame.vector, error: frame.error_code };
    // What is the kernel's does not even tell whether something is there.
    let result = if address < TASK_SIZE_MAX { resolve(&task, frame, address) } else { None };
    let cause = match result {
        Some(FaultResult::Done { .. } | FaultResult::Retry) => return,
        Some(FaultResult::Sigsegv { code }) => cause(signal::SIGSEGV, code as i32),
        Some(FaultResult::Sigbus { code }) => cause(signal::SIGBUS, code as i32),
        // There are no others whose memory could be taken (`pagefault_out_of_memory`).
        Some(FaultResult::Oom) => cause(signal::SIGKILL, signal::SI_KERNEL),
        None => cause(signal::SIGSEGV, signal::SEGV_MAPERR),
    };
    signal::force(&task, &cause);
}

/// The kernel's access to a program's address has failed; whether it can go on: because what was missing has been brought
/// in, or because the access may fail. Interrupts are off.
pub fn by_kernel(frame: &mut TrapFrame, address: u64) -> bool {
    if frame.error_code & FAULT_RESERVED != 0 || !uaccess::is_fixable(frame) {
        return false;
    }
    if let Some(task) = task::try_current()
        && frame.rflags & FLAG_INTERRUPTS != 0
    {
        cpu::irq_enable();
        let result = resolve(&task, frame, address);
        cpu::irq_disable();
        if let Some(FaultResult::Done { .. } | FaultResult::Retry) = result {
            return true;
        }
    }
    uaccess::fix(frame)
}

/// Brings in what the access at `address` wants; `None` if the task has no program.
fn resolve(task: &Task, frame: &TrapFrame, address: u64) -> Option<FaultResult> {
    let space = task.space()?;
    let flags = FaultFlags::of_error_code(frame.error_code & !if frame.is_user() { 0 } else { FAULT_USER });
    let result = platform::mm()?.handle_mm_fault(space, VirtAddr::new(address), flags, &syscall::limits(task));
    if let FaultResult::Done { major, .. } = result {
        let count = |word: &AtomicU64| word.store(word.load(Relaxed) + 1, Relaxed);
        count(if major { &task.record.maj_flt } else { &task.record.min_flt });
    }
    Some(result)
}
