//! Where a pool's elements come from.

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{Order, Pfn, VirtAddr};

use crate::Mm;
use crate::platform::Platform;
use crate::slab::{Cache, Pooled};

/// Allocates and frees elements (`mempool_alloc_t`, `mempool_free_t` and their `pool_data`).
pub trait Source<P: Platform> {
    /// The name of an element.
    type Element: Copy;

    /// Allocates an element; must not wait unless `gfp` lets it.
    fn alloc(&self, mm: &Mm<P>, gfp: Gfp) -> Option<Self::Element>;

    /// Frees an element. Never waits.
    fn free(&self, mm: &Mm<P>, element: Self::Element);

    /// What nobody may write to while the element is in reserve, if that is to be watched.
    fn watched(&self, _mm: &Mm<P>, _element: Self::Element) -> Option<Pooled> {
        None
    }

    /// Allocates an element if that takes a few instructions, which are put where the pool is used. If this gives none,
    /// [`Self::alloc`] is asked.
    #[inline(always)]
    fn alloc_quickly(&self, _mm: &Mm<P>) -> Option<Self::Element> {
        None
    }

    /// Frees an element if that takes a few instructions; tells whether it did. If not, [`Self::free`] does.
    #[inline(always)]
    fn free_quickly(&self, _mm: &Mm<P>, _element: Self::Element) -> bool {
        false
    }
}

impl<P: Platform, S: Source<P>> Source<P> for &S {
    type Element = S::Element;

    #[inline]
    fn alloc(&self, mm: &Mm<P>, gfp: Gfp) -> Option<S::Element> {
        (**self).alloc(mm, gfp)
    }

    #[inline]
    fn free(&self, mm: &Mm<P>, element: S::Element) {
        (**self).free(mm, element);
    }

    fn watched(&self, mm: &Mm<P>, element: S::Element) -> Option<Pooled> {
        (**self).watched(mm, element)
    }
}

/// Objects of a slab cache (`mempool_alloc_slab`).
#[derive(Clone, Copy, Debug)]
pub struct SlabSource(pub Cache);

impl<P: Platform> Source<P> for SlabSource {
    type Element = VirtAddr;

    #[inline(always)]
    fn alloc(&self, mm: &Mm<P>, gfp: Gfp) -> Option<VirtAddr> {
        mm.kmem_cache_alloc(self.0, gfp)
    }

    #[inline(always)]
    fn free(&self, mm: &Mm<P>, element: VirtAddr) {
        mm.kmem_cache_free(self.0, element);
    }

    fn watched(&self, _mm: &Mm<P>, element: VirtAddr) -> Option<Pooled> {
        Pooled::of(self.0, element)
    }

    #[inline(always)]
    fn alloc_quickly(&self, mm: &Mm<P>) -> Option<VirtAddr> {
        mm.take_object(self.0).map(VirtAddr::new)
    }

    #[inline(always)]
    fn free_quickly(&self, mm: &Mm<P>, element: VirtAddr) -> bool {
        mm.give_object(self.0, element)
    }
}

/// So many bytes from `kmalloc` (`mempool_kmalloc`).
#[derive(Clone, Copy, Debug)]
pub struct KmallocSource(pub usize);

impl<P: Platform> Source<P> for KmallocSource {
    type Element = VirtAddr;

    #[inline]
    fn alloc(&self, mm: &Mm<P>, gfp: Gfp) -> Option<VirtAddr> {
        mm.kmalloc(self.0, gfp)
    }

    #[inline]
    fn free(&self, mm: &Mm<P>, element: VirtAddr) {
        mm.kfree(element);
    }

    fn watched(&self, mm: &Mm<P>, element: VirtAddr) -> Option<Pooled> {
        mm.virt_to_cache(element).and_then(|cache| Pooled::of(cache, element))
    }
}

/// Blocks of pages (`mempool_alloc_pages`).
#[derive(Clone, Copy, Debug)]
pub struct PageSource(pub Order);

impl<P: Platform> Source<P> for PageSource {
    type Element = Pfn;

    #[inline(always)]
    fn alloc(&self, mm: &Mm<P>, gfp: Gfp) -> Option<Pfn> {
        mm.alloc_pages(gfp, self.0)
    }

    #[inline(always)]
    fn free(&self, mm: &Mm<P>, element: Pfn) {
        mm.free_pages(element, self.0);
    }
}

/// Elements from two functions.
#[derive(Clone, Copy, Debug)]
pub struct Functions<A, F> {
    /// Allocates, as [`Source::alloc`].
    pub alloc: A,
    /// Frees, as [`Source::free`].
    pub free: F,
}

impl<P, E, A, F> Source<P> for Functions<A, F>
where
    P: Platform,
    E: Copy,
    A: Fn(&Mm<P>, Gfp) -> Option<E>,
    F: Fn(&Mm<P>, E),
{
    type Element = E;

    fn alloc(&self, mm: &Mm<P>, gfp: Gfp) -> Option<E> {
        (self.alloc)(mm, gfp)
    }

    fn free(&self, mm: &Mm<P>, element: E) {
        (self.free)(mm, element);
    }
}
