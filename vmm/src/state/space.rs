//! Address spaces of programs: their records, their areas, and what their page tables hold.

use std::mem::offset_of;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::layout::PAGE_OFFSET;
use pagevisor_shared::mm_types::{AddressSpace, MappedFile, MmStruct, NR_MM_COUNTERS, VmArea, VmaFlags};
use pagevisor_shared::pgtable::{Entry, PTRS_PER_TABLE, TOP_LEVEL, level_size, table_index};
use pagevisor_shared::report::process::Memory;
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE};

use super::error::{Corrupt, StateError};
use super::slab::Record;
use super::task::printable;
use super::{Patience, StateView};

/// Longest path that is read (`PATH_MAX`).
const PATH_MAX: u32 = 4096;
/// End of the half of the addresses that programs have.
pub const USER_END: u64 = 1 << 47;

/// An address space as it was read. Fields as in [`MmStruct`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named and documented in the contract")]
pub struct SpaceInfo {
    /// Guest-virtual address of the record.
    pub address: u64,
    pub pgd: u64,
    pub mm_rb: u64,
    pub mmap: u64,
    pub highest_vm_end: u64,
    pub mm_users: u32,
    pub map_count: u32,
    pub mmap_lock: u32,
    pub tree_lock: u32,
    pub total_vm: u64,
    pub locked_vm: u64,
    pub pinned_vm: u64,
    pub data_vm: u64,
    pub exec_vm: u64,
    pub stack_vm: u64,
    pub rss_stat: [i64; NR_MM_COUNTERS],
    pub pgtables_bytes: u64,
    pub hiwater_rss: u64,
    pub hiwater_vm: u64,
    pub start_code: u64,
    pub end_code: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub next: u64,
    pub prev: u64,
}

impl SpaceInfo {
    fn new(address: u64, record: &Record<'_>) -> Self {
        let word = |offset: usize| record.u64(offset);
        let counter = |index: usize| word(offset_of!(MmStruct, rss_stat) + index * 8).cast_signed();
        Self {
            address,
            pgd: word(offset_of!(MmStruct, pgd)),
            mm_rb: word(offset_of!(MmStruct, mm_rb)),
            mmap: word(offset_of!(MmStruct, mmap)),
            highest_vm_end: word(offset_of!(MmStruct, highest_vm_end)),
            mm_users: record.u32(offset_of!(MmStruct, mm_users)),
            map_count: record.u32(offset_of!(MmStruct, map_count)),
            mmap_lock: record.u32(offset_of!(MmStruct, mmap_lock)),
            tree_lock: record.u32(offset_of!(MmStruct, tree_lock)),
            total_vm: word(offset_of!(MmStruct, total_vm)),
            locked_vm: word(offset_of!(MmStruct, locked_vm)),
            pinned_vm: word(offset_of!(MmStruct, pinned_vm)),
            data_vm: word(offset_of!(MmStruct, data_vm)),
            exec_vm: word(offset_of!(MmStruct, exec_vm)),
            stack_vm: word(offset_of!(MmStruct, stack_vm)),
            rss_stat: std::array::from_fn(counter),
            pgtables_bytes: word(offset_of!(MmStruct, pgtables_bytes)),
            hiwater_rss: word(offset_of!(MmStruct, hiwater_rss)),
            hiwater_vm: word(offset_of!(MmStruct, hiwater_vm)),
            start_code: word(offset_of!(MmStruct, start_code)),
            end_code: word(offset_of!(MmStruct, end_code)),
            start_brk: word(offset_of!(MmStruct, start_brk)),
            brk: word(offset_of!(MmStruct, brk)),
            start_stack: word(offset_of!(MmStruct, start_stack)),
            next: word(offset_of!(MmStruct, next)),
            prev: word(offset_of!(MmStruct, prev)),
        }
    }

