//! Pairing heaps: the queue of what comes next, by time or by virtual run time.
//!
//! The links are in the entries themselves, which are named by numbers (addresses, in the kernel), so a heap needs no
//! memory of its own. Keys are compared by their difference, so that they may wrap. Whoever uses a heap holds its lock.

use core::ops::ControlFlow;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

/// What an entry carries.
#[derive(Debug, Default)]
pub struct Links {
    /// What the heap is ordered by. Not changed while the entry is in the heap.
    key: AtomicU64,
    /// The first of the entries below it.
    child: AtomicU64,
    /// The next of those that are below the same entry.
    next: AtomicU64,
    /// The one before; for the first the entry above.
    prev: AtomicU64,
}

impl Links {
    /// What the heap is ordered by.
    #[inline]
    pub fn key(&self) -> u64 {
        self.key.load(Relaxed)
    }

    /// Changes the key of an entry that is in no heap.
    #[inline]
    pub fn set_key(&self, key: u64) {
        self.key.store(key, Relaxed);
    }
}

/// Where the entries are.
pub trait Arena {
    /// The links of the entry named `entry`, which is not 0.
    fn links(&self, entry: u64) -> &Links;
}

/// Whether `a` comes before `b`.
#[inline]
pub const fn before(a: u64, b: u64) -> bool {
    (a.wrapping_sub(b) as i64) < 0
}

/// A heap.
#[derive(Debug)]
pub struct Heap<A> {
    arena: A,
    /// The entry with the smallest key; 0 for none.
    root: u64,
}

impl<A: Arena> Heap<A> {
    /// An empty heap of entries of `arena`.
    pub const fn new(arena: A) -> Self {
        Self { arena, root: 0 }
    }

    /// The entry with the smallest key.
    #[inline]
    pub fn first(&self) -> Option<u64> {
        (self.root != 0).then_some(self.root)
    }

    /// The smallest key.
    #[inline]
    pub fn first_key(&self) -> Option<u64> {
        self.first().map(|first| self.arena.links(first).key())
    }

    /// Adds `entry`, which is in no heap, with the key that it has.
    pub fn insert(&mut self, entry: u64) {
        let links = self.arena.links(entry);
        links.child.store(0, Relaxed);
        links.next.store(0, Relaxed);
        links.prev.store(0, Relaxed);
        self.root = self.meld(self.root, entry);
    }

    /// Takes the entry with the smallest key.
    pub fn pop(&mut self) -> Option<u64> {
        let first = self.first()?;
        self.root = self.merge_pairs(self.arena.links(first).child.load(Relaxed));
        Some(first)
    }

    /// Takes `entry`, which is in this heap.
    pub fn remove(&mut self, entry: u64) {
        if entry == self.root {
            self.pop();
            return;
        }
        let links = self.arena.links(entry);
        let (prev, next) = (links.prev.load(Relaxed), links.next.load(Relaxed));
        let above = self.arena.links(prev);
        if above.child.load(Relaxed) == entry { &above.child } else { &above.next }.store(next, Relaxed);
        if next != 0 {
            self.arena.links(next).prev.store(prev, Relaxed);
        }
        let below = self.merge_pairs(links.child.load(Relaxed));
        self.root = self.meld(self.root, below);
    }

    /// Shows entries to `look`, smaller ones first on each way down, until it breaks.
    pub fn find<T>(&self, mut look: impl FnMut(u64) -> ControlFlow<T>) -> Option<T> {
        let mut entry = self.root;
        while entry != 0 {
            if let ControlFlow::Break(found) = look(entry) {
                return Some(found);
            }
            let links = self.arena.links(entry);
            entry = match links.child.load(Relaxed) {
                0 => self.following(entry),
                child => child,
            };
        }
        None
    }

    /// The entry that comes behind `entry` and all below it; 0 for none.
    fn following(&self, mut entry: u64) -> u64 {
        while entry != 0 {
            let links = self.arena.links(entry);
            let next = links.next.load(Relaxed);
            if next != 0 {
                return next;
            }
            // Up: back to the first of its siblings, and from there to the entry above.
            let mut first = entry;
            entry = loop {
                let prev = self.arena.links(first).prev.load(Relaxed);
                if prev == 0 || self.arena.links(prev).child.load(Relaxed) == first {
                    break prev;
                }
                first = prev;
            };
        }
        0
    }

    /// Makes one heap of those with roots `a` and `b`; gives its root.
    fn meld(&self, a: u64, b: u64) -> u64 {
        if a == 0 || b == 0 {
            return a | b;
        }
        // Of two that are equal the first stays above.
        let swap = before(self.arena.links(b).key(), self.arena.links(a).key());
        let (above, below) = if swap { (b, a) } else { (a, b) };
        let (top, under) = (self.arena.links(above), self.arena.links(below));
        let child = top.child.load(Relaxed);
        under.next.store(child, Relaxed);
        under.prev.store(above, Relaxed);
        if child != 0 {
            self.arena.links(child).prev.store(below, Relaxed);
        }
        top.child.store(below, Relaxed);
        top.next.store(0, Relaxed);
        top.prev.store(0, Relaxed);
        above
    }

    /// Makes one heap of `first` and the siblings behind it: in pairs from left to right, then from right to left.
    fn merge_pairs(&self, first: u64) -> u64 {
        // The pairs, the last one first, linked by `next`.
        let (mut pairs, mut entry) = (0, first);
        while entry != 0 {
            let second = self.arena.links(entry).next.load(Relaxed);
            let rest = if second == 0 { 0 } else { self.arena.links(second).next.load(Relaxed) };
            self.arena.links(entry).next.store(0, Relaxed);
            let pair = self.meld(entry, second);
            self.arena.links(pair).next.store(pairs, Relaxed);
            (pairs, entry) = (pair, rest);
        }
        let mut root = 0;
        while pairs != 0 {
            let rest = self.arena.links(pairs).next.load(Relaxed);
            self.arena.links(pairs).next.store(0, Relaxed);
            root = self.meld(pairs, root);
            pairs = rest;
        }
        if root != 0 {
            self.arena.links(root).prev.store(0, Relaxed);
        }
        root
    }
}
