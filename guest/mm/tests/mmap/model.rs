//! Any sequence of calls against a map of pages: what is mapped where, with which flags, and in how many areas.

use std::collections::BTreeMap;

use pagevisor_mm::check::{space_violations, unmerged_areas};
use pagevisor_mm::mmap::{Limits, MmapRequest, MremapRequest, Space};
use pagevisor_shared::errno::Errno;
use pagevisor_shared::layout::TASK_SIZE_MAX;
use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::mm_types::uapi::*;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};
use proptest::prelude::*;

use crate::{Stack, machine};

/// First page of the window that the calls are about, and its pages.
const BASE: u64 = 0x10_0000;
const WINDOW: u64 = 40;
/// First page of the heap.
const HEAP: u64 = 0x20_0000;
const LIMITS: Limits = Limits::DEFAULT;
const MAY: u64 = VmaFlags::MAYREAD.0 | VmaFlags::MAYWRITE.0 | VmaFlags::MAYEXEC.0;

#[derive(Clone, Debug)]
enum Call {
    Map {
        at: u64,
        pages: u64,
        prot: u32,
        noreserve: bool,
        fixed: bool,
    },
    Unmap {
        at: u64,
        pages: u64,
    },
    Protect {
        at: u64,
        pages: u64,
        prot: u32,
    },
    Remap {
        at: u64,
        old: u64,
        new: u64,
        flags: u32,
        to: u64,
    },
    Advise {
        at: u64,
        pages: u64,
        advice: u32,
    },
    Lock {
        at: u64,
        pages: u64,
        lock: bool,
    },
    Brk {
        pages: u64,
    },
    /// To so many bytes below the end of all addresses, or of what a program can have.
    BrkTooFar {
        below: u64,
        addressable: bool,
    },
}

fn call() -> impl Strategy<Value = Call> {
    let (at, pages, prot) = (0..WINDOW, 1..12u64, 0..8u32);
    let advice = prop::sample::select(vec![
        MADV_NORMAL,
        MADV_RANDOM,
        MADV_SEQUENTIAL,
        MADV_DONTFORK,
        MADV_DOFORK,
        MADV_WIPEONFORK,
        MADV_KEEPONFORK,
        MADV_DONTDUMP,
        MADV_DODUMP,
        MADV_DONTNEED,
        MADV_WILLNEED,
    ]);
    let flags = prop::sample::select(vec![0, MREMAP_MAYMOVE, MREMAP_MAYMOVE | MREMAP_FIXED]);
    prop_oneof![
        4 => (at.clone(), pages.clone(), prot.clone(), any::<bool>(), prop::bool::weighted(0.8))
            .prop_map(|(at, pages, prot, noreserve, fixed)| Call::Map { at, pages, prot, noreserve, fixed }),
        2 => (at.clone(), pages.clone()).prop_map(|(at, pages)| Call::Unmap { at, pages }),
        4 => (at.clone(), pages.clone(), prot).prop_map(|(at, pages, prot)| Call::Protect { at, pages, prot }),
        3 => (at.clone(), pages.clone(), pages.clone(), flags, at.clone())
            .prop_map(|(at, old, new, flags, to)| Call::Remap { at, old, new, flags, to }),
        2 => (at.clone(), pages.clone(), advice).prop_map(|(at, pages, advice)| Call::Advise { at, pages, advice }),
        2 => (at, pages.clone(), any::<bool>()).prop_map(|(at, pages, lock)| Call::Lock { at, pages, lock }),
        1 => (0..20u64).prop_map(|pages| Call::Brk { pages }),
        1 => (0..3 * PAGE_SIZE, any::<bool>()).prop_map(|(below, addressable)| Call::BrkTooFar { below, addressable }),
    ]
}

/// Flags of pages by number.
#[derive(Default)]
struct Model {
    pages: BTreeMap<u64, u64>,
    brk: u64,
    top: u64,
}

impl Model {
    fn areas(&self) -> Vec<(u64, u64, u64)> {
        let mut areas: Vec<(u64, u64, u64)> = Vec::new();
        for (&page, &flags) in &self.pages {
            match areas.last_mut() {
                Some((_, end, same)) if *end == page && *same == flags => *end += 1,
                _ => areas.push((page, page + 1, flags)),
            }
        }
        areas
    }

    fn is_free(&self, at: u64, pages: u64) -> bool {
        self.pages.range(at..at + pages).next().is_none()
    }

    fn set(&mut self, at: u64, pages: u64, flags: u64) {
        self.pages.extend((at..at + pages).map(|page| (page, flags)));
    }

    fn clear(&mut self, at: u64, pages: u64) {
        self.pages.retain(|page, _| *page < at || at + pages <= *page);
    }

