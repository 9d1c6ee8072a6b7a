//! Files' pages: the links between files, the nodes of their trees, and the table of numbers.
//!
//! What it rests on is said in [`super::record`].

use core::sync::atomic::AtomicU64;

use pagevisor_shared::mm_types::{AddressSpace, PageNode};

use super::record::Handle;
use crate::sync::Plain;

/// The pages of a file (`struct address_space *`).
pub type FileMapping = Handle<AddressSpace>;
/// A node of a tree of pages.
pub(crate) type TreeNodeRef = Handle<PageNode>;

impl FileMapping {
    /// The root of the tree, and how many levels it has.
    #[inline(always)]
    pub(crate) fn tree(self) -> Option<(TreeNodeRef, u32)> {
        let word = self.record().i_pages.get();
        // SAFETY: written below only, from a handle and a height.
        let root = unsafe { Handle::follow(word & !AddressSpace::HEIGHT) };
        root.map(|root| (root, (word & AddressSpace::HEIGHT) as u32))
    }

    /// Sets the root of the tree, of `height` levels.
    #[inline(always)]
    pub(crate) fn set_tree(self, root: Option<TreeNodeRef>, height: u32) {
        self.record().i_pages.set(Handle::word(root) | u64::from(height) & AddressSpace::HEIGHT);
    }
}

impl TreeNodeRef {
    /// The word of `slot`.
    #[inline(always)]
    pub(crate) fn entry(self, slot: usize) -> u64 {
        self.record().slots[slot % PageNode::SLOTS].get()
    }

    /// The node that `slot` leads to, if it leads to one.
    #[inline(always)]
    pub(crate) fn child(self, slot: usize) -> Option<Self> {
        let word = self.entry(slot);
        if PageNode::frame(word).is_some() {
            return None;
        }
        // SAFETY: written below only: what names no frame is from a handle, or 0.
        unsafe { Handle::follow(word) }
    }

    /// Makes `slot` lead to a node, or nowhere.
    #[inline(always)]
    pub(crate) fn set_child(self, slot: usize, child: Option<Self>) {
        self.record().slots[slot % PageNode::SLOTS].set(Handle::word(child));
    }

    /// Makes `slot` name a frame, or nothing.
    #[inline(always)]
    pub(crate) fn set_frame(self, slot: usize, frame: Option<u32>) {
        self.record().slots[slot % PageNode::SLOTS].set(frame.map_or(0, PageNode::entry));
    }

    /// Whether there is nothing in it.
    #[inline]
    pub(crate) fn is_empty(self) -> bool {
        self.record().slots.iter().all(|word| word.get() == 0)
    }
}

/// Makes a word of the table of numbers lead to `mapping`, or nowhere.
#[inline(always)]
pub(crate) fn set_mapping_at(word: &AtomicU64, mapping: Option<FileMapping>) {
    word.set(Handle::word(mapping));
}
