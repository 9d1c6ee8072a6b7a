//! Clearing free memory while a CPU has nothing else to do, so that who wants zeros finds them.
//!
//! Blocks stay where they are on their lists, and so do all counts: nobody sees a difference but in the content of memory
//! and that it is known. A little is cleared at a time with the zone's lock held, under which blocks leave their lists.
//! Only whole blocks are known to be zero. How far a larger one has come is kept beside the lists, for one block at a
//! time, and holds as long as that block has [`PG_CLEARING`], which it loses when it leaves its list, is split, or merges.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page::PG_BUDDY;
use pagevisor_shared::page_flags::{PG_CLEARING, PG_NOTZERO};
use pagevisor_shared::region::zone::hot;
use pagevisor_shared::units::MAX_ORDER;
use pagevisor_shared::zone::{ZoneIndex, ZoneType};

use super::lock::LockedZone;
use crate::Mm;
use crate::list;
use crate::platform::Platform;
use crate::sync::{self, Plain};

/// Order of what is cleared at a time, at most.
const STEP_ORDER: u32 = 4;
/// Blocks looked at on each list: the ones that are handed out next.
const LOOK: usize = 16;
/// Lists, those first that programs' pages come from.
const KINDS: [MigrateType; 3] = [MigrateType::Movable, MigrateType::Unmovable, MigrateType::Reclaimable];

/// How far clearing has come: CPUs go on with one block until it is done.
#[derive(Debug)]
pub(crate) struct Clearing {
    /// Whether a CPU is at it: the others have better things to do than to wait for it.
    busy: AtomicU32,
    /// The block that has been begun; 0 for none.
    block: AtomicU32,
    /// Pages from its start that have been cleared.
    done: AtomicU32,
}

impl Clearing {
    pub(crate) const fn new() -> Self {
        Self { busy: AtomicU32::new(0), block: AtomicU32::new(0), done: AtomicU32::new(0) }
    }
}

impl<P: Platform> Mm<P> {
    /// Clears a little of this CPU's free memory that is not known to be zero, if there is some among what is handed out
    /// next; gives how many pages. For a CPU that has nothing else to do.
    pub fn clear_idle(&self) -> u32 {
        // Without the promise nothing is known to be zero. Other contents of free pages are wanted.
        let wanted = self.fresh_is_zero && self.instrumented() & (hot::POISON | hot::INIT_ON_FREE) == 0;
        if !wanted || !sync::try_lock(&self.clearing.busy) {
            return 0;
        }
        let cpu = self.platform.this_cpu();
        let mut pages = 0;
        for kind in ZoneType::ALL.into_iter().rev() {
            let index = ZoneIndex::of(cpu.mem_node, kind);
            if pages == 0 && self.zones.get(index.index()).is_some_and(|zone| zone.managed_pages.get() != 0) {
                pages = self.lock_zone(index).clear_step();
            }
        }
        sync::unlock(&self.clearing.busy);
        cpu.state.idle_cleared.fetch_add(pages as u64, Relaxed);
        pages
    }
}

impl<P: Platform> LockedZone<'_, P> {
    /// Clears the next part of a block; gives how many pages, 0 if there is no such block.
    fn clear_step(&self) -> u32 {
        let clearing = &self.mm.clearing;
        let (pfn, order, done) = match self.begun_block() {
            Some((pfn, order)) => (pfn, order, clearing.done.get()),
            None => match self.unknown_block() {
                Some((pfn, order)) => (pfn, order, 0),
                None => return 0,
            },
        };
        let step = order.min(STEP_ORDER);
        self.mm.clear_block(pfn + done, step);
        let done = done + (1 << step);
        let whole = done >= 1 << order;
        self.memmap.page(pfn).flags.set(if whole { 0 } else { PG_NOTZERO | PG_CLEARING });
        clearing.block.set(if whole { 0 } else { pfn });
        clearing.done.set(done);
        1 << step
    }

    /// The block that has been begun, and its order, if it is one of this zone and has not been touched since.
    fn begun_block(&self) -> Option<(u32, u32)> {
        let pfn = self.mm.clearing.block.get();
        if pfn == 0 || !self.owns(pfn) {
            return None;
        }
        let page = self.memmap.page(pfn);
        let begun = page._mapcount.get() == PG_BUDDY && page.flags.get() & PG_CLEARING != 0;
        begun.then(|| (pfn, page.private.get()))
    }

    /// A block that is not known to be zero, and its order: of the smallest, which are handed out first. Those of the
    /// largest order that nobody has touched are left alone.
    fn unknown_block(&self) -> Option<(u32, u32)> {
        for (order, area) in (0..MAX_ORDER as u32).zip(&self.state.free_area) {
            for kind in KINDS {
                let mut pfn = area.free_list[kind.index()].first.get();
                for _ in 0..LOOK {
                    if pfn == 0 {
                        break;
                    }
                    let page = self.memmap.page(pfn);
                    if page._mapcount.get() == PG_BUDDY && page.flags.get() & PG_NOTZERO != 0 {
                        return Some((pfn, order));
                    }
                    pfn = list::next(pfn, page);
                }
            }
        }
        None
    }
}
