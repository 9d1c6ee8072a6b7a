//! Trees of areas: red-black, ordered by address, each with a list of its nodes in the same order.
//!
//! Augmented trees keep with each node the largest room that it or a node below it has: of the free areas of the vmalloc
//! space that is their size, so that the lowest area that is large enough is found in one way down
//! ([`Tree::find_fit`]); of the areas of a program it is the gap below them.

use pagevisor_shared::units::PAGE_SIZE;

/// An area that can be in a tree. The links are the tree's.
pub(crate) trait TreeNode: Copy + PartialEq {
    /// A word that is nothing or leads to a node.
    type Word: Copy;
    /// The room of a node depends on the node before it.
    const ROOM_IS_BELOW: bool;

    /// What `word` leads to.
    fn follow(word: Self::Word) -> Option<Self>;
    /// Makes `word` lead to `to`.
    fn lead(word: Self::Word, to: Option<Self>);
    /// First byte.
    fn start(self) -> u64;
    /// First byte behind.
    fn end(self) -> u64;
    /// What trees keep the largest of, in bytes.
    fn room(self) -> u64;
    /// The largest room at or below it in the tree. Of augmented trees only.
    fn max(self) -> u64;
    /// Sets the largest room at or below it.
    fn set_max(self, max: u64);
    /// The left child.
    fn left(self) -> Option<Self>;
    /// Sets the left child.
    fn set_left(self, to: Option<Self>);
    /// The right child.
    fn right(self) -> Option<Self>;
    /// Sets the right child.
    fn set_right(self, to: Option<Self>);
    /// The next one up.
    fn next(self) -> Option<Self>;
    /// Sets the next one up.
    fn set_next(self, to: Option<Self>);
    /// The next one down.
    fn prev(self) -> Option<Self>;
    /// Sets the next one down.
    fn set_prev(self, to: Option<Self>);
    /// The parent.
    fn parent(self) -> Option<Self>;
    /// Sets the parent and leaves the colour.
    fn set_parent(self, parent: Option<Self>);
    /// Sets the parent; the node is red.
    fn set_parent_red(self, parent: Option<Self>);
    /// Whether it is red.
    fn is_red(self) -> bool;
    /// Makes it red or black.
    fn set_red(self, red: bool);
}

/// A tree. `AUGMENTED` trees keep the largest room below each node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tree<N: TreeNode, const AUGMENTED: bool> {
    root: N::Word,
    first: N::Word,
}

/// Where a new node goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<N> {
    /// The node it will be a child of, and whether the left one.
    parent: Option<(N, bool)>,
    /// The node before it.
    pub(crate) prev: Option<N>,
    /// The node behind it.
    pub(crate) next: Option<N>,
}

fn is_red<N: TreeNode>(node: Option<N>) -> bool {
    node.is_some_and(N::is_red)
}

fn max_of<N: TreeNode>(node: Option<N>) -> u64 {
    node.map_or(0, N::max)
}

impl<N: TreeNode, const AUGMENTED: bool> Tree<N, AUGMENTED> {
    /// The tree with that root and that start of its list.
    pub(crate) const fn new([root, first]: [N::Word; 2]) -> Self {
        Self { root, first }
    }

    /// The lowest area.
    pub(crate) fn first(&self) -> Option<N> {
        N::follow(self.first)
    }

    /// The root.
    #[cfg(test)]
    pub(crate) fn root(&self) -> Option<N> {
        N::follow(self.root)
    }

    /// Forgets all nodes, which stay on their list; gives the first.
    pub(crate) fn take_all(&self) -> Option<N> {
        let first = N::follow(self.first);
        N::lead(self.root, None);
        N::lead(self.first, None);
        first
    }

    /// The area that holds `addr` (`__find_vmap_area`).
    pub(crate) fn find(&self, addr: u64) -> Option<N> {
        let mut node = N::follow(self.root);
        while let Some(area) = node {
            if addr < area.start() {
                node = area.left();
            } else if addr >= area.end() {
                node = area.right();
            } else {
                return Some(area);
            }
        }
        None
    }

    /// The highest area that begins below `addr` (`pvm_find_va_enclose_addr`).
    pub(crate) fn find_below(&self, addr: u64) -> Option<N> {
        let (mut best, mut node) = (None, N::follow(self.root));
        while let Some(area) = node {
            if area.start() < addr {
                best = Some(area);
                node = area.right();
            } else {
                node = area.left();
            }
        }
        best
    }

