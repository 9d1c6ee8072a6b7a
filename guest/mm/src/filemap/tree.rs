//! Pages of a file by their index: a radix tree of nodes of 64 words (`lib/xarray.c`).
//!
//! All of it is called under the file's lock. A tree grows at its root when an index is too large for it, and loses nodes
//! when there is nothing in them any more; empty nodes are all zero, as the next owner expects them.

use pagevisor_shared::mm_types::PageNode;

use super::FileMapping;
use crate::raw::TreeNodeRef;

/// Levels that a tree has at most: indices have 32 bits.
const MAX_HEIGHT: u32 = 6;

/// Indices that a tree of `height` levels has room for.
const fn room(height: u32) -> u64 {
    1 << (height * PageNode::SHIFT)
}

/// Nodes that were taken out of a tree, for who frees them when the lock is given back.
pub(super) type Removed = [Option<TreeNodeRef>; MAX_HEIGHT as usize];

/// The frame of page `index` (`xas_load`).
#[inline]
pub(super) fn load(mapping: FileMapping, index: u64) -> Option<u32> {
    let (mut node, height) = mapping.tree()?;
    if index >= room(height) {
        return None;
    }
    for level in (1..height).rev() {
        node = node.child(PageNode::slot(index, level))?;
    }
    PageNode::frame(node.entry(PageNode::slot(index, 0)))
}

/// The first page at or behind `index` (`xas_find`).
pub(super) fn find(mapping: FileMapping, index: u64) -> Option<(u64, u32)> {
    let (root, height) = mapping.tree()?;
    let mut at = index;
    'from_the_root: while at < room(height) {
        let (mut node, mut level) = (root, height - 1);
        loop {
            let first = PageNode::slot(at, level);
            let shift = level * PageNode::SHIFT;
            let Some(slot) = (first..PageNode::SLOTS).find(|slot| node.entry(*slot) != 0) else {
                // Behind all that this node has room for.
                let above = shift + PageNode::SHIFT;
                at = ((at >> above) + 1) << above;
                continue 'from_the_root;
            };
            if slot != first {
                at = (at >> shift & !(PageNode::SLOTS as u64 - 1) | slot as u64) << shift;
            }
            if level == 0 {
                return PageNode::frame(node.entry(slot)).map(|frame| (at, frame));
            }
            node = node.child(slot)?;
            level -= 1;
        }
    }
    None
}

/// What came of [`insert`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Inserted {
    /// It is there.
    Yes,
    /// Another page is.
    Other(u32),
    /// A node is needed.
    NeedsNode,
}

/// Puts frame `frame` at `index`, taking the node in `spare` if one is needed. When another is needed the tree has
/// what was added so far; who gives up calls [`prune`].
pub(super) fn insert(mapping: FileMapping, index: u64, frame: u32, spare: &mut Option<TreeNodeRef>) -> Inserted {
    let (mut node, mut height) = match mapping.tree() {
        Some(tree) => tree,
        None => {
            let Some(root) = spare.take() else { return Inserted::NeedsNode };
            let mut height = 1;
            while index >= room(height) {
                height += 1;
            }
            mapping.set_tree(Some(root), height);
            (root, height)
        }
    };
    while index >= room(height) {
        let Some(root) = spare.take() else { return Inserted::NeedsNode };
        root.set_child(0, Some(node));
        height += 1;
        mapping.set_tree(Some(root), height);
        node = root;
    }
    for level in (1..height).rev() {
        let slot = PageNode::slot(index, level);
        node = match node.child(slot) {
            Some(child) => child,
            None => {
                let Some(child) = spare.take() else { return Inserted::NeedsNode };
                node.set_child(slot, Some(child));
                child
            }
        };
    }
    let slot = PageNode::slot(index, 0);
    if let Some(other) = PageNode::frame(node.entry(slot)) {
        return Inserted::Other(other);
    }
    node.set_frame(slot, Some(frame));
    Inserted::Yes
}

/// Takes out what is at `index`, and the nodes on the way there that nothing else is in.
pub(super) fn remove(mapping: FileMapping, index: u64) -> Removed {
    clear(mapping, index, true)
}

/// Takes out the nodes on the way to `index` that nothing is in.
pub(super) fn prune(mapping: FileMapping, index: u64) -> Removed {
    clear(mapping, index, false)
}

fn clear(mapping: FileMapping, index: u64, page: bool) -> Removed {
    let mut path: Removed = [None; MAX_HEIGHT as usize];
    let mut removed: Removed = [None; MAX_HEIGHT as usize];
    let Some((root, height)) = mapping.tree() else { return removed };
    let mut now = Some(root).filter(|_| index < room(height));
    for level in (0..height).rev() {
        let Some(node) = now else { break };
        path[level as usize % path.len()] = now;
        now = node.child(PageNode::slot(index, level));
        if level == 0 && page {
            node.set_frame(PageNode::slot(index, 0), None);
        }
    }
    for level in 0..height {
        let Some(node) = path[level as usize % path.len()] else { continue };
        if !node.is_empty() {
            break;
        }
        match path.get(level as usize + 1).copied().flatten() {
            Some(parent) => parent.set_child(PageNode::slot(index, level + 1), None),
            None => mapping.set_tree(None, 0),
        }
        removed[level as usize % removed.len()] = Some(node);
    }
    removed
}
