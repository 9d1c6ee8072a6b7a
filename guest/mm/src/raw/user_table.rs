//! Page tables of user address spaces, reached through the direct map.
//!
//! What it rests on: every table is a page that the allocator gave out to be one ([`UserTable::adopt`]), cleared; the word
//! that leads to the top table of an address space, and the entries above the lowest level for user addresses, are written
//! here only ([`UserTable::set_root`], `link`, `unlink`). So whoever follows an entry that leads to a table arrives at one.
//! A table that was taken out is not touched any more through references that were got before: `memory` frees tables only
//! of addresses where no area is, of which faults and others who walk hold one.

use core::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};

use pagevisor_shared::mm_types::MmStruct;
use pagevisor_shared::pgtable::{Entry, PTRS_PER_TABLE, TOP_LEVEL, table_index};
use pagevisor_shared::units::{PAGE_SHIFT, Pfn, PhysAddr};

use super::DirectMap;
use crate::platform::Platform;
use crate::sync::Plain;

/// Entries of a top table that are for user addresses.
const USER_ENTRIES: usize = PTRS_PER_TABLE / 2;

/// A table of level `LEVEL` of a user address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UserTable<const LEVEL: u32>(&'static [AtomicU64; PTRS_PER_TABLE]);

/// The top table.
pub(crate) type Pgd = UserTable<TOP_LEVEL>;
/// A table of entries that keep pages.
pub(crate) type PageTable = UserTable<0>;

impl<const LEVEL: u32> UserTable<LEVEL> {
    /// Makes the page at `pfn` a table.
    ///
    /// # Safety
    /// The caller has allocated the page, has cleared it and uses it as this table only, until it is out of all tables.
    #[inline]
    pub(crate) unsafe fn adopt(map: DirectMap, pfn: Pfn) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::at(map, pfn.addr()) }
    }

    /// # Safety
    /// There is a table of that level.
    #[inline(always)]
    unsafe fn at(map: DirectMap, phys: PhysAddr) -> Self {
        // SAFETY: tables are whole pages of RAM, which the direct map makes readable and writable for the life of the
        // program; entries are atomics, valid with any content.
        Self(unsafe { &*map.at(phys).cast() })
    }

    /// Its frame.
    #[inline(always)]
    pub(crate) fn pfn(self, map: DirectMap) -> Pfn {
        Pfn::new((self.0.as_ptr().addr() - map.base().addr().get()) as u64 >> PAGE_SHIFT)
    }

    #[inline(always)]
    fn slot(self, virt: u64) -> &'static AtomicU64 {
        // Nine bits, so it is in range.
        &self.0[table_index(virt, LEVEL)]
    }

    /// The entry for `virt`.
    #[cfg(feature = "hosted")]
    pub(crate) fn get(self, virt: u64) -> Entry {
        Entry(self.slot(virt).get())
    }
}

macro_rules! levels {
    ($($level:literal leads to $lower:literal;)*) => {$(
        impl UserTable<$level> {
            /// The table that the entry for `virt` leads to.
            #[inline(always)]
            pub(crate) fn next(self, map: DirectMap, virt: u64) -> Option<UserTable<$lower>> {
                // Acquire pairs with the release in `link`: who finds the table finds it cleared.
                let word = self.slot(virt).load(Acquire);
                if word & Entry::PRESENT == 0 || !self.is_user(virt) {
                    return None;
                }
                // SAFETY: only `link` writes such entries for user addresses; it had a table of the level below.
                Some(unsafe { UserTable::at(map, PhysAddr::new(word & Entry::ADDRESS)) })
            }

            /// Enters `table` for `virt`, for which there is none.
            #[inline]
            pub(crate) fn link(self, map: DirectMap, virt: u64, table: UserTable<$lower>) {
                if self.is_user(virt) {
                    let word = table.pfn(map).addr().raw() | Entry::USER_TABLE;
                    self.slot(virt).store(word, Release);
                }
            }

            /// Takes out the table that the entry for `virt` leads to.
            #[inline]
            pub(crate) fn unlink(self, virt: u64) {
                if self.is_user(virt) {
                    self.slot(virt).set(0);
                }
            }

            /// Whether the entry for `virt` is for a user address. Below the top all are.
            #[inline(always)]
            fn is_user(self, virt: u64) -> bool {
                $level < TOP_LEVEL || table_index(virt, TOP_LEVEL) < USER_ENTRIES
            }
        }
    )*};
}

levels! {
    3 leads to 2;
    2 leads to 1;
    1 leads to 0;
}

impl Pgd {
    /// The top table of `space`, which has one from when it is made until it goes.
    #[inline(always)]
    pub(crate) fn root(map: DirectMap, space: &MmStruct) -> Option<Self> {
        let phys = space.pgd.get();
        // SAFETY: only `set_root` writes the word, from a table.
        (phys != 0).then(|| unsafe { Self::at(map, PhysAddr::new(phys)) })
    }

    /// Makes this the top table of `space`, with the kernel's entries for what is not user addresses.
    pub(crate) fn set_root<P: Platform>(self, platform: &P, space: &MmStruct) {
        let map = DirectMap::new(platform);
        // SAFETY: a table for ever, reached through the direct map (promise of `Platform::kernel_root`). It is only read.
        let kernel = unsafe { Self::at(map, platform.kernel_root()) };
        for (own, entry) in self.0.iter().zip(kernel.0).skip(USER_ENTRIES) {
            own.set(entry.get());
        }
        space.pgd.store(self.pfn(map).addr().raw(), Release);
    }

    /// Takes the top table from `space`, of which nothing else is left.
    pub(crate) fn take_root(map: DirectMap, space: &MmStruct) -> Option<Self> {
        let root = Self::root(map, space);
        space.pgd.set(0);
        root
    }
}

impl PageTable {
    /// The word of the entry for `virt`. What it keeps is not followed here.
    #[inline(always)]
    pub(crate) fn word(self, virt: u64) -> &'static AtomicU64 {
        self.slot(virt)
    }

    /// The words of `count` entries from the one for `virt` on, as far as the table goes.
    #[inline(always)]
    pub(crate) fn words(self, virt: u64, count: usize) -> &'static [AtomicU64] {
        let first = table_index(virt, 0);
        let count = count.min(PTRS_PER_TABLE - first);
        self.0.get(first..first + count).unwrap_or(&[])
    }
}
