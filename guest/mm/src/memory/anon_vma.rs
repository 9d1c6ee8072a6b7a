//! Families of anonymous pages (`anon_vma`; `mm/rmap.c`).
//!
//! An area whose private pages were written to has a family that its new pages belong to. A child's area gets a family of
//! its own below it, and links to all that its parent's area has, since it may map pages of each. A family whose area is
//! gone, and that has at most one child, is used again instead of adding a generation (`anon_vma_clone`).
//!
//! The lock of the oldest of a family guards links, counts and who is whose child.

use pagevisor_shared::errno::Errno;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::mm_types::{AnonVma, AnonVmaChain, VmaFlags};

use crate::Mm;
use crate::platform::Platform;
use crate::raw::{AnonFamily, Chain, Handle, RecordCache, Vma, first_chain, set_family_at, set_first_chain};
use crate::sync::{self, Plain};

/// Where the records come from.
#[derive(Debug)]
pub(crate) struct AnonCaches {
    families: RecordCache<AnonVma>,
    links: RecordCache<AnonVmaChain>,
}

impl AnonCaches {
    pub(crate) const fn new() -> Self {
        Self { families: RecordCache::new(), links: RecordCache::new() }
    }
}

/// The links of an area, newest first.
fn links_of(vma: Vma) -> impl Iterator<Item = Chain> {
    core::iter::successors(first_chain(vma.record()), |link| link.next_of_area())
}

/// Whether an area has a single link (`list_is_singular`).
fn is_singular(vma: Vma) -> bool {
    first_chain(vma.record()).is_some_and(|link| link.next_of_area().is_none())
}

impl<P: Platform> Mm<P> {
    /// A new family, its own root, with a reference for who maps its pages (`anon_vma_alloc`).
    fn anon_vma_alloc(&self) -> Option<AnonFamily> {
        let family = self.memory.anon.families.alloc(self, Gfp::KERNEL)?;
        // Records keep their numbers while they are free.
        if family.id.get() == 0 {
            let Some(number) = self.new_number() else {
                self.memory.anon.families.free(self, family);
                return None;
            };
            family.id.set(number);
        }
        family.refcount.set(1);
        family.num_children.set(0);
        family.num_active_vmas.set(0);
        family.lock.set(0);
        family.set_parent(Some(family));
        family.set_root(Some(family));
        family.set_first_link(None);
        if let Some(word) = self.number_word(family.id.get()) {
            set_family_at(word, Some(family));
        }
        Some(family)
    }

    /// Drops a reference, and with the last the record (`put_anon_vma`).
    fn put_anon_vma(&self, family: AnonFamily) {
        let mut now = Some(family);
        while let Some(family) = now.take() {
            // AcqRel: what others did with it comes before its end.
            if family.refcount.fetch_sub(1, core::sync::atomic::Ordering::AcqRel) != 1 {
                return;
            }
            if let Some(word) = self.number_word(family.id.get()) {
                set_family_at(word, None);
            }
            now = family.root().filter(|root| *root != family);
            self.memory.anon.families.free(self, family);
        }
    }

    fn lock_root(&self, root: AnonFamily) {
        sync::lock(&root.record().lock, || self.platform.relax());
    }

    fn unlock_root(&self, root: AnonFamily) {
        sync::unlock(&root.record().lock);
    }

    fn chain_alloc(&self) -> Option<Chain> {
        self.memory.anon.links.alloc(self, Gfp::KERNEL)
    }

    /// Links an area and a family; the family is locked (`anon_vma_chain_link`). On the area's list it comes behind `after`.
    fn chain_link(&self, vma: Vma, link: Chain, family: AnonFamily, after: Option<Chain>) {
        link.set_area(Some(vma));
        link.set_family(Some(family));
        match after {
            Some(before) => {
                link.set_next_of_area(before.next_of_area());
                before.set_next_of_area(Some(link));
            }
            None => {
                link.set_next_of_area(first_chain(vma.record()));
                set_first_chain(vma.record(), Some(link));
            }
        }
        let first = family.first_link();
        link.set_next_link(first);
        link.set_prev_link(None);
        if let Some(first) = first {
            first.set_prev_link(Some(link));
        }
        family.set_first_link(Some(link));
    }

