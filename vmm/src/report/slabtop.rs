//! What `slabtop` shows: a summary of all slab caches, and a line for each.

use std::cmp::Reverse;
use std::fmt::{self, Write};

use pagevisor_shared::report::slabinfo::SlabInfo;
use pagevisor_shared::units::PAGE_SIZE;

/// What the lines are sorted by: the largest first, but for names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SlabSort {
    /// `a`: objects handed out.
    Active,
    /// `b`: objects of a slab.
    ObjectsPerSlab,
    /// `c`: size of the cache.
    CacheSize,
    /// `l`: slabs.
    Slabs,
    /// `v`: slabs with objects handed out.
    ActiveSlabs,
    /// `n`: name.
    Name,
    /// `o`: objects.
    #[default]
    Objects,
    /// `p`: pages of a slab.
    PagesPerSlab,
    /// `s`: size of an object.
    ObjectSize,
    /// `u`: part of the objects that are handed out.
    Use,
}

impl SlabSort {
    /// All, with slabtop's letters.
    pub const ALL: [(Self, char); 10] = [
        (Self::Active, 'a'),
        (Self::ObjectsPerSlab, 'b'),
        (Self::CacheSize, 'c'),
        (Self::Slabs, 'l'),
        (Self::ActiveSlabs, 'v'),
        (Self::Name, 'n'),
        (Self::Objects, 'o'),
        (Self::PagesPerSlab, 'p'),
        (Self::ObjectSize, 's'),
        (Self::Use, 'u'),
    ];

    /// The one with that letter.
    pub fn of(letter: char) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, known)| *known == letter).map(|(sort, _)| sort)
    }

    /// What lines are sorted by, where that is a number.
    fn number(self, info: &SlabInfo<'_>) -> u64 {
        match self {
            Self::Active => info.active_objs,
            Self::ObjectsPerSlab => info.objperslab.into(),
            Self::CacheSize => cache_bytes(info),
            Self::Slabs => info.num_slabs,
            Self::ActiveSlabs => info.active_slabs,
            Self::Objects => info.num_objs,
            Self::PagesPerSlab => info.pagesperslab.into(),
            Self::ObjectSize => info.objsize.into(),
            Self::Use => percent_used(info),
            Self::Name => 0,
        }
    }
}

const fn cache_bytes(info: &SlabInfo<'_>) -> u64 {
    info.num_slabs.wrapping_mul(info.pagesperslab as u64).wrapping_mul(PAGE_SIZE)
}

/// Objects handed out, in whole percent.
fn percent_used(info: &SlabInfo<'_>) -> u64 {
    info.active_objs.wrapping_mul(100).checked_div(info.num_objs).unwrap_or(0)
}

/// `part` of `whole` in percent.
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

fn kib(bytes: u64) -> f64 {
    bytes as f64 / 1024.0
}

