//! A copy of the page metadata that somebody has touched. The rest is zero, and is not looked at page by page: the host
//! knows where a guest's memory has never been written.

use std::cell::Cell;
use std::ops::Range;

use pagevisor_shared::layout::VMEMMAP_START;
use pagevisor_shared::page::PAGE_STRUCT_SIZE;

use super::spans::Spans;
use super::tables::Mapping;
use crate::state::{PageMeta, StateError, StateView};

const SIZE: usize = PAGE_STRUCT_SIZE as usize;
/// Frames whose metadata share a page.
const FRAMES: u64 = 4096 / PAGE_STRUCT_SIZE;
/// Bytes that are read at a time.
const CHUNK: u64 = 1 << 20;

/// Touched metadata of frames next to each other.
#[derive(Debug)]
struct Run {
    first: u64,
    pages: Vec<PageMeta>,
}

impl Run {
    fn end(&self) -> u64 {
        self.first + self.pages.len() as u64
    }
}

/// The metadata of all frames that have any.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    /// Frames with metadata.
    mapped: Spans,
    /// In order of frame, apart from each other.
    runs: Vec<Run>,
    /// The run looked at last: neighbours are looked at together.
    last: Cell<usize>,
}

/// The part of the memory map that a mapping holds, as frames.
pub(super) fn frames_of(mapping: &Mapping) -> Range<u64> {
    let frame = |address: u64| (address - VMEMMAP_START) / PAGE_STRUCT_SIZE;
    frame(mapping.virt)..frame(mapping.end())
}

impl Metadata {
    /// Copies the metadata of `frames`, which `mappings` (in order of address, of the memory map only) map.
    pub fn copy(view: &StateView, mappings: &[Mapping], frames: &Spans) -> Result<Self, StateError> {
        let mut copy = Self { mapped: Spans::new(mappings.iter().map(frames_of)), ..Self::default() };
        copy.mapped = copy.mapped.intersection(frames);
        for mapping in mappings {
            let here = frames_of(mapping);
            for part in frames.within(here.clone()) {
                let gpa = |frame: u64| mapping.gpa + (frame - here.start) * PAGE_STRUCT_SIZE;
                // Sections are whole pages of metadata, so parts start and end at such pages.
                copy.copy_part(view, part.start, gpa(part.start)..gpa(part.end))?;
            }
        }
        Ok(copy)
    }

    fn copy_part(&mut self, view: &StateView, first: u64, bytes: Range<u64>) -> Result<(), StateError> {
        let mut next = bytes.start;
        let mut buffer = Vec::new();
        while next < bytes.end {
            let data = match view.memory().next_data(next..bytes.end) {
                Ok(Some(data)) => data,
                Ok(None) => return Ok(()),
                Err(error) if error.is_corrupt() => return Ok(()),
                Err(error) => return Err(error),
            };
            let start = data.start & !0xfff;
            let end = data.end.next_multiple_of(4096).min(bytes.end).min(start + CHUNK);
            buffer.resize((end - start) as usize, 0);
            match view.memory().read(start, &mut buffer) {
                Ok(()) => self.append(first + (start - bytes.start) / PAGE_STRUCT_SIZE, &buffer),
                Err(error) if error.is_corrupt() => {}
                Err(error) => return Err(error),
            }
            next = end;
        }
        Ok(())
    }

    /// Appends metadata from frame `first` on, leaving out pages of zeros.
    fn append(&mut self, first: u64, bytes: &[u8]) {
        for (page, bytes) in bytes.chunks(FRAMES as usize * SIZE).enumerate() {
            if bytes.iter().all(|byte| *byte == 0) {
                continue;
            }
            let first = first + page as u64 * FRAMES;
            let pages = bytes.as_chunks::<SIZE>().0.iter().map(PageMeta::from_bytes);
            match self.runs.last_mut() {
                Some(last) if last.end() == first => last.pages.extend(pages),
                Some(last) if last.end() > first => {}
                _ => self.runs.push(Run { first, pages: pages.collect() }),
            }
        }
    }

    /// The metadata of a frame; `None` when it has none.
    pub fn get(&self, pfn: u64) -> Option<PageMeta> {
        let in_run = |run: &Run| pfn.checked_sub(run.first).and_then(|at| run.pages.get(at as usize).copied());
        if let Some(page) = self.runs.get(self.last.get()).and_then(in_run) {
            return Some(page);
        }
        if !self.mapped.contains(pfn) {
            return None;
        }
        let behind = self.runs.partition_point(|run| run.first <= pfn);
        let Some(index) = behind.checked_sub(1) else { return Some(PageMeta::default()) };
        self.last.set(index);
        Some(self.runs.get(index).and_then(in_run).unwrap_or_default())
    }

    /// The metadata that somebody has touched, of frames in `within`.
    pub fn touched<'a>(&'a self, within: &'a Spans) -> impl Iterator<Item = (u64, &'a PageMeta)> + 'a {
        self.runs.iter().flat_map(move |run| {
            within.within(run.first..run.end()).flat_map(move |part| {
                let pages = run.pages.get((part.start - run.first) as usize..(part.end - run.first) as usize);
                part.zip(pages.unwrap_or(&[])).filter(|(_, page)| !page.is_untouched())
            })
        })
    }
}
