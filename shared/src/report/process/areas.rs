//! What a process has mapped (`fs/proc/task_mmu.c`).

use core::fmt::{self, Write};

use crate::MAX_NUMNODES;
use crate::mm_types::{MappingId, VmaFlags};
use crate::page_flags::PageFlag;
use crate::pgtable::Entry;
use crate::units::{PAGE_SHIFT, PAGE_SIZE};

/// An area as `maps` and its kind show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Area<'n> {
    /// First byte, and first byte behind.
    pub start: u64,
    /// See above.
    pub end: u64,
    /// What it is.
    pub flags: VmaFlags,
    /// Offset in the file, in pages; 0 for anonymous memory.
    pub pgoff: u64,
    /// The file's device, major and minor number, and its number; 0 for anonymous memory.
    pub device: [u32; 2],
    /// See above.
    pub inode: u64,
    /// The file's path, or [`super::Memory::name_of`].
    pub name: &'n str,
}

/// Column of a name in `maps` (`seq_setwidth`, and the blank behind).
const NAME_COLUMN: usize = 73;

/// Counts what is written.
struct Counted<'o>(&'o mut dyn Write, usize);

impl Write for Counted<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.1 += text.len();
        self.0.write_str(text)
    }
}

impl Area<'_> {
    /// `rwxp`, or what of it is so.
    pub const fn permissions(&self) -> [char; 4] {
        const fn letter(set: bool, letter: char) -> char {
            if set { letter } else { '-' }
        }
        let flags = self.flags;
        [
            letter(flags.contains(VmaFlags::READ), 'r'),
            letter(flags.contains(VmaFlags::WRITE), 'w'),
            letter(flags.contains(VmaFlags::EXEC), 'x'),
            if flags.contains(VmaFlags::MAYSHARE) { 's' } else { 'p' },
        ]
    }

    /// The line of `maps` (`show_map_vma`).
    ///
    /// # Errors
    /// Those of `out`.
    pub fn line(&self, out: &mut dyn Write) -> fmt::Result {
        let mut out = Counted(out, 0);
        write!(out, "{:08x}-{:08x} ", self.start, self.end)?;
        self.permissions().into_iter().try_for_each(|letter| out.write_char(letter))?;
        let [major, minor] = self.device;
        write!(out, " {:08x} {major:02x}:{minor:02x} {} ", self.pgoff << PAGE_SHIFT, self.inode)?;
        if self.name.is_empty() {
            return out.write_char('\n');
        }
        let blanks = NAME_COLUMN.saturating_sub(out.1).max(1);
        writeln!(out, "{:blanks$}{}", "", self.name)
    }
}

/// A page that an area has mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MappedPage {
    /// How often it is mapped.
    pub mapcount: u64,
    /// Whether it is anonymous.
    pub anon: bool,
    /// Whether it goes to swap: neither a file's nor given up with `MADV_FREE`.
    pub swapbacked: bool,
    /// Whether it was written to, by the entry or the page's flags.
    pub dirty: bool,
    /// Whether it was touched.
    pub referenced: bool,
    /// Whether it is on an active list.
    pub active: bool,
    /// The node of the page.
    pub node: usize,
}

impl MappedPage {
    /// The page that `entry` maps, by what its metadata says: flags, `_mapcount` and mapping.
    pub const fn new(entry: Entry, flags: u32, mapcount: u32, mapping: u32, node: usize) -> Self {
        const fn has(flags: u32, flag: PageFlag) -> bool {
            flags & flag.mask() != 0
        }
        Self {
            mapcount: mapcount as u64,
            anon: matches!(MappingId::from_word(mapping), Some(id) if id.is_anon()),
            swapbacked: has(flags, PageFlag::Swapbacked),
            dirty: entry.is_dirty() || has(flags, PageFlag::Dirty),
            referenced: entry.0 & Entry::ACCESSED != 0 || has(flags, PageFlag::Referenced),
            active: has(flags, PageFlag::Active) || has(flags, PageFlag::Unevictable),
            node,
        }
    }
}

