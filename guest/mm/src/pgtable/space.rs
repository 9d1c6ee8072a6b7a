//! The tables of an address space of its own: a root, and what is below its lower half (`mm/memory.c`, `mm/pgtable-generic.c`).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::pgtable::{Entry, PTRS_PER_TABLE, TOP_LEVEL, USER_END, level_size, table_end};
use pagevisor_shared::units::{PAGE_SIZE, PhysAddr, VirtAddr};

use super::TableChain;
use super::map::NoWay;
use super::walk::{Leaf, walk_table};
use crate::Mm;
use crate::platform::Platform;
use crate::raw::{Root, Space, Table};
use crate::sync;

/// The page tables of an address space (`mm->pgd`). Made by [`Mm::pgd_alloc`], given back to [`Mm::pgd_free`] of the same
/// machine.
#[derive(Debug)]
#[must_use = "the tables are lost unless they are freed"]
pub struct PageTables {
    root: Root,
    /// Guards which tables there are, and what entries are clear (`page_table_lock`).
    lock: AtomicU32,
    /// Tables below the root.
    tables: AtomicU64,
}

impl PageTables {
    /// The root's address, for CR3.
    pub const fn root(&self) -> PhysAddr {
        self.root.pfn().addr()
    }

    /// Bytes of tables below the root (`mm_pgtables_bytes`).
    pub fn bytes(&self) -> u64 {
        self.tables.load(Relaxed) * PAGE_SIZE
    }
}

/// Why an entry could not be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// There is no memory for tables.
    NoMemory,
    /// A large page is mapped where a small one should be, or a table is where a large page should be.
    Occupied,
    /// The address is not in the lower half or not a multiple of the page's size, or the entry is not one that maps a page
    /// of that size (or notes something, not being present).
    Invalid,
}

/// The lock of an address space's tables, held.
struct Held<'a>(&'a PageTables);

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        sync::unlock(&self.0.lock);
    }
}

impl Held<'_> {
    #[inline]
    fn root(&self) -> Table {
        self.0.root.table()
    }
}

impl<P: Platform> Mm<P> {
    /// Page tables without mappings of their own, and with all of the kernel's (`pgd_alloc`): now and later, since the
    /// kernel's root does not change in its upper half after this.
    pub fn pgd_alloc(&self, gfp: Gfp) -> Option<PageTables> {
        // Before anything is copied, all that will ever be there is.
        if !self.vmalloc_ready(gfp) {
            return None;
        }
        let root = Root::new(self, super::table::table_gfp(gfp))?;
        Some(PageTables { root, lock: AtomicU32::new(0), tables: AtomicU64::new(0) })
    }

    /// Gives back page tables that no processor uses or remembers (`pgd_free`). What still is mapped is forgotten: the
    /// pages are somebody else's business.
    pub fn pgd_free(&self, tables: PageTables) {
        if tables.bytes() > 0 {
            self.walk_page_range(&tables, VirtAddr::new(0), VirtAddr::new(USER_END), |leaf| {
                leaf.take();
            });
            let chain = self.free_pgtables(&tables, VirtAddr::new(0), VirtAddr::new(USER_END));
            self.free_tables(chain);
        }
        self.free_page(tables.root.pfn());
    }

    /// Whether `tables` have the kernel's half as it is.
    pub fn has_kernel_half(&self, tables: &PageTables) -> bool {
        tables.root.has_kernel_half(self.platform)
    }

