//! What can look at every allocation and free: events, fault injection, who owns a page, patterns in free pages.
//!
//! While any of it is on, the gates of all pagesets are shut ([`crate::sync::Gated`]), or those of all slab caches'
//! arrays, or both, as it looks at pages or objects. The short ways find the lock taken, as they may at any time, and
//! leave everything to the general ways, which ask [`Mm::instrumented`]. So the short ways do nothing at all for
//! instrumentation that is off.
//!
//! Where things attach:
//!
//! | when | function |
//! |---|---|
//! | before an allocation looks for memory, and when its result is known | `alloc_pages_instrumented` |
//! | a block was taken off the lists, before its owner has it | `post_alloc_hook` |
//! | a block was found fit to be freed, before it is on a list | `free_hook` |
//! | an object is to be allocated, is allocated, is freed | the general ways of [`crate::slab`] |
//!
//! - `trace`: events in the CPUs' rings;
//! - `fault`: allocations that are made to fail, and `failslab`, those of objects;
//! - `objects`: events about objects;
//! - `owner`: who allocated and freed each page;
//! - `poison`: a pattern in free pages.

mod failslab;
mod fault;
mod objects;
mod owner;
mod poison;
mod trace;

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Relaxed, Release};

use pagevisor_shared::command::Faulty;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::zone::hot;
use pagevisor_shared::units::{NodeId, NodeMask, Order, PAGE_SHIFT};

pub use fault::{BadFault, FailNth, FaultAttr};
pub(crate) use objects::{PercpuAsked, Shrinking};
use owner::Owners;
pub use poison::PAGE_POISON;
use poison::Poison;

use crate::Mm;
use crate::memblock::{AllocError, Memblock};
use crate::params::Params;
use crate::pcp::gated;
use crate::platform::{Level, Platform};
use crate::sync::{self, Plain};

/// What is on.
#[derive(Debug)]
pub(crate) struct Instrument {
    /// Bits of [`hot`].
    active: AtomicU32,
    /// Guards changes of the bits.
    lock: AtomicU32,
    owners: Owners,
    poison: Poison,
    /// Events that the command line asks for.
    events: u64,
    /// Failures that the command line asks for.
    faults: Option<FaultAttr>,
    /// Failures of objects that the command line asks for.
    slab_faults: Option<FaultAttr>,
}

impl Instrument {
    /// Nothing is on, but there is room for what `params` want.
    ///
    /// # Errors
    /// [`AllocError`] when there is no room for it.
    pub(crate) fn allocate<P: Platform>(
        platform: &P,
        memblock: &mut Memblock,
        params: &Params,
    ) -> Result<Self, AllocError> {
        let frames = memblock.end_of_dram().raw() >> PAGE_SHIFT;
        let (mut owners, mut poison) = (Owners::none(), Poison::none());
        if params.hot & hot::PAGE_OWNER != 0 {
            owners = Owners::allocate(platform, memblock, frames)?;
        }
        if params.hot & hot::POISON != 0 {
            poison = Poison::allocate(platform, memblock, frames)?;
        }
        Ok(Self {
            active: AtomicU32::new(0),
            lock: AtomicU32::new(0),
            owners,
            poison,
            events: params.events,
            faults: params.fail_page_alloc,
            slab_faults: params.failslab,
        })
    }
}

impl<P: Platform> Mm<P> {
    /// Turns on what the command line asks for, but for events and failures.
    pub(crate) fn init_instruments(&self, params: &Params) {
        self.init_faults();
        self.instrument.owners.publish(self.platform, &self.region.header().roots);
        let mut wanted = params.hot;
        let clearing = hot::INIT_ON_ALLOC | hot::INIT_ON_FREE;
        if wanted & hot::POISON != 0 && wanted & clearing != 0 {
            wanted &= !clearing;
            let line = format_args!(
                "mem auto-init: CONFIG_PAGE_POISONING is on, will take precedence over init_on_alloc and init_on_free"
            );
            self.platform.log(Level::Info, line);
        }
        if wanted != 0 {
            self.set_instrumented(wanted, true);
        }
    }

