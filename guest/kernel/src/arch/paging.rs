//! The kernel's page tables.
//!
//! ```text
//! PAGE_OFFSET            direct map of all RAM, 2 MiB pages, filled a GiB at a time (direct_map)
//! VMEMMAP_START          page metadata, mapped as `mm` asks
//! VMALLOC_START          areas of memory and devices, mapped as `mm` sees fit (its vmalloc)
//! STATE_REGION_VIRT      the state region
//! START_KERNEL_MAP       the kernel image, 4 KiB pages: text runs, rodata is read, data and bss are written
//! STACKS                 stacks of the application processors, a guard page below each
//! DEVICES                register pages of devices that boot needs, uncached
//! ```
//!
//! Tables that every machine needs are static. The rest comes from memblock, below 1 GiB, where the direct map is
//! complete from the start: so the page-fault handler that fills the direct map never faults itself.

use core::ops::Range;
use core::ptr::with_exposed_provenance;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pagevisor_shared::layout::{PAGE_OFFSET, START_KERNEL_MAP, STATE_REGION_VIRT, VMEMMAP_START};
use pagevisor_shared::pgtable::{CacheMode, Entry, PMD_SHIFT, PMD_SIZE, Protection};
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE, PhysAddr, VirtAddr};

use super::cpu;

/// The entry maps or leads somewhere.
pub const PRESENT: u64 = Entry::PRESENT;
/// Writes are allowed.
pub const WRITABLE: u64 = Entry::WRITABLE;
/// The entry maps 2 MiB.
pub const LARGE: u64 = Entry::LARGE;

/// Kernel text.
const TEXT: u64 = Protection::KERNEL_ROX.bits();
/// Read-only data.
const RODATA: u64 = Protection::KERNEL_RO.bits();
/// Data.
pub const DATA: u64 = Protection::KERNEL.bits();
/// Device registers.
const DEVICE: u64 = Protection::KERNEL.cached(CacheMode::Uncached).bits();
/// An entry that leads to another table.
const TABLE: u64 = Entry::TABLE;

/// The address part of an entry.
const ADDRESS: u64 = Entry::ADDRESS;

/// log2 of the size of a large page.
pub const LARGE_SHIFT: u32 = PMD_SHIFT;
/// Bytes behind an entry that maps a large page.
pub const LARGE_SIZE: u64 = PMD_SIZE;
/// log2 of the bytes behind a table of them.
pub const GIB_SHIFT: u32 = 30;
/// Bytes behind a table of them.
pub const GIB: u64 = 1 << GIB_SHIFT;

/// Where the stacks of application processors are mapped.
pub const STACKS: u64 = 0xffff_ffff_c000_0000;
/// Bytes of that window per CPU.
pub const STACK_SLOT: u64 = 64 << 10;
/// Where device registers are mapped.
const DEVICES: u64 = 0xffff_ffff_ffe0_0000;

/// Pages of the device window.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum DeviceSlot {
    /// Local APIC.
    LocalApic = 0,
    /// The monitor device, until `mm` runs.
    Monitor = 1,
    /// ACPI's sleep register, where it is in memory.
    Sleep = 2,
}

/// A page table of any level.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Table([AtomicU64; 512]);

impl Table {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 512])
    }

    /// The entry that decides about `virt` at `level` (0: 4 KiB pages, 1: 2 MiB, 2: 1 GiB, 3: 512 GiB).
    #[inline]
    pub fn entry(&self, virt: u64, level: u32) -> &AtomicU64 {
        // In range: nine bits.
        &self.0[(virt >> (12 + 9 * level)) as usize & 511]
    }

    /// Writes the entries for the `len` bytes from `virt`, all behind this table, whose entries stand for `1 << shift`
    /// bytes each: `value` first, then always `step` more.
    #[inline]
    pub fn fill(&self, virt: u64, len: u64, shift: u32, value: u64, step: u64) {
        let first = (virt >> shift) as usize & 511;
        let mut value = value;
        for entry in &self.0[first..first + (len >> shift) as usize] {
            entry.store(value, Relaxed);
            value += step;
        }
    }

    /// Physical address of a table that is part of the image.
    pub fn phys(&'static self) -> u64 {
        core::ptr::from_ref(self).addr() as u64 - START_KERNEL_MAP
    }
}

