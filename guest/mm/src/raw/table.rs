//! Tables of records in memory that boot took for good.

use core::slice;
use core::sync::atomic::AtomicU64;

use pagevisor_shared::page_owner::{OwnerRecord, StackRecord};
use pagevisor_shared::units::{PAGE_SIZE, PhysAddr};

use crate::memblock::{AllocError, Memblock};
use crate::platform::Platform;

/// A record of a table.
///
/// # Safety
/// It is made of atomics that are valid with any content, and needs no larger alignment than a page.
pub(crate) unsafe trait Record: Sync + 'static {}

// SAFETY: one atomic.
unsafe impl Record for AtomicU64 {}
// SAFETY: integers of 32 and 64 bits as atomics, without padding that anybody looks at.
unsafe impl Record for OwnerRecord {}
// SAFETY: integers of 32 and 64 bits as atomics, without padding.
unsafe impl Record for StackRecord {}

/// A table, or none.
#[derive(Debug)]
pub(crate) struct BootTable<T: 'static>(&'static [T]);

impl<T: Record> BootTable<T> {
    /// No table.
    pub(crate) const fn none() -> Self {
        Self(&[])
    }

    /// Takes a table of `count` records from memblock, all zero.
    ///
    /// # Errors
    /// [`AllocError`] when there is no room for it.
    pub(crate) fn allocate<P: Platform>(platform: &P, memblock: &mut Memblock, count: u64) -> Result<Self, AllocError> {
        let bytes = count * size_of::<T>() as u64;
        // Out of ZONE_DMA, and out of the way of what is handed over in large blocks.
        let base = memblock.alloc_from(bytes.next_multiple_of(PAGE_SIZE), PAGE_SIZE, PhysAddr::new(16 << 20))?;
        // SAFETY: memblock has just reserved and cleared that much RAM at `base`, nobody frees it, and RAM lies inside
        // the direct map for the life of the program (promise of `Platform`). Pages are aligned for the records, which
        // are valid with any content (promise of `Record`).
        Ok(Self(unsafe {
            let base = platform.direct_map().add(base.raw() as usize);
            slice::from_raw_parts(base.cast().as_ptr(), count as usize)
        }))
    }

    /// The records.
    #[inline]
    pub(crate) const fn get(&self) -> &'static [T] {
        self.0
    }

    /// Physical address of the first record; 0 for no table.
    pub(crate) fn addr<P: Platform>(&self, platform: &P) -> PhysAddr {
        if self.0.is_empty() {
            return PhysAddr::new(0);
        }
        PhysAddr::new((self.0.as_ptr().addr() - platform.direct_map().as_ptr().addr()) as u64)
    }
}
