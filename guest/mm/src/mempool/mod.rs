//! Pools that keep elements in reserve, so that whoever must make progress always gets one (`mm/mempool.c`).
//!
//! A [`Mempool`] holds back as many elements as it was made with. Allocating asks the [`Source`] first and takes from
//! the reserve when that has none; freeing fills the reserve up again before anything goes back to the source. As long
//! as everybody who holds an element gives it back in time, an allocation that may wait always succeeds.
//!
//! Elements of a cache that is debugged hold a pattern while they are in the reserve: who writes to one gives himself away
//! when it is taken out.

mod source;

use core::fmt;
use core::mem;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::NodeId;

pub use source::{Functions, KmallocSource, PageSource, SlabSource, Source};

use crate::platform::{Level, Platform};
use crate::raw::SpinLock;
use crate::slab::Pooled;
use crate::{KVec, Mm, NoMemory};

/// How often a CPU that waits for an element looks at the reserve before it asks the source again (the timeout of
/// `io_schedule_timeout`: memory may have come free elsewhere).
const WAIT_ROUNDS: u32 = 1000;

/// A pool of elements (`mempool_t`). Dropping it gives the reserve back to the source (`mempool_destroy`).
pub struct Mempool<'a, P: Platform, S: Source<P>> {
    mm: &'a Mm<P>,
    source: S,
    /// Elements the reserve should hold, at least 1. Written under the lock.
    min_nr: AtomicUsize,
    /// Elements it holds. Written under the lock.
    curr_nr: AtomicUsize,
    /// The reserve, with room for `min_nr`. The lock is the innermost one, and nothing is allocated under it.
    elements: SpinLock<KVec<'a, S::Element, P>>,
}

impl<P: Platform> Mm<P> {
    /// Makes a pool that keeps `min_nr` elements of `source` in reserve (`mempool_create`). Not from interrupts.
    ///
    /// # Errors
    /// [`NoMemory`] when the reserve cannot be filled, and for a reserve of nothing.
    pub fn mempool_create<S: Source<P>>(&self, min_nr: usize, source: S) -> Result<Mempool<'_, P, S>, NoMemory> {
        self.mempool_create_node(min_nr, source, Gfp::KERNEL, None)
    }

    /// As [`Self::mempool_create`], with the pool's own memory from `node`, and the reserve filled as `gfp` says
    /// (`mempool_create_node`).
    ///
    /// # Errors
    /// As [`Self::mempool_create`].
    pub fn mempool_create_node<S: Source<P>>(
        &self,
        min_nr: usize,
        source: S,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<Mempool<'_, P, S>, NoMemory> {
        if min_nr == 0 {
            return Err(NoMemory);
        }
        let elements = KVec::with_capacity_node(self, min_nr, gfp, node)?;
        // From here on dropping the pool gives back what it has.
        let pool = Mempool {
            mm: self,
            source,
            min_nr: AtomicUsize::new(min_nr),
            curr_nr: AtomicUsize::new(0),
            elements: SpinLock::new(elements),
        };
        pool.fill(gfp)?;
        Ok(pool)
    }
}

impl<'a, P: Platform, S: Source<P>> Mempool<'a, P, S> {
    /// Elements the reserve should hold.
    pub fn min_nr(&self) -> usize {
        self.min_nr.load(Relaxed)
    }

    /// Elements the reserve holds now.
    pub fn curr_nr(&self) -> usize {
        self.curr_nr.load(Relaxed)
    }

    /// Where elements come from.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// Allocates an element (`mempool_alloc`): from the source, if that has one without waiting; else from the reserve;
    /// else from the source once more, with all that `gfp` allows. If there is still none and `gfp` allows to wait
    /// (`__GFP_DIRECT_RECLAIM`), it waits until somebody frees one: then there is always one. Elements are not
    /// cleared: `__GFP_ZERO` is not for pools.
    #[inline(always)]
    pub fn alloc(&self, gfp: Gfp) -> Option<S::Element> {
        match self.source.alloc_quickly(self.mm) {
            Some(element) => Some(element),
            None => self.alloc_general(gfp),
        }
    }

    #[inline(never)]
    fn alloc_general(&self, gfp: Gfp) -> Option<S::Element> {
        // No emergency reserves, no loops, no complaints: the pool knows what to do.
        let gfp = gfp | Gfp::NOMEMALLOC | Gfp::NORETRY | Gfp::NOWARN;
        let element = self.source.alloc(self.mm, gfp.without(Gfp::DIRECT_RECLAIM | Gfp::IO));
        if element.is_some() { element } else { self.alloc_reserve(gfp) }
    }

    #[cold]
    #[inline(never)]
    fn alloc_reserve(&self, gfp: Gfp) -> Option<S::Element> {
        let mut hasty = gfp.intersects(Gfp::DIRECT_RECLAIM | Gfp::IO);
        loop {
            let mut element = self.take();
            if element.is_some() {
                return element;
            }
            // What was left out at first is tried before anybody waits.
            if !mem::take(&mut hasty) {
                if !gfp.contains(Gfp::DIRECT_RECLAIM) {
                    return None;
                }
                self.wait();
            }
            element = self.source.alloc(self.mm, gfp);
            if element.is_some() {
                return element;
            }
        }
    }

    /// Waits for a while for somebody to fill the reserve.
    fn wait(&self) {
        for _ in 0..WAIT_ROUNDS {
            if self.curr_nr() != 0 {
                return;
            }
            self.mm.platform.relax();
        }
    }