    /// What the files of `/proc/PID` show of it.
    pub fn memory(&self) -> Memory {
        Memory {
            total_vm: self.total_vm,
            hiwater_vm: self.hiwater_vm,
            locked_vm: self.locked_vm,
            pinned_vm: self.pinned_vm,
            data_vm: self.data_vm,
            exec_vm: self.exec_vm,
            stack_vm: self.stack_vm,
            rss: self.rss_stat.map(|pages| pages.max(0).cast_unsigned()),
            hiwater_rss: self.hiwater_rss,
            pgtables_bytes: self.pgtables_bytes,
            code: [self.start_code, self.end_code],
            start_brk: self.start_brk,
            brk: self.brk,
            start_stack: self.start_stack,
            ..Memory::default()
        }
    }

    /// Pages of memory that are mapped (`get_mm_rss`). A counter that CPUs are behind with may be below 0 for a moment, and
    /// counts as 0 then.
    pub fn rss(&self) -> u64 {
        self.memory().total_rss()
    }
}

/// The file behind an area.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FileInfo {
    /// As `maps` shows it.
    pub path: String,
    /// Device: major number shifted by 20, minor number.
    pub dev: u32,
    /// Number of the inode.
    pub ino: u64,
    /// Whether its pages are shared memory.
    pub shmem: bool,
    /// Address of the record of its pages; 0 if it has none.
    pub mapping: u64,
    /// Pages that are promised because of its size, and not because they are there; those that are there.
    pub promised: [u64; 2],
}

/// An area as it was read. Fields as in [`VmArea`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AreaInfo {
    /// Guest-virtual address of the record.
    pub address: u64,
    /// First byte.
    pub start: u64,
    /// First byte behind.
    pub end: u64,
    /// Flags.
    pub flags: VmaFlags,
    /// Offset of the first page in the file, in pages.
    pub pgoff: u64,
    /// The file.
    pub file: Option<FileInfo>,
}

impl AreaInfo {
    /// Pages.
    pub const fn pages(&self) -> u64 {
        (self.end - self.start) >> PAGE_SHIFT
    }
}

/// The areas of an address space.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Areas {
    /// Lowest first.
    pub list: Vec<AreaInfo>,
    /// What ended the walk early.
    pub damage: Option<Corrupt>,
}

/// An entry of a program's page tables that keeps a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserPage {
    /// The address that it is for.
    pub address: u64,
    /// The entry.
    pub entry: Entry,
    /// Its level: 0 but for large pages.
    pub level: u32,
}

impl UserPage {
    /// The frame.
    pub const fn pfn(&self) -> u64 {
        self.entry.address(self.level).raw() >> PAGE_SHIFT
    }
}

/// A program's page tables under walk.
struct Walk<'w> {
    view: &'w StateView,
    /// Tables that may still be read.
    budget: &'w mut u64,
    visit: &'w mut dyn FnMut(UserPage),
    /// Told every table.
    tell: &'w mut dyn FnMut(u64),
}

impl StateView {
    /// The address space whose record is at `address`.
    ///
    /// # Errors
    /// [`Corrupt`] when there is no memory.
    pub fn space(&self, address: u64) -> Result<SpaceInfo, StateError> {
        let mut bytes = [0; size_of::<MmStruct>()];
        self.read_record(address, "address of an address space", &mut bytes)?;
        Ok(SpaceInfo::new(address, &Record(&bytes)))
    }

    /// All address spaces, along the list of them.
    ///
    /// # Errors
    /// [`Corrupt`] when a link leads nowhere or back.
    pub fn spaces(&self) -> Result<Vec<SpaceInfo>, StateError> {
        let most = self.memory().size() / size_of::<MmStruct>() as u64;
        let (mut next, mut before) = (self.region().header().roots.mms.load(Relaxed), 0);
        let mut found: Vec<SpaceInfo> = Vec::new();
        while next != 0 {
            let space = self.space(next)?;
            if space.prev != before || found.len() as u64 >= most {
                let found = space.prev;
                return Err(Corrupt { what: "backward link of an address space", at: next, found }.into());
            }
            (before, next) = (next, space.next);
            found.push(space);
        }
        Ok(found)
    }

