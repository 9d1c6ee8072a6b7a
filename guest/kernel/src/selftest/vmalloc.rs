//! vmalloc as the processor sees it: through real translations, remembered by every CPU.

use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicU64, Ordering};

use pagevisor_mm::Mm;
use pagevisor_mm::pgtable::PageTables;
use pagevisor_mm::platform::Platform;
use pagevisor_mm::vmalloc::VmallocRequest;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::pgtable::{Entry, Protection};
use pagevisor_shared::units::{PAGE_SIZE, Pfn, VirtAddr};

use crate::arch::cpu;
use crate::log::{pr_err, pr_info};
use crate::platform::Kernel;
use crate::{platform, smp};

/// What the CPUs that look find, added up.
static SEEN: AtomicU64 = AtomicU64::new(0);

#[inline(never)]
pub(super) fn run() {
    let Some(mm) = platform::mm() else { return };
    let result = small(mm)
        .and_then(|()| used_again(mm))
        .and_then(|()| large(mm))
        .and_then(|()| interrupted(mm))
        .and_then(|()| address_space(mm));
    match result {
        Ok(()) => pr_info!("selftest: vmalloc ok"),
        Err(why) => pr_err!("selftest: vmalloc failed: {why}"),
    }
}

/// Reads a word of an area.
fn read(addr: VirtAddr, page: u64) -> u64 {
    let word = with_exposed_provenance::<u64>((addr.raw() + page * PAGE_SIZE) as usize);
    // SAFETY: the tests pass pages of areas that they have.
    unsafe { word.read_volatile() }
}

/// Writes a word of an area.
fn write(addr: VirtAddr, page: u64, value: u64) {
    let word = with_exposed_provenance_mut::<u64>((addr.raw() + page * PAGE_SIZE) as usize);
    // SAFETY: as in `read`.
    unsafe { word.write_volatile(value) };
}

/// What is in a frame, by the direct map.
fn direct(mm: &Mm<Kernel>, frame: Pfn) -> u64 {
    let word = with_exposed_provenance::<u64>(mm.virt(frame.addr()).raw() as usize);
    // SAFETY: the tests pass frames of areas that they have.
    unsafe { word.read_volatile() }
}

/// The word at `addr` as the other CPUs see it, added up.
fn seen_by_others(addr: VirtAddr) -> u64 {
    SEEN.store(0, Ordering::Relaxed);
    let look = |addr: usize| {
        SEEN.fetch_add(read(VirtAddr::new(addr as u64), 0), Ordering::Relaxed);
    };
    smp::call_function(smp::online(), look, addr.raw() as usize);
    SEEN.load(Ordering::Relaxed)
}

/// Each page of an area is the frame that the tables say, in order.
fn small(mm: &Mm<Kernel>) -> Result<(), &'static str> {
    const PAGES: u64 = 21;
    let addr = mm.vmalloc(PAGES * PAGE_SIZE).ok_or("no memory")?;
    (0..PAGES).for_each(|page| write(addr, page, page << 32 | 0x5aa5));
    for page in 0..PAGES {
        let frame = mm.vmalloc_to_page(VirtAddr::new(addr.raw() + page * PAGE_SIZE)).ok_or("a page is missing")?;
        if direct(mm, frame) != page << 32 | 0x5aa5 {
            return Err("a page is elsewhere than the tables say");
        }
    }
    let caller = mm.find_vm_area(addr).ok_or("there is no area")?.caller;
    let (start, end) = (crate::arch::paging::image().text, crate::arch::paging::image().rodata);
    if !(start..end).contains(&caller) || crate::arch::paging::mm_text().contains(&caller) {
        return Err("the caller is wrong");
    }
    mm.vfree(addr);
    Ok(())
}

/// The same addresses get other memory, and no CPU sees the old one.
fn used_again(mm: &Mm<Kernel>) -> Result<(), &'static str> {
    let others = u64::from(smp::online().weight()) - 1;
    let mut kept = None;
    mm.purge_vmap_areas();
    for round in 1..=4 {
        let addr = mm.vmalloc(PAGE_SIZE).ok_or("no memory")?;
        if kept.is_some_and(|kept| kept != addr) {
            return Err("the addresses did not come back");
        }
        kept = Some(addr);
        write(addr, 0, round);
        if seen_by_others(addr) != round * others {
            return Err("a CPU sees memory that was there before");
        }
        // It stays allocated, so that the next round gets another frame.
        let frame = mm.vmalloc_to_page(addr).ok_or("a page is missing")?;
        mm.get_page(frame);
        mm.vfree(addr);
        mm.purge_vmap_areas();
        if round > 1 {
            mm.put_page(frame);
        }
    }
    Ok(())
}

