//! The slabs of a cache, walked along the lists of its nodes and compared with the counters.

use std::ops::Range;
use std::time::Instant;

use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::slab::{FreelistWords, SlabWord};
use pagevisor_shared::units::PAGE_SHIFT;

use super::arrays::Arrays;
use super::cache::{NodeSlabs, SlabCache};
use crate::state::error::StateError;
use crate::state::lists::{ListFault, ListFaultKind, ListRule, visit_list};
use crate::state::memmap::{Memmap, PageMeta};
use crate::state::{Patience, StateView};

/// A list of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlabList {
    /// Slabs with some objects left.
    Partial,
    /// Slabs with none left.
    Full,
    /// Slabs with all of them.
    Free,
}

impl SlabList {
    /// All of them, in crash's order.
    pub const ALL: [Self; 3] = [Self::Partial, Self::Full, Self::Free];

    /// Linux's name of it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Partial => "slabs_partial",
            Self::Full => "slabs_full",
            Self::Free => "slabs_free",
        }
    }

    /// The list that a slab with `active` of `num` objects handed out belongs on.
    pub const fn of(active: u32, num: u32) -> Self {
        match active {
            0 => Self::Free,
            _ if active >= num => Self::Full,
            _ => Self::Partial,
        }
    }
}

/// A slab.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slab {
    /// Its first frame.
    pub pfn: u32,
    /// Objects handed out.
    pub active: u32,
    /// Its colour, and where its list of free objects is.
    pub words: FreelistWords,
}

impl Slab {
    /// The slab whose first page has this metadata, if it is one.
    pub(super) fn of(pfn: u32, page: &PageMeta) -> Option<(SlabWord, Self)> {
        let word = SlabWord(page.mapping);
        let first = word.is_slab() && !word.is_tail() && page.flags & PageFlag::Slab.mask() != 0;
        let words = FreelistWords { index: page.index, private: page.private };
        first.then_some((word, Self { pfn, active: page.mapcount, words }))
    }
}

/// A damaged list, or a slab on the wrong one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SlabListFault {
    /// The list cannot be followed to its end.
    List(SlabList, ListFault),
    /// A slab does not belong on the list it is on.
    Misplaced {
        /// The list.
        list: SlabList,
        /// The slab.
        slab: Slab,
    },
}

impl std::fmt::Display for SlabListFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::List(list, fault) => write!(f, "corrupted {}: {fault}", list.name()),
            Self::Misplaced { list, slab } => {
                write!(f, "the slab at frame {:#x} with {} objects in use is on {}", slab.pfn, slab.active, list.name())
            }
        }
    }
}

/// What a walk along the lists of a node found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeWalk {
    /// The node's record.
    pub info: NodeSlabs,
    /// Its slabs, by [`SlabList::ALL`].
    pub slabs: [Vec<Slab>; 3],
    /// What is wrong with the lists.
    pub faults: Vec<SlabListFault>,
    /// Whether nobody changed the lists meanwhile.
    pub stable: bool,
}

impl NodeWalk {
    /// All slabs: partial, full, free.
    pub fn slabs(&self) -> impl Iterator<Item = &Slab> {
        self.slabs.iter().flatten()
    }

    /// Slabs on the list.
    pub fn count(&self, list: SlabList) -> u64 {
        let lists = SlabList::ALL.iter().zip(&self.slabs);
        lists.filter(|(kind, _)| **kind == list).map(|(_, slabs)| slabs.len() as u64).sum()
    }

    /// Slabs on all lists.
    pub fn total(&self) -> u64 {
        self.slabs.iter().map(|slabs| slabs.len() as u64).sum()
    }

    /// Objects handed out.
    pub fn active(&self) -> u64 {
        self.slabs().map(|slab| u64::from(slab.active)).sum()
    }

    /// Objects that slabs of `num` have left.
    pub fn left(&self, num: u32) -> u64 {
        self.slabs().map(|slab| u64::from(num.saturating_sub(slab.active))).sum()
    }

    /// Whether lists and counters agree.
    pub fn is_verified(&self, num: u32) -> bool {
        self.faults.is_empty()
            && self.total() == self.info.total_slabs
            && self.count(SlabList::Free) == self.info.free_slabs
            && self.left(num) == self.info.free_objects
    }
}

/// The slabs of a cache, and the arrays of free objects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlabWalk {
    /// The cache.
    pub cache: SlabCache,
    /// By node.
    pub nodes: Vec<NodeWalk>,
    /// The arrays' objects.
    pub arrays: Arrays,
}

impl SlabWalk {
    /// Slabs found.
    pub fn slabs(&self) -> u64 {
        self.nodes.iter().map(NodeWalk::total).sum()
    }

