//! What is mapped in the vmalloc space: the pages of areas in use, and nothing else.

use pagevisor_shared::layout::VMALLOC_START;
use pagevisor_shared::page::PAGE_TYPE_BASE;
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::slab::SlabWord;
use pagevisor_shared::units::PAGE_SHIFT;
use pagevisor_shared::vmalloc::VmFlags;

use super::{SPACE_END, Vm};
use crate::verify::Verifier;
use crate::verify::report::Place;
use crate::verify::rule::Rule;
use crate::verify::spans::Spans;
use crate::verify::tables::Mapping;

/// A range of addresses as pages.
const fn pages(start: u64, end: u64) -> std::ops::Range<u64> {
    start >> PAGE_SHIFT..end >> PAGE_SHIFT
}

impl Verifier<'_> {
    /// Pages that areas have are mapped; guard pages, free areas and what is freed lazily are not.
    pub(super) fn check_mapped(&mut self, used: &[Vm]) {
        let parts: Vec<_> = self.tables.within(VMALLOC_START, SPACE_END).collect();
        let mapped = Spans::new(parts.iter().map(|part| pages(part.virt, part.end())));
        let areas = used.iter().map(|vm| pages(vm.start, vm.end()));
        let expected = Spans::new(areas.chain(self.percpu_pages.iter()));
        for span in expected.iter() {
            for gap in mapped.gaps(span) {
                let evidence = format_args!("{} pages of an area are not mapped", gap.end - gap.start);
                self.findings.add(Rule::VmapMapped, Place::Virtual(gap.start << PAGE_SHIFT), evidence);
            }
        }
        for span in mapped.iter() {
            for gap in expected.gaps(span) {
                let evidence = format_args!("{} pages are mapped that no area has", gap.end - gap.start);
                self.findings.add(Rule::VmapMapped, Place::Virtual(gap.start << PAGE_SHIFT), evidence);
            }
        }
        let mut own = Vec::new();
        for vm in used {
            let parts: Vec<_> = self.tables.within(vm.start, vm.end()).collect();
            for part in parts {
                self.check_backing(vm, &part);
                own.extend(vm.flags.contains(VmFlags::ALLOC).then_some((part.frames(), part.virt)));
            }
        }
        own.sort_by_key(|(frames, _)| frames.start);
        let mut last = 0;
        for (frames, virt) in &own {
            if frames.start < last {
                let evidence = format_args!("frame {:#x} is mapped there, and is another area's page", frames.start);
                self.findings.add(Rule::VmapBacking, Place::Virtual(*virt), evidence);
            }
            last = last.max(frames.end);
        }
        let own = Spans::new(own.into_iter().map(|(frames, _)| frames));
        for (pfn, page) in self.metadata.touched(&own) {
            let slab = page.flags & PageFlag::Slab.mask() != 0 || SlabWord(page.mapping).is_slab();
            if slab || page.mapcount & PAGE_TYPE_BASE != 0 {
                let evidence = format_args!(
                    "an area's page, which is something else: flags {:#x}, _mapcount {:#x}, word {:#x}",
                    page.flags, page.mapcount, page.mapping
                );
                self.findings.add(Rule::VmapBacking, Place::Pfn(pfn), evidence);
            }
        }
    }

    /// An area has what it is for behind it: pages in use that are nobody else's, somebody's pages, or its device.
    fn check_backing(&mut self, vm: &Vm, part: &Mapping) {
        let (place, frames) = (Place::Virtual(part.virt), part.frames());
        if vm.flags.contains(VmFlags::IOREMAP) {
            let expected = vm.phys.wrapping_add(part.virt - vm.start);
            let ram = self.memory.present.count_within(frames);
            if part.gpa != expected || ram != 0 {
                let evidence = format_args!("{:#x} is mapped, not {expected:#x}; {ram} pages are RAM", part.gpa);
                self.findings.add(Rule::VmapBacking, place, evidence);
            }
            return;
        }
        let owned = if vm.flags.contains(VmFlags::ALLOC) { &self.in_use } else { &self.memory.present };
        if let Some(gap) = owned.gaps(frames.clone()).next() {
            let evidence = format_args!("frame {:#x} is mapped, which is not allocated", gap.start);
            self.findings.add(Rule::VmapBacking, place, evidence);
        }
    }
}
