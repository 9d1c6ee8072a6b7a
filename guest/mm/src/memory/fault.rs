//! Faults: which area, and which way (`arch/x86/mm/fault.c`, `handle_mm_fault`, `handle_pte_fault`).

use core::sync::atomic::Ordering::{AcqRel, Acquire};

use pagevisor_shared::mm_types::{MmStruct, VmaFlags};
use pagevisor_shared::pgtable::Entry;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};
use pagevisor_shared::vmstat::VmEvent;

use super::pte::Pte;
use crate::Mm;
use crate::mmap::{Limits, Space, Vma, vma_at_or_above};
use crate::platform::Platform;
use crate::raw::PageTable;

/// What an access was that found no page it may use (`enum fault_flag`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultFlags(u32);

pagevisor_shared::flag_set!(FaultFlags);

impl FaultFlags {
    /// A read by the kernel.
    pub const NONE: Self = Self(0);
    /// It was a write (`FAULT_FLAG_WRITE`).
    pub const WRITE: Self = Self(1);
    /// It came from user mode (`FAULT_FLAG_USER`).
    pub const USER: Self = Self(1 << 6);
    /// It is on behalf of somebody else (`FAULT_FLAG_REMOTE`).
    pub const REMOTE: Self = Self(1 << 7);
    /// It was an instruction's fetch (`FAULT_FLAG_INSTRUCTION`).
    pub const INSTRUCTION: Self = Self(1 << 8);

    /// What the processor's error code says (`X86_PF_WRITE`, `X86_PF_USER`, `X86_PF_INSTR`).
    #[inline]
    pub const fn of_error_code(code: u64) -> Self {
        let mut flags = Self::NONE;
        if code & 2 != 0 {
            flags = flags.with(Self::WRITE);
        }
        if code & 4 != 0 {
            flags = flags.with(Self::USER);
        }
        if code & 16 != 0 {
            flags = flags.with(Self::INSTRUCTION);
        }
        flags
    }
}

/// Which way a fault was dealt with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// A new anonymous page.
    Anon,
    /// The zero page.
    Zero,
    /// A copy of a page that others may see.
    CowCopy,
    /// A page that nobody else sees any more was made writable.
    CowReuse,
    /// A page of a file.
    File,
    /// Nothing was missing: somebody else was faster, or the processor remembered what was no longer so.
    Spurious,
}

/// What is wrong with an address (`si_code` of `SIGSEGV`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegvCode {
    /// Nothing is mapped there (`SEGV_MAPERR`).
    MapErr = 1,
    /// What is mapped does not allow it (`SEGV_ACCERR`).
    AccErr = 2,
}

/// What came of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum FaultResult {
    /// The access can be repeated.
    Done {
        /// It had to wait for data.
        major: bool,
        /// Which way it was dealt with.
        kind: FaultKind,
    },
    /// The program gets `SIGSEGV`.
    Sigsegv {
        /// What is wrong.
        code: SegvCode,
    },
    /// The program gets `SIGBUS`.
    Sigbus {
        /// `BUS_ADRERR` is 2.
        code: u32,
    },
    /// There is no memory.
    Oom,
    /// Something changed meanwhile: the access must be repeated.
    Retry,
}

impl FaultResult {
    /// Done without waiting.
    #[inline(always)]
    pub(super) const fn done(kind: FaultKind) -> Self {
        Self::Done { major: false, kind }
    }

    /// `SIGBUS` for an address behind which nothing is (`BUS_ADRERR`).
    pub(super) const BUS_ADRERR: Self = Self::Sigbus { code: 2 };
}

/// A fault whose area is known (`struct vm_fault`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    /// The address space.
    pub(super) space: &'static MmStruct,
    /// The area, locked.
    pub(super) vma: Vma,
    /// Its flags.
    pub(super) vm_flags: VmaFlags,
    /// First byte of the page.
    pub(super) addr: u64,
    /// It is a write.
    pub(super) write: bool,
}

/// The way on needs the space's lock: the area has no family yet (`VM_FAULT_RETRY`).
#[derive(Clone, Copy, Debug)]
pub(super) struct NeedsSpace;

/// What came of a fault, if that is known already.
pub(super) type Outcome = Result<FaultResult, NeedsSpace>;

/// Whether an area with `vm_flags` does not allow the access (`access_error`).
#[inline(always)]
fn is_forbidden(vm_flags: VmaFlags, flags: FaultFlags) -> bool {
    if flags.contains(FaultFlags::WRITE) {
        !vm_flags.contains(VmaFlags::WRITE)
    } else if flags.contains(FaultFlags::INSTRUCTION) {
        !vm_flags.contains(VmaFlags::EXEC)
    } else {
        !vm_flags.intersects(VmaFlags::ACCESS)
    }
}

