//! Mapping (`vmap_pages_range`, `ioremap_page_range`).

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::layout::{VMALLOC_END, VMALLOC_START};
use pagevisor_shared::pgtable::{PMD_SIZE, Protection, TOP_LEVEL, level_shift, level_size, table_end};
use pagevisor_shared::units::{Order, PAGE_SHIFT, PhysAddr};

use crate::Mm;
use crate::platform::Platform;
use crate::raw::Table;

/// Memory to be mapped: so many bytes from there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backing {
    pub(crate) phys: PhysAddr,
    pub(crate) bytes: u64,
}

/// Entries that were promised to the owner of a range of addresses: as many as are behind one table, so that mapping
/// page after page goes through the upper levels only once.
#[derive(Debug)]
pub(crate) struct Reservation {
    table: Option<Table>,
    /// The next address to be mapped through the table.
    virt: u64,
    /// First address behind those promised.
    end: u64,
}

impl Reservation {
    /// Nothing is promised yet, and `virt` is mapped next.
    pub(crate) const fn new(virt: u64) -> Self {
        Self { table: None, virt, end: virt }
    }

    /// The next address to be mapped.
    #[inline]
    pub(crate) const fn virt(&self) -> u64 {
        self.virt
    }

    /// Takes back what was mapped from `virt` on and has been unmapped again, when mapping has failed: then everything
    /// promised was used up.
    pub(crate) const fn back_to(&mut self, virt: u64) {
        self.virt = virt;
        self.end = virt;
    }
}

/// Why there is no way down to a table.
enum NoWay {
    /// The table of that level is missing.
    Missing {
        /// Its level.
        level: u32,
    },
    /// A page that is mapped there is larger than what is behind the table, or the address is not the root's.
    Blocked,
}

/// Top-level entries of the vmalloc space.
const TOP_ENTRIES: u64 = (VMALLOC_END + 1 - VMALLOC_START) >> level_shift(TOP_LEVEL);
const _: () = assert!(TOP_ENTRIES.is_power_of_two() && VMALLOC_START.is_multiple_of(level_size(TOP_LEVEL)));

impl<P: Platform> Mm<P> {
    /// The way down to the table of `level` for `virt`. A new table is taken from `spare` if one is missing. Under the lock.
    fn way_down(&self, virt: u64, level: u32, spare: &mut Option<Table>) -> Result<Table, NoWay> {
        let map = self.direct_map();
        let mut table = Table::root(self.platform);
        while table.level() > level {
            table = match table.next(map, virt) {
                Some(next) => next,
                None if !table.get(virt).is_none() => return Err(NoWay::Blocked),
                None => {
                    let level = table.level() - 1;
                    let Some(new) = spare.take_if(|spare| spare.level() == level) else {
                        return Err(NoWay::Missing { level });
                    };
                    table.link(virt, new);
                    self.use_entries(table, 1);
                    new
                }
            };
        }
        Ok(table)
    }

    /// The way down to the table of `level` for `virt`, in which `count` entries are counted.
    fn try_reserve(&self, virt: u64, level: u32, count: u32, spare: &mut Option<Table>) -> Result<Table, NoWay> {
        let held = self.lock_tables();
        let table = self.way_down(virt, level, spare)?;
        self.use_entries(table, count);
        self.note_table(virt, table);
        drop(held);
        Ok(table)
    }

    /// Has `count` entries of the page table for `virt` counted, which the caller is about to fill; `None` when there is no
    /// memory for tables. Areas come one after the other, so mostly it is the table that was last used.
    #[inline(always)]
    fn reserve_pages(&self, virt: u64, count: u32, gfp: Gfp) -> Option<Table> {
        let held = self.lock_tables();
        if let Some(table) = self.last_table(virt) {
            self.use_entries(table, count);
            return Some(table);
        }
        drop(held);
        self.reserve(virt, 0, count, gfp)
    }