    /// The areas of `space`, and again when a running guest changed them meanwhile.
    ///
    /// # Errors
    /// When the host cannot read the guest's memory.
    pub fn user_areas(&self, space: u64, patience: Patience) -> Result<Areas, StateError> {
        let walk = |areas: &mut Areas| {
            let space = self.space(space)?;
            self.walk_user_areas(&space, &mut areas.list)
        };
        self.patiently(patience, walk, |areas, damage| areas.damage = damage)
    }

    /// Walks along the list of areas. Addresses must go up, and there can be no more areas than memory for their records.
    fn walk_user_areas(&self, space: &SpaceInfo, found: &mut Vec<AreaInfo>) -> Result<(), StateError> {
        let most = self.memory().size() / size_of::<VmArea>() as u64;
        let (mut next, mut before, mut low) = (space.mmap, 0, 0);
        while next != 0 {
            let mut bytes = [0; size_of::<VmArea>()];
            self.read_record(next, "address of an area", &mut bytes)?;
            let record = Record(&bytes);
            let word = |offset: usize| record.u64(offset);
            let (start, end) = (word(offset_of!(VmArea, vm_start)), word(offset_of!(VmArea, vm_end)));
            let wrong = |what, found| StateError::from(Corrupt { what, at: next, found });
            let whole = start.is_multiple_of(PAGE_SIZE) && end.is_multiple_of(PAGE_SIZE);
            if start < low || start >= end || end > USER_END || !whole || found.len() as u64 >= most {
                return Err(wrong("start of an area", start));
            }
            let (owner, prev) = (word(offset_of!(VmArea, vm_mm)), word(offset_of!(VmArea, prev)));
            if owner != space.address {
                return Err(wrong("address space of an area", owner));
            }
            if prev != before {
                return Err(wrong("backward link of an area", prev));
            }
            let file = match word(offset_of!(VmArea, vm_file)) {
                0 => None,
                file => Some(self.mapped_file(file)?),
            };
            let flags = VmaFlags(word(offset_of!(VmArea, vm_flags)));
            let pgoff = word(offset_of!(VmArea, vm_pgoff));
            found.push(AreaInfo { address: next, start, end, flags, pgoff, file });
            (before, next, low) = (next, word(offset_of!(VmArea, next)), end);
        }
        if u64::from(space.map_count) != found.len() as u64 {
            let (at, found) = (space.address, space.map_count.into());
            return Err(Corrupt { what: "number of areas", at, found }.into());
        }
        Ok(())
    }

    /// The file that is mapped by the record at `address`.
    fn mapped_file(&self, address: u64) -> Result<FileInfo, StateError> {
        let mut bytes = [0; size_of::<MappedFile>()];
        self.read_record(address, "address of a mapped file", &mut bytes)?;
        let record = Record(&bytes);
        let path = match record.u64(offset_of!(MappedFile, path)) {
            0 => String::new(),
            at => {
                let len = record.u32(offset_of!(MappedFile, path_len));
                if len > PATH_MAX {
                    return Err(Corrupt { what: "length of a path", at: address, found: len.into() }.into());
                }
                let mut path = vec![0; len as usize];
                self.read_record(at, "address of a path", &mut path)?;
                printable(&path)
            }
        };
        let mapping = record.u64(offset_of!(MappedFile, mapping));
        if mapping == 0 {
            return Ok(FileInfo { path, ..FileInfo::default() });
        }
        let mut bytes = [0; size_of::<AddressSpace>()];
        self.read_record(mapping, "address of a file's pages", &mut bytes)?;
        let record = Record(&bytes);
        let flags = record.u32(offset_of!(AddressSpace, flags));
        let reserved = flags & (AddressSpace::SHMEM | AddressSpace::NORESERVE) == AddressSpace::SHMEM;
        let pages = record.u64(offset_of!(AddressSpace, i_size)).div_ceil(PAGE_SIZE);
        let promised = if reserved { [pages, record.u64(offset_of!(AddressSpace, nrpages))] } else { [0; 2] };
        Ok(FileInfo {
            path,
            dev: record.u32(offset_of!(AddressSpace, dev)),
            ino: record.u64(offset_of!(AddressSpace, ino)),
            shmem: flags & AddressSpace::SHMEM != 0,
            mapping,
            promised,
        })
    }

