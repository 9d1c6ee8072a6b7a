//! What a process has mapped (`fs/proc/task_mmu.c`).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use pagevisor_mm::Mm;
use pagevisor_mm::mmap::{AreaFile, AreaInfo, Space};
use pagevisor_shared::errno::Errno;
use pagevisor_shared::layout::TASK_SIZE_MAX;
use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::report::process::{Area, Memory, NumaPages, Sizes, pagemap as bits};
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE, VirtAddr};

use super::Item;
use super::process::{Use, find};
use super::text::Text;
use crate::fs::path::PATH_MAX;
use crate::platform::{self, Kernel};

/// Bytes of a word of `pagemap`.
const WORD: usize = 8;
/// Bits of a device's number that are its minor one (`MINORBITS`).
const MINOR_BITS: u32 = 20;

/// Writes the file `item` about `space`.
pub fn text(item: Item, space: Space, memory: &Memory, out: &mut Text) -> fmt::Result {
    let Some(mm) = platform::mm() else { return Ok(()) };
    // Not while the space is locked: walking takes the lock, too.
    let mut areas: Vec<(AreaInfo, Option<(AreaFile, String)>)> = Vec::new();
    let mut room = true;
    mm.for_each_vma(space, |area| {
        room = room && areas.try_reserve(1).is_ok();
        if room {
            areas.push((*area, file_of(mm, area)));
        }
    });
    if !room {
        return Err(fmt::Error);
    }
    let mut all = Sizes::default();
    for (info, file) in &areas {
        let area = shown(info, file.as_ref(), memory);
        match item {
            Item::Maps => area.line(out)?,
            Item::NumaMaps => {
                let mut pages = NumaPages::default();
                mm.for_each_user_page(space, info.start, info.end, |page| {
                    page.page.iter().for_each(|page| pages.add(page));
                });
                pages.line(&area, "default", out)?;
            }
            _ => {
                let locked = info.flags.contains(VmaFlags::LOCKED);
                let mut sizes = Sizes::default();
                mm.for_each_user_page(space, info.start, info.end, |page| {
                    page.page.iter().for_each(|page| sizes.add(page, locked));
                });
                if item == Item::Smaps {
                    area.smaps(&sizes, out)?;
                }
                all.merge(&sizes);
            }
        }
    }
    if item == Item::SmapsRollup
        && let (Some(first), Some(last)) = (areas.first(), areas.last())
    {
        let (start, end) = (first.0.start.raw(), last.0.end.raw());
        Area { start, end, name: "[rollup]", ..Area::default() }.line(out)?;
        all.lines(true, out)?;
    }
    Ok(())
}

/// The file of an area and its path.
fn file_of(mm: &Mm<Kernel>, area: &AreaInfo) -> Option<(AreaFile, String)> {
    let mut path = alloc::vec![0; PATH_MAX];
    let file = mm.area_file(area, &mut path)?;
    path.truncate(file.path_len);
    Some((file, String::from_utf8_lossy(&path).into_owned()))
}

fn shown<'a>(info: &AreaInfo, file: Option<&'a (AreaFile, String)>, memory: &Memory) -> Area<'a> {
    let (start, end) = (info.start.raw(), info.end.raw());
    let area = Area { start, end, flags: info.flags, ..Area::default() };
    match file {
        Some((file, path)) => Area {
            pgoff: info.pgoff,
            device: [file.dev >> MINOR_BITS, file.dev & ((1 << MINOR_BITS) - 1)],
            inode: file.ino,
            name: path,
            ..area
        },
        None => Area { name: memory.name_of(start, end), ..area },
    }
}

/// Reads `pagemap` at `offset`: a word for each page, wherever there is one (`pagemap_read`).
pub fn pagemap(pid: u32, offset: u64, to: &mut [u8]) -> Result<usize, Errno> {
    if !offset.is_multiple_of(WORD as u64) || !to.len().is_multiple_of(WORD) {
        return Err(Errno::EINVAL);
    }
    let Some(space) = find(pid)?.get_space().map(Use) else { return Ok(0) };
    let mm = platform::mm().ok_or(Errno::EIO)?;
    let first = offset / WORD as u64;
    let pages = (TASK_SIZE_MAX >> PAGE_SHIFT).saturating_sub(first).min((to.len() / WORD) as u64);
    let (start, end) = (first << PAGE_SHIFT, (first + pages) << PAGE_SHIFT);
    let words = &mut to[..pages as usize * WORD];
    words.fill(0);
    mm.for_each_user_page(space.0, VirtAddr::new(start), VirtAddr::new(end), |page| {
        let word = bits::word(page.pfn.raw(), page.page.as_ref());
        let at = ((page.addr.raw() - start) / PAGE_SIZE) as usize * WORD;
        words[at..at + WORD].copy_from_slice(&word.to_le_bytes());
    });
    soft_dirty(space.0, start, words);
    Ok(words.len())
}

/// Marks pages of areas in which all are taken as changed.
fn soft_dirty(space: Space, start: u64, words: &mut [u8]) {
    let Some(mm) = platform::mm() else { return };
    let end = start + (words.len() / WORD) as u64 * PAGE_SIZE;
    mm.for_each_vma(space, |area| {
        let (from, to) = (area.start.raw().max(start), area.end.raw().min(end));
        if from < to && area.flags.contains(VmaFlags::SOFTDIRTY) {
            let [from, to] = [from, to].map(|addr| ((addr - start) / PAGE_SIZE) as usize * WORD);
            // Bit 55 is the top bit of the word's seventh byte.
            words[from..to].chunks_exact_mut(WORD).for_each(|word| word[6] |= (bits::SOFT_DIRTY >> 48) as u8);
        }
    });
}