/// Pages of an area by what they are (`struct mem_size_stats`), in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sizes {
    rss: u64,
    /// Shifted by [`PSS_SHIFT`], as are the next five.
    pss: u64,
    pss_anon: u64,
    pss_file: u64,
    pss_shmem: u64,
    pss_dirty: u64,
    pss_locked: u64,
    shared_clean: u64,
    shared_dirty: u64,
    private_clean: u64,
    private_dirty: u64,
    referenced: u64,
    anonymous: u64,
    lazyfree: u64,
}

/// Parts of a page that many share are added up with so many bits more (`PSS_SHIFT`).
const PSS_SHIFT: u32 = 12;

impl Sizes {
    /// Adds `page`, of an area that is `locked` or not (`smaps_account`).
    pub fn add(&mut self, page: &MappedPage, locked: bool) {
        let shared = page.mapcount > 1;
        let kind = match (shared, page.dirty) {
            (true, true) => &mut self.shared_dirty,
            (true, false) => &mut self.shared_clean,
            (false, true) => &mut self.private_dirty,
            (false, false) => &mut self.private_clean,
        };
        *kind += PAGE_SIZE;
        self.rss += PAGE_SIZE;
        if page.anon {
            self.anonymous += PAGE_SIZE;
            if !page.swapbacked && !page.dirty {
                self.lazyfree += PAGE_SIZE;
            }
        }
        if page.referenced {
            self.referenced += PAGE_SIZE;
        }
        let part = (PAGE_SIZE << PSS_SHIFT) / page.mapcount.max(1);
        self.pss += part;
        *match (page.anon, page.swapbacked) {
            (true, _) => &mut self.pss_anon,
            (false, true) => &mut self.pss_shmem,
            (false, false) => &mut self.pss_file,
        } += part;
        if page.dirty {
            self.pss_dirty += part;
        }
        if locked {
            self.pss_locked += part;
        }
    }

    /// Adds those of another area, for `smaps_rollup`.
    pub fn merge(&mut self, other: &Self) {
        self.rss += other.rss;
        self.pss += other.pss;
        self.pss_anon += other.pss_anon;
        self.pss_file += other.pss_file;
        self.pss_shmem += other.pss_shmem;
        self.pss_dirty += other.pss_dirty;
        self.pss_locked += other.pss_locked;
        self.shared_clean += other.shared_clean;
        self.shared_dirty += other.shared_dirty;
        self.private_clean += other.private_clean;
        self.private_dirty += other.private_dirty;
        self.referenced += other.referenced;
        self.anonymous += other.anonymous;
        self.lazyfree += other.lazyfree;
    }

    /// Names and bytes in Linux's order (`__show_smap`); a rollup says what of its own share is what. What there cannot be
    /// without swap, huge pages for programs, and pools of huge pages is 0.
    pub fn rows(&self, rollup: bool) -> impl Iterator<Item = (&'static str, u64)> {
        let head = [("Rss", self.rss), ("Pss", self.pss >> PSS_SHIFT), ("Pss_Dirty", self.pss_dirty >> PSS_SHIFT)];
        let kinds = [
            ("Pss_Anon", self.pss_anon >> PSS_SHIFT),
            ("Pss_File", self.pss_file >> PSS_SHIFT),
            ("Pss_Shmem", self.pss_shmem >> PSS_SHIFT),
        ];
        let rest = [
            ("Shared_Clean", self.shared_clean),
            ("Shared_Dirty", self.shared_dirty),
            ("Private_Clean", self.private_clean),
            ("Private_Dirty", self.private_dirty),
            ("Referenced", self.referenced),
            ("Anonymous", self.anonymous),
            ("LazyFree", self.lazyfree),
            ("AnonHugePages", 0),
            ("ShmemPmdMapped", 0),
            ("FilePmdMapped", 0),
            ("Shared_Hugetlb", 0),
            ("Private_Hugetlb", 0),
            ("Swap", 0),
            ("SwapPss", 0),
            ("Locked", self.pss_locked >> PSS_SHIFT),
        ];
        head.into_iter().chain(kinds.into_iter().filter(move |_| rollup)).chain(rest)
    }

