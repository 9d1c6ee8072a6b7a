//! An address space's tree of areas: what the list has, in its order, red-black, each node with the largest gap below.

use std::collections::HashMap;

use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::units::PAGE_SHIFT;
use pagevisor_shared::vmalloc::RB_BLACK;

use super::Area;
use crate::state::{SpaceInfo, StateError};
use crate::verify::Verifier;
use crate::verify::report::Place;
use crate::verify::rule::Rule;

/// No red-black tree of as many nodes as fit into memory is higher.
const MAX_HEIGHT: u32 = 100;
/// Bytes below a stack that nobody else gets (`stack_guard_gap`).
const STACK_GUARD_GAP: u64 = 256 << PAGE_SHIFT;

/// A walk through a tree.
struct Walk<'a> {
    areas: &'a [Area],
    by_address: HashMap<u64, usize>,
    /// The nodes in order.
    order: Vec<usize>,
    found: Vec<(Rule, u64, String)>,
}

impl Walk<'_> {
    fn add(&mut self, rule: Rule, address: u64, evidence: String) {
        self.found.push((rule, address, evidence));
    }

    /// Goes through the subtree at `address`; gives its height in black nodes and its largest gap.
    fn subtree(&mut self, address: u64, parent: Option<usize>, height: u32) -> (u32, u64) {
        if address == 0 {
            return (0, 0);
        }
        let Some(index) = self.by_address.remove(&address).filter(|_| height != 0) else {
            self.add(Rule::AreaTree, address, "a node that is no area of the list, or a second time".to_owned());
            return (0, 0);
        };
        let (areas, order) = (self.areas, self.order.len());
        let Some(area) = areas.get(index) else { return (0, 0) };
        let above = parent.and_then(|parent| areas.get(parent));
        let expected = above.map_or(0, |above| above.info.address);
        if area.parent & !RB_BLACK != expected {
            let evidence = format!("the node's parent is {:#x}, not {expected:#x}", area.parent & !RB_BLACK);
            self.add(Rule::AreaTree, address, evidence);
        }
        let (left, left_gap) = self.subtree(area.left, Some(index), height - 1);
        self.order.push(index);
        let (right, right_gap) = self.subtree(area.right, Some(index), height - 1);
        let red = area.parent & RB_BLACK == 0;
        if left != right || red && above.is_none_or(|above| above.parent & RB_BLACK == 0) {
            let colour = if red { "red" } else { "black" };
            let evidence = format!("a {colour} node over {left} and {right} black ones, {order} nodes before its own");
            self.add(Rule::AreaTree, address, evidence);
        }
        let end = index.checked_sub(1).and_then(|before| areas.get(before)).map_or(0, |before| before.info.end);
        let stack = area.info.flags.contains(VmaFlags::GROWSDOWN);
        let start = area.info.start.saturating_sub(if stack { STACK_GUARD_GAP } else { 0 });
        let gap = start.saturating_sub(end).max(left_gap).max(right_gap);
        if area.gap != gap {
            let evidence = format!("subtree_gap of the area {:#x} is {:#x}, not {gap:#x}", area.info.start, area.gap);
            self.add(Rule::AreaGap, address, evidence);
        }
        (left + u32::from(!red), gap)
    }
}

impl Verifier<'_> {
    /// Compares the tree of `space` with the list of its areas.
    pub(super) fn check_user_tree(&mut self, space: &SpaceInfo, areas: &[Area]) -> Result<(), StateError> {
        let by_address = areas.iter().enumerate().map(|(index, area)| (area.info.address, index)).collect();
        let mut walk = Walk { areas, by_address, order: Vec::new(), found: Vec::new() };
        walk.subtree(space.mm_rb, None, MAX_HEIGHT);
        let Walk { order, found, .. } = walk;
        for (rule, address, evidence) in found {
            self.findings.add(rule, Place::Virtual(address), format_args!("{evidence}"));
        }
        if !order.iter().copied().eq(0..areas.len()) {
            let evidence = format_args!("the tree has {} of {} areas, or in another order", order.len(), areas.len());
            self.findings.add(Rule::AreaTree, Place::Virtual(space.address), evidence);
        }
        let highest = areas.last().map_or(0, |area| area.info.end);
        let place = Place::Virtual(space.address);
        self.findings.equal(Rule::AreaGap, place, "highest_vm_end", space.highest_vm_end, highest);
        Ok(())
    }
}