impl<P: Platform> Mm<P> {
    /// Brings in the page that an access to `addr` wants (`do_user_addr_fault`, `handle_mm_fault`). A stack grows down to
    /// the address, as far as `limits` allow.
    #[inline]
    pub fn handle_mm_fault(&self, space: Space, addr: VirtAddr, flags: FaultFlags, limits: &Limits) -> FaultResult {
        if let Some(held) = self.lock_vma(space, addr)
            && let Ok(result) = self.fault_in_area(space, held.vma(), addr.raw(), flags)
        {
            return result;
        }
        self.fault_with_space(space, addr, flags, Some(limits))
    }

    /// As [`Self::handle_mm_fault`], for somebody else; no stack grows.
    pub(super) fn fault_in(&self, space: Space, addr: VirtAddr, flags: FaultFlags) -> FaultResult {
        if let Some(held) = self.lock_vma(space, addr)
            && let Ok(result) = self.fault_in_area(space, held.vma(), addr.raw(), flags)
        {
            return result;
        }
        self.fault_with_space(space, addr, flags, None)
    }

    /// The way under the space's lock: areas that are being changed, first writes to an area, stacks that grow.
    #[cold]
    #[inline(never)]
    fn fault_with_space(
        &self,
        space: Space,
        addr: VirtAddr,
        flags: FaultFlags,
        limits: Option<&Limits>,
    ) -> FaultResult {
        const MAPERR: FaultResult = FaultResult::Sigsegv { code: SegvCode::MapErr };
        let mut grown = false;
        loop {
            let held = self.mmap_read_lock(space);
            let Some(vma) = vma_at_or_above(space, addr.raw()) else { return MAPERR };
            if vma.start() <= addr.raw() {
                if flags.contains(FaultFlags::WRITE)
                    && !is_forbidden(vma.flags(), flags)
                    && !vma.flags().contains(VmaFlags::SHARED)
                    && self.anon_vma_prepare(vma).is_err()
                {
                    return FaultResult::Oom;
                }
                return self.fault_in_area(space, vma, addr.raw(), flags).unwrap_or(FaultResult::Retry);
            }
            let Some(limits) = limits else { return MAPERR };
            if grown || !vma.flags().contains(VmaFlags::GROWSDOWN) {
                return MAPERR;
            }
            drop(held);
            if self.expand_stack(space, addr, limits).is_err() {
                return MAPERR;
            }
            grown = true;
        }
    }

    /// A fault in an area that stays as it is (`handle_mm_fault`, `__handle_mm_fault`).
    #[inline(always)]
    fn fault_in_area(&self, space: Space, vma: Vma, addr: u64, flags: FaultFlags) -> Outcome {
        let vm_flags = vma.flags();
        if is_forbidden(vm_flags, flags) {
            return Ok(FaultResult::Sigsegv { code: SegvCode::AccErr });
        }
        let write = flags.contains(FaultFlags::WRITE);
        let fault = Fault { space: space.record(), vma, vm_flags, addr: addr & !(PAGE_SIZE - 1), write };
        let Some(table) = self.page_table_alloc(fault.space, addr) else { return Ok(FaultResult::Oom) };
        let result = self.handle_pte_fault(&fault, table);
        if result.is_ok() {
            self.count_vm_events(VmEvent::Pgfault, 1);
        }
        result
    }

    /// `handle_pte_fault`.
    #[inline(always)]
    fn handle_pte_fault(&self, fault: &Fault, table: PageTable) -> Outcome {
        let word = table.word(fault.addr);
        // Acquire pairs with the release of who entered a page.
        let pte = Pte(word.load(Acquire));
        if pte.is_none() {
            if fault.vma.is_anonymous() {
                return self.do_anonymous_page(fault, table);
            }
            return self.do_fault(fault, table);
        }
        if !pte.keeps_page() {
            // No page is anywhere but in memory.
            return Ok(FaultResult::BUS_ADRERR);
        }
        if fault.write && !pte.is_writable() {
            return self.do_wp_page(fault, table, pte);
        }
        let lock = self.lock_table(table);
        if Pte(word.load(Acquire)) == pte && !pte.is_protnone() {
            let used = Entry::ACCESSED | if fault.write { Entry::DIRTY } else { 0 };
            if pte.0 & used != used {
                word.fetch_or(used, AcqRel);
            }
        }
        drop(lock);
        Ok(FaultResult::done(FaultKind::Spurious))
    }
}
