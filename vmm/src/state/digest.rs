//! A fingerprint of all free lists, to tell whether two guests ended alike.

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::region::zone::ListHead;
use pagevisor_shared::report::counters;
use pagevisor_shared::units::PAGE_SHIFT;
use sha2::{Digest, Sha256};

use super::StateView;
use super::error::StateError;
use super::lists::ends;
use super::memmap::Memmap;

impl StateView {
    /// SHA-256 over the frames on every free list and every CPU's page list, in the order in which they are linked,
    /// with zone, order and migrate type; in hexadecimal. Guests with equal fingerprints would serve the same requests
    /// with the same frames.
    ///
    /// Links are followed as they are, a bounded number of them; [`Self::walk_free_lists`] tells whether they are
    /// sound.
    ///
    /// # Errors
    /// When a page table or the memory map lies outside memory.
    pub fn free_list_digest(&self) -> Result<String, StateError> {
        let region = self.region();
        let mut lists =
            Lists { memmap: self.memmap(), budget: self.memory().size() >> PAGE_SHIFT, hash: Sha256::new() };
        for node in self.online_nodes() {
            for (_, zone, record) in counters::zones_of(&region, node) {
                for (area, order) in record.free_area.iter().zip(0u32..) {
                    for (list, kind) in area.free_list.iter().zip(MigrateType::ALL) {
                        lists.add([zone.index() as u32, order, kind.index() as u32], list)?;
                    }
                }
                for cpu in counters::online_cpus(&region).iter() {
                    let Some(pcp) = counters::pcp(&region, cpu, zone) else { continue };
                    for (list, number) in pcp.lists.iter().zip(0u32..) {
                        lists.add([zone.index() as u32, u32::MAX - cpu.index() as u32, number], list)?;
                    }
                }
            }
        }
        Ok(lists.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

struct Lists<'a> {
    memmap: Memmap<'a>,
    budget: u64,
    hash: Sha256,
}

impl Lists<'_> {
    /// Adds the frames of a list, if it has any, after what tells the list from others.
    fn add(&mut self, head: [u32; 3], list: &ListHead) -> Result<(), StateError> {
        let (mut pfn, _) = ends(list);
        if pfn == 0 {
            return Ok(());
        }
        for word in head {
            self.hash.update(word.to_le_bytes());
        }
        while pfn != 0 && self.budget != 0 {
            self.budget -= 1;
            self.hash.update(pfn.to_le_bytes());
            pfn = self.memmap.get(pfn.into())?.map_or(0, |page| page.next_of(pfn));
        }
        // No frame: the end of the list.
        self.hash.update(0u32.to_le_bytes());
        Ok(())
    }
}
