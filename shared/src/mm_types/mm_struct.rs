//! Address spaces.

use core::mem::size_of;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64};

/// Pages that an address space has mapped, by kind (`enum` in `linux/mm_types_task.h`); the index into [`MmStruct::rss_stat`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum MmCounter {
    /// Pages of files (`MM_FILEPAGES`).
    File = 0,
    /// Anonymous pages (`MM_ANONPAGES`).
    Anon = 1,
    /// Entries that lead to swap (`MM_SWAPENTS`).
    Swap = 2,
    /// Pages of shared memory (`MM_SHMEMPAGES`).
    Shmem = 3,
}

/// Number of [`MmCounter`]s.
pub const NR_MM_COUNTERS: usize = 4;

/// An address space (`struct mm_struct`). Sizes in pages where Linux has pages, addresses in bytes.
///
/// Invariants, when nobody holds [`Self::mmap_lock`]: [`Self::map_count`] is the number of areas; [`Self::total_vm`],
/// [`Self::data_vm`], [`Self::exec_vm`] and [`Self::stack_vm`] are sums over the areas (`vm_stat_account`);
/// [`Self::rss_stat`] and [`Self::pgtables_bytes`] agree with the page tables.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct MmStruct {
    /// Physical address of the top page table.
    pub pgd: AtomicU64,
    /// Root of the areas.
    pub mm_rb: AtomicU64,
    /// The lowest area.
    pub mmap: AtomicU64,
    /// End of the highest area, guard gaps included (`highest_vm_end`).
    pub highest_vm_end: AtomicU64,
    /// Where mappings go, downwards.
    pub mmap_base: AtomicU64,
    /// First address that is not the program's.
    pub task_size: AtomicU64,
    /// Tasks that use it; at 0 the areas go.
    pub mm_users: AtomicU32,
    /// References, all users together being one; at 0 the record goes.
    pub mm_count: AtomicU32,
    /// Areas.
    pub map_count: AtomicU32,
    /// Readers; the top bit is set for a writer, the one below it while somebody waits. Waited on by address.
    pub mmap_lock: AtomicU32,
    /// Held, for a short time, by who changes the tree of areas or the bounds of one.
    pub tree_lock: AtomicU32,
    /// Odd while that is going on: who looks something up without a lock looks again then.
    pub seq: AtomicU32,
    /// Guards the upper levels of the page tables (`page_table_lock`).
    pub page_table_lock: AtomicU32,
    /// Grows whenever a writer gives [`Self::mmap_lock`] back, which unlocks the areas that it has locked
    /// ([`super::VmArea::vm_lock_seq`]).
    pub mm_lock_seq: AtomicU32,
    /// Pages of all areas.
    pub total_vm: AtomicU64,
    /// Pages of locked areas.
    pub locked_vm: AtomicU64,
    /// Pages that are pinned.
    pub pinned_vm: AtomicU64,
    /// Pages of private writable areas that are no stack.
    pub data_vm: AtomicU64,
    /// Pages of executable areas that are neither writable nor a stack.
    pub exec_vm: AtomicU64,
    /// Pages of stacks.
    pub stack_vm: AtomicU64,
    /// Flags that every new area gets ([`super::VmaFlags`]; `mlockall`).
    pub def_flags: AtomicU64,
    /// Pages that are mapped, by [`MmCounter`].
    pub rss_stat: [AtomicI64; NR_MM_COUNTERS],
    /// Bytes of page tables.
    pub pgtables_bytes: AtomicU64,
    /// Most pages that were mapped at a time, as far as seen.
    pub hiwater_rss: AtomicU64,
    /// Most pages of areas.
    pub hiwater_vm: AtomicU64,
    /// The program's text.
    pub start_code: AtomicU64,
    /// Behind it.
    pub end_code: AtomicU64,
    /// The program's data.
    pub start_data: AtomicU64,
    /// Behind it.
    pub end_data: AtomicU64,
    /// Where the heap begins.
    pub start_brk: AtomicU64,
    /// Where it ends.
    pub brk: AtomicU64,
    /// Where the stack begins.
    pub start_stack: AtomicU64,
    /// The arguments.
    pub arg_start: AtomicU64,
    /// Behind them.
    pub arg_end: AtomicU64,
    /// The environment.
    pub env_start: AtomicU64,
    /// Behind it.
    pub env_end: AtomicU64,
    /// The [`super::MappedFile`] of the program; 0 for none.
    pub exe_file: AtomicU64,
    /// CPUs that may remember translations, a bit each (`mm_cpumask`).
    pub cpu_bitmap: AtomicU64,
    /// Counts the changes that CPUs must hear of (`context.tlb_gen`).
    pub tlb_gen: AtomicU64,
    /// Number of this address space among all that there ever were (`context.ctx_id`).
    pub ctx_id: AtomicU64,
    /// The next of all address spaces (`mmlist`).
    pub next: AtomicU64,
    /// The one before.
    pub prev: AtomicU64,
    /// Padding.
    pub reserved: [AtomicU64; 6],
}

const _: () = assert!(size_of::<MmStruct>() == 384);

impl MmStruct {
    /// Most pages that were mapped at a time, now or before, as far as seen (`get_mm_hiwater_rss`).
    pub fn get_mm_hiwater_rss(&self) -> u64 {
        let kinds = [MmCounter::File, MmCounter::Anon, MmCounter::Shmem];
        let mapped: i64 = kinds.iter().map(|kind| self.rss_stat[*kind as usize].load(Relaxed)).sum();
        self.hiwater_rss.load(Relaxed).max(mapped.max(0).cast_unsigned())
    }
}