    /// The highest free range, looking at every page where it could end.
    fn highest(&self, pages: u64) -> u64 {
        let ends = std::iter::once(self.top).chain(self.pages.keys().rev().copied());
        let mut starts = ends.filter(|end| *end <= self.top).map(|end| end - pages);
        starts.find(|start| self.is_free(*start, pages)).expect("there is room")
    }

    /// Changes pages up to the first that is not mapped; ENOMEM if there is one.
    fn change(&mut self, at: u64, pages: u64, new: impl Fn(u64) -> u64) -> Result<(), Errno> {
        for page in at..at + pages {
            let flags = self.pages.get_mut(&page).ok_or(Errno::ENOMEM)?;
            *flags = new(*flags);
        }
        Ok(())
    }

    fn map(&mut self, at: u64, pages: u64, prot: u32, noreserve: bool, fixed: bool) -> u64 {
        let free = self.is_free(at, pages);
        let at = if fixed || free { at } else { self.highest(pages) };
        let reserve = if noreserve { VmaFlags::NORESERVE.0 } else { 0 };
        let account = if prot & PROT_WRITE != 0 && !noreserve { VmaFlags::ACCOUNT.0 } else { 0 };
        self.set(at, pages, u64::from(prot) | MAY | reserve | account);
        at
    }

    fn protect(&mut self, at: u64, pages: u64, prot: u32) -> Result<(), Errno> {
        let free = VmaFlags::ACCOUNT.0 | VmaFlags::WRITE.0 | VmaFlags::NORESERVE.0;
        self.change(at, pages, |old| {
            let account = if prot & PROT_WRITE != 0 && old & free == 0 { VmaFlags::ACCOUNT.0 } else { 0 };
            old & !VmaFlags::ACCESS.0 | u64::from(prot) | account
        })
    }

    fn remap(&mut self, at: u64, old: u64, new: u64, flags: u32, to: u64) -> Result<u64, Errno> {
        let mapped = *self.pages.get(&at).ok_or(Errno::EFAULT)?;
        let fixed = flags & MREMAP_FIXED != 0;
        let mut old = old;
        if fixed {
            if at + old > to && to + new > at {
                return Err(Errno::EINVAL);
            }
            self.clear(to, new);
            if old > new {
                self.clear(at + new, old - new);
                old = new;
            }
        } else if old >= new {
            self.clear(at + new, old - new);
            return Ok(at);
        }
        let end = self.areas().into_iter().find(|area| area.0 <= at && at < area.1).ok_or(Errno::EFAULT)?.1;
        if old > end - at {
            return Err(Errno::EFAULT);
        }
        if !fixed && at + old == end && self.is_free(end, new - old) {
            self.set(end, new - old, mapped);
            return Ok(at);
        }
        if flags & MREMAP_MAYMOVE == 0 {
            return Err(Errno::ENOMEM);
        }
        let to = if fixed { to } else { self.highest(new) };
        self.clear(at, old);
        self.set(to, new, mapped);
        Ok(to)
    }

    fn advise(&mut self, at: u64, pages: u64, advice: u32) -> Result<(), Errno> {
        let locked = |flags: u64| flags & VmaFlags::LOCKED.0 != 0;
        if advice == MADV_DONTNEED {
            // The first that is locked ends it.
            if (at..at + pages).any(|page| self.pages.get(&page).is_some_and(|flags| locked(*flags))) {
                return Err(Errno::EINVAL);
            }
        }
        let (clear, set) = match advice {
            MADV_NORMAL => (VmaFlags::RAND_READ.0 | VmaFlags::SEQ_READ.0, 0),
            MADV_RANDOM => (VmaFlags::SEQ_READ.0, VmaFlags::RAND_READ.0),
            MADV_SEQUENTIAL => (VmaFlags::RAND_READ.0, VmaFlags::SEQ_READ.0),
            MADV_DONTFORK => (0, VmaFlags::DONTCOPY.0),
            MADV_DOFORK => (VmaFlags::DONTCOPY.0, 0),
            MADV_WIPEONFORK => (0, VmaFlags::WIPEONFORK.0),
            MADV_KEEPONFORK => (VmaFlags::WIPEONFORK.0, 0),
            MADV_DONTDUMP => (0, VmaFlags::DONTDUMP.0),
            MADV_DODUMP => (VmaFlags::DONTDUMP.0, 0),
            _ => (0, 0),
        };
        let mut whole = Ok(());
        for page in at..at + pages {
            match self.pages.get_mut(&page) {
                Some(flags) => *flags = *flags & !clear | set,
                None => whole = Err(Errno::ENOMEM),
            }
        }
        whole
    }

    fn brk(&mut self, pages: u64) -> u64 {
        let end = HEAP + pages;
        if end < self.brk {
            self.clear(end, self.brk - end);
        } else {
            let flags = u64::from(PROT_READ | PROT_WRITE) | MAY | VmaFlags::ACCOUNT.0;
            self.set(self.brk, end - self.brk, flags);
        }
        self.brk = end;
        end
    }
}

