//! Objects that wait in a pool ([`crate::mempool`]): the pattern of free ones is in them, and is looked at when they are
//! taken out (`poison_element` and `check_element` of `mm/mempool.c`).

use core::fmt;
use core::ops::Range;
use core::sync::atomic::AtomicU8;

use pagevisor_shared::slab::{POISON_END, POISON_FREE, POISON_INUSE, SlabFlags};
use pagevisor_shared::units::VirtAddr;

use super::Cache;
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;

/// The content of an object of a cache that is debugged, which its owner, a pool, has laid aside.
#[derive(Clone, Copy, Debug)]
pub struct Pooled {
    addr: VirtAddr,
    size: usize,
}

impl Pooled {
    /// That of the object at `addr`; `None` if the cache is not debugged, or if what a constructor wrote must stay.
    pub(crate) fn of(cache: Cache, addr: VirtAddr) -> Option<Self> {
        let (record, flags) = (cache.record(), cache.flags());
        let size = record.object_size.get() as usize;
        (flags.intersects(SlabFlags::DEBUG) && record.ctor.get() == 0).then_some(Self { addr, size })
    }

    pub(crate) fn addr(self) -> VirtAddr {
        self.addr
    }

    pub(crate) fn size(self) -> usize {
        self.size
    }
}

/// Bytes as `%x ` prints them one by one.
struct Bytes(&'static [AtomicU8]);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{:x} ", byte.get()))
    }
}

impl<P: Platform> Mm<P> {
    /// Fills what is laid aside with the pattern (`__poison_element`).
    #[cold]
    pub(crate) fn poison_pooled(&self, content: Pooled) {
        let Pooled { addr, size } = content;
        self.slab_memory().fill(addr, size, POISON_FREE);
        self.slab_memory().byte(addr.raw() + size as u64 - 1).set(POISON_END);
    }

    /// The first byte that is not as it was left. If there is none, the object is marked as in use
    /// (`__check_element`).
    #[cold]
    pub(crate) fn check_pooled(&self, content: Pooled) -> Option<usize> {
        let Pooled { addr, size } = content;
        let expected = |at: usize| if at + 1 == size { POISON_END } else { POISON_FREE };
        let bytes = self.slab_memory().bytes(addr.raw(), size);
        let wrong = bytes.iter().enumerate().position(|(at, byte)| byte.get() != expected(at));
        if wrong.is_none() {
            self.slab_memory().fill(addr, size, POISON_INUSE);
        }
        wrong
    }

    /// Some bytes of what was laid aside, to be printed.
    pub(crate) fn pooled_text(&self, content: Pooled, range: Range<usize>) -> impl fmt::Display {
        Bytes(self.slab_memory().bytes(content.addr.raw(), content.size).get(range).unwrap_or_default())
    }
}
