//! The trees: red-black, in order of address, each with a list of its nodes.

use std::collections::HashSet;
use std::fmt;
use std::mem::offset_of;

use pagevisor_shared::layout::VMALLOC_START;
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE};
use pagevisor_shared::vmalloc::{RB_BLACK, VmapArea};

use super::SPACE_END;
use crate::state::StateError;
use crate::state::slab::Record;
use crate::verify::Verifier;
use crate::verify::report::Place;
use crate::verify::rule::Rule;

/// Which tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Busy,
    Free,
    Lazy,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "busy",
            Self::Free => "free",
            Self::Lazy => "lazily freed",
        })
    }
}

/// An area.
#[derive(Clone, Copy, Debug)]
pub(super) struct Area {
    pub kind: Kind,
    /// Address of its record.
    address: u64,
    pub start: u64,
    pub end: u64,
    parent: u64,
    left: u64,
    right: u64,
    next: u64,
    prev: u64,
    pub max_or_vm: u64,
}

impl Area {
    pub const fn size(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    pub const fn pages(&self) -> u64 {
        self.size() >> PAGE_SHIFT
    }

    const fn is_black(&self) -> bool {
        self.parent & RB_BLACK != 0
    }

    fn of(kind: Kind, address: u64, record: Record<'_>) -> Self {
        Self {
            kind,
            address,
            start: record.u64(offset_of!(VmapArea, va_start)),
            end: record.u64(offset_of!(VmapArea, va_end)),
            parent: record.u64(offset_of!(VmapArea, parent)),
            left: record.u64(offset_of!(VmapArea, left)),
            right: record.u64(offset_of!(VmapArea, right)),
            next: record.u64(offset_of!(VmapArea, next)),
            prev: record.u64(offset_of!(VmapArea, prev)),
            max_or_vm: record.u64(offset_of!(VmapArea, max_or_vm)),
        }
    }
}

/// A node of a tree, with its children as indices. Children come behind their parents.
struct Node {
    area: Area,
    left: Option<usize>,
    right: Option<usize>,
}

/// Where a record is reached from.
struct Link {
    to: u64,
    /// The parent's index, and whether it is the left child.
    parent: Option<(usize, bool)>,
}

/// Most records: what memory has room for.
const fn most(pages: u64) -> u64 {
    pages * (PAGE_SIZE / size_of::<VmapArea>() as u64)
}

/// The nodes in order of address.
fn in_order(nodes: &[Node]) -> Vec<Area> {
    let (mut order, mut stack) = (Vec::with_capacity(nodes.len()), Vec::new());
    let mut at = (!nodes.is_empty()).then_some(0);
    loop {
        while let Some(node) = at.and_then(|index| nodes.get(index)) {
            stack.push(node);
            at = node.left;
        }
        let Some(node) = stack.pop() else { return order };
        order.push(node.area);
        at = node.right;
    }
}

impl Verifier<'_> {
    /// Reads a tree and checks all that makes it one; gives its areas in order.
    pub(super) fn read_area_tree(&mut self, kind: Kind, root: u64, first: u64) -> Result<Vec<Area>, StateError> {
        let nodes = self.load_area_tree(kind, root)?;
        self.check_balance(&nodes);
        if kind == Kind::Free {
            self.check_max_sizes(&nodes);
        }
        let areas = in_order(&nodes);
        self.check_area_order(kind, &areas);
        self.check_area_list(kind, first, &areas);
        Ok(areas)
    }

    fn load_area_tree(&mut self, kind: Kind, root: u64) -> Result<Vec<Node>, StateError> {
        let most = most(self.memory.present.len());
        let (mut nodes, mut seen): (Vec<Node>, _) = (Vec::new(), HashSet::new());
        let mut links = if root == 0 { vec![] } else { vec![Link { to: root, parent: None }] };
        while let Some(Link { to, parent }) = links.pop() {
            let place = Place::Virtual(to);
            let mut bytes = [0; size_of::<VmapArea>()];
            let there = match self.direct(to) {
                Some(gpa) if gpa.is_multiple_of(64) => self.read(gpa, &mut bytes)?,
                _ => false,
            };
            if !there || nodes.len() as u64 >= most || !seen.insert(to) {
                let what = if there { "is there a second time" } else { "is no record" };
                self.findings.add(Rule::VmapTree, place, format_args!("a node of the {kind} tree {what}"));
                continue;
            }
            let area = Area::of(kind, to, Record(&bytes));
            let above = parent.and_then(|(index, _)| nodes.get(index)).map_or(0, |node| node.area.address);
            if area.parent & !RB_BLACK != above {
                let evidence = format_args!(
                    "the node of the {kind} tree has the parent {:#x}, not {above:#x}",
                    area.parent & !RB_BLACK
                );
                self.findings.add(Rule::VmapTree, place, evidence);
            }
            let index = nodes.len();
            if let Some((node, left)) = parent.and_then(|(above, left)| Some((nodes.get_mut(above)?, left))) {
                *(if left { &mut node.left } else { &mut node.right }) = Some(index);
            }
            for (child, left) in [(area.left, true), (area.right, false)] {
                links.extend((child != 0).then_some(Link { to: child, parent: Some((index, left)) }));
            }
            nodes.push(Node { area, left: None, right: None });
        }
        Ok(nodes)
    }

