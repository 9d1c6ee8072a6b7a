//! A zone as Linux 6.1 keeps it, written down the plain way: vectors for lists, one block at a time, no shortcut.

use std::collections::{BTreeMap, VecDeque};

/// Page block in pages.
const BLOCK: u64 = 512;
/// Types with lists of their own.
const PCPTYPES: usize = 3;
const UNMOVABLE: usize = 0;
const MOVABLE: usize = 1;
const RECLAIMABLE: usize = 2;
const FALLBACKS: [[usize; 2]; 3] = [[RECLAIMABLE, MOVABLE], [RECLAIMABLE, UNMOVABLE], [UNMOVABLE, MOVABLE]];

/// A zone with one CPU's pageset.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Free lists by order and type, first first.
    pub free: Vec<Vec<VecDeque<u64>>>,
    /// Order and list type of every free block, by its first frame.
    heads: BTreeMap<u64, (usize, usize)>,
    /// Types of page blocks; Movable unless entered.
    types: BTreeMap<u64, usize>,
    /// Pageset lists: frames with the type kept in the page.
    pub pcp: Vec<VecDeque<(u64, usize)>>,
    pub count: i64,
    pub high: i64,
    pub batch: i64,
    pub free_factor: u32,
    start: u64,
    end: u64,
    /// `ALLOC_NOFRAGMENT` on the first pass.
    no_fragment: bool,
}

impl Zone {
    pub fn new(start: u64, end: u64, high: i64, batch: i64, no_fragment: bool) -> Self {
        Self {
            free: vec![vec![VecDeque::new(); 6]; 11],
            heads: BTreeMap::new(),
            types: BTreeMap::new(),
            pcp: vec![VecDeque::new(); 13],
            count: 0,
            high,
            batch,
            free_factor: 0,
            start,
            end,
            no_fragment,
        }
    }

    /// Frames on free lists.
    pub fn free_pages(&self) -> u64 {
        self.heads.values().map(|&(order, _)| 1 << order).sum()
    }

    pub fn block_type(&self, pfn: u64) -> usize {
        self.types.get(&(pfn / BLOCK)).copied().unwrap_or(MOVABLE)
    }

    fn add(&mut self, pfn: u64, order: usize, kind: usize, tail: bool) {
        self.heads.insert(pfn, (order, kind));
        let list = &mut self.free[order][kind];
        if tail { list.push_back(pfn) } else { list.push_front(pfn) }
    }

    fn del(&mut self, pfn: u64) -> (usize, usize) {
        let (order, kind) = self.heads.remove(&pfn).expect("a free block");
        self.free[order][kind].retain(|&other| other != pfn);
        (order, kind)
    }

    fn is_buddy(&self, pfn: u64, order: usize) -> bool {
        self.heads.get(&pfn).is_some_and(|&(o, _)| o == order)
    }

    /// `__free_one_page`
    fn free_one_page(&mut self, mut pfn: u64, mut order: usize, kind: usize, to_tail: bool) {
        let mut buddy = 0;
        while order < 10 {
            buddy = pfn ^ (1 << order);
            if !self.is_buddy(buddy, order) {
                break;
            }
            if order >= 9 {
                let other = self.block_type(buddy);
                if kind != other && (kind >= PCPTYPES || other >= PCPTYPES) {
                    break;
                }
            }
            self.del(buddy);
            pfn &= buddy;
            order += 1;
        }
        let likely = order < 9 && self.is_buddy((buddy & pfn) ^ (1 << (order + 1)), order + 1);
        self.add(pfn, order, kind, to_tail || likely);
    }

    /// `__free_pages_memory`
    pub fn free_boot_range(&mut self, mut start: u64, end: u64) {
        while start < end {
            let mut order = start.trailing_zeros().min(10) as usize;
            while start + (1 << order) > end {
                order -= 1;
            }
            self.free_one_page(start, order, MOVABLE, true);
            start += 1 << order;
        }
    }

    /// `__rmqueue_smallest`
    fn rmqueue_smallest(&mut self, order: usize, kind: usize) -> Option<u64> {
        let mut high = (order..11).find(|&o| !self.free[o][kind].is_empty())?;
        let pfn = self.free[high][kind][0];
        self.del(pfn);
        while high > order {
            high -= 1;
            self.add(pfn + (1 << high), high, kind, false);
        }
        Some(pfn)
    }

    fn suitable_fallback(&self, order: usize, start: usize) -> Option<usize> {
        FALLBACKS[start].into_iter().find(|&kind| !self.free[order][kind].is_empty())
    }

    fn move_to(&mut self, pfn: u64, kind: usize) {
        let (order, _) = self.del(pfn);
        self.add(pfn, order, kind, true);
    }

