//! What the metadata of a slab's pages says.

use crate::units::NodeId;

/// [`crate::page::Page::mapping`] of a page in a slab.
///
/// ```text
/// bits 0..16   the cache's number
/// bits 16..24  the node of the page
/// bit 30       set: the page is in a slab
/// bit 31       set: not the slab's first page
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlabWord(pub u32);

impl SlabWord {
    const SLAB: u32 = 1 << 30;
    const TAIL: u32 = 1 << 31;

    /// Of the first page (`tail` false) or another of a slab of cache `cache` on node `node`.
    #[inline]
    pub const fn new(cache: u16, node: NodeId, tail: bool) -> Self {
        Self(cache as u32 | (node.index() as u32) << 16 | Self::SLAB | if tail { Self::TAIL } else { 0 })
    }

    /// That of the other pages of the slab.
    #[inline(always)]
    pub const fn tail(self) -> Self {
        Self(self.0 | Self::TAIL)
    }

    /// Whether the page is in a slab.
    #[inline(always)]
    pub const fn is_slab(self) -> bool {
        self.0 & Self::SLAB != 0
    }

    /// What is the same for all pages of a slab: the word of its first.
    #[inline(always)]
    pub const fn of_any_page(self) -> u32 {
        self.0 & !Self::TAIL
    }

    /// Whether it is another than the first.
    #[inline(always)]
    pub const fn is_tail(self) -> bool {
        self.0 & Self::TAIL != 0
    }

    /// The cache's number.
    #[inline(always)]
    pub const fn cache(self) -> u16 {
        self.0 as u16
    }

    /// The number of the page's node.
    #[inline(always)]
    pub const fn node(self) -> u32 {
        (self.0 >> 16) & 0xff
    }
}

/// Where a slab's list of free objects lies: an array of [`super::KmemCache::num`] object numbers, of which those from
/// `active` on are free, a byte each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FreelistPlace {
    /// At the slab's end.
    OnSlab,
    /// In the object with this number, which is free; nowhere in a slab without free objects.
    Object(Option<u16>),
    /// There is no array. Each free object starts with the number of the next, plus 1, in two bytes, 0 in the last; this
    /// is the number of the first. For caches with [`super::SlabFlags::LINKED`].
    Linked(Option<u16>),
    /// At this physical address, a multiple of 8.
    OffSlab(u64),
}

/// [`crate::page::Page::index`] and [`crate::page::Page::private`] of a slab's first page: by how many
/// [`super::KmemCache::colour_off`] the objects are moved, and where the list of free objects is.
///
/// ```text
/// index    bits 0..16   the colour
/// index    bits 16..32  bits 35..51 of the list's address           (off the slab)
/// private               bits 3..35 of the list's address            (off the slab)
/// private               number of the object that holds it, plus 1  (in an object)
/// private               number of the first free object, plus 1     (linked)
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FreelistWords {
    /// `index`.
    pub index: u32,
    /// `private`.
    pub private: u32,
}

impl FreelistWords {
    /// Of a slab of that colour with the list there.
    #[inline]
    pub const fn new(colour: u16, place: FreelistPlace) -> Self {
        match place {
            FreelistPlace::OnSlab | FreelistPlace::Object(None) | FreelistPlace::Linked(None) => {
                Self { index: colour as u32, private: 0 }
            }
            FreelistPlace::Object(Some(number)) | FreelistPlace::Linked(Some(number)) => {
                Self { index: colour as u32, private: number as u32 + 1 }
            }
            FreelistPlace::OffSlab(addr) => {
                Self { index: colour as u32 | ((addr >> 35) as u32) << 16, private: (addr >> 3) as u32 }
            }
        }
    }

    /// The slab's colour.
    #[inline]
    pub const fn colour(self) -> u16 {
        self.index as u16
    }

    /// Number of the object that holds the list, or of the first on it.
    #[inline]
    pub const fn object(self) -> Option<u16> {
        if self.private == 0 { None } else { Some((self.private - 1) as u16) }
    }

    /// Physical address of the list that is off the slab.
    #[inline]
    pub const fn off_slab(self) -> u64 {
        ((self.index >> 16) as u64) << 35 | (self.private as u64) << 3
    }
}

const _: () = {
    let addr = 0xfff_ffff_fff8;
    let words = FreelistWords::new(7, FreelistPlace::OffSlab(addr));
    assert!(words.off_slab() == addr && words.colour() == 7);
};
