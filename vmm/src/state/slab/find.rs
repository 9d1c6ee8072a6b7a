//! The slab that a page belongs to.

use pagevisor_shared::slab::SlabWord;

use super::cache::SlabCache;
use super::walk::Slab;
use crate::state::StateView;
use crate::state::error::StateError;

impl StateView {
    /// The slab that frame `pfn` is a page of, and its cache; `None` when it is in no slab.
    ///
    /// # Errors
    /// When a page table, the memory map or the cache's descriptor is damaged.
    pub fn slab_of(&self, pfn: u64) -> Result<Option<(SlabCache, Slab)>, StateError> {
        let mut memmap = self.memmap();
        let Some(page) = memmap.get(pfn)? else { return Ok(None) };
        let word = SlabWord(page.mapping);
        let back = if word.is_tail() { u64::from(page.index) } else { 0 };
        let first = pfn.checked_sub(back).and_then(|first| u32::try_from(first).ok());
        let (true, Some(first)) = (word.is_slab(), first) else { return Ok(None) };
        let Some(head) = memmap.get(first.into())? else { return Ok(None) };
        let Some((of_head, slab)) = Slab::of(first, &head) else { return Ok(None) };
        if of_head.cache() != word.cache() {
            return Ok(None);
        }
        let cache = self.slab_cache(word.cache())?;
        Ok(cache.filter(|cache| back < cache.slab_pages() && slab.active <= cache.num).map(|cache| (cache, slab)))
    }
}