/// Large pages, and the small ones behind.
fn large(mm: &Mm<Kernel>) -> Result<(), &'static str> {
    const PAGES: u64 = 2 * 512 + 3;
    let addr = mm.vmalloc(PAGES * PAGE_SIZE).ok_or("no memory for large pages")?;
    for page in [0, 511, 512, 1023, 1024, PAGES - 1] {
        write(addr, page, !page);
    }
    for page in [0, 511, 512, 1023, 1024, PAGES - 1] {
        let frame = mm.vmalloc_to_page(VirtAddr::new(addr.raw() + page * PAGE_SIZE)).ok_or("a page is missing")?;
        if read(addr, page) != !page || direct(mm, frame) != !page {
            return Err("a large page is elsewhere than the tables say");
        }
    }
    mm.vfree(addr);
    mm.purge_vmap_areas();
    Ok(())
}

/// An interrupt handler on another CPU frees; it is done once somebody comes by.
fn interrupted(mm: &Mm<Kernel>) -> Result<(), &'static str> {
    let addr = mm.vmalloc(PAGE_SIZE).ok_or("no memory")?;
    let free = |addr: usize| {
        if let Some(mm) = platform::mm() {
            mm.vfree(VirtAddr::new(addr as u64));
        }
    };
    let other = smp::online().iter().find(|cpu| cpu.index() != 0);
    match other {
        Some(cpu) => smp::call_function(pagevisor_shared::units::CpuMask(1 << cpu.index()), free, addr.raw() as usize),
        None => mm.vfree_atomic(addr),
    }
    mm.vfree_deferred();
    if mm.find_vm_area(addr).is_some() {
        return Err("what an interrupt freed is there for ever");
    }
    Ok(())
}

/// Calls `work` with this CPU in the address space of `tables`, and interrupts off.
fn within<R>(mm: &Mm<Kernel>, tables: &PageTables, work: impl FnOnce() -> R) -> R {
    let flags = mm.platform().irq_save();
    // SAFETY: they have the kernel's half, which is all that the kernel uses.
    unsafe { cpu::set_cr3(tables.root().raw()) };
    let result = work();
    // SAFETY: the kernel's own.
    unsafe { cpu::set_cr3(mm.platform().kernel_root().raw()) };
    mm.platform().irq_restore(flags);
    result
}

/// An address space sees what is mapped in the kernel's half after it was made, also behind another top-level entry; and
/// its own half, where the processor notes what was used.
fn address_space(mm: &Mm<Kernel>) -> Result<(), &'static str> {
    const USER: VirtAddr = VirtAddr::new(0x40_0000);
    let tables = mm.pgd_alloc(Gfp::KERNEL).ok_or("no memory for page tables")?;
    let request = VmallocRequest { align: 1 << 39, ..VmallocRequest::new(2 * PAGE_SIZE) };
    let addr = mm.vmalloc_range(&request).ok_or("no memory")?;
    write(addr, 1, 0x1234_5678);
    if within(mm, &tables, || read(addr, 1)) != 0x1234_5678 {
        return Err("an address space sees other memory of the kernel's");
    }
    let frame = mm.vmalloc_to_page(addr).ok_or("a page is missing")?;
    // Ring 0 may not run what ring 3 may, but read and write it.
    let entry = Entry::to_page(frame.addr(), Protection::SHARED).without(Entry::ACCESSED);
    mm.set_entry(&tables, USER, 0, entry, Gfp::KERNEL).map_err(|_| "no memory for tables")?;
    let noted = || mm.lookup_entry(&tables, USER).map(|(entry, _)| (entry.is_young(), entry.is_dirty()));
    if noted() != Some((false, false)) {
        return Err("an address was used before it was");
    }
    within(mm, &tables, || read(USER, 0));
    if noted() != Some((true, false)) {
        return Err("the processor does not note what it reads");
    }
    within(mm, &tables, || write(USER, 0, 0x8765_4321));
    if noted() != Some((true, true)) || read(addr, 0) != 0x8765_4321 {
        return Err("the processor does not note what it writes");
    }
    mm.vfree(addr);
    mm.purge_vmap_areas();
    mm.pgd_free(tables);
    Ok(())
}
