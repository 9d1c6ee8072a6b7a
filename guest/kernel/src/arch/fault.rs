//! Page faults at addresses of programs (`arch/x86/mm/fault.c`, `do_user_addr_fault`).

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::memory::{FaultFlags, FaultKind, FaultResult};
use pagevisor_shared::layout::TASK_SIZE_MAX;
use pagevisor_shared::region::event::EventKind;
use pagevisor_shared::region::fault::{ErrorCode, PageFault, Resolution};
use pagevisor_shared::units::VirtAddr;
use pagevisor_shared::vmstat::VmEvent;

use super::entry::FLAG_INTERRUPTS;
use super::traps::{FAULT_RESERVED, FAULT_USER, TrapFrame};
use super::{cpu, uaccess};
use crate::signal::{self, Cause};
use crate::task::{self, Task};
use crate::{oops, platform, syscall};

/// A page fault that is being dealt with, for who follows the events.
struct Watch {
    since: u64,
    kind: EventKind,
}

impl Watch {
    /// Begins, if somebody wants to know.
    #[inline(always)]
    fn begin(kind: EventKind) -> Option<Self> {
        platform::mm().filter(|mm| mm.is_traced(kind)).map(|_| Self { since: cpu::rdtsc(), kind })
    }

    /// Tells of the fault, whose result is known.
    #[cold]
    #[inline(never)]
    fn end(self, frame: &TrapFrame, address: u64, result: Option<FaultResult>) {
        let (resolution, major) = match result {
            Some(FaultResult::Done { major, kind }) => (resolution(kind), major),
            Some(FaultResult::Retry) => (Resolution::Spurious, false),
            _ => (Resolution::Bad, false),
        };
        let fault = PageFault {
            user: self.kind == EventKind::PageFaultUser,
            address,
            error: ErrorCode(frame.error_code as u32),
            ip: frame.rip,
            pid: task::try_current().map_or(0, |task| task.pid()),
            resolution,
            major,
            ticks: cpu::rdtsc().wrapping_sub(self.since),
        };
        if let Some(mm) = platform::mm() {
            mm.trace(fault.encode());
        }
    }
}

const fn resolution(kind: FaultKind) -> Resolution {
    match kind {
        FaultKind::Anon => Resolution::Anon,
        FaultKind::Zero => Resolution::Zero,
        FaultKind::CowCopy => Resolution::Cow,
        FaultKind::CowReuse => Resolution::CowReuse,
        FaultKind::File => Resolution::File,
        FaultKind::Spurious => Resolution::Spurious,
    }
}

/// The kernel's access at `address` has failed, and it cannot go on: for the events, before that is reported.
#[cold]
pub fn tell_bad(frame: &TrapFrame, address: u64) {
    if let Some(watch) = Watch::begin(EventKind::PageFaultKernel) {
        watch.end(frame, address, None);
    }
}

/// A program's access has failed. Interrupts are off.
pub fn by_program(frame: &mut TrapFrame, address: u64) {
    let watch = Watch::begin(EventKind::PageFaultUser);
    if frame.error_code & FAULT_RESERVED != 0 {
        if let Some(watch) = watch {
            watch.end(frame, address, None);
        }
        // A page table is damaged: more accesses would damage more.
        oops::die(frame);
    }
    cpu::irq_enable();
    let task = task::current();
    let cause = |number, code| Cause { number, code, address, trap: frame.vector, error: frame.error_code };
    // What is the kernel's does not even tell whether something is there.
    let result = if address < TASK_SIZE_MAX { resolve(&task, frame, address) } else { None };
    if let Some(watch) = watch {
        watch.end(frame, address, result);
    }
    let cause = match result {
        Some(FaultResult::Done { .. } | FaultResult::Retry) => return,
        Some(FaultResult::Sigsegv { code }) => cause(signal::SIGSEGV, code as i32),
        Some(FaultResult::Sigbus { code }) => cause(signal::SIGBUS, code as i32),
        Some(FaultResult::Oom) => return signal::oom::blame(),
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
    let watch = Watch::begin(EventKind::PageFaultKernel);
    if let Some(task) = task::try_current()
        && frame.rflags & FLAG_INTERRUPTS != 0
    {
        cpu::irq_enable();
        let result = resolve(&task, frame, address);
        cpu::irq_disable();
        if let Some(watch) = watch {
            watch.end(frame, address, result);
        }
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
    let mm = platform::mm()?;
    let result = mm.handle_mm_fault(space, VirtAddr::new(address), flags, &syscall::limits(task));
    if let FaultResult::Done { major, .. } = result {
        let count = |word: &AtomicU64| word.store(word.load(Relaxed) + 1, Relaxed);
        count(if major { &task.record.maj_flt } else { &task.record.min_flt });
        if major {
            mm.count_vm_events(VmEvent::Pgmajfault, 1);
        }
    }
    Some(result)
}