/// The five lines on top, and an empty one.
fn summary(caches: &[SlabInfo<'_>], out: &mut String) -> fmt::Result {
    let sum = |field: &dyn Fn(&SlabInfo<'_>) -> u64| caches.iter().map(field).fold(0, u64::wrapping_add);
    let size = |info: &SlabInfo<'_>| u64::from(info.objsize);
    let rows = [
        ("Objects", sum(&|info| info.active_objs), sum(&|info| info.num_objs)),
        ("Slabs", sum(&|info| info.active_slabs), sum(&|info| info.num_slabs)),
        ("Caches", sum(&|info| u64::from(info.num_objs != 0)), caches.len() as u64),
    ];
    for (what, active, total) in rows {
        let title = format!("Active / Total {what} (% used)");
        writeln!(out, " {title:<35}: {active} / {total} ({:.1}%)", percent(active, total))?;
    }
    let active = sum(&|info| info.active_objs.wrapping_mul(size(info)));
    let total = sum(&|info| info.num_objs.wrapping_mul(size(info)));
    let title = "Active / Total Size (% used)";
    writeln!(out, " {title:<35}: {:.2}K / {:.2}K ({:.1}%)", kib(active), kib(total), percent(active, total))?;
    let smallest = caches.iter().map(size).min().unwrap_or(0);
    let largest = caches.iter().map(size).max().unwrap_or(0);
    let average = total.checked_div(sum(&|info| info.num_objs)).unwrap_or(0);
    let title = "Minimum / Average / Maximum Object";
    writeln!(out, " {title:<35}: {:.2}K / {:.2}K / {:.2}K\n", kib(smallest), kib(average), kib(largest))
}

/// The screen: the summary, and the first `lines` caches by `sort`, all of them for `None`.
pub fn slabtop(caches: &[SlabInfo<'_>], sort: SlabSort, lines: Option<usize>) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = summary(caches, &mut text);
    let _ = writeln!(text, "{:<78}", "  OBJS ACTIVE  USE OBJ SIZE  SLABS OBJ/SLAB CACHE SIZE NAME");
    let mut sorted: Vec<&SlabInfo<'_>> = caches.iter().collect();
    match sort {
        SlabSort::Name => sorted.sort_by_key(|info| info.name),
        _ => sorted.sort_by_key(|info| Reverse(sort.number(info))),
    }
    for info in sorted.into_iter().take(lines.unwrap_or(usize::MAX)) {
        let (objects, active, used) = (info.num_objs, info.active_objs, percent_used(info));
        let (object, slabs, per_slab) = (kib(info.objsize.into()), info.num_slabs, info.objperslab);
        let (size, name) = (cache_bytes(info) / 1024, info.name);
        let _ = writeln!(
            text,
            "{objects:>6} {active:>6} {used:>3}% {object:>7.2}K {slabs:>6} {per_slab:>8} {size:>9}K {name:<23}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info<'n>(name: &'n str, objects: [u64; 2], shape: [u32; 3], slabs: u64) -> SlabInfo<'n> {
        SlabInfo {
            name,
            active_objs: objects[0],
            num_objs: objects[1],
            objsize: shape[0],
            objperslab: shape[1],
            pagesperslab: shape[2],
            active_slabs: slabs,
            num_slabs: slabs,
            ..SlabInfo::default()
        }
    }

    /// The caches, and what procps's slabtop 4.0.2 makes of such a file.
    fn caches() -> [SlabInfo<'static>; 4] {
        [
            info("kmalloc-8k", [13, 16], [8192, 4, 8], 4),
            info("dentry", [10416, 10416], [192, 21, 1], 496),
            info("kmalloc-32", [758, 1408], [32, 128, 1], 11),
            info("MPTCP", [0, 0], [1984, 16, 8], 0),
        ]
    }

    #[test]
    fn the_screen_is_slabtop_s() {
        let expected = concat!(
            " Active / Total Objects (% used)    : 11187 / 11840 (94.5%)\n",
            " Active / Total Slabs (% used)      : 511 / 511 (100.0%)\n",
            " Active / Total Caches (% used)     : 3 / 4 (75.0%)\n",
            " Active / Total Size (% used)       : 2080.69K / 2125.00K (97.9%)\n",
            " Minimum / Average / Maximum Object : 0.03K / 0.18K / 8.00K\n",
            "\n",
            "  OBJS ACTIVE  USE OBJ SIZE  SLABS OBJ/SLAB CACHE SIZE NAME                   \n",
            " 10416  10416 100%    0.19K    496       21      1984K dentry                 \n",
            "  1408    758  53%    0.03K     11      128        44K kmalloc-32             \n",
            "    16     13  81%    8.00K      4        4       128K kmalloc-8k             \n",
            "     0      0   0%    1.94K      0       16         0K MPTCP                  \n",
        );
        assert_eq!(slabtop(&caches(), SlabSort::default(), None), expected);
        assert_eq!(slabtop(&caches(), SlabSort::Objects, Some(2)).lines().count(), 7 + 2);
        assert!(slabtop(&[], SlabSort::Objects, None).contains("0 / 0 (0.0%)"));
    }

    #[test]
    fn every_letter_sorts() {
        for (letter, first) in [
            ('a', "dentry"),
            ('b', "kmalloc-32"),
            ('c', "dentry"),
            ('l', "dentry"),
            ('v', "dentry"),
            ('n', "MPTCP"),
            ('o', "dentry"),
            ('p', "kmalloc-8k"),
            ('s', "kmalloc-8k"),
            ('u', "dentry"),
        ] {
            let screen = slabtop(&caches(), SlabSort::of(letter).unwrap(), Some(1));
            assert!(screen.trim_end().ends_with(first), "{letter}: {screen}");
        }
        assert_eq!(SlabSort::of('x'), None);
    }
}