    /// Where an area from `start` up to `end` goes; `None` if it overlaps one that is there (`find_va_links`).
    pub(crate) fn place(&self, start: u64, end: u64) -> Option<Place<N>> {
        let (mut parent, mut node) = (None, N::follow(self.root));
        while let Some(area) = node {
            if end <= area.start() {
                parent = Some((area, true));
                node = area.left();
            } else if start >= area.end() {
                parent = Some((area, false));
                node = area.right();
            } else {
                return None;
            }
        }
        let (prev, next) = match parent {
            None => (None, None),
            Some((area, true)) => (area.prev(), Some(area)),
            Some((area, false)) => (Some(area), area.next()),
        };
        Some(Place { parent, prev, next })
    }

    /// Puts `area` at `place`, which was found for it in the tree as it is (`link_va`).
    pub(crate) fn insert(&self, area: N, place: Place<N>) {
        area.set_prev(place.prev);
        area.set_next(place.next);
        match place.prev {
            Some(prev) => prev.set_next(Some(area)),
            None => N::lead(self.first, Some(area)),
        }
        if let Some(next) = place.next {
            next.set_prev(Some(area));
            if AUGMENTED && N::ROOM_IS_BELOW {
                self.propagate(next);
            }
        }
        area.set_left(None);
        area.set_right(None);
        if AUGMENTED {
            area.set_max(area.room());
        }
        match place.parent {
            None => {
                N::lead(self.root, Some(area));
                area.set_parent_red(None);
                area.set_red(false);
                return;
            }
            Some((parent, true)) => parent.set_left(Some(area)),
            Some((parent, false)) => parent.set_right(Some(area)),
        }
        area.set_parent_red(place.parent.map(|(parent, _)| parent));
        if AUGMENTED {
            self.raise(area);
        }
        self.rebalance_insert(area);
    }

    /// Makes known above `area` that there is something as large as it.
    fn raise(&self, area: N) {
        let size = area.max();
        let mut above = area.parent();
        while let Some(node) = above
            && node.max() < size
        {
            node.set_max(size);
            above = node.parent();
        }
    }

    /// Works out `area`'s largest room anew, and those above as far as that changes them; those below are right
    /// (`augment_tree_propagate_from`).
    pub(crate) fn propagate(&self, area: N) {
        let mut node = Some(area);
        while let Some(area) = node {
            let max = area.room().max(max_of(area.left())).max(max_of(area.right()));
            if max == area.max() {
                return;
            }
            area.set_max(max);
            node = area.parent();
        }
    }

    /// The lowest area that holds `size` bytes at a multiple of `align`, wherever it starts
    /// (`find_vmap_lowest_match`): the search is for what is large enough even if it starts at the worst page. `step`
    /// is called for each node that is looked at.
    pub(crate) fn find_fit(&self, size: u64, align: u64, mut step: impl FnMut()) -> Option<N> {
        let need = size.checked_add(align.saturating_sub(PAGE_SIZE))?;
        let mut node = N::follow(self.root)?;
        if node.max() < need {
            return None;
        }
        loop {
            step();
            // Something below `node`, or it, is large enough.
            match node.left() {
                Some(left) if left.max() >= need => node = left,
                _ if node.room() >= need => return Some(node),
                _ => node = node.right()?,
            }
        }
    }

    /// Puts `new` where `old` is under `parent`.
    fn replace_child(&self, parent: Option<N>, old: N, new: Option<N>) {
        match parent {
            None => N::lead(self.root, new),
            Some(parent) if parent.left() == Some(old) => parent.set_left(new),
            Some(parent) => parent.set_right(new),
        }
    }

    /// Turns `node` down to the left (or right), its other child taking its place.
    fn rotate(&self, node: N, to_left: bool) {
        let above = node.parent();
        let Some(up) = (if to_left { node.right() } else { node.left() }) else { return };
        let middle = if to_left { up.left() } else { up.right() };
        if to_left {
            node.set_right(middle);
            up.set_left(Some(node));
        } else {
            node.set_left(middle);
            up.set_right(Some(node));
        }
        if let Some(middle) = middle {
            middle.set_parent(Some(node));
        }
        up.set_parent(above);
        self.replace_child(above, node, Some(up));
        node.set_parent(Some(up));
        if AUGMENTED {
            up.set_max(node.max());
            node.set_max(node.room().max(max_of(node.left())).max(max_of(node.right())));
        }
    }

    /// Makes a red-black tree of one in which `node`, red, may have a red parent (`__rb_insert`).
    fn rebalance_insert(&self, node: N) {
        let mut node = node;
        while let Some(parent) = node.parent()
            && parent.is_red()
        {
            // A red node is not the root.
            let Some(above) = parent.parent() else { return };
            let on_left = above.left() == Some(parent);
            let uncle = if on_left { above.right() } else { above.left() };
            if let Some(uncle) = uncle
                && uncle.is_red()
            {
                parent.set_red(false);
                uncle.set_red(false);
                above.set_red(true);
                node = above;
                continue;
            }
            let inner = if on_left { parent.right() } else { parent.left() };
            let top = if inner == Some(node) {
                self.rotate(parent, on_left);
                node
            } else {
                parent
            };
            top.set_red(false);
            above.set_red(true);
            self.rotate(above, !on_left);
            return;
        }
        if node.parent().is_none() {
            node.set_red(false);
        }
    }