    /// `__rmqueue_fallback`
    fn rmqueue_fallback(&mut self, order: usize, start: usize, no_fragment: bool) -> bool {
        let can_steal = |order: usize| order >= 4 || start == UNMOVABLE || start == RECLAIMABLE;
        let lowest = if order < 9 && no_fragment { 9 } else { order };
        let Some(mut current) = (lowest..11).rev().find(|&o| self.suitable_fallback(o, start).is_some()) else {
            return false;
        };
        if !can_steal(current) && start == MOVABLE && current > order {
            current = (order..11).find(|&o| self.suitable_fallback(o, start).is_some()).expect("found above");
        }
        let from = self.suitable_fallback(current, start).expect("found above");
        self.steal(self.free[current][from][0], current, start, can_steal(current));
        true
    }

    /// `steal_suitable_fallback`; nothing in use is movable.
    fn steal(&mut self, pfn: u64, order: usize, start: usize, whole: bool) {
        let old = self.block_type(pfn);
        if order >= 9 {
            for block in 0..1 << (order - 9) {
                self.types.insert(pfn / BLOCK + block, start);
            }
            return self.move_to(pfn, start);
        }
        let first = pfn / BLOCK * BLOCK;
        if !whole || first + BLOCK > self.end || first < self.start {
            return self.move_to(pfn, start);
        }
        let inside: Vec<(u64, usize)> = self.heads.range(first..first + BLOCK).map(|(&p, &(o, _))| (p, o)).collect();
        let free: u64 = inside.iter().map(|&(_, order)| 1 << order).sum();
        for (pfn, _) in inside {
            self.move_to(pfn, start);
        }
        let alike = if start != MOVABLE && old == MOVABLE { BLOCK - free } else { 0 };
        if free + alike >= BLOCK / 2 {
            self.types.insert(pfn / BLOCK, start);
        }
    }

    fn rmqueue(&mut self, order: usize, kind: usize, no_fragment: bool) -> Option<u64> {
        loop {
            if let Some(pfn) = self.rmqueue_smallest(order, kind) {
                return Some(pfn);
            }
            if !self.rmqueue_fallback(order, kind, no_fragment) {
                return None;
            }
        }
    }

    /// `rmqueue_pcplist`
    fn rmqueue_pcplist(&mut self, order: usize, kind: usize, no_fragment: bool) -> Option<u64> {
        self.free_factor >>= 1;
        let index = pindex(order, kind);
        if self.pcp[index].is_empty() {
            let batch = if self.batch > 1 { (self.batch >> order).max(2) } else { self.batch };
            for _ in 0..batch {
                let Some(pfn) = self.rmqueue(order, kind, no_fragment) else { break };
                self.pcp[index].push_back((pfn, kind));
                self.count += 1 << order;
            }
        }
        let (pfn, _) = self.pcp[index].pop_front()?;
        self.count -= 1 << order;
        Some(pfn)
    }

    /// An allocation from a zone that has enough pages.
    pub fn alloc(&mut self, order: usize, kind: usize) -> Option<u64> {
        let has_block = (order..11).any(|o| (0..PCPTYPES).any(|kind| !self.free[o][kind].is_empty()));
        if order > 0 && !has_block {
            return None;
        }
        let passes: &[bool] = if self.no_fragment { &[true, false] } else { &[false] };
        passes.iter().find_map(|&no_fragment| {
            let cached = if order <= 3 || order == 9 { self.rmqueue_pcplist(order, kind, no_fragment) } else { None };
            cached.or_else(|| self.rmqueue(order, kind, no_fragment))
        })
    }

    /// `free_the_page`
    pub fn free(&mut self, pfn: u64, order: usize) {
        let kind = self.block_type(pfn);
        if order > 3 && order != 9 {
            return self.free_one_page(pfn, order, kind, false);
        }
        let index = pindex(order, kind);
        self.pcp[index].push_front((pfn, kind));
        self.count += 1 << order;
        let free_high = self.free_factor != 0 && (1..=3).contains(&order);
        let high = if free_high { 0 } else { self.high };
        if self.count >= high {
            let nr = self.nr_pcp_free(high, free_high);
            self.free_pcppages_bulk(nr, index);
        }
    }

    fn nr_pcp_free(&mut self, high: i64, free_high: bool) -> i64 {
        if free_high {
            return self.count;
        }
        if high < self.batch {
            return 1;
        }
        let (min, max) = (self.batch, high - self.batch);
        let batch = self.batch << self.free_factor;
        if batch < max && self.free_factor < 5 {
            self.free_factor += 1;
        }
        batch.max(min).min(max)
    }

    /// `free_pcppages_bulk`
    fn free_pcppages_bulk(&mut self, count: i64, pindex: usize) {
        let mut count = count.min(self.count);
        let mut index = pindex;
        while count > 0 {
            while count > 0
                && let Some((pfn, kind)) = self.pcp[index].pop_back()
            {
                let order = if index == 12 { 9 } else { index / 3 };
                count -= 1 << order;
                self.count -= 1 << order;
                self.free_one_page(pfn, order, kind, false);
            }
            index = (index + 1) % 13;
        }
    }

    /// `drain_pages`
    pub fn drain(&mut self) {
        self.free_pcppages_bulk(self.count, 0);
    }
}

fn pindex(order: usize, kind: usize) -> usize {
    if order > 3 { 12 } else { order * 3 + kind }
}
