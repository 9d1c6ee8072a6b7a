//! Every interleaving of the lock protocols: run with `RUSTFLAGS="--cfg loom"`.
//!
//! The allocator itself works on words of the state region, which loom cannot stand in for; its protocols are generic
//! over the word and run here on loom's.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use pagevisor_mm::sync::{self, Gated, LockWord};

struct Word(AtomicU32);

impl LockWord for Word {
    fn test_and_set(&self) -> bool {
        // The real one sets a bit that may be set already. Loom may let such a write that changes nothing hide the
        // release for ever; this one does not write when it fails.
        self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err()
    }

    fn is_set(&self) -> bool {
        // Only says when trying again is worth it. A plain load may read the old value for ever in loom's eyes.
        thread::yield_now();
        false
    }

    fn is_set_acquire(&self) -> bool {
        self.0.load(Ordering::Acquire) & 1 != 0
    }

    fn clear(&self) {
        self.0.store(0, Ordering::Release);
    }
}

/// Pages under a lock, without any order of their own: loom reports an access that the lock does not order.
struct Pages {
    lock: Word,
    pages: UnsafeCell<Vec<u32>>,
}

impl Pages {
    fn new(pages: &[u32]) -> Self {
        Self { lock: Word(AtomicU32::new(0)), pages: UnsafeCell::new(pages.to_vec()) }
    }

    /// Works on the pages. The caller holds the lock.
    fn with<R>(&self, work: impl FnOnce(&mut Vec<u32>) -> R) -> R {
        // SAFETY: the caller holds the lock; loom checks that this excludes others.
        self.pages.with_mut(|pages| work(unsafe { &mut *pages }))
    }

    fn locked<R>(&self, work: impl FnOnce(&mut Vec<u32>) -> R) -> R {
        sync::lock(&self.lock, thread::yield_now);
        let result = self.with(work);
        sync::unlock(&self.lock);
        result
    }
}

/// A CPU's pageset and its zone.
struct Machine {
    pageset: Pages,
    zone: Pages,
}

impl Machine {
    /// As `rmqueue`: the pageset if its lock is free, refilled from the zone; else the zone.
    fn alloc(&self) -> Option<u32> {
        if sync::try_lock(&self.pageset.lock) {
            let page = self.pageset.with(|pages| pages.pop()).or_else(|| self.zone.locked(|pages| pages.pop()));
            sync::unlock(&self.pageset.lock);
            return page;
        }
        self.zone.locked(|pages| pages.pop())
    }

    /// As `free_unref_page`.
    fn free(&self, page: u32) {
        if sync::try_lock(&self.pageset.lock) {
            self.pageset.with(|pages| pages.push(page));
            sync::unlock(&self.pageset.lock);
        } else {
            self.zone.locked(|pages| pages.push(page));
        }
    }

    /// As `drain_pages`.
    fn drain(&self) {
        sync::lock(&self.pageset.lock, thread::yield_now);
        let pages = self.pageset.with(std::mem::take);
        self.zone.locked(|zone| zone.extend(pages));
        sync::unlock(&self.pageset.lock);
    }

    fn all(&self) -> Vec<u32> {
        let mut all = self.pageset.locked(|pages| pages.clone());
        all.extend(self.zone.locked(|pages| pages.clone()));
        all.sort_unstable();
        all
    }
}

#[test]
fn a_pageset_is_drained_while_its_cpu_uses_it() {
    loom::model(|| {
        let machine = Arc::new(Machine { pageset: Pages::new(&[1]), zone: Pages::new(&[2, 3]) });
        let drainer = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.drain())
        };
        let page = machine.alloc().expect("there are three");
        machine.free(page);
        drainer.join().expect("the drainer");
        assert_eq!(machine.all(), [1, 2, 3]);
    });
}

