//! What the processor does for a program: a hosted machine has no MMU, so tests' accesses walk the page tables here.

use core::sync::atomic::Ordering::AcqRel;

use pagevisor_shared::pgtable::Entry;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};

use super::arena::HostPlatform;
use crate::Mm;
use crate::memory::{FaultFlags, FaultKind, FaultResult, Pte};
use crate::mmap::{Limits, Space};
use crate::platform::Platform;
use crate::raw::UserMemory;
use crate::sync::Plain;

impl Mm<HostPlatform> {
    /// A program's read of a byte, and the last fault on the way, if there was one. What ends the program is an error.
    ///
    /// # Errors
    /// What the fault came to.
    pub fn user_load(
        &self,
        space: Space,
        addr: VirtAddr,
        limits: &Limits,
    ) -> Result<(u8, Option<FaultKind>), FaultResult> {
        let mut byte = [0];
        let kind = self.user_access(space, addr, FaultFlags::USER, limits, |memory, pte, offset| {
            memory.read(pte.pfn(), offset, &mut byte);
        })?;
        Ok((byte[0], kind))
    }

    /// A program's write of a byte, as [`Self::user_load`].
    ///
    /// # Errors
    /// What the fault came to.
    pub fn user_store(
        &self,
        space: Space,
        addr: VirtAddr,
        byte: u8,
        limits: &Limits,
    ) -> Result<Option<FaultKind>, FaultResult> {
        let flags = FaultFlags::USER.with(FaultFlags::WRITE);
        self.user_access(space, addr, flags, limits, |memory, pte, offset| {
            memory.write(pte.pfn(), offset, &[byte]);
        })
    }

    fn user_access(
        &self,
        space: Space,
        addr: VirtAddr,
        flags: FaultFlags,
        limits: &Limits,
        mut access: impl FnMut(UserMemory, Pte, u64),
    ) -> Result<Option<FaultKind>, FaultResult> {
        let mut last = None;
        loop {
            if self.user_hit(space, addr, flags.contains(FaultFlags::WRITE), &mut access) {
                return Ok(last);
            }
            match self.handle_mm_fault(space, addr, flags, limits) {
                FaultResult::Done { kind, .. } => last = Some(kind),
                FaultResult::Retry => {}
                failed => return Err(failed),
            }
            self.platform.relax();
        }
    }

    /// The access, if the page tables allow it. The lock of the table stands for the time that a flush takes to reach a
    /// processor: nothing is freed while an access goes on.
    fn user_hit(
        &self,
        space: Space,
        addr: VirtAddr,
        write: bool,
        access: &mut impl FnMut(UserMemory, Pte, u64),
    ) -> bool {
        let Some(_guard) = self.area_guard(space, addr) else { return false };
        let Some(table) = self.page_table(space.record(), addr.raw()) else { return false };
        let word = table.word(addr.raw());
        let _lock = self.lock_table(table);
        let pte = Pte(word.get());
        if !pte.has(Entry::PRESENT) || !pte.has(Entry::USER) || write && !pte.is_writable() {
            return false;
        }
        word.fetch_or(Entry::ACCESSED | if write { Entry::DIRTY } else { 0 }, AcqRel);
        access(UserMemory::new(self.direct_map()), pte, addr.raw() & (PAGE_SIZE - 1));
        true
    }
}
