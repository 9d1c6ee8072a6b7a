//! What spaces have and what programs are promised: counters of areas, limits, overcommit
//! (`vm_stat_account`, `may_expand_vm`, `__vm_enough_memory`).

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::units::PAGE_SHIFT;
use pagevisor_shared::vmstat::ZoneStat;

use super::Space;
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;

/// `overcommit_memory`: as much as is plausible.
const OVERCOMMIT_GUESS: u32 = 0;
/// Any amount.
const OVERCOMMIT_ALWAYS: u32 = 1;
/// No more than the limit.
pub(super) const OVERCOMMIT_NEVER: u32 = 2;
/// `DEFAULT_MAX_MAP_COUNT`.
const DEFAULT_MAX_MAP_COUNT: u32 = 65530;
/// `CONFIG_DEFAULT_MMAP_MIN_ADDR` as distributions set it.
const DEFAULT_MMAP_MIN_ADDR: u64 = 65536;

/// What a program may use at most, in bytes (`RLIMIT_*`); `u64::MAX` for no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Of addresses (`RLIMIT_AS`).
    pub as_: u64,
    /// Of private writable memory (`RLIMIT_DATA`).
    pub data: u64,
    /// What that limit can be raised to, which holds instead where it is 0: Valgrind sets it to that.
    pub data_max: u64,
    /// Of stack (`RLIMIT_STACK`).
    pub stack: u64,
    /// Of locked memory (`RLIMIT_MEMLOCK`).
    pub memlock: u64,
}

impl Limits {
    /// No limits but those a program starts with (`INIT_RLIMITS`): 8 MiB of stack.
    pub const DEFAULT: Self =
        Self { as_: u64::MAX, data: u64::MAX, data_max: u64::MAX, stack: 8 << 20, memlock: u64::MAX };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Private writable memory that is no stack (`is_data_mapping`).
pub(super) const fn is_data(flags: VmaFlags) -> bool {
    flags.contains(VmaFlags::WRITE) && !flags.intersects(VmaFlags::SHARED.with(VmaFlags::GROWSDOWN))
}

/// Text (`is_exec_mapping`).
const fn is_exec(flags: VmaFlags) -> bool {
    flags.contains(VmaFlags::EXEC) && !flags.intersects(VmaFlags::WRITE.with(VmaFlags::GROWSDOWN))
}

/// Counts pages of areas with `flags` that came, or went if there are fewer than none (`vm_stat_account`).
pub(super) fn vm_stat_account(space: Space, flags: VmaFlags, pages: i64) {
    let record = space.record();
    // One writer at a time, who has the space's lock to write.
    record.total_vm.bump(pages as u64);
    if is_exec(flags) {
        record.exec_vm.bump(pages as u64);
    } else if flags.contains(VmaFlags::GROWSDOWN) {
        record.stack_vm.bump(pages as u64);
    } else if is_data(flags) {
        record.data_vm.bump(pages as u64);
    }
    let total = record.total_vm.get();
    if total > record.hiwater_vm.get() {
        record.hiwater_vm.set(total);
    }
}

/// Whether `space` may get `pages` more in areas with `flags` (`may_expand_vm`).
pub(super) fn may_expand_vm(space: Space, flags: VmaFlags, pages: u64, limits: &Limits) -> bool {
    let record = space.record();
    let fits = |now: u64, limit: u64| now.checked_add(pages).is_some_and(|pages| pages <= limit >> PAGE_SHIFT);
    let data = if limits.data == 0 { limits.data_max } else { limits.data };
    fits(record.total_vm.get(), limits.as_) && (!is_data(flags) || fits(record.data_vm.get(), data))
}

impl<P: Platform> Mm<P> {
    /// Sets the settings of address spaces to Linux's defaults.
    pub(crate) fn init_overcommit(&self) {
        let sysctl = self.region.sysctl();
        sysctl.overcommit_ratio.set(50);
        sysctl.max_map_count.set(DEFAULT_MAX_MAP_COUNT);
        sysctl.mmap_min_addr.set(DEFAULT_MMAP_MIN_ADDR);
        let free: i64 = self.zones.iter().map(|zone| zone.vm_stat[ZoneStat::NrFreePages.index()].get()).sum();
        // A 32nd of what is free, and no more than 128 and 8 MiB (`init_user_reserve`, `init_admin_reserve`).
        let share = (free.max(0) as u64) << (PAGE_SHIFT - 10) >> 5;
        sysctl.user_reserve_kbytes.set(share.min(1 << 17));
        sysctl.admin_reserve_kbytes.set(share.min(1 << 13));
    }

    /// Promises `pages` to a program of `space`, or to a file (`security_vm_enough_memory_mm`). Programs are the administrator's here, for
    /// whom nothing is held back.
    ///
    /// # Errors
    /// ENOMEM if that is too much; then nothing is promised.
    pub(crate) fn vm_enough_memory(&self, space: Option<Space>, pages: u64) -> Result<(), Errno> {
        let (sysctl, promised) = (self.region.sysctl(), &self.region.header().roots.committed_as);
        let before = promised.fetch_add(pages as i64, Relaxed);
        let enough = match sysctl.overcommit_memory.get() {
            OVERCOMMIT_ALWAYS => true,
            OVERCOMMIT_GUESS => pages <= self.totalram_pages(),
            OVERCOMMIT_NEVER.. => {
                let reserve = sysctl.user_reserve_kbytes.get() >> (PAGE_SHIFT - 10);
                let reserve = space.map_or(0, |space| reserve.min(space.record().total_vm.get() / 32));
                let allowed = sysctl.commit_limit(self.totalram_pages()).saturating_sub(reserve);
                before.saturating_add(pages as i64).max(0).cast_unsigned() < allowed
            }
        };
        if enough {
            return Ok(());
        }
        self.vm_unacct_memory(pages);
        Err(Errno::ENOMEM)
    }

    /// Promises `pages` whatever there is (`vm_acct_memory`).
    pub(super) fn force_account(&self, pages: u64) {
        self.region.header().roots.committed_as.fetch_add(pages as i64, Relaxed);
    }

    /// Takes back a promise (`vm_unacct_memory`).
    pub(crate) fn vm_unacct_memory(&self, pages: u64) {
        self.region.header().roots.committed_as.fetch_sub(pages as i64, Relaxed);
    }

    /// Pages that the allocator was given (`totalram_pages`).
    fn totalram_pages(&self) -> u64 {
        self.zones.iter().map(|zone| zone.managed_pages.get()).sum()
    }
}