    /// Copies a record of the kernel's; `what` names its address when nothing is there.
    fn read_record(&self, address: u64, what: &'static str, buf: &mut [u8]) -> Result<(), StateError> {
        if address >= PAGE_OFFSET && self.read_virtual(address, buf)? {
            return Ok(());
        }
        Err(Corrupt { what, at: address, found: address }.into())
    }

    /// Tables that walks over `ranges` ranges of an address space can come by: as many as fit into memory, and the way
    /// down to each range again.
    pub fn table_budget(&self, ranges: usize) -> u64 {
        (self.memory().size() >> PAGE_SHIFT) + 4 * (ranges as u64 + 1)
    }

    /// Tells `visit` every entry for `range` under the top table at physical address `pgd` that keeps a page, in order of
    /// addresses. Takes the tables that it reads from `budget`, which [`Self::table_budget`] gives.
    ///
    /// # Errors
    /// [`Corrupt`] when a table lies outside memory, or there are more of them than fit into it.
    pub fn user_pages(
        &self,
        pgd: u64,
        range: Range<u64>,
        budget: &mut u64,
        visit: &mut dyn FnMut(UserPage),
    ) -> Result<(), StateError> {
        self.user_tables(pgd, range, budget, visit, &mut |_| {})
    }

    /// As [`Self::user_pages`], and tells `table` the physical address of each table on the way.
    ///
    /// # Errors
    /// As [`Self::user_pages`].
    pub fn user_tables(
        &self,
        pgd: u64,
        range: Range<u64>,
        budget: &mut u64,
        visit: &mut dyn FnMut(UserPage),
        table: &mut dyn FnMut(u64),
    ) -> Result<(), StateError> {
        let range = range.start..range.end.min(USER_END);
        let mut walk = Walk { view: self, budget, visit, tell: table };
        if range.is_empty() { Ok(()) } else { walk.table(pgd & Entry::ADDRESS, TOP_LEVEL, 0, &range) }
    }
}

impl Walk<'_> {
    /// Goes through the table of `level` at `table`, which is for the addresses from `base` on.
    fn table(&mut self, table: u64, level: u32, base: u64, range: &Range<u64>) -> Result<(), StateError> {
        let wrong = |what| StateError::from(Corrupt { what, at: base, found: table });
        *self.budget = self.budget.checked_sub(1).ok_or_else(|| wrong("page table without end"))?;
        let mut bytes = [0; PAGE_SIZE as usize];
        self.view.memory().read(table, &mut bytes).map_err(|error| match error {
            StateError::Corrupt(_) => wrong("page table"),
            other => other,
        })?;
        (self.tell)(table);
        // The first and the last entry that the range goes through.
        let span = level_size(level) * PTRS_PER_TABLE as u64;
        let first = table_index(range.start.max(base), level);
        let last = table_index((range.end - 1).min(base + (span - 1)), level);
        let entries = bytes.as_chunks::<8>().0.iter().enumerate().take(last + 1).skip(first);
        for (index, bytes) in entries {
            let entry = Entry(u64::from_le_bytes(*bytes));
            let address = base + index as u64 * level_size(level);
            if level == 0 {
                if entry.keeps_page() {
                    (self.visit)(UserPage { address, entry, level });
                }
            } else if level < TOP_LEVEL && entry.is_leaf(level) {
                (self.visit)(UserPage { address, entry, level });
            } else if entry.is_present() {
                self.table(entry.0 & Entry::ADDRESS, level - 1, address, range)?;
            }
        }
        Ok(())
    }
}