    /// As [`Self::reserve_pages`], in the table of any level.
    #[inline(never)]
    fn reserve(&self, virt: u64, level: u32, count: u32, gfp: Gfp) -> Option<Table> {
        let mut spare: Option<Table> = None;
        loop {
            let result = self.try_reserve(virt, level, count, &mut spare);
            // Somebody else may have been faster.
            if let Some(unneeded) = spare.take() {
                self.free_table(unneeded.pfn());
            }
            match result {
                Ok(table) => return Some(table),
                Err(NoWay::Missing { level }) => spare = Some(self.new_table(level, gfp)?),
                Err(NoWay::Blocked) => return None,
            }
        }
    }

    /// Gives all top-level entries of the vmalloc space their tables (`preallocate_vmalloc_pages`): from then on the upper
    /// half of the kernel's root stays as it is, and every root that has it sees all that is ever mapped there. False
    /// when there is no memory for them. By one CPU at a time.
    pub(crate) fn preallocate_top_level(&self, gfp: Gfp) -> bool {
        let mut entries = (0..TOP_ENTRIES).map(|entry| VMALLOC_START + (entry << level_shift(TOP_LEVEL)));
        let root = Table::root(self.platform);
        let order = Order::new(TOP_ENTRIES.ilog2()).unwrap_or_default();
        // A block of pages costs a fraction of as many single ones.
        if entries.clone().all(|virt| root.get(virt).is_none())
            && let Some(tables) = self.new_tables(TOP_LEVEL - 1, order, gfp)
        {
            let held = self.lock_tables();
            entries.zip(tables).for_each(|(virt, table)| root.link(virt, table));
            drop(held);
            return true;
        }
        entries.all(|virt| self.reserve(virt, TOP_LEVEL - 1, 0, gfp).is_some())
    }

    /// Maps `backing` at the next addresses of `at`, whose owner has those up to `end`, by small pages. False, with
    /// a part mapped, when there is no memory for tables.
    #[inline]
    pub(crate) fn map_small(
        &self,
        at: &mut Reservation,
        end: u64,
        backing: Backing,
        protection: Protection,
        gfp: Gfp,
    ) -> bool {
        let Backing { phys, mut bytes } = backing;
        let mut phys = phys.raw();
        while bytes > 0 {
            let table = match at.table {
                Some(table) if at.virt < at.end => table,
                _ => {
                    let stop = table_end(at.virt, end, 0);
                    let count = ((stop - at.virt) >> PAGE_SHIFT) as u32;
                    let Some(table) = self.reserve_pages(at.virt, count, gfp) else { return false };
                    at.table = Some(table);
                    at.end = stop;
                    table
                }
            };
            let now = bytes.min(at.end - at.virt);
            table.fill(at.virt, (now >> PAGE_SHIFT) as usize, PhysAddr::new(phys), protection);
            at.virt += now;
            phys += now;
            bytes -= now;
        }
        true
    }

    /// Maps one page at `virt`, whose owner has nothing else to map. False when there is no memory for tables.
    #[inline]
    pub(crate) fn map_single(&self, virt: u64, phys: PhysAddr, protection: Protection, gfp: Gfp) -> bool {
        let Some(table) = self.reserve_pages(virt, 1, gfp) else { return false };
        table.set_page(virt, phys, protection);
        true
    }

    /// Maps 2 MiB at `phys` at the next address of `at`, both multiples of that. False, with nothing changed, when
    /// there is no memory for tables or a page table in the way.
    pub(crate) fn map_large(&self, at: &mut Reservation, phys: PhysAddr, protection: Protection, gfp: Gfp) -> bool {
        let Some(table) = self.reserve(at.virt, 1, 1, gfp) else { return false };
        if table.get(at.virt).is_present() {
            self.unuse_entries(table, 1);
            return false;
        }
        table.fill(at.virt, 1, phys, protection);
        *at = Reservation::new(at.virt + PMD_SIZE);
        true
    }

    /// Gives back what was promised and not used.
    pub(crate) fn end_mapping(&self, at: &Reservation) {
        if let Some(table) = at.table
            && at.virt < at.end
        {
            self.unuse_entries(table, ((at.end - at.virt) >> PAGE_SHIFT) as u32);
        }
    }
}
