//! Faults of programs, without the way into the kernel and back: what `handle_mm_fault` takes.

use pagevisor_mm::Mm;
use pagevisor_mm::memory::{FaultFlags, FaultKind, FaultResult};
use pagevisor_mm::mmap::{Limits, Space};
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};

use super::{Bench, Pages, print};
use crate::platform::Kernel;

/// Where the areas end.
const TOP: u64 = 0x7000_0000_0000;
/// Pages of a run.
const PAGES: u64 = 512;
const LIMITS: Limits = Limits { stack: u64::MAX, ..Limits::DEFAULT };

/// A space with one area, which is private and writable.
fn space(mm: &Mm<Kernel>, pages: u64) -> Option<Space> {
    let space = mm.mm_alloc()?;
    match mm.insert_stack(space, VirtAddr::new(TOP), pages * PAGE_SIZE, &LIMITS) {
        Ok(()) => Some(space),
        Err(_) => {
            mm.mmput(space);
            None
        }
    }
}

/// Touches the last `pages` pages; whether all were dealt with as `kind`.
fn touch(mm: &Mm<Kernel>, space: Space, pages: u64, flags: FaultFlags, kind: FaultKind) -> bool {
    let mut page = TOP - pages * PAGE_SIZE;
    while page < TOP {
        if fault(mm, space, page, flags) != (FaultResult::Done { major: false, kind }) {
            return false;
        }
        page += PAGE_SIZE;
    }
    true
}

#[inline(never)]
fn fault(mm: &Mm<Kernel>, space: Space, addr: u64, flags: FaultFlags) -> FaultResult {
    mm.handle_mm_fault(space, VirtAddr::new(addr), flags, &LIMITS)
}

#[inline(never)]
fn unmap(mm: &Mm<Kernel>, space: Space) {
    if let Some(area) = mm.find_vma(space, VirtAddr::new(0)) {
        mm.zap_page_range(area.vma, area.start.raw(), area.end.raw());
    }
}

impl<P: Pages> Bench<'_, P> {
    pub(super) fn faults(&self, mm: &'static Mm<Kernel>) {
        let Some(space) = space(mm, PAGES) else { return print(format_args!("bench: no memory for a program")) };
        // Tables are there, and the area has its family.
        touch(mm, space, PAGES, FaultFlags::WRITE, FaultKind::Anon);
        unmap(mm, space);
        self.halves("fault_anon_cleared", |alloc, free| {
            let start = super::now();
            let done = touch(mm, space, PAGES, FaultFlags::WRITE, FaultKind::Anon);
            alloc.add(super::now() - start, if done { PAGES } else { 1 });
            let start = super::now();
            unmap(mm, space);
            free.add(super::now() - start, PAGES);
        });
        self.halves("fault_zero_page", |alloc, free| {
            let start = super::now();
            let done = touch(mm, space, PAGES, FaultFlags::NONE, FaultKind::Zero);
            alloc.add(super::now() - start, if done { PAGES } else { 1 });
            let start = super::now();
            unmap(mm, space);
            free.add(super::now() - start, PAGES);
        });
        mm.mmput(space);
        self.known_zero(mm);
        self.cow(mm);
        for (name, pages) in [("fork_exit_1mib", 256), ("fork_exit_64mib", 16384)] {
            self.fork(mm, name, pages);
        }
    }

    /// Memory that nobody used since the machine started, as long as there is some.
    fn known_zero(&self, mm: &'static Mm<Kernel>) {
        const PART: u64 = 256;
        let Some(space) = space(mm, PART * 64) else { return };
        let mut next = TOP - PART * 64 * PAGE_SIZE;
        self.halves("fault_anon_known_zero", |alloc, _| {
            let start = super::now();
            for _ in 0..PART {
                let _ = fault(mm, space, next, FaultFlags::WRITE);
                next += PAGE_SIZE;
            }
            alloc.add(super::now() - start, PART);
        });
        mm.mmput(space);
    }

    fn cow(&self, mm: &'static Mm<Kernel>) {
        let Some(parent) = space(mm, PAGES) else { return };
        touch(mm, parent, PAGES, FaultFlags::WRITE, FaultKind::Anon);
        self.halves("fault_cow", |copy, reuse| {
            let Ok(child) = mm.dup_mmap(parent) else { return };
            let start = super::now();
            let done = touch(mm, child, PAGES, FaultFlags::WRITE, FaultKind::CowCopy);
            copy.add(super::now() - start, if done { PAGES } else { 1 });
            let start = super::now();
            let done = touch(mm, parent, PAGES, FaultFlags::WRITE, FaultKind::CowReuse);
            reuse.add(super::now() - start, if done { PAGES } else { 1 });
            mm.mmput(child);
        });
        mm.mmput(parent);
    }

    fn fork(&self, mm: &'static Mm<Kernel>, name: &str, pages: u64) {
        let Some(parent) = space(mm, pages) else { return };
        touch(mm, parent, pages, FaultFlags::WRITE, FaultKind::Anon);
        self.halves(name, |fork, exit| {
            let start = super::now();
            let child = mm.dup_mmap(parent);
            fork.add(super::now() - start, 1);
            let start = super::now();
            if let Ok(child) = child {
                mm.mmput(child);
            }
            exit.add(super::now() - start, 1);
        });
        mm.mmput(parent);
    }
}
