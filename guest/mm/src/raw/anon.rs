//! Records of anonymous memory: the links between them and to areas.
//!
//! What it rests on is said in [`super::record`].

use core::sync::atomic::AtomicU64;

use pagevisor_shared::mm_types::{AnonVma, AnonVmaChain, VmArea};

use super::record::Handle;
use crate::sync::Plain;

/// A family of anonymous pages (`struct anon_vma *`).
pub(crate) type AnonFamily = Handle<AnonVma>;
/// A link between an area and a family (`struct anon_vma_chain *`).
pub(crate) type Chain = Handle<AnonVmaChain>;

macro_rules! links {
    ($($(#[$doc:meta])* $get:ident, $set:ident, $field:ident: $of:ty;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $get(self) -> Option<Handle<$of>> {
            // SAFETY: written here only, from a handle.
            unsafe { Handle::follow(self.record().$field.get()) }
        }

        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $set(self, to: Option<Handle<$of>>) {
            self.record().$field.set(Handle::word(to));
        }
    )*};
}

impl AnonFamily {
    links! {
        /// The oldest of its family, which may be itself.
        root, set_root, root: AnonVma;
        /// The one it was forked from, which may be itself.
        parent, set_parent, parent: AnonVma;
        /// First of the links to areas.
        first_link, set_first_link, chain: AnonVmaChain;
    }
}

impl Chain {
    /// The area.
    #[cfg(feature = "hosted")]
    pub(crate) fn area(self) -> Option<Handle<VmArea>> {
        // SAFETY: written below only, from a handle.
        unsafe { Handle::follow(self.record().vma.get()) }
    }

    /// Sets the area.
    #[inline(always)]
    pub(crate) fn set_area(self, to: Option<Handle<VmArea>>) {
        self.record().vma.set(Handle::word(to));
    }

    links! {
        /// The family.
        family, set_family, anon_vma: AnonVma;
        /// The next one of the area.
        next_of_area, set_next_of_area, next_of_vma: AnonVmaChain;
        /// The next one of the family.
        next_link, set_next_link, next: AnonVmaChain;
        /// The one before, of the family.
        prev_link, set_prev_link, prev: AnonVmaChain;
    }
}

/// First of the links of `area`.
#[inline(always)]
pub(crate) fn first_chain(area: &VmArea) -> Option<Chain> {
    // SAFETY: written below only, from a handle.
    unsafe { Handle::follow(area.anon_vma_chain.get()) }
}

/// Sets the first of the links of `area`.
#[inline(always)]
pub(crate) fn set_first_chain(area: &VmArea, to: Option<Chain>) {
    area.anon_vma_chain.set(Handle::word(to));
}

/// Makes a word of the table of numbers lead to `family`, or nowhere.
#[inline(always)]
pub(crate) fn set_family_at(word: &AtomicU64, family: Option<AnonFamily>) {
    word.set(Handle::word(family));
}