    /// Takes `area` out of tree and list (`unlink_va`).
    pub(crate) fn remove(&self, area: N) {
        let (prev, next) = (area.prev(), area.next());
        match prev {
            Some(prev) => prev.set_next(next),
            None => N::lead(self.first, next),
        }
        if let Some(next) = next {
            next.set_prev(prev);
            if AUGMENTED && N::ROOM_IS_BELOW {
                self.propagate(next);
            }
        }
        let removed_red;
        // Where a black node is missing now: under `parent`, in place of `child`.
        let (parent, child);
        match (area.left(), area.right()) {
            (Some(_), Some(right)) => {
                // The next one up is the lowest on the right. It takes the place.
                let mut heir = right;
                while let Some(left) = heir.left() {
                    heir = left;
                }
                removed_red = heir.is_red();
                child = heir.right();
                if heir == right {
                    parent = Some(heir);
                } else {
                    parent = heir.parent();
                    self.replace_child(parent, heir, child);
                    if let Some(child) = child {
                        child.set_parent(parent);
                    }
                    heir.set_right(Some(right));
                    right.set_parent(Some(heir));
                }
                let (left, above) = (area.left(), area.parent());
                heir.set_left(left);
                if let Some(left) = left {
                    left.set_parent(Some(heir));
                }
                self.replace_child(above, area, Some(heir));
                heir.set_parent_red(above);
                heir.set_red(area.is_red());
                if AUGMENTED {
                    // What it has now is not its own: nothing that is worked out may seem unchanged.
                    heir.set_max(0);
                    if let Some(parent) = parent
                        && parent != heir
                    {
                        self.propagate_to(parent, heir);
                    }
                    self.refresh_from(heir);
                }
            }
            (left, right) => {
                removed_red = area.is_red();
                child = left.or(right);
                parent = area.parent();
                self.replace_child(parent, area, child);
                if let Some(child) = child {
                    child.set_parent(parent);
                }
                if AUGMENTED && let Some(parent) = parent {
                    self.propagate(parent);
                }
            }
        }
        if !removed_red {
            self.rebalance_remove(parent, child);
        }
    }

    /// Works out the largest rooms from `from` up to, and not including, `to`.
    fn propagate_to(&self, from: N, to: N) {
        let mut node = Some(from);
        while let Some(area) = node
            && area != to
        {
            area.set_max(area.room().max(max_of(area.left())).max(max_of(area.right())));
            node = area.parent();
        }
    }

    /// Works out `area`'s largest room, and those above as far as that changes them.
    fn refresh_from(&self, area: N) {
        area.set_max(area.room().max(max_of(area.left())).max(max_of(area.right())));
        if let Some(above) = area.parent() {
            self.propagate(above);
        }
    }

    /// Makes a red-black tree of one in which the ways through `child`, under `parent`, have a black node less than the
    /// others (`____rb_erase_color`).
    fn rebalance_remove(&self, parent: Option<N>, child: Option<N>) {
        let (mut parent, mut child) = (parent, child);
        while let Some(above) = parent
            && !is_red(child)
        {
            let on_left = above.left() == child;
            let sibling = |above: N| if on_left { above.right() } else { above.left() };
            let Some(mut other) = sibling(above) else { return };
            if other.is_red() {
                other.set_red(false);
                above.set_red(true);
                self.rotate(above, on_left);
                let Some(now) = sibling(above) else { return };
                other = now;
            }
            let (near, far) = if on_left { (other.left(), other.right()) } else { (other.right(), other.left()) };
            if !is_red(near) && !is_red(far) {
                other.set_red(true);
                child = Some(above);
                parent = above.parent();
                continue;
            }
            if !is_red(far) {
                if let Some(near) = near {
                    near.set_red(false);
                }
                other.set_red(true);
                self.rotate(other, !on_left);
                let Some(now) = sibling(above) else { return };
                other = now;
            }
            other.set_red(above.is_red());
            above.set_red(false);
            let far = if on_left { other.right() } else { other.left() };
            if let Some(far) = far {
                far.set_red(false);
            }
            self.rotate(above, on_left);
            return;
        }
        if let Some(child) = child {
            child.set_red(false);
        }
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
pub(crate) mod fixtures;
