//! `/sys/kernel/debug/extfrag`: how far free memory is from serving an order (Linux's `mm/vmstat.c`).

use core::fmt::{self, Write};

use super::counters::{self, FreeCounts};
use crate::region::RegionRef;
use crate::units::MAX_ORDER;

/// What a request of some order finds in a zone's free lists (`struct contig_page_info`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ContigPageInfo {
    /// Pages in blocks of any order.
    pub free_pages: u64,
    /// Blocks of any order.
    pub free_blocks_total: u64,
    /// Blocks of the order that those of this order and above hold.
    pub free_blocks_suitable: u64,
}

impl ContigPageInfo {
    /// From the free blocks of each order, for requests of `order` (`fill_contig_page_info`).
    pub fn new(blocks: &[u64; MAX_ORDER], order: usize) -> Self {
        let mut info = Self::default();
        for (&count, at) in blocks.iter().zip(0..) {
            info.free_blocks_total = info.free_blocks_total.wrapping_add(count);
            info.free_pages = info.free_pages.wrapping_add(count << at);
            if at >= order {
                info.free_blocks_suitable = info.free_blocks_suitable.wrapping_add(count << (at - order));
            }
        }
        info
    }

    /// Thousandths of the free pages that a request of `order` cannot use; all of them when there are none
    /// (`unusable_free_index`).
    pub fn unusable_free_index(&self, order: usize) -> i64 {
        let unusable = self.free_pages.wrapping_sub(self.free_blocks_suitable << order);
        unusable.wrapping_mul(1000).checked_div(self.free_pages).map_or(1000, |index| index as i64)
    }

    /// Why a request of `order` would fail: towards 0 for want of memory, towards 1000 because of fragmentation; -1000
    /// when it would not fail (`__fragmentation_index`).
    pub fn fragmentation_index(&self, order: usize) -> i64 {
        if self.free_blocks_suitable != 0 {
            return -1000;
        }
        let requests = self.free_pages.wrapping_mul(1000) >> order;
        let share = requests.wrapping_add(1000).checked_div(self.free_blocks_total);
        share.map_or(0, |share| 1000i64.wrapping_sub_unsigned(share))
    }
}

/// `/sys/kernel/debug/extfrag/extfrag_index`: for each populated zone and order, the fragmentation index.
///
/// # Errors
/// Those of `out`.
pub fn extfrag_index(region: &RegionRef<'_>, out: &mut dyn Write) -> fmt::Result {
    each_zone(region, out, &|info, order, out| {
        let index = info.fragmentation_index(order);
        write!(out, "{:2}.{:03} ", index / 1000, index % 1000)
    })
}

/// `/sys/kernel/debug/extfrag/unusable_index`: for each populated zone of a node with memory, the part of its free
/// memory that is of no use to requests of each order.
///
/// # Errors
/// Those of `out`.
pub fn unusable_index(region: &RegionRef<'_>, out: &mut dyn Write) -> fmt::Result {
    each_zone(region, out, &|info, order, out| {
        let index = info.unusable_free_index(order);
        write!(out, "{}.{:03} ", index / 1000, index % 1000)
    })
}

type WriteIndex<'a> = &'a dyn Fn(ContigPageInfo, usize, &mut dyn Write) -> fmt::Result;

fn each_zone(region: &RegionRef<'_>, out: &mut dyn Write, index: WriteIndex<'_>) -> fmt::Result {
    for node in counters::online_nodes(region).iter() {
        for (kind, _, zone) in counters::zones_of(region, node).filter(|(_, _, zone)| counters::is_populated(zone)) {
            write!(out, "Node {}, zone {:>8} ", node.index(), kind.name())?;
            let blocks = FreeCounts::read(zone).by_order();
            for order in 0..MAX_ORDER {
                index(ContigPageInfo::new(&blocks, order), order, out)?;
            }
            out.write_char('\n')?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both indices of each order, for `blocks` of the lowest orders.
    fn indices(blocks: &[u64]) -> ([i64; MAX_ORDER], [i64; MAX_ORDER]) {
        let mut all = [0; MAX_ORDER];
        all[..blocks.len()].copy_from_slice(blocks);
        let info = |order| ContigPageInfo::new(&all, order);
        (
            core::array::from_fn(|order| info(order).unusable_free_index(order)),
            core::array::from_fn(|order| info(order).fragmentation_index(order)),
        )
    }

    #[test]
    fn indices_are_linux_s() {
        // 1024 single pages: what does not fail at order 0 fails elsewhere for fragmentation.
        let (unusable, external) = indices(&[1024]);
        assert_eq!(unusable, [0, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000]);
        assert_eq!(external, [-1000, 500, 750, 875, 937, 968, 984, 992, 996, 998, 999]);
        // 4 + 4 * 2 + 2 * 4 pages: 20.
        let (unusable, external) = indices(&[4, 4, 2]);
        assert_eq!(unusable, [0, 200, 600, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000]);
        // Order 3: 1000 - (1000 + 2500) / 10.
        assert_eq!(external, [-1000, -1000, -1000, 650, 775, 838, 869, 885, 893, 897, 899]);
    }

    #[test]
    fn want_of_memory_is_no_fragmentation() {
        let (unusable, external) = indices(&[]);
        assert_eq!((unusable, external), ([1000; MAX_ORDER], [0; MAX_ORDER]));
        // One page: an order-1 request lacks the other, so the index is below zero, as in Linux.
        assert_eq!(indices(&[1]).1, [-1000, -500, -250, -125, -62, -31, -15, -7, -3, -1, 0]);
    }

    #[test]
    fn no_counts_are_too_large() {
        let blocks = [u64::MAX; MAX_ORDER];
        for order in 0..MAX_ORDER {
            let info = ContigPageInfo::new(&blocks, order);
            assert_eq!(info.fragmentation_index(order), -1000, "order {order} would not fail");
            assert!((0..=1000).contains(&info.unusable_free_index(order)), "order {order}");
        }
    }
}
