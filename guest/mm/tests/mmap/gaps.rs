//! The search for room against one that looks at every page.

use pagevisor_mm::check::space_violations;
use pagevisor_mm::mmap::{Limits, MmapRequest, Space};
use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::mm_types::uapi::*;
use pagevisor_shared::random::SplitMix64;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};

use crate::{Stack, machine};

/// Pages below the place where mappings go down from, and above the one where low ones go up from.
const PAGES: u64 = 2048;
const LOW: u64 = 0x4000_0000 / PAGE_SIZE;
const LIMITS: Limits = Limits::DEFAULT;

/// Whether a page is used, or kept from others by the stack above.
struct Map {
    base: u64,
    used: Vec<bool>,
    kept: Vec<bool>,
}

impl Map {
    fn new(base: u64) -> Self {
        Self { base, used: vec![false; PAGES as usize], kept: vec![false; PAGES as usize] }
    }

    fn recount(&mut self, stacks: &[u64]) {
        self.kept.clone_from(&self.used);
        for stack in stacks.iter().filter_map(|page| page.checked_sub(self.base)) {
            // As far as nothing is there.
            for below in (stack.saturating_sub(256)..stack).rev() {
                match self.kept.get_mut(below as usize) {
                    Some(page) if !*page => *page = true,
                    _ => break,
                }
            }
        }
    }

    fn lowest(&self, pages: u64) -> Option<u64> {
        let runs = self.kept.windows(pages as usize).position(|run| run.iter().all(|used| !used));
        runs.map(|at| at as u64 + self.base)
    }

    fn highest(&self, pages: u64) -> Option<u64> {
        let runs = self.kept.windows(pages as usize).rposition(|run| run.iter().all(|used| !used));
        runs.map(|at| at as u64 + self.base)
    }

    fn set(&mut self, at: u64, pages: u64, used: bool) {
        for page in at..at + pages {
            if let Some(word) = page.checked_sub(self.base).and_then(|page| self.used.get_mut(page as usize)) {
                *word = used;
            }
        }
    }
}

/// First pages of stacks.
fn stacks_of(mm: &Stack, space: Space) -> Vec<u64> {
    let mut stacks = Vec::new();
    mm.for_each_vma(space, |area| {
        if area.flags.contains(VmaFlags::GROWSDOWN) {
            stacks.push(area.start.raw() / PAGE_SIZE);
        }
    });
    stacks
}

#[test]
fn the_highest_and_the_lowest_gaps_are_found() {
    let machine = machine(1);
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let top = space.mmap_base.load(std::sync::atomic::Ordering::Relaxed) / PAGE_SIZE;
    let mut maps = [Map::new(top - PAGES), Map::new(LOW)];
    let mut stacks;
    let mut random = SplitMix64::new(7);
    for _ in 0..3000 {
        let low = random.below(2) as usize;
        let pages = 1 + random.below(60);
        let base = maps[low].base;
        let fixed = base + random.below(PAGES - 60);
        let stack = random.below(60) == 0;
        let kind = if low == 1 { MAP_32BIT } else { 0 };
        let (flags, wanted, at) = match random.below(3) {
            0 => {
                mm.do_munmap(space, VirtAddr::new(fixed * PAGE_SIZE), pages * PAGE_SIZE).expect("a range");
                maps[low].set(fixed, pages, false);
                stacks = stacks_of(mm, space);
                maps.iter_mut().for_each(|map| map.recount(&stacks));
                continue;
            }
            1 => (MAP_FIXED | if stack { MAP_GROWSDOWN } else { 0 }, Some(fixed), fixed),
            _ if low == 1 => (0, maps[1].lowest(pages), 0),
            _ => (0, maps[0].highest(pages), 0),
        };
        let Some(wanted) = wanted else { continue };
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | kind | flags;
        let addr = VirtAddr::new(at * PAGE_SIZE);
        let request = MmapRequest { addr, len: pages * PAGE_SIZE, prot: PROT_READ, flags, file: None, pgoff: 0 };
        let found = mm.do_mmap(space, &request, &LIMITS).expect("there is room");
        assert_eq!(found.raw() / PAGE_SIZE, wanted);
        maps[low].set(wanted, pages, true);
        stacks = stacks_of(mm, space);
        maps.iter_mut().for_each(|map| map.recount(&stacks));
    }
    assert_eq!(space_violations(mm), []);
    mm.mmput(space);
}
