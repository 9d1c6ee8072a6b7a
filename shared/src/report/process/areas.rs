//! What a process has mapped (`fs/proc/task_mmu.c`).

use core::fmt::{self, Write};

use crate::MAX_NUMNODES;
use crate::mm_types::VmaFlags;
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
    /// The line of `maps` (`show_map_vma`).
    ///
    /// # Errors
    /// Those of `out`.
    pub fn line(&self, out: &mut dyn Write) -> fmt::Result {
        let letter = |flag, letter| if self.flags.contains(flag) { letter } else { '-' };
        let mut out = Counted(out, 0);
        write!(out, "{:08x}-{:08x} ", self.start, self.end)?;
        for (flag, shown) in [(VmaFlags::READ, 'r'), (VmaFlags::WRITE, 'w'), (VmaFlags::EXEC, 'x')] {
            out.write_char(letter(flag, shown))?;
        }
        out.write_char(if self.flags.contains(VmaFlags::MAYSHARE) { 's' } else { 'p' })?;
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
    /// Whether it was written to, by the entry or the page's flags.
    pub dirty: bool,
    /// Whether it was touched.
    pub referenced: bool,
    /// Whether it is on an active list.
    pub active: bool,
    /// The node of the page.
    pub node: usize,
}

/// Pages of an area by what they are (`struct mem_size_stats`), in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sizes {
    rss: u64,
    /// Shifted by [`PSS_SHIFT`], as are the next two.
    pss: u64,
    pss_dirty: u64,
    pss_locked: u64,
    shared_clean: u64,
    shared_dirty: u64,
    private_clean: u64,
    private_dirty: u64,
    referenced: u64,
    anonymous: u64,
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
        }
        if page.referenced {
            self.referenced += PAGE_SIZE;
        }
        let part = (PAGE_SIZE << PSS_SHIFT) / page.mapcount.max(1);
        self.pss += part;
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
        self.pss_dirty += other.pss_dirty;
        self.pss_locked += other.pss_locked;
        self.shared_clean += other.shared_clean;
        self.shared_dirty += other.shared_dirty;
        self.private_clean += other.private_clean;
        self.private_dirty += other.private_dirty;
        self.referenced += other.referenced;
        self.anonymous += other.anonymous;
    }

    /// The lines (`__show_smap`). A rollup says what of its own share is what, for all areas together.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn lines(&self, out: &mut dyn Write) -> fmt::Result {
        let lines = [
            ("Rss", self.rss),
            ("Pss", self.pss >> PSS_SHIFT),
            ("Pss_Dirty", self.pss_dirty >> PSS_SHIFT),
            ("Shared_Clean", self.shared_clean),
            ("Shared_Dirty", self.shared_dirty),
            ("Private_Clean", self.private_clean),
            ("Private_Dirty", self.private_dirty),
            ("Referenced", self.referenced),
            ("Anonymous", self.anonymous),
            ("LazyFree", 0),
            ("AnonHugePages", 0),
            ("ShmemPmdMapped", 0),
            ("FilePmdMapped", 0),
            ("Shared_Hugetlb", 0),
            ("Private_Hugetlb", 0),
            ("Swap", 0),
            ("SwapPss", 0),
            ("Locked", self.pss_locked >> PSS_SHIFT),
        ];
        lines.iter().try_for_each(|(name, bytes)| size_line(name, *bytes, out))
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
        for (name, bytes) in
            [("Size", self.end.wrapping_sub(self.start)), ("KernelPageSize", PAGE_SIZE), ("MMUPageSize", PAGE_SIZE)]
        {
            size_line(name, bytes, out)?;
        }
        sizes.lines(out)?;
        out.write_str("THPeligible:    0\nVmFlags: ")?;
        for (_, letters) in VmaFlags::NAMED.iter().filter(|(flag, _)| self.flags.contains(*flag)) {
            write!(out, "{letters} ")?;
        }
        out.write_char('\n')
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
            path => write!(out, " file={path}")?,
        }
        if self.pages != 0 {
            self.counts(out)?;
        }
        out.write_char('\n')
    }

    fn counts(&self, out: &mut dyn Write) -> fmt::Result {
        if self.anon != 0 {
            write!(out, " anon={}", self.anon)?;
        }
        if self.dirty != 0 {
            write!(out, " dirty={}", self.dirty)?;
        }
        if self.pages != self.anon && self.pages != self.dirty {
            write!(out, " mapped={}", self.pages)?;
        }
        if self.mapcount_max > 1 {
            write!(out, " mapmax={}", self.mapcount_max)?;
        }
        if self.active < self.pages {
            write!(out, " active={}", self.active)?;
        }
        for (node, pages) in self.nodes.iter().enumerate().filter(|(_, pages)| **pages != 0) {
            write!(out, " N{node}={pages}")?;
        }
        write!(out, " kernelpagesize_kB={}", PAGE_SIZE >> 10)
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
        sizes.lines(&mut text).unwrap();
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