    /// Objects that slabs have handed out, to users or to arrays.
    pub fn active(&self) -> u64 {
        self.nodes.iter().map(NodeWalk::active).sum()
    }

    /// Objects in use.
    pub fn allocated(&self) -> u64 {
        self.active().saturating_sub(self.arrays.len())
    }

    /// Whether lists, counters and arrays agree.
    pub fn is_verified(&self) -> bool {
        self.nodes.iter().all(|node| node.is_verified(self.cache.num)) && self.arrays.faults.is_empty()
    }
}

/// What walks along many lists have in common.
struct Walker<'a, 'm> {
    view: &'a StateView,
    cache: &'a SlabCache,
    memmap: &'m mut Memmap<'a>,
    frames: Range<u64>,
}

impl StateView {
    /// Frames of memory that walks along slabs may still touch, at first: all of them.
    pub fn slab_budget(&self) -> u64 {
        self.memory().size() >> PAGE_SHIFT
    }

    /// Walks along the lists of all nodes of a cache and reads its arrays. What is found is taken off `budget`, which
    /// many walks may share: a page is in one slab of one cache.
    ///
    /// A node is looked at under its sequence counter, and again when a running guest changed it meanwhile.
    ///
    /// # Errors
    /// When a page table or the memory map lies outside memory.
    pub fn walk_slabs(&self, cache: &SlabCache, patience: Patience, budget: &mut u64) -> Result<SlabWalk, StateError> {
        let deadline = Instant::now() + patience.limit;
        let mut memmap = self.memmap();
        let frames = 1..self.roots().max_pfn.saturating_add(1).min(1 << 32);
        let mut walker = Walker { view: self, cache, memmap: &mut memmap, frames };
        let mut nodes = Vec::new();
        for info in &cache.nodes {
            let walk = walker.node_patiently(info, patience, deadline, *budget)?;
            *budget = budget.saturating_sub(walk.total().saturating_mul(cache.slab_pages()));
            nodes.push(walk);
        }
        let objects = nodes.iter().map(NodeWalk::total).sum::<u64>().saturating_mul(cache.num.into());
        let arrays = Arrays::read(self, cache, objects)?;
        Ok(SlabWalk { cache: cache.clone(), nodes, arrays })
    }
}

impl Walker<'_, '_> {
    fn node_patiently(
        &mut self,
        info: &NodeSlabs,
        patience: Patience,
        deadline: Instant,
        budget: u64,
    ) -> Result<NodeWalk, StateError> {
        let mut tries = 1;
        loop {
            let now = self.view.reread_node(info)?;
            let mut result = self.node(&now, budget);
            let after = self.view.reread_node(info)?;
            let stable = now.seq & 1 == 0 && now.seq == after.seq;
            if let Ok(walk) = &mut result {
                walk.stable = stable;
            }
            let good = stable && result.as_ref().is_ok_and(|walk| walk.is_verified(self.cache.num));
            if good || tries >= patience.tries || !self.view.is_running() || Instant::now() >= deadline {
                return result;
            }
            tries += 1;
            std::thread::sleep(patience.pause);
        }
    }

    /// One walk along the lists, whatever happens to them meanwhile.
    fn node(&mut self, info: &NodeSlabs, budget: u64) -> Result<NodeWalk, StateError> {
        let (cache, mut budget) = (self.cache, budget);
        let belongs = |page: &PageMeta| match Slab::of(0, page) {
            Some((word, slab)) => {
                word.cache() == cache.id && word.node() as usize == info.node && slab.active <= cache.num
            }
            None => false,
        };
        let rule = ListRule {
            order: cache.order,
            zone: self.frames.clone(),
            accept: &belongs,
            refused: ListFaultKind::NotSlab,
            closed: true,
        };
        let mut walk = NodeWalk { info: info.clone(), slabs: Default::default(), faults: Vec::new(), stable: false };
        let heads = [info.slabs_partial, info.slabs_full, info.slabs_free];
        for ((kind, ends), slabs) in SlabList::ALL.into_iter().zip(heads).zip(&mut walk.slabs) {
            let mut visit = |pfn, page: &PageMeta| slabs.extend(Slab::of(pfn, page).map(|(_, slab)| slab));
            let list = visit_list(self.memmap, ends, &rule, &mut budget, &mut visit)?;
            walk.faults.extend(list.fault.map(|fault| SlabListFault::List(kind, fault)));
            let misplaced = slabs.iter().filter(|slab| SlabList::of(slab.active, cache.num) != kind).take(8);
            walk.faults.extend(misplaced.map(|slab| SlabListFault::Misplaced { list: kind, slab: *slab }));
        }
        Ok(walk)
    }
}