/// The top table. The name is for the application processors' start code.
#[unsafe(no_mangle)]
static KERNEL_PML4: Table = Table::new();
static KERNEL_PDPT: Table = Table::new();
static IMAGE_PD: Table = Table::new();
static IMAGE_PT: Table = Table::new();
static REGION_PD: Table = Table::new();
static TOP_PD: Table = Table::new();
static DEVICE_PT: Table = Table::new();
static STACK_PTS: [Table; 2] = [const { Table::new() }; 2];
static VMEMMAP_PDPT: Table = Table::new();
static DIRECT_PDPT: Table = Table::new();
/// The direct map's first GiB.
pub static DIRECT_PD: Table = Table::new();
/// The direct map's 2 MiB that hold the image.
pub static DIRECT_IMAGE_PT: Table = Table::new();

unsafe extern "C" {
    static early_pdpt: Table;
    static __text_start: u8;
    static __mm_text_start: u8;
    static __mm_text_end: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __data_end: u8;
    static __bss_end: u8;
    static boot_stack_guard: u8;
}

/// The parts of the image, as virtual addresses; each ends where the next starts.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// Start of the text.
    pub text: u64,
    /// Start of the read-only data.
    pub rodata: u64,
    /// Start of the data.
    pub data: u64,
    /// Start of the zero-initialised data.
    pub bss: u64,
    /// End of all.
    pub end: u64,
}

/// Where the image is, by the linker script.
pub fn image() -> Image {
    Image {
        text: (&raw const __text_start).addr() as u64,
        rodata: (&raw const __text_end).addr() as u64,
        data: (&raw const __rodata_end).addr() as u64,
        bss: (&raw const __data_end).addr() as u64,
        end: (&raw const __bss_end).addr() as u64,
    }
}

/// Physical address of the kernel's top table.
pub fn root() -> PhysAddr {
    PhysAddr::new(KERNEL_PML4.phys())
}

/// Where the memory stack's functions are, by the linker script.
pub fn mm_text() -> Range<u64> {
    (&raw const __mm_text_start).addr() as u64..(&raw const __mm_text_end).addr() as u64
}

/// Fills what is static and switches to it, keeping the low 4 GiB mapped at their own addresses for the time being
/// ([`forget_low_memory`]). The direct map has its tables for the first GiB, and nothing in them.
pub fn init() {
    // SAFETY: part of the image; entries are atomics.
    let low = unsafe { &early_pdpt };
    KERNEL_PML4.entry(0, 3).store(low.phys() | TABLE, Relaxed);
    KERNEL_PML4.entry(PAGE_OFFSET, 3).store(DIRECT_PDPT.phys() | TABLE, Relaxed);
    KERNEL_PML4.entry(VMEMMAP_START, 3).store(VMEMMAP_PDPT.phys() | TABLE, Relaxed);
    KERNEL_PML4.entry(START_KERNEL_MAP, 3).store(KERNEL_PDPT.phys() | TABLE, Relaxed);
    DIRECT_PDPT.entry(PAGE_OFFSET, 2).store(DIRECT_PD.phys() | TABLE, Relaxed);
    KERNEL_PDPT.entry(STATE_REGION_VIRT, 2).store(REGION_PD.phys() | TABLE, Relaxed);
    KERNEL_PDPT.entry(START_KERNEL_MAP, 2).store(IMAGE_PD.phys() | TABLE, Relaxed);
    KERNEL_PDPT.entry(STACKS, 2).store(TOP_PD.phys() | TABLE, Relaxed);
    TOP_PD.entry(STACKS, 1).store(STACK_PTS[0].phys() | TABLE, Relaxed);
    TOP_PD.entry(STACKS + LARGE_SIZE, 1).store(STACK_PTS[1].phys() | TABLE, Relaxed);
    TOP_PD.entry(DEVICES, 1).store(DEVICE_PT.phys() | TABLE, Relaxed);
    map_image();
    // SAFETY: the new tables map text, data, stack and low memory just as the early ones do.
    unsafe { cpu::set_cr3(KERNEL_PML4.phys()) };
}

fn map_image() {
    let image = image();
    let guard = (&raw const boot_stack_guard).addr() as u64;
    IMAGE_PD.entry(image.text, 1).store(IMAGE_PT.phys() | TABLE, Relaxed);
    for (start, end, flags) in
        [(image.text, image.rodata, TEXT), (image.rodata, image.data, RODATA), (image.data, image.end, DATA)]
    {
        IMAGE_PT.fill(start, end - start, PAGE_SHIFT, (start - START_KERNEL_MAP) | flags, PAGE_SIZE);
    }
    // Whoever overflows the boot stack shall hit a wall, not data.
    IMAGE_PT.entry(guard, 0).store(0, Relaxed);
}