fn page(addr: VirtAddr) -> u64 {
    addr.raw() / PAGE_SIZE
}

fn addr(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE)
}

fn run(mm: &Stack, space: Space, model: &mut Model, call: &Call) {
    match *call {
        Call::Map { at, pages, prot, noreserve, fixed } => {
            let flags = MAP_PRIVATE | MAP_ANONYMOUS;
            let flags = flags | if noreserve { MAP_NORESERVE } else { 0 } | if fixed { MAP_FIXED } else { 0 };
            let len = pages * PAGE_SIZE - 5;
            let request = MmapRequest { addr: addr(BASE + at), len, prot, flags, file: None, pgoff: 0 };
            let mapped = mm.do_mmap(space, &request, &LIMITS).expect("there is room");
            assert_eq!(page(mapped), model.map(BASE + at, pages, prot, noreserve, fixed));
        }
        Call::Unmap { at, pages } => {
            mm.do_munmap(space, addr(BASE + at), pages * PAGE_SIZE).expect("a range");
            model.clear(BASE + at, pages);
        }
        Call::Protect { at, pages, prot } => {
            let done = mm.do_mprotect(space, addr(BASE + at), pages * PAGE_SIZE, prot, &LIMITS);
            assert_eq!(done, model.protect(BASE + at, pages, prot));
        }
        Call::Remap { at, old, new, flags, to } => {
            let (old_len, new_len) = (old * PAGE_SIZE, new * PAGE_SIZE);
            let request = MremapRequest { addr: addr(BASE + at), old_len, new_len, flags, new_addr: addr(BASE + to) };
            let done = mm.do_mremap(space, &request, &LIMITS).map(page);
            assert_eq!(done, model.remap(BASE + at, old, new, flags, BASE + to));
        }
        Call::Advise { at, pages, advice } => {
            let done = mm.do_madvise(space, addr(BASE + at), pages * PAGE_SIZE, advice);
            let wanted = model.advise(BASE + at, pages, advice);
            // A hole and a locked area: which comes first decides.
            assert!(done == wanted || advice == MADV_DONTNEED && done.is_err() && wanted.is_err());
        }
        Call::Lock { at, pages, lock } => {
            let (start, len) = (addr(BASE + at), pages * PAGE_SIZE);
            let both = VmaFlags::LOCKED.0 | VmaFlags::LOCKONFAULT.0;
            let done = if lock {
                mm.do_mlock(space, start, len, MLOCK_ONFAULT, &LIMITS)
            } else {
                mm.do_munlock(space, start, len)
            };
            let wanted = model.change(BASE + at, pages, |old| if lock { old | both } else { old & !both });
            assert_eq!(done, wanted);
        }
        Call::Brk { pages } => {
            let end = mm.do_brk(space, addr(HEAP + pages), &LIMITS);
            assert_eq!(page(end), model.brk(pages));
        }
        Call::BrkTooFar { below, addressable } => {
            // There is nothing to map there: between the heap and that lies all of memory, many times.
            let top = if addressable { TASK_SIZE_MAX } else { u64::MAX };
            assert_eq!(page(mm.do_brk(space, VirtAddr::new(top - below), &LIMITS)), model.brk);
        }
    }
}

fn areas(mm: &Stack, space: Space) -> Vec<(u64, u64, u64)> {
    let mut areas = Vec::new();
    mm.for_each_vma(space, |area| {
        assert_eq!(area.pgoff, page(area.start), "no page has its place yet");
        areas.push((page(area.start), page(area.end), area.flags.without(VmaFlags::SOFTDIRTY).0));
    });
    areas
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn any_sequence_maps_what_the_model_says(calls in prop::collection::vec(call(), 1..60)) {
        let machine = machine(1);
        let mm = machine.mm();
        let space = mm.mm_alloc().expect("a space");
        space.start_brk.store(HEAP * PAGE_SIZE, std::sync::atomic::Ordering::Relaxed);
        space.brk.store(HEAP * PAGE_SIZE, std::sync::atomic::Ordering::Relaxed);
        let top = space.mmap_base.load(std::sync::atomic::Ordering::Relaxed) / PAGE_SIZE;
        let mut model = Model { brk: HEAP, top, ..Model::default() };
        for call in &calls {
            run(mm, space, &mut model, call);
            prop_assert_eq!(areas(mm, space), model.areas(), "after {:?}", call);
            prop_assert_eq!(unmerged_areas(mm, space), Vec::<u64>::new());
        }
        let wrong = space_violations(mm);
        prop_assert!(wrong.is_empty(), "{:?}", wrong);
        mm.mmput(space);
        let wrong = space_violations(mm);
        prop_assert!(wrong.is_empty(), "{:?}", wrong);
    }
}