    /// Makes allocations fail as the command line asks for. Once slab caches are up, without which there is no kernel
    /// whose allocations could fail.
    pub(crate) fn start_faults(&self) {
        for (of, attr) in [(Faulty::Pages, self.instrument.faults), (Faulty::Objects, self.instrument.slab_faults)] {
            // What `parse` gives can only be out of range in the number of failures.
            if let Some(Err(error)) = attr.map(|attr| self.set_fault(of, &attr)) {
                self.platform.log(Level::Warning, format_args!("FAULT_INJECTION: {error}"));
            }
        }
    }

    /// What looks at allocations and frees now: [`hot`] bits, 0 for nothing.
    #[inline(always)]
    pub fn instrumented(&self) -> u32 {
        if cfg!(feature = "bare") {
            return 0;
        }
        self.instrument.active.load(Relaxed)
    }

    /// Turns the [`hot`] bits of `which` on or off. When it returns, allocations and frees that begin on any CPU see
    /// it; those under way may not. Not from interrupts: it waits for the pagesets' and arrays' locks.
    pub fn set_instrumented(&self, which: u32, on: bool) {
        sync::lock(&self.instrument.lock, || self.platform.relax());
        let before = self.instrument.active.get();
        let bits = hot::among(if on { before | which } else { before & !which }, !0);
        // Whoever comes through a gate that is shut finds the bits.
        self.instrument.active.store(bits, Release);
        let pages = hot::among(bits, hot::PAGES);
        if pages != hot::among(before, hot::PAGES) {
            for pcp in self.region.pcps() {
                // Release: the holder of the other lock word sees what the holder of this one did.
                gated(pcp).change(|| self.platform.relax(), || pcp.hot.store(pages, Release));
            }
        }
        if (bits ^ before) & hot::OBJECTS != 0 {
            self.shut_arrays();
        }
        sync::unlock(&self.instrument.lock);
    }

    /// `__alloc_pages` while something is on.
    #[cold]
    #[inline(never)]
    pub(crate) fn alloc_pages_instrumented(
        &self,
        gfp: Gfp,
        order: Order,
        node: NodeId,
        nodemask: Option<NodeMask>,
    ) -> Option<u32> {
        if self.instrumented() & hot::FAIL_PAGE_ALLOC != 0 && self.should_fail_alloc_page(gfp, order) {
            self.trace_failure(gfp, order);
            return None;
        }
        let pfn = self.alloc_pages_plain(gfp, order, node, nodemask);
        if self.instrumented() & hot::EVENTS != 0 {
            self.trace_alloc(pfn, gfp, order);
        }
        pfn
    }

    /// A block was taken off the lists and nobody has it yet (`post_alloc_hook`). Gives the flags to prepare it with.
    #[cold]
    pub(crate) fn post_alloc_hook(&self, pfn: u32, order: u32, gfp: Gfp) -> Gfp {
        let hot = self.instrumented();
        if hot & hot::POISON != 0 {
            self.unpoison_block(pfn, order);
        }
        if hot & hot::PAGE_OWNER != 0 {
            self.set_page_owner(pfn, order, gfp);
        }
        if hot & hot::INIT_ON_ALLOC != 0 { gfp | Gfp::ZERO } else { gfp }
    }

    /// A block was found fit to be freed and is not on a list yet (the end of `free_pages_prepare`).
    #[cold]
    pub(crate) fn free_hook(&self, pfn: u32, order: u32) {
        let hot = self.instrumented();
        if hot & hot::EVENTS != 0 {
            self.trace_free(pfn, order);
        }
        if hot & hot::PAGE_OWNER != 0 {
            self.reset_page_owner(pfn);
        }
        if hot & hot::POISON != 0 {
            self.poison_block(pfn, order);
        }
        if hot & hot::INIT_ON_FREE != 0 {
            self.clear_block(pfn, order);
        }
    }
}