/// Takes away the low addresses that only boot needs.
pub fn forget_low_memory() {
    KERNEL_PML4.entry(0, 3).store(0, Relaxed);
    // SAFETY: the same tables; nothing uses low addresses any more.
    unsafe { cpu::set_cr3(KERNEL_PML4.phys()) };
}

/// A table by its physical address.
///
/// The address comes from an entry of a table or from whoever allocates tables; the direct map covers both.
#[inline]
pub fn table_at(phys: u64) -> &'static Table {
    // SAFETY: all tables lie below 1 GiB in memory that belongs to them for ever and that the direct map covers;
    // entries are atomics, valid with any content.
    unsafe { &*with_exposed_provenance((PAGE_OFFSET + (phys & ADDRESS)) as usize) }
}

/// No memory for a page table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfTables;

/// Gives zeroed pages for tables, below 1 GiB.
pub type TableSource<'a> = &'a mut dyn FnMut() -> Option<PhysAddr>;

/// The table that `entry` leads to; a new one when it leads nowhere yet.
fn next(entry: &AtomicU64, source: TableSource<'_>) -> Result<&'static Table, OutOfTables> {
    let mut value = entry.load(Relaxed);
    if value & PRESENT == 0 {
        value = source().ok_or(OutOfTables)?.raw() | TABLE;
        entry.store(value, Relaxed);
    }
    Ok(table_at(value))
}

/// Maps `len` bytes at `phys` to `virt` as data, all multiples of the page size; in 2 MiB pages where it fits. The
/// range must not be mapped yet, so there is nothing to flush.
///
/// # Errors
/// [`OutOfTables`] when `source` has no more.
pub fn map(virt: VirtAddr, phys: PhysAddr, len: u64, source: TableSource<'_>) -> Result<(), OutOfTables> {
    let (mut virt, mut phys) = (virt.raw(), phys.raw());
    let end = virt + len;
    while virt < end {
        let pdpt = next(KERNEL_PML4.entry(virt, 3), source)?;
        let pd = next(pdpt.entry(virt, 2), source)?;
        if (virt | phys) & (LARGE_SIZE - 1) == 0 && end - virt >= LARGE_SIZE {
            // A page directory covers 1 GiB: stay in it as long as possible.
            let stop = (end & !(LARGE_SIZE - 1)).min((virt | (GIB - 1)) + 1);
            pd.fill(virt, stop - virt, LARGE_SHIFT, phys | DATA | LARGE, LARGE_SIZE);
            (virt, phys) = (stop, phys + (stop - virt));
        } else {
            let pt = next(pd.entry(virt, 1), source)?;
            let stop = end.min((virt | (LARGE_SIZE - 1)) + 1);
            pt.fill(virt, stop - virt, PAGE_SHIFT, phys | DATA, PAGE_SIZE);
            (virt, phys) = (stop, phys + (stop - virt));
        }
    }
    Ok(())
}

/// Maps the page of device registers that holds `phys`; gives the address of `phys`. A slot is mapped once.
pub fn map_device(slot: DeviceSlot, phys: PhysAddr) -> usize {
    let virt = DEVICES + slot as u64 * PAGE_SIZE;
    DEVICE_PT.entry(virt, 0).store((phys.raw() & ADDRESS) | DEVICE, Relaxed);
    (virt + phys.raw() % PAGE_SIZE) as usize
}

/// Takes a page of device registers out of its slot again, on this CPU, the only one that has used it.
pub fn unmap_device(slot: DeviceSlot) {
    let virt = DEVICES + slot as u64 * PAGE_SIZE;
    DEVICE_PT.entry(virt, 0).store(0, Relaxed);
    cpu::invlpg(virt);
}

/// Maps a page at `virt` in the window of stacks.
pub fn map_stack_page(virt: u64, phys: u64) {
    STACK_PTS[((virt - STACKS) / LARGE_SIZE) as usize & 1].entry(virt, 0).store(phys | DATA, Relaxed);
}

/// The entry of the direct map's top level for the 512 GiB that hold physical address `phys`.
pub fn direct_pml4_entry(phys: u64) -> &'static AtomicU64 {
    KERNEL_PML4.entry(PAGE_OFFSET + phys, 3)
}

/// What an entry for the table at `phys` looks like.
pub const fn table_entry(phys: u64) -> u64 {
    phys | TABLE
}
