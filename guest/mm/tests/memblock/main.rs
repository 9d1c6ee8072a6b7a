//! memblock against what Linux's does: single cases with their result spelled out, top-down and bottom-up, and random
//! sequences of calls against a map with one entry per byte.

mod alloc;
mod basic;
mod bootmem;
mod cma;
mod grow;
mod iter;
mod model;
mod nid;

use std::ptr::NonNull;

use pagevisor_mm::memblock::{Memblock, MemblockFlags, PhysWindow, Region};
use pagevisor_shared::units::{NodeId, PhysAddr};

/// Where the memory of most cases starts.
const BASE: u64 = 1 << 20;
/// How much memory most cases have.
const SIZE: u64 = 16 << 10;
/// Where it ends.
const END: u64 = BASE + SIZE;
const PAGE: u64 = 4096;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// What memory holds before anyone clears it.
const STALE: u8 = 0x5a;

fn at(addr: u64) -> PhysAddr {
    PhysAddr::new(addr)
}

fn node(id: usize) -> NodeId {
    NodeId::new(id).expect("tests use few nodes")
}

/// A memblock without memory behind it.
fn bookkeeping() -> Memblock {
    Memblock::new(PhysWindow::closed())
}

/// Base and size of each region.
fn ranges(regions: &[Region]) -> Vec<(u64, u64)> {
    regions.iter().map(|r| (r.base().raw(), r.size())).collect()
}

/// Base, size, node and flags of each region.
fn regions(regions: &[Region]) -> Vec<(u64, u64, Option<usize>, MemblockFlags)> {
    regions.iter().map(|r| (r.base().raw(), r.size(), r.nid().map(NodeId::index), r.flags())).collect()
}

/// A memblock over real bytes, physical address 0 at the start of the buffer.
struct Machine {
    memblock: Memblock,
    /// Words, so that tables placed here are aligned. Only the memblock's window and `byte` look inside.
    bytes: NonNull<[u64]>,
}

impl Machine {
    /// Physical addresses from 0 to `end`, all [`STALE`] unless fresh memory is to be zero.
    fn new(end: u64, fresh_is_zero: bool) -> Self {
        let word = u64::from_ne_bytes([if fresh_is_zero { 0 } else { STALE }; 8]);
        let words = vec![word; usize::try_from(end / 8).expect("small")].into_boxed_slice();
        let bytes = NonNull::from(Box::leak(words));
        // SAFETY: the window spans exactly the buffer, which `drop` frees after the last use of the memblock; other
        // accesses are the reads of `byte` and the writes of `scribble`, between calls to memblock.
        let window = unsafe { PhysWindow::new(bytes.cast(), at(end), fresh_is_zero) };
        Self { memblock: Memblock::new(window), bytes }
    }

    fn byte(&self, addr: u64) -> u8 {
        assert!(addr < 8 * self.bytes.len() as u64);
        // SAFETY: inside the buffer, which is initialised; nothing writes meanwhile.
        unsafe { self.bytes.cast::<u8>().add(addr as usize).read() }
    }

    fn scribble(&mut self, addr: PhysAddr) {
        assert!(addr.raw() < 8 * self.bytes.len() as u64);
        // SAFETY: inside the buffer, and `&mut self` excludes the memblock.
        unsafe { self.bytes.cast::<u8>().add(addr.raw() as usize).write(STALE) };
    }

    fn all(&self, addr: PhysAddr, size: u64, value: u8) -> bool {
        (addr.raw()..addr.raw() + size).all(|addr| self.byte(addr) == value)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.memblock = bookkeeping();
        // SAFETY: the pointer came from a leaked box of this type, and the memblock that used it is gone.
        drop(unsafe { Box::from_raw(self.bytes.as_ptr()) });
    }
}

/// What a call placed: the address, or nothing.
type Placed = Option<u64>;

/// Runs `ask` on a memblock with the given ranges and compares what it returns and what is reserved then.
fn check(
    memory: &[(u64, u64, Option<usize>)],
    reserved: &[(u64, u64)],
    bottom_up: bool,
    ask: fn(&mut Memblock) -> Placed,
    want: (Placed, &[(u64, u64)]),
) {
    let mut machine = Machine::new(2 * MIB, false);
    let memblock = &mut machine.memblock;
    memblock.set_bottom_up(bottom_up);
    for &(base, size, nid) in memory {
        match nid {
            Some(nid) => memblock.add_node(at(base), size, node(nid), MemblockFlags::NONE).unwrap(),
            None => memblock.add(at(base), size).unwrap(),
        }
    }
    for &(base, size) in reserved {
        memblock.reserve(at(base), size).unwrap();
    }
    let placed = ask(memblock);
    assert_eq!((placed, ranges(memblock.reserved())), (want.0, want.1.to_vec()), "{memblock:#?}");
    assert_eq!(memblock.reserved_size(), want.1.iter().map(|r| r.1).sum::<u64>());
}

/// For each case a test that searches top-down and one that searches bottom-up.
macro_rules! placements {
    ($($(#[$doc:meta])* $name:ident {
        memory: $memory:expr,
        reserved: $reserved:expr,
        ask: $ask:expr,
        top_down: $td:expr => $td_after:expr,
        bottom_up: $bu:expr => $bu_after:expr $(,)?
    })*) => {
        mod top_down {
            use super::*;
            $($(#[$doc])* #[test] fn $name() {
                crate::check(&$memory, &$reserved, false, $ask, ($td, &$td_after));
            })*
        }
        mod bottom_up {
            use super::*;
            $($(#[$doc])* #[test] fn $name() {
                crate::check(&$memory, &$reserved, true, $ask, ($bu, &$bu_after));
            })*
        }
    };
}
pub(crate) use placements;