    /// Their lines.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn lines(&self, rollup: bool, out: &mut dyn Write) -> fmt::Result {
        self.rows(rollup).try_for_each(|(name, bytes)| size_line(name, bytes, out))
    }
}

/// A line of `smaps`: the number ends in the same column whatever the name.
fn size_line(name: &str, bytes: u64, out: &mut dyn Write) -> fmt::Result {
    let width = 23 - name.len();
    writeln!(out, "{name}:{:>width$} kB", bytes >> 10)
}

impl Area<'_> {
    /// What `smaps` says of the area (`show_smap`).
    ///
    /// # Errors
    /// Those of `out`.
    pub fn smaps(&self, sizes: &Sizes, out: &mut dyn Write) -> fmt::Result {
        self.line(out)?;
        self.sizes().into_iter().try_for_each(|(name, bytes)| size_line(name, bytes, out))?;
        sizes.lines(false, out)?;
        out.write_str("THPeligible:    0\nVmFlags: ")?;
        self.flag_names().try_for_each(|name| write!(out, "{name} "))?;
        out.write_char('\n')
    }

    /// Names and bytes that `smaps` begins with.
    pub const fn sizes(&self) -> [(&'static str, u64); 3] {
        let size = self.end.wrapping_sub(self.start);
        [("Size", size), ("KernelPageSize", PAGE_SIZE), ("MMUPageSize", PAGE_SIZE)]
    }

    /// The flags as `smaps` shows them (`show_smap_vma_flags`).
    pub fn flag_names(&self) -> impl Iterator<Item = &'static str> {
        let flags = self.flags;
        VmaFlags::NAMED.iter().filter(move |(flag, _)| flags.contains(*flag)).map(|(_, name)| *name)
    }
}

/// Pages of an area by node (`struct numa_maps`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NumaPages {
    pages: u64,
    anon: u64,
    active: u64,
    mapcount_max: u64,
    dirty: u64,
    nodes: [u64; MAX_NUMNODES],
}

impl Default for NumaPages {
    fn default() -> Self {
        Self { pages: 0, anon: 0, active: 0, mapcount_max: 0, dirty: 0, nodes: [0; MAX_NUMNODES] }
    }
}

impl NumaPages {
    /// Adds `page` (`gather_stats`).
    pub fn add(&mut self, page: &MappedPage) {
        self.pages += 1;
        self.anon += u64::from(page.anon);
        self.active += u64::from(page.active);
        self.dirty += u64::from(page.dirty);
        self.mapcount_max = self.mapcount_max.max(page.mapcount);
        if let Some(count) = self.nodes.get_mut(page.node) {
            *count += 1;
        }
    }

    /// The line of `numa_maps` for `area`, whose memory is where `policy` says (`show_numa_map`).
    ///
    /// # Errors
    /// Those of `out`.
    pub fn line(&self, area: &Area<'_>, policy: &str, out: &mut dyn Write) -> fmt::Result {
        write!(out, "{:08x} {policy}", area.start)?;
        match area.name {
            "" => {}
            "[heap]" => out.write_str(" heap")?,
            "[stack]" => out.write_str(" stack")?,
            path => {
                out.write_str(" file=")?;
                // What separates fields is not part of one (`seq_file_path`).
                path.chars().try_for_each(|letter| match letter {
                    '\n' | '\t' | ' ' | '=' => write!(out, "\\{:03o}", u32::from(letter)),
                    other => out.write_char(other),
                })?;
            }
        }
        if self.pages != 0 {
            self.rows().try_for_each(|(name, number)| write!(out, " {name}={number}"))?;
            self.nodes().try_for_each(|(node, pages)| write!(out, " N{node}={pages}"))?;
            write!(out, " kernelpagesize_kB={}", PAGE_SIZE >> 10)?;
        }
        out.write_char('\n')
    }

