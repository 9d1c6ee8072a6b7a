//! Doubly linked lists whose links are in the entries, which are named by numbers (addresses, in the kernel). Whoever
//! uses a list holds its lock.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

/// What an entry carries.
#[derive(Debug, Default)]
pub struct Node {
    next: AtomicU64,
    prev: AtomicU64,
}

impl Node {
    /// Of an entry that is on no list.
    pub const fn new() -> Self {
        Self { next: AtomicU64::new(0), prev: AtomicU64::new(0) }
    }
}

/// Where the entries are.
pub trait Nodes {
    /// The words that link the entry named `entry`, which is not 0, to the next and to the one before.
    fn links(&self, entry: u64) -> (&AtomicU64, &AtomicU64);
}

impl Node {
    /// For [`Nodes::links`].
    pub fn words(&self) -> (&AtomicU64, &AtomicU64) {
        (&self.next, &self.prev)
    }
}

/// A list.
#[derive(Debug)]
pub struct List<N> {
    nodes: N,
    first: u64,
    last: u64,
}

impl<N: Nodes> List<N> {
    /// An empty list of entries of `nodes`.
    pub const fn new(nodes: N) -> Self {
        Self { nodes, first: 0, last: 0 }
    }

    /// The first entry; 0 for none.
    #[inline]
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The entry behind `entry`; 0 for none.
    #[inline]
    pub fn next(&self, entry: u64) -> u64 {
        self.nodes.links(entry).0.load(Relaxed)
    }

    /// Adds `entry`, which is on no list of this kind, at the end.
    pub fn push(&mut self, entry: u64) {
        let (next, prev) = self.nodes.links(entry);
        next.store(0, Relaxed);
        prev.store(self.last, Relaxed);
        match self.last {
            0 => self.first = entry,
            last => self.nodes.links(last).0.store(entry, Relaxed),
        }
        self.last = entry;
    }

    /// Takes `entry`, which is on this list, off it.
    pub fn remove(&mut self, entry: u64) {
        let (next, prev) = self.nodes.links(entry);
        let (next, prev) = (next.load(Relaxed), prev.load(Relaxed));
        match prev {
            0 => self.first = next,
            prev => self.nodes.links(prev).0.store(next, Relaxed),
        }
        match next {
            0 => self.last = prev,
            next => self.nodes.links(next).1.store(prev, Relaxed),
        }
    }

    /// Takes the first entry.
    pub fn pop(&mut self) -> Option<u64> {
        let first = self.first;
        (first != 0).then(|| {
            self.remove(first);
            first
        })
    }
}