    /// Takes a link off its family's list; the family is locked.
    fn chain_unlink(&self, link: Chain, family: AnonFamily) {
        let (next, prev) = (link.next_link(), link.prev_link());
        match prev {
            Some(prev) => prev.set_next_link(next),
            None => family.set_first_link(next),
        }
        if let Some(next) = next {
            next.set_prev_link(prev);
        }
    }

    /// Whether areas with `a` and `b` as families can be one (`is_mergeable_anon_vma`): the families are the same, or
    /// there is one only, and `vma`, whose it is, was not forked.
    pub fn is_mergeable_anon_vma(a: Option<Handle<AnonVma>>, b: Option<Handle<AnonVma>>, vma: Option<Vma>) -> bool {
        if (a.is_none() || b.is_none()) && vma.is_none_or(is_singular) {
            return true;
        }
        a == b
    }

    /// Sees to it that `vma` has a family for new pages (`__anon_vma_prepare`). Under the address space's lock, for reading
    /// at least.
    ///
    /// # Errors
    /// [`Errno::ENOMEM`].
    #[cold]
    pub(crate) fn anon_vma_prepare(&self, vma: Vma) -> Result<(), Errno> {
        if vma.anon_vma().is_some() {
            return Ok(());
        }
        let link = self.chain_alloc().ok_or(Errno::ENOMEM)?;
        let found = find_mergeable_anon_vma(vma);
        let made = if found.is_none() { self.anon_vma_alloc() } else { None };
        let Some(family) = found.or(made) else {
            self.memory.anon.links.free(self, link);
            return Err(Errno::ENOMEM);
        };
        if made.is_some() {
            family.num_children.set(1);
        }
        let root = family.root().unwrap_or(family);
        self.lock_root(root);
        // Somebody else may do the same.
        let table_lock = vma.mm().map(|mm| &mm.record().page_table_lock);
        if let Some(word) = table_lock {
            sync::lock(word, || self.platform.relax());
        }
        let first = vma.anon_vma().is_none();
        if first {
            self.chain_link(vma, link, family, None);
            family.num_active_vmas.bump(1);
            vma.set_anon_vma(Some(family));
        }
        if let Some(word) = table_lock {
            sync::unlock(word);
        }
        self.unlock_root(root);
        if !first {
            self.memory.anon.links.free(self, link);
            if let Some(made) = made {
                self.put_anon_vma(made);
            }
        }
        Ok(())
    }

    /// Links `dst`, which has no links, to all families that `src` is linked to (`anon_vma_clone`). For a child's area, whose
    /// `anon_vma` is not set: if it finds a family to be used again, that becomes it.
    ///
    /// # Errors
    /// [`Errno::ENOMEM`]; then `dst` has no links.
    pub(crate) fn anon_vma_clone(&self, dst: Vma, src: Vma) -> Result<(), Errno> {
        let mut last = None;
        for from in links_of(src) {
            let Some(family) = from.family() else { continue };
            let Some(link) = self.chain_alloc() else {
                // What was found to be used again is not used by `dst` after all (Linux: `dst->anon_vma = NULL`).
                dst.set_anon_vma(None);
                self.unlink_anon_vmas(dst);
                return Err(Errno::ENOMEM);
            };
            let root = family.root().unwrap_or(family);
            self.lock_root(root);
            self.chain_link(dst, link, family, last.replace(link));
            if dst.anon_vma().is_none()
                && src.anon_vma().is_some()
                && family.num_children.get() < 2
                && family.num_active_vmas.get() == 0
            {
                dst.set_anon_vma(Some(family));
            }
            self.unlock_root(root);
        }
        if let Some(family) = dst.anon_vma() {
            let root = family.root().unwrap_or(family);
            self.lock_root(root);
            family.num_active_vmas.bump(1);
            self.unlock_root(root);
        }
        Ok(())
    }