#[test]
fn two_cpus_share_a_zone() {
    loom::model(|| {
        let zone = Arc::new(Pages::new(&[1, 2]));
        let other = {
            let zone = Arc::clone(&zone);
            thread::spawn(move || zone.locked(|pages| pages.pop()))
        };
        let mine = zone.locked(|pages| pages.pop());
        let theirs = other.join().expect("the other CPU");
        assert_ne!(mine, theirs);
        assert_eq!(zone.locked(|pages| pages.len()), 0);
    });
}

/// The references of a page: whoever drops the last one frees it, and sees what the others wrote.
#[test]
fn the_last_reference_frees() {
    loom::model(|| {
        let page = Arc::new((AtomicU32::new(2), UnsafeCell::new([0u32; 2])));
        let drop_one = |page: &(AtomicU32, UnsafeCell<[u32; 2]>), slot: usize| {
            // SAFETY: each thread writes its own element.
            page.1.with(|data| unsafe { data.cast_mut().cast::<u32>().add(slot).write(slot as u32 + 1) });
            page.0.fetch_sub(1, Ordering::AcqRel) == 1
        };
        let other = {
            let page = Arc::clone(&page);
            thread::spawn(move || drop_one(&page, 0))
        };
        let last = drop_one(&page, 1);
        if last {
            // SAFETY: the last reference is ours, so nobody else touches it.
            assert_eq!(page.1.with_mut(|data| unsafe { *data }), [1, 2]);
        }
        assert!(last != other.join().expect("the other CPU"));
    });
}

/// A pageset with a gate, its zone, and the two words more.
struct Watched {
    pageset: Pages,
    shut: Word,
    slow: Word,
    zone: Pages,
}

impl Watched {
    fn new(shut: bool) -> Self {
        let word = |value| Word(AtomicU32::new(value));
        Self {
            pageset: Pages { lock: word(shut.into()), ..Pages::new(&[]) },
            shut: word(shut.into()),
            slow: word(0),
            zone: Pages::new(&[]),
        }
    }

    fn gated(&self) -> Gated<'_, Word> {
        Gated { gate: &self.pageset.lock, shut: &self.shut, slow: &self.slow }
    }

    fn switch(&self, on: bool) {
        self.gated().change(thread::yield_now, || self.shut.0.store(on.into(), Ordering::Release));
    }

    /// The short way: the gate or nothing.
    fn put_fast(&self, page: u32) -> bool {
        let open = sync::try_lock(&self.pageset.lock);
        if open {
            self.pageset.with(|pages| pages.push(page));
            sync::unlock(&self.pageset.lock);
        }
        open
    }

    /// The general way: the lock, whichever it is, or the zone.
    fn put_slow(&self, page: u32) {
        match self.gated().try_lock() {
            Some(held) => {
                self.pageset.with(|pages| pages.push(page));
                sync::unlock(held);
            }
            None => self.zone.locked(|pages| pages.push(page)),
        }
    }

    /// Everything, with nobody at work any more.
    fn all(&self) -> Vec<u32> {
        let held = self.gated().try_lock().expect("nobody holds it");
        let mut all = self.pageset.with(|pages| pages.clone());
        sync::unlock(held);
        all.extend(self.zone.locked(|pages| pages.clone()));
        all.sort_unstable();
        all
    }
}

/// Both ways work on the pageset while its gate is shut, or opened; loom sees to it that they exclude each other.
fn change_while_used(from: bool) {
    loom::model(move || {
        let watched = Arc::new(Watched::new(from));
        let others: Vec<_> = [1, 2]
            .map(|page| {
                let watched = Arc::clone(&watched);
                thread::spawn(move || {
                    if page == 2 || !watched.put_fast(page) {
                        watched.put_slow(page);
                    }
                })
            })
            .into();
        watched.switch(!from);
        for other in others {
            other.join().expect("the other CPU");
        }
        assert_eq!(watched.all(), [1, 2]);
        assert_eq!(watched.put_fast(3), from, "the gate is as it was asked for");
    });
}

#[test]
fn a_gate_is_shut_while_its_pageset_is_in_use() {
    change_while_used(false);
}

#[test]
fn a_gate_is_opened_while_its_pageset_is_in_use() {
    change_while_used(true);
}