    /// The root is black, no red node has a red child, and all ways down have as many black nodes.
    fn check_balance(&mut self, nodes: &[Node]) {
        let black = |index: Option<usize>| index.and_then(|index| nodes.get(index)).is_none_or(|n| n.area.is_black());
        // From below, the height in black nodes.
        let mut heights = vec![0u32; nodes.len()];
        for (index, node) in nodes.iter().enumerate().rev() {
            let height = |child: Option<usize>| child.and_then(|child| heights.get(child).copied()).unwrap_or(0);
            let (left, right) = (height(node.left), height(node.right));
            let red_red = !node.area.is_black() && (index == 0 || !black(node.left) || !black(node.right));
            if red_red || left != right {
                let evidence = format_args!(
                    "a {} node of the {} tree over {left} and {right} black ones, a red child: {}",
                    if node.area.is_black() { "black" } else { "red" },
                    node.area.kind,
                    !black(node.left) || !black(node.right)
                );
                self.findings.add(Rule::VmapBalance, Place::Virtual(node.area.address), evidence);
            }
            if let Some(slot) = heights.get_mut(index) {
                *slot = left.max(right) + u32::from(node.area.is_black());
            }
        }
    }

    /// Every node of the free tree knows the largest area at or below it.
    fn check_max_sizes(&mut self, nodes: &[Node]) {
        let mut largest = vec![0u64; nodes.len()];
        for (index, node) in nodes.iter().enumerate().rev() {
            let below = [node.left, node.right].into_iter().flatten().filter_map(|child| largest.get(child).copied());
            let expected = below.fold(node.area.size(), u64::max);
            if node.area.max_or_vm != expected {
                let evidence = format_args!(
                    "subtree_max_size of the free area {:#x} is {:#x}, not {expected:#x}",
                    node.area.start, node.area.max_or_vm
                );
                self.findings.add(Rule::VmapMaxSize, Place::Virtual(node.area.address), evidence);
            }
            if let Some(slot) = largest.get_mut(index) {
                *slot = expected;
            }
        }
    }

    fn check_area_order(&mut self, kind: Kind, areas: &[Area]) {
        let mut last = VMALLOC_START;
        for area in areas {
            let aligned = (area.start | area.end).is_multiple_of(PAGE_SIZE);
            if area.start < last || area.end <= area.start || area.end > SPACE_END || !aligned {
                let evidence = format_args!("the {kind} area ends at {:#x}, the one before it at {last:#x}", area.end);
                self.findings.add(Rule::VmapOrder, Place::Virtual(area.start), evidence);
            }
            last = last.max(area.end);
        }
    }

    /// The list of a tree's nodes has them in order, both ways.
    fn check_area_list(&mut self, kind: Kind, first: u64, areas: &[Area]) {
        let at = |index: usize| areas.get(index).map_or(0, |area| area.address);
        if first != at(0) {
            let evidence = format_args!("the {kind} areas start with {first:#x}, not {:#x}", at(0));
            self.findings.add(Rule::VmapList, Place::Virtual(first), evidence);
        }
        let mut before = 0;
        for (index, area) in areas.iter().enumerate() {
            let behind = at(index + 1);
            if area.next != behind || area.prev != before {
                let evidence = format_args!(
                    "the {kind} area {:#x} is between {:#x} and {:#x}, not {before:#x} and {behind:#x}",
                    area.start, area.prev, area.next
                );
                self.findings.add(Rule::VmapList, Place::Virtual(area.address), evidence);
            }
            before = area.address;
        }
    }
}
