//! Files that programs map: the areas that map them, from both ends, and the pages in memory.

use std::collections::{BTreeMap, HashSet};
use std::mem::offset_of;

use pagevisor_shared::mm_types::{AddressSpace, MappedFile, MappingId, PageNode, VmArea, VmaFlags};

use super::Area;
use crate::state::StateError;
use crate::state::slab::Record;
use crate::verify::Verifier;
use crate::verify::report::Place;
use crate::verify::rule::Rule;

/// Levels of a tree of pages with indices of 64 bits.
const MAX_LEVELS: u32 = 64_u32.div_ceil(PageNode::SHIFT);

/// A file.
#[derive(Debug, Default)]
struct File {
    id: u32,
    tree: u64,
    nrpages: u64,
    first: u64,
    writable: u32,
    /// Areas that map it, by their own word.
    areas: HashSet<u64>,
    /// Those that may write for all to see.
    shared: u32,
}

/// The files that areas map, by the address of their pages' record.
#[derive(Debug, Default)]
pub(super) struct Files(BTreeMap<u64, File>);

impl Verifier<'_> {
    /// Notes the file that an area maps; gives its number.
    pub(super) fn check_area_file(&mut self, area: &Area, files: &mut Files) -> Result<Option<u32>, StateError> {
        if area.file == 0 {
            return Ok(None);
        }
        let mut bytes = [0; size_of::<MappedFile>()];
        let there = self.program_record(area.file, &mut bytes)?;
        let mapping = Record(&bytes).u64(offset_of!(MappedFile, mapping));
        let mut bytes = [0; size_of::<AddressSpace>()];
        if !there || !self.program_record(mapping, &mut bytes)? {
            let evidence = format_args!("the area's file {:#x} is none", area.file);
            self.findings.add(Rule::FileAreas, Place::Virtual(area.info.address), evidence);
            return Ok(None);
        }
        let record = Record(&bytes);
        let file = files.0.entry(mapping).or_insert_with(|| File {
            id: record.u32(offset_of!(AddressSpace, id)),
            tree: record.u64(offset_of!(AddressSpace, i_pages)),
            nrpages: record.u64(offset_of!(AddressSpace, nrpages)),
            first: record.u64(offset_of!(AddressSpace, i_mmap)),
            writable: record.u32(offset_of!(AddressSpace, i_mmap_writable)),
            ..File::default()
        });
        file.areas.insert(area.info.address);
        file.shared += u32::from(area.info.flags.contains(VmaFlags::SHARED));
        Ok(Some(file.id))
    }

    /// Files know the areas that map them, and have the pages that say so.
    pub(super) fn check_files(&mut self, files: &Files) -> Result<(), StateError> {
        for (address, file) in &files.0 {
            let place = Place::Virtual(*address);
            self.check_file_areas(*address, file)?;
            self.findings.equal(Rule::FileAreas, place, "i_mmap_writable", file.writable, file.shared);
            let numbered = self.numbered(file.id)?;
            if numbered != *address {
                let evidence = format_args!("its number {} leads to {numbered:#x}", file.id);
                self.findings.add(Rule::MappingNumbers, place, evidence);
            }
            let mut pages = 0;
            let height = (file.tree & AddressSpace::HEIGHT) as u32;
            if height > MAX_LEVELS {
                self.findings.add(Rule::FilePages, place, format_args!("its tree has {height} levels"));
                continue;
            }
            if height != 0 {
                let root = file.tree & !AddressSpace::HEIGHT;
                self.check_file_node(file, (root, height - 1, 0), &mut pages)?;
            }
            self.findings.equal(Rule::FilePages, place, "nrpages", file.nrpages, pages);
        }
        Ok(())
    }

    fn check_file_areas(&mut self, address: u64, file: &File) -> Result<(), StateError> {
        let place = Place::Virtual(address);
        let (mut before, mut next, mut found) = (0, file.first, 0);
        while next != 0 {
            let mut bytes = [0; size_of::<VmArea>()];
            let there = self.program_record(next, &mut bytes)?;
            let prev = Record(&bytes).u64(offset_of!(VmArea, shared_prev));
            found += 1;
            if !there || prev != before || found > file.areas.len() || !file.areas.contains(&next) {
                let evidence = format_args!("the area {next:#x} on its list does not map it, or has another before it");
                self.findings.add(Rule::FileAreas, place, evidence);
                return Ok(());
            }
            (before, next) = (next, Record(&bytes).u64(offset_of!(VmArea, shared_next)));
        }
        self.findings.equal(Rule::FileAreas, place, "number of areas on its list", found, file.areas.len());
        Ok(())
    }

    /// Goes through a node of a file's tree: its address, its level, and the index of its first page. There can be no more
    /// pages than memory.
    fn check_file_node(
        &mut self,
        file: &File,
        (node, level, base): (u64, u32, u64),
        pages: &mut u64,
    ) -> Result<(), StateError> {
        let mut bytes = [0; size_of::<PageNode>()];
        if !self.program_record(node, &mut bytes)? {
            let evidence = format_args!("a node of a file's tree for index {base:#x} is none");
            self.findings.add(Rule::FilePages, Place::Virtual(node), evidence);
            return Ok(());
        }
        for (slot, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let word = u64::from_le_bytes(*word);
            let index = base.wrapping_add((slot as u64).wrapping_shl(level * PageNode::SHIFT));
            match PageNode::frame(word) {
                _ if word == 0 => {}
                _ if *pages > self.memory.present.len() => return Ok(()),
                Some(pfn) if level == 0 => {
                    *pages += 1;
                    let page = self.metadata.get(pfn.into()).unwrap_or_default();
                    let id = MappingId::file(file.id).word();
                    if page.mapping != id || u64::from(page.index) != index & u64::from(u32::MAX) || page.refcount == 0
                    {
                        let evidence = format_args!(
                            "page {index:#x} of file {}, with {} references, says {:#x} of {:#x}",
                            file.id, page.refcount, page.index, page.mapping
                        );
                        self.findings.add(Rule::FilePages, Place::Pfn(pfn.into()), evidence);
                    }
                }
                None if level != 0 => {
                    // Counts, so that nodes without pages cannot lead round for ever.
                    let before = *pages;
                    self.check_file_node(file, (word, level - 1, index), pages)?;
                    if *pages == before {
                        let evidence = format_args!("a node of a file's tree for index {index:#x} without pages");
                        self.findings.add(Rule::FilePages, Place::Virtual(word), evidence);
                        return Ok(());
                    }
                }
                _ => {
                    let evidence = format_args!("slot {slot} of a node of level {level} has {word:#x}");
                    self.findings.add(Rule::FilePages, Place::Virtual(node), evidence);
                }
            }
        }
        Ok(())
    }
}