    #[inline]
    fn lock_space<'a>(&self, tables: &'a PageTables) -> Held<'a> {
        sync::lock(&tables.lock, || self.platform.relax());
        Held(tables)
    }

    /// Writes `entry` for the page at `virt`: a small one for `level` 0, a large one for 1 (`set_pte_at`, `set_pmd_at`),
    /// making the tables on the way. Gives what was there. Whatever processors remember of that is the caller's business.
    ///
    /// # Errors
    /// [`MapError`]; then nothing has changed but for tables that may have been made.
    pub fn set_entry(
        &self,
        tables: &PageTables,
        virt: VirtAddr,
        level: u32,
        entry: Entry,
        gfp: Gfp,
    ) -> Result<Entry, MapError> {
        let at = virt.raw();
        let fits = level == 0 || level == 1 && (!entry.is_present() || entry.is_leaf(1));
        if at >= USER_END || !fits || entry.is_none() || !at.is_multiple_of(level_size(level)) {
            return Err(MapError::Invalid);
        }
        let mut spare: Option<Table> = None;
        loop {
            let held = self.lock_space(tables);
            let had = spare.is_some();
            let result = self.way_down(held.root(), at, level, &mut spare);
            tables.tables.fetch_add(u64::from(had && spare.is_none()), Relaxed);
            let result = result.map(|table| {
                let old = table.update(at, |_| entry);
                self.use_entries(table, u32::from(old.is_some_and(Entry::is_none)));
                old
            });
            drop(held);
            // Somebody else may have been faster.
            if let Some(unneeded) = spare.take() {
                self.free_table(unneeded.pfn());
            }
            match result {
                Ok(old) => return old.ok_or(MapError::Occupied),
                Err(NoWay::Blocked) => return Err(MapError::Occupied),
                Err(NoWay::Missing { level }) => {
                    spare = Some(self.new_table(level, Space::User, gfp).ok_or(MapError::NoMemory)?);
                }
            }
        }
    }

    /// What the entry for `virt` is, and its level; `None` if there is nothing (`follow_pte`).
    pub fn lookup_entry(&self, tables: &PageTables, virt: VirtAddr) -> Option<(Entry, u32)> {
        if virt.raw() >= USER_END {
            return None;
        }
        let held = self.lock_space(tables);
        let mut table = held.root();
        while let Some(next) = table.next(self.direct_map(), virt.raw()) {
            table = next;
        }
        let entry = table.get(virt.raw());
        (!entry.is_none()).then_some((entry, table.level()))
    }

    /// Calls `visit` for every page that has an entry from `start` up to `end`, lowest first, those included that the
    /// range has only a part of (`walk_page_range`). Whole tables that are missing cost nothing. The lock is held, for
    /// what is behind one table at a time: `visit` neither waits nor comes back here.
    pub fn walk_page_range(&self, tables: &PageTables, start: VirtAddr, end: VirtAddr, mut visit: impl FnMut(&Leaf)) {
        let end = end.raw().min(USER_END);
        let mut virt = start.raw() & !(PAGE_SIZE - 1);
        while virt < end {
            let held = self.lock_space(tables);
            virt = walk_table(self, held.root(), virt, end, &mut visit);
        }
    }

    /// Maps what the large page at `virt` maps by 512 small ones, with the same rights and notes (`split_huge_pmd`). Nothing
    /// happens if there is no large page.
    ///
    /// # Errors
    /// [`MapError::NoMemory`], with nothing changed.
    pub fn split_large(&self, tables: &PageTables, virt: VirtAddr, gfp: Gfp) -> Result<(), MapError> {
        let at = virt.raw();
        let Some((_, 1)) = self.lookup_entry(tables, virt) else { return Ok(()) };
        let new = self.new_table(0, Space::User, gfp).ok_or(MapError::NoMemory)?;
        let held = self.lock_space(tables);
        let mut linked = false;
        if let Ok(pd) = self.way_down(held.root(), at, 1, &mut None) {
            // The processor may note something meanwhile: then once more.
            while let large = pd.get(at)
                && large.is_leaf(1)
                && !linked
            {
                new.fill_split(large);
                linked = pd.link_split(at, large, new);
            }
        }
        if linked {
            self.use_entries(new, PTRS_PER_TABLE as u32);
            tables.tables.fetch_add(1, Relaxed);
        }
        drop(held);
        if !linked {
            self.free_table(new.pfn());
        }
        Ok(())
    }

    /// Takes out all tables without entries that addresses from `start` up to `end` go through (`free_pgtables`). They are
    /// to be given to [`Self::free_tables`] once no processor remembers them.
    pub fn free_pgtables(&self, tables: &PageTables, start: VirtAddr, end: VirtAddr) -> TableChain {
        let (mut virt, end) = (start.raw(), end.raw().min(USER_END));
        let (map, mut chain) = (self.direct_map(), TableChain::default());
        while virt < end {
            // Not longer than it takes for a gigabyte.
            let held = self.lock_space(tables);
            let (root, stop) = (held.root(), table_end(virt, end, 1));
            virt = match root.next(map, virt) {
                None => table_end(virt, end, TOP_LEVEL - 1),
                Some(pdpt) => {
                    self.detach_directory(pdpt, virt, stop, &mut chain);
                    if self.is_empty(pdpt) {
                        root.unlink(virt);
                        self.chain_push(&mut chain, pdpt);
                        table_end(virt, end, TOP_LEVEL - 1)
                    } else {
                        stop
                    }
                }
            };
        }
        tables.tables.fetch_sub(chain.len(), Relaxed);
        chain
    }
}