    /// Makes `vma`, a child's copy of `parent`, able to map its pages, and gives it a family of its own
    /// (`anon_vma_fork`). `vma` has no links.
    ///
    /// # Errors
    /// [`Errno::ENOMEM`]; then it has none.
    pub(crate) fn anon_vma_fork(&self, vma: Vma, parent: Vma) -> Result<(), Errno> {
        vma.set_anon_vma(None);
        let Some(of_parent) = parent.anon_vma() else { return Ok(()) };
        self.anon_vma_clone(vma, parent)?;
        if vma.anon_vma().is_some() {
            return Ok(());
        }
        let (family, link) = match (self.anon_vma_alloc(), self.chain_alloc()) {
            (Some(family), Some(link)) => (family, link),
            (family, link) => {
                if let Some(family) = family {
                    self.put_anon_vma(family);
                }
                if let Some(link) = link {
                    self.memory.anon.links.free(self, link);
                }
                self.unlink_anon_vmas(vma);
                return Err(Errno::ENOMEM);
            }
        };
        let root = of_parent.root().unwrap_or(of_parent);
        family.num_active_vmas.set(1);
        family.set_root(Some(root));
        family.set_parent(Some(of_parent));
        // The root stays as long as any of its family.
        root.refcount.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        vma.set_anon_vma(Some(family));
        self.lock_root(root);
        self.chain_link(vma, link, family, None);
        of_parent.num_children.bump(1);
        self.unlock_root(root);
        Ok(())
    }

    /// Takes away all links of `vma`, and with them the families that nobody else needs (`unlink_anon_vmas`).
    pub(crate) fn unlink_anon_vmas(&self, vma: Vma) {
        // Two passes, since a family goes without the lock.
        for link in links_of(vma) {
            let Some(family) = link.family() else { continue };
            let root = family.root().unwrap_or(family);
            self.lock_root(root);
            self.chain_unlink(link, family);
            if family.first_link().is_some() {
                // Not for the second pass.
                link.set_family(None);
            } else if let Some(parent) = family.parent() {
                parent.num_children.drop_by(1);
            }
            self.unlock_root(root);
        }
        if let Some(family) = vma.anon_vma() {
            let root = family.root().unwrap_or(family);
            self.lock_root(root);
            family.num_active_vmas.drop_by(1);
            self.unlock_root(root);
            vma.set_anon_vma(None);
        }
        let mut next = first_chain(vma.record());
        set_first_chain(vma.record(), None);
        while let Some(link) = next {
            next = link.next_of_area();
            if let Some(family) = link.family() {
                self.put_anon_vma(family);
            }
            self.memory.anon.links.free(self, link);
        }
    }
}

/// The family of a neighbour that `vma` could become one with later (`find_mergeable_anon_vma`).
fn find_mergeable_anon_vma(vma: Vma) -> Option<AnonFamily> {
    let next = vma.next().and_then(|next| reusable_anon_vma(next, vma, next));
    next.or_else(|| vma.prev().and_then(|prev| reusable_anon_vma(prev, prev, vma)))
}

/// Whether two neighbours, `a` the lower one, could be one but for protections (`anon_vma_compatible`).
fn compatible(a: Vma, b: Vma) -> bool {
    let differ = a.flags().0 ^ b.flags().0;
    let may = VmaFlags::ACCESS.with(VmaFlags::SOFTDIRTY);
    a.end() == b.start()
        && a.file() == b.file()
        && differ & !may.0 == 0
        && b.pgoff() == a.pgoff().wrapping_add(a.pages())
}

/// The family of `old`, one of `a` and `b`, if the other can use it (`reusable_anon_vma`).
fn reusable_anon_vma(old: Vma, a: Vma, b: Vma) -> Option<AnonFamily> {
    if !compatible(a, b) {
        return None;
    }
    old.anon_vma().filter(|_| is_singular(old))
}