    /// Names and numbers in Linux's order; what goes without saying is left out.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let rows = [
            ("anon", self.anon, self.anon != 0),
            ("dirty", self.dirty, self.dirty != 0),
            ("mapped", self.pages, self.pages != self.anon && self.pages != self.dirty),
            ("mapmax", self.mapcount_max, self.mapcount_max > 1),
            ("active", self.active, self.active < self.pages),
        ];
        rows.into_iter().filter(|(.., shown)| *shown).map(|(name, number, _)| (name, number))
    }

    /// Nodes that pages are of, and how many.
    pub fn nodes(&self) -> impl Iterator<Item = (usize, u64)> {
        self.nodes.iter().copied().enumerate().filter(|(_, pages)| *pages != 0)
    }
}

/// Bits of a word of `pagemap`.
pub mod pagemap {
    /// The frame.
    pub const FRAME: u64 = (1 << 55) - 1;
    /// Changed since somebody asked (`PM_SOFT_DIRTY`).
    pub const SOFT_DIRTY: u64 = 1 << 55;
    /// Mapped once (`PM_MMAP_EXCLUSIVE`).
    pub const EXCLUSIVE: u64 = 1 << 56;
    /// A file's, or shared (`PM_FILE`).
    pub const FILE: u64 = 1 << 61;
    /// There is a page (`PM_PRESENT`).
    pub const PRESENT: u64 = 1 << 63;

    /// The word of a page that is mapped; `page` is none for one that nobody counts (`pte_to_pagemap_entry`). What the
    /// area adds is not in it.
    pub const fn word(pfn: u64, page: Option<&super::MappedPage>) -> u64 {
        let word = PRESENT | pfn & FRAME;
        match page {
            Some(page) => word | if page.anon { 0 } else { FILE } | if page.mapcount == 1 { EXCLUSIVE } else { 0 },
            None => word,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::String;

    #[test]
    fn lines_of_maps() {
        let mut text = String::new();
        let flags = VmaFlags::READ.with(VmaFlags::WRITE).with(VmaFlags::GROWSDOWN);
        let stack = Area { start: 0x7ffd_3f5b_c000, end: 0x7ffd_3f5d_d000, flags, name: "[stack]", ..Area::default() };
        stack.line(&mut text).unwrap();
        let flags = VmaFlags::READ.with(VmaFlags::EXEC).with(VmaFlags::MAYSHARE);
        let file =
            Area { start: 0x40_0000, end: 0x40_1000, flags, pgoff: 3, device: [8, 1], inode: 77, ..Area::default() };
        file.line(&mut text).unwrap();
        assert_eq!(
            text,
            "7ffd3f5bc000-7ffd3f5dd000 rw-p 00000000 00:00 0                          [stack]\n\
             00400000-00401000 r-xs 00003000 08:01 77 \n"
        );
    }

    #[test]
    fn shares_of_pages() {
        let mut sizes = Sizes::default();
        let page = MappedPage { mapcount: 3, anon: true, dirty: true, ..MappedPage::default() };
        sizes.add(&page, false);
        sizes.add(&MappedPage { mapcount: 1, ..page }, true);
        let mut text = String::new();
        sizes.lines(false, &mut text).unwrap();
        for line in [
            "Rss:                   8 kB\n",
            "Pss:                   5 kB\n",
            "Shared_Dirty:          4 kB\n",
            "Private_Dirty:         4 kB\n",
            "Private_Hugetlb:       0 kB\n",
            "Locked:                4 kB\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }

    #[test]
    fn pages_by_node() {
        let mut pages = NumaPages::default();
        pages.add(&MappedPage { mapcount: 1, anon: true, dirty: true, active: true, ..MappedPage::default() });
        pages.add(&MappedPage { mapcount: 2, anon: true, dirty: true, active: true, node: 1, ..MappedPage::default() });
        let mut text = String::new();
        let heap = Area { start: 0x1000, name: "[heap]", ..Area::default() };
        pages.line(&heap, "default", &mut text).unwrap();
        assert_eq!(text, "00001000 default heap anon=2 dirty=2 mapmax=2 N0=1 N1=1 kernelpagesize_kB=4\n");
    }
}