    /// Takes an element from the reserve (`remove_element`).
    fn take(&self) -> Option<S::Element> {
        let mut elements = self.elements.lock(self.mm.platform);
        let element = elements.pop();
        // Release: pairs with `free`.
        self.curr_nr.store(elements.len(), Release);
        drop(elements);
        element.inspect(|element| self.check(*element))
    }

    /// Looks at an element that was taken out of the reserve (`check_element`).
    fn check(&self, element: S::Element) {
        if let Some(content) = self.source.watched(self.mm, element)
            && let Some(wrong) = self.mm.check_pooled(content)
        {
            self.report(content, wrong);
        }
    }

    /// Says that byte `wrong` of an element in the reserve was written to (`poison_error`).
    #[cold]
    fn report(&self, content: Pooled, wrong: usize) {
        let (platform, size, addr) = (self.mm.platform, content.size(), content.addr().raw());
        platform.log(Level::Err, format_args!("BUG: mempool element poison mismatch"));
        platform.log(Level::Err, format_args!("Mempool {:016x} size {size}", (&raw const *self).addr()));
        let (start, end) = (wrong.saturating_sub(8), size.min(wrong + 8));
        let (before, behind) = (if start > 0 { "... " } else { "" }, if end < size { "..." } else { "" });
        let bytes = self.mm.pooled_text(content, start..end);
        let line = format_args!(" nr={} @ {addr:016x}: {before}0x{bytes}{behind}", self.curr_nr());
        platform.log(Level::Err, line);
        platform.dump_stack();
    }

    /// Frees an element of the pool (`mempool_free`): it goes to the reserve, unless that is full. Never waits, and may
    /// be called from interrupts.
    #[inline(always)]
    pub fn free(&self, element: S::Element) {
        // Acquire: this CPU got the element from one that took it out of the reserve, and must see that it did, or the
        // reserve would seem full, and be short of this one for ever.
        let short = self.curr_nr.load(Acquire) < self.min_nr.load(Relaxed);
        if short || !self.source.free_quickly(self.mm, element) {
            self.free_general(element, short);
        }
    }

    #[inline(never)]
    fn free_general(&self, element: S::Element, short: bool) {
        let spare = if short { self.put(element) } else { Err(element) };
        if let Err(element) = spare {
            self.source.free(self.mm, element);
        }
    }

    /// Puts an element into the reserve if it is not full (`add_element`).
    fn put(&self, element: S::Element) -> Result<(), S::Element> {
        let mut elements = self.elements.lock(self.mm.platform);
        if elements.len() >= self.min_nr() {
            return Err(element);
        }
        if let Some(content) = self.source.watched(self.mm, element) {
            // `poison_element`.
            self.mm.poison_pooled(content);
        }
        elements.push_within_capacity(element)?;
        self.curr_nr.store(elements.len(), Release);
        Ok(())
    }

    /// Fills the reserve from the source.
    fn fill(&self, gfp: Gfp) -> Result<(), NoMemory> {
        while self.curr_nr() < self.min_nr() {
            let element = self.source.alloc(self.mm, gfp).ok_or(NoMemory)?;
            if let Err(element) = self.put(element) {
                // Others were faster.
                self.source.free(self.mm, element);
                break;
            }
        }
        Ok(())
    }

    /// Makes the reserve larger or smaller (`mempool_resize`), while others may use the pool. Not from interrupts. If the
    /// source has not enough for a larger reserve, what is freed fills it up in time.
    ///
    /// # Errors
    /// [`NoMemory`] when there is none to keep track of that many, and for a reserve of nothing; the pool is as it was.
    pub fn resize(&self, min_nr: usize) -> Result<(), NoMemory> {
        if min_nr == 0 {
            return Err(NoMemory);
        }
        if self.shrink(min_nr) {
            return Ok(());
        }
        let mut larger = KVec::with_capacity(self.mm, min_nr, Gfp::KERNEL)?;
        let mut elements = self.elements.lock(self.mm.platform);
        if min_nr > self.min_nr() {
            for element in elements.iter() {
                // There is room.
                let _ = larger.push_within_capacity(*element);
            }
            // The one that is too small now is freed below.
            mem::swap(&mut *elements, &mut larger);
            self.min_nr.store(min_nr, Relaxed);
        }
        drop(elements);
        drop(larger);
        // Like Linux: too few is no failure of this.
        let _ = self.fill(Gfp::KERNEL);
        Ok(())
    }

    /// Makes the reserve smaller; false if it would become larger.
    fn shrink(&self, min_nr: usize) -> bool {
        loop {
            let mut elements = self.elements.lock(self.mm.platform);
            if min_nr > self.min_nr() {
                return false;
            }
            if elements.len() <= min_nr {
                self.min_nr.store(min_nr, Relaxed);
                return true;
            }
            let element = elements.pop();
            self.curr_nr.store(elements.len(), Release);
            drop(elements);
            if let Some(element) = element {
                self.check(element);
                self.source.free(self.mm, element);
            }
        }
    }

    /// Gives the pool up, with what it has in reserve (`mempool_destroy`). Elements that are in use stay their owners',
    /// who have to give them to the source.
    pub fn destroy(self) {
        drop(self);
    }
}

impl<P: Platform, S: Source<P>> Drop for Mempool<'_, P, S> {
    fn drop(&mut self) {
        while let Some(element) = self.elements.get_mut().pop() {
            self.check(element);
            self.source.free(self.mm, element);
        }
    }
}

impl<P: Platform, S: Source<P>> fmt::Debug for Mempool<'_, P, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mempool").field("min_nr", &self.min_nr).field("curr_nr", &self.curr_nr).finish_non_exhaustive()
    }
}
