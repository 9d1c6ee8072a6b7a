//! What the kernel's address space must map, and what not.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::layout::{PAGE_OFFSET, START_KERNEL_MAP, VMALLOC_START, VMEMMAP_START};
use pagevisor_shared::region::records::ResourceKind;
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE};

use super::metadata::frames_of;
use super::report::Place;
use super::rule::Rule;
use super::spans::Spans;
use super::tables::Mapping;
use super::{VMEMMAP_END, Verifier};

/// Frames of a page directory's reach: what the direct map is filled by.
const GIB_FRAMES: u64 = (1 << 30) >> PAGE_SHIFT;
/// First address behind the kernel's image: other windows follow.
const KERNEL_MAP_END: u64 = START_KERNEL_MAP + (1 << 30);
/// First address that is not the user's.
const USER_END: u64 = 1 << 47;

/// The parts of the kernel's image, as frames.
#[derive(Clone, Debug)]
struct Image {
    text: Range<u64>,
    rodata: Range<u64>,
    data: Range<u64>,
}

impl Verifier<'_> {
    /// Checks all mappings. Free pages are known by now.
    pub(super) fn check_maps(&mut self) {
        let mappings = std::mem::take(&mut self.tables.mappings);
        let image = self.image();
        self.check_all(&mappings);
        self.check_direct_map(&mappings, &image);
        self.check_kernel_map(&mappings, &image);
        self.check_memmap(&mappings);
        self.check_region_map(&mappings);
        self.check_tables();
        self.tables.mappings = mappings;
    }

    /// Where the image is, by the resources that `/proc/iomem` shows.
    fn image(&self) -> Image {
        let frames = |kinds: &[ResourceKind]| {
            let resources = self.region.resources().iter();
            let parts = resources.filter(|record| kinds.iter().any(|kind| *kind as u32 == record.kind.load(Relaxed)));
            let parts = parts.map(|record| {
                let (start, end) = (record.start.load(Relaxed), record.end.load(Relaxed));
                start >> PAGE_SHIFT..end.saturating_add(1).div_ceil(PAGE_SIZE)
            });
            parts.reduce(|all, part| all.start.min(part.start)..all.end.max(part.end)).unwrap_or(0..0)
        };
        Image {
            text: frames(&[ResourceKind::KernelCode]),
            rodata: frames(&[ResourceKind::KernelRodata]),
            data: frames(&[ResourceKind::KernelData, ResourceKind::KernelBss]),
        }
    }

    /// What holds for every mapping.
    fn check_all(&mut self, mappings: &[Mapping]) {
        for mapping in mappings {
            let place = Place::Virtual(mapping.virt);
            if mapping.writable && mapping.executable {
                let evidence = format_args!("{:#x} bytes can be written and executed", mapping.len);
                self.findings.add(Rule::MapWritableExecutable, place, evidence);
            }
            if mapping.virt < USER_END {
                let evidence = format_args!("{:#x} bytes of the user's half map {:#x}", mapping.len, mapping.gpa);
                self.findings.add(Rule::MapUserHalf, place, evidence);
            }
            if (PAGE_OFFSET..VMALLOC_START).contains(&mapping.virt) {
                continue;
            }
            for part in self.free.within(mapping.frames()) {
                let at = mapping.virt + ((part.start << PAGE_SHIFT) - mapping.gpa);
                let evidence = format_args!("the free page is mapped at {at:#x}");
                self.findings.add(Rule::FreePageMapped, Place::Pfn(part.start), evidence);
            }
        }
    }

    /// Each page of RAM once, at its place, and nothing else.
    fn check_direct_map(&mut self, mappings: &[Mapping], image: &Image) {
        let parts: Vec<_> = mappings.iter().filter_map(|mapping| mapping.part(PAGE_OFFSET, VMALLOC_START)).collect();
        let fixed = Spans::new([image.text.clone(), image.rodata.clone()]);
        for part in &parts {
            let place = Place::Virtual(part.virt);
            if part.gpa != part.virt - PAGE_OFFSET {
                let evidence = format_args!("{:#x} bytes are mapped to {:#x}", part.len, part.gpa);
                self.findings.add(Rule::DirectMapTarget, place, evidence);
                continue;
            }
            for gap in self.memory.present.gaps(part.frames()) {
                let evidence = format_args!("{} pages that are no RAM are mapped", gap.end - gap.start);
                self.findings.add(Rule::DirectMapNotRam, Place::Pfn(gap.start), evidence);
            }
            let in_fixed = fixed.count_within(part.frames());
            let wrong = if part.writable { in_fixed != 0 } else { in_fixed != part.len >> PAGE_SHIFT };
            if part.executable || wrong {
                let evidence = format_args!(
                    "{:#x} bytes, {in_fixed} pages of them the kernel's text or constants: writable {}, executable {}",
                    part.len, part.writable, part.executable
                );
                self.findings.add(Rule::DirectMapProtection, place, evidence);
            }
        }
        let frame = |address: u64| (address - PAGE_OFFSET) >> PAGE_SHIFT;
        let mapped = Spans::new(parts.iter().map(|part| frame(part.virt)..frame(part.end())));
        let gib = |frames: Range<u64>| frames.start & !(GIB_FRAMES - 1)..frames.end.next_multiple_of(GIB_FRAMES);
        let filled = Spans::new(mapped.iter().map(gib)).intersection(&self.memory.present);
        for span in filled.iter() {
            for hole in mapped.gaps(span) {
                let evidence =
                    format_args!("{} pages of RAM are not mapped, others of the GiB are", hole.end - hole.start);
                self.findings.add(Rule::DirectMapHole, Place::Pfn(hole.start), evidence);
            }
        }
    }

    fn check_kernel_map(&mut self, mappings: &[Mapping], image: &Image) {
        let parts: Vec<_> =
            mappings.iter().filter_map(|mapping| mapping.part(START_KERNEL_MAP, KERNEL_MAP_END)).collect();
        let all = Spans::new([image.text.clone(), image.rodata.clone(), image.data.clone()]);
        let kinds = [(&image.text, false, true), (&image.rodata, false, false), (&image.data, true, false)];
        for part in &parts {
            if part.gpa != part.virt - START_KERNEL_MAP {
                let evidence = format_args!("{:#x} bytes are mapped to {:#x}", part.len, part.gpa);
                self.findings.add(Rule::KernelMapTarget, Place::Virtual(part.virt), evidence);
            }
            // By its address, so that a wrong target is one finding.
            let frame = |address: u64| (address - START_KERNEL_MAP) >> PAGE_SHIFT;
            let frames = frame(part.virt)..frame(part.end());
            for gap in all.gaps(frames.clone()) {
                let evidence = format_args!("{} pages outside the image are mapped", gap.end - gap.start);
                self.findings.add(Rule::KernelMapExtent, Place::Pfn(gap.start), evidence);
            }
            for (range, writable, executable) in kinds {
                let inside = frames.start.max(range.start)..frames.end.min(range.end);
                if inside.start < inside.end && (part.writable, part.executable) != (writable, executable) {
                    let evidence = format_args!("writable {}, executable {}", part.writable, part.executable);
                    self.findings.add(Rule::KernelMapProtection, Place::Pfn(inside.start), evidence);
                }
            }
        }
        let frame = |address: u64| (address - START_KERNEL_MAP) >> PAGE_SHIFT;
        let mapped = Spans::new(parts.iter().map(|part| frame(part.virt)..frame(part.end())));
        let mut guards = 0;
        for (range, writable, _) in kinds {
            for gap in mapped.gaps(range.clone()) {
                // The boot stack has a page below it that is not mapped.
                if writable && gap.end - gap.start == 1 && guards == 0 {
                    guards += 1;
                    continue;
                }
                let evidence = format_args!("{} pages of the image are not mapped", gap.end - gap.start);
                self.findings.add(Rule::KernelMapExtent, Place::Pfn(gap.start), evidence);
            }
        }
    }

    /// Metadata for exactly the sections that exist, each piece in memory of its own.
    fn check_memmap(&mut self, mappings: &[Mapping]) {
        let parts: Vec<_> = mappings.iter().filter_map(|mapping| mapping.part(VMEMMAP_START, VMEMMAP_END)).collect();
        let mapped = Spans::new(parts.iter().map(frames_of));
        for span in self.memory.sections.iter() {
            for gap in mapped.gaps(span) {
                let evidence = format_args!("the metadata of {} frames are not mapped", gap.end - gap.start);
                self.findings.add(Rule::MemmapMissing, Place::Pfn(gap.start), evidence);
            }
        }
        for span in mapped.iter() {
            for gap in self.memory.sections.gaps(span) {
                let evidence = format_args!("metadata of {} frames that do not exist are mapped", gap.end - gap.start);
                self.findings.add(Rule::MemmapStray, Place::Pfn(gap.start), evidence);
            }
        }
        let mut backing: Vec<_> = parts.iter().map(|part| (part.frames(), part.virt)).collect();
        for (frames, virt) in &backing {
            for gap in self.memory.reserved.gaps(frames.clone()) {
                let evidence =
                    format_args!("metadata are kept in frames {:#x}-{:#x}, not reserved", gap.start, gap.end);
                self.findings.add(Rule::MemmapBacking, Place::Virtual(*virt), evidence);
            }
        }
        backing.sort_by_key(|(frames, _)| frames.start);
        let mut last = 0;
        for (frames, virt) in &backing {
            if frames.start < last {
                let evidence = format_args!("metadata are kept in frame {:#x}, as others are", frames.start);
                self.findings.add(Rule::MemmapBacking, Place::Virtual(*virt), evidence);
            }
            last = last.max(frames.end);
        }
    }

    fn check_region_map(&mut self, mappings: &[Mapping]) {
        let roots = self.region.header();
        let (virt, phys) = (self.roots.region_virt, roots.roots.region_phys.load(Relaxed));
        let len = self.region.layout().size;
        let mut next = virt;
        for part in mappings.iter().filter_map(|mapping| mapping.part(virt, virt.saturating_add(len))) {
            if part.virt != next || part.gpa != phys.wrapping_add(part.virt - virt) || !part.writable {
                break;
            }
            next = part.end();
        }
        if next != virt.saturating_add(len) {
            let evidence = format_args!("the state region is not mapped to {phys:#x} for {len:#x} bytes from here on");
            self.findings.add(Rule::RegionMap, Place::Virtual(next), evidence);
        }
    }

    /// No table lies on a page that somebody else could be given.
    fn check_tables(&mut self) {
        for table in &self.tables.tables {
            let place = Place::Pfn(table.frame);
            if !self.memory.present.contains(table.frame) {
                self.findings.add(Rule::PageTable, place, format_args!("a page table lies in what is no memory"));
            } else if self.free.contains(table.frame) {
                self.findings.add(Rule::PageTable, place, format_args!("a page table lies on a free page"));
            }
        }
    }
}
