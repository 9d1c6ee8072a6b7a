//! Parts of pages, pages mapped for a time, memory for devices.

use std::collections::HashMap;

use pagevisor_mm::hosted::Topology;
use pagevisor_mm::kmap::KM_MAX_IDX;
use pagevisor_mm::page_alloc::{PAGE_FRAG_CACHE_MAX_SIZE, PageFragCache};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{Order, Pfn, VirtAddr};
use pagevisor_shared::vmstat::VmEvent;

use crate::{MIB, assert_sound, boot, exhaust, free_pages};

const QUIET: Gfp = Gfp::NOWAIT.with(Gfp::NOWARN);

#[test]
fn fragments_are_cut_from_the_end() {
    let machine = boot(1);
    let mm = machine.mm();
    let start = free_pages(mm);
    let mut cache = PageFragCache::new();
    let first = mm.page_frag_alloc(&mut cache, 100, Gfp::KERNEL).expect("memory").raw();
    let block = first + 100 - u64::from(PAGE_FRAG_CACHE_MAX_SIZE);
    assert!(block.is_multiple_of(PAGE_FRAG_CACHE_MAX_SIZE.into()));
    let second = mm.page_frag_alloc(&mut cache, 1000, Gfp::KERNEL).expect("memory").raw();
    assert_eq!(second, first - 1000);
    let third = mm.page_frag_alloc_align(&mut cache, 10, Gfp::KERNEL, 64).expect("memory").raw();
    assert_eq!(third, (second - 10) & !63);
    for (size, align) in [(0, 1), (PAGE_FRAG_CACHE_MAX_SIZE + 1, 1), (8, 0), (8, 24)] {
        assert_eq!(mm.page_frag_alloc_align(&mut cache, size, Gfp::KERNEL, align), None);
    }
    // As long as a fragment is there, so is the block.
    mm.page_frag_cache_drain(&mut cache);
    let held = |addr: u64| mm.page(Pfn::containing(mm.phys(VirtAddr::new(addr)).expect("memory"))).expect("a page");
    assert_eq!(held(block).refcount(), 3);
    for addr in [second, first, third] {
        assert_ne!(free_pages(mm), start);
        mm.page_frag_free(VirtAddr::new(addr));
    }
    assert_eq!(free_pages(mm), start);
    mm.page_frag_cache_drain(&mut cache);
    assert_sound(&machine);
}

#[test]
fn a_block_is_used_again_when_all_its_fragments_are_free() {
    let machine = boot(1);
    let mm = machine.mm();
    let mut cache = PageFragCache::new();
    let mut seen = std::collections::HashSet::new();
    let mut allocated = None;
    for _ in 0..1000 {
        let addr = mm.page_frag_alloc(&mut cache, 3000, Gfp::KERNEL).expect("memory");
        seen.insert(addr.raw() / u64::from(PAGE_FRAG_CACHE_MAX_SIZE));
        let before = *allocated.get_or_insert(mm.vm_event(VmEvent::Pgfree));
        assert_eq!(mm.vm_event(VmEvent::Pgfree), before, "nothing goes back meanwhile");
        mm.page_frag_free(addr);
    }
    assert_eq!(seen.len(), 1);
    // With one left in it, it is not.
    let kept = mm.page_frag_alloc(&mut cache, 3000, Gfp::KERNEL).expect("memory");
    for _ in 0..20 {
        let addr = mm.page_frag_alloc(&mut cache, 3000, Gfp::KERNEL).expect("memory");
        assert_ne!(addr, kept);
        seen.insert(addr.raw() / u64::from(PAGE_FRAG_CACHE_MAX_SIZE));
        mm.page_frag_free(addr);
    }
    assert_eq!(seen.len(), 2);
    mm.page_frag_free(kept);
    mm.page_frag_cache_drain(&mut cache);
    assert_sound(&machine);
}

#[test]
fn single_pages_do_when_memory_is_short() {
    let machine = boot(1);
    let mm = machine.mm();
    let mut taken = exhaust(mm);
    let mut cache = PageFragCache::new();
    assert_eq!(mm.page_frag_alloc(&mut cache, 8, QUIET), None);
    // Every other page: no block of more than one.
    taken.sort_unstable_by_key(|page| page.raw());
    let (even, odd): (Vec<_>, Vec<_>) = taken.into_iter().partition(|page| page.raw().is_multiple_of(2));
    even.iter().for_each(|page| mm.free_page(*page));
    let small = mm.page_frag_alloc(&mut cache, 4096, QUIET).expect("a page");
    assert!(small.raw().is_multiple_of(4096));
    assert_eq!(mm.page_frag_alloc(&mut cache, 4097, QUIET), None, "a page has no room for it");
    let other = mm.page_frag_alloc(&mut cache, 4000, QUIET).expect("the page that was kept");
    mm.page_frag_free(small);
    mm.page_frag_free(other);
    mm.page_frag_cache_drain(&mut cache);
    odd.iter().for_each(|page| mm.free_page(*page));
    assert_sound(&machine);
}

#[test]
fn fragments_never_overlap() {
    let machine = boot(2);
    let mm = machine.mm();
    let start = free_pages(mm);
    let mut cache = PageFragCache::new();
    let mut held: HashMap<u64, u32> = HashMap::new();
    let mut random = 99_u64;
    for _ in 0..5000 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        if random >> 63 == 0 || held.is_empty() {
            let (size, align) = (1 + (random >> 40) as u32 % 5000, 1 << ((random >> 34) % 8));
            let addr = mm.page_frag_alloc_align(&mut cache, size, Gfp::KERNEL, align).expect("memory").raw();
            assert!(addr.is_multiple_of(align.into()));
            let block = |addr: u64| addr / u64::from(PAGE_FRAG_CACHE_MAX_SIZE);
            assert_eq!(block(addr), block(addr + u64::from(size) - 1));
            let apart =
                |(other, len): (&u64, &u32)| addr + u64::from(size) <= *other || other + u64::from(*len) <= addr;
            assert!(held.iter().all(apart), "{addr:#x} is in use");
            held.insert(addr, size);
        } else if let Some(addr) = held.keys().nth((random >> 30) as usize % held.len()).copied() {
            held.remove(&addr);
            // Wherever it was used.
            machine.on_cpu((random >> 20) as usize % 2, |mm| mm.page_frag_free(VirtAddr::new(addr)));
        }
    }
    held.keys().for_each(|addr| mm.page_frag_free(VirtAddr::new(*addr)));
    mm.page_frag_cache_drain(&mut cache);
    assert_eq!(free_pages(mm), start);
    assert_sound(&machine);
}

#[test]
fn mappings_nest() {
    let machine = boot(2);
    let mm = machine.mm();
    let page = mm.alloc_page(Gfp::KERNEL).expect("a page");
    let first = mm.kmap_local_page(page).expect("an address");
    assert_eq!(first.addr(), mm.virt(page.addr()));
    assert_eq!((first.at(4095).map(|at| at.raw()), first.at(4096)), (Some(first.addr().raw() + 4095), None));
    let second = mm.kmap_local_page(page).expect("an address");
    drop(second);
    let second = mm.kmap_local_page(page).expect("an address");
    machine.on_cpu(1, |mm| drop(mm.kmap_local_page(page)));
    assert_eq!(machine.log_text(), "");
    assert!(mm.kmap_local_page(Pfn::new(1 << 30)).is_none(), "there is nothing");
    drop(first);
    assert!(machine.log_text().starts_with("kunmap_local: "), "{}", machine.log_text());
    assert_eq!(machine.platform().stacks_dumped(), 1);
    drop(second);
    machine.platform().clear_log();
    let all: Vec<_> = (0..KM_MAX_IDX).map(|_| mm.kmap_local_page(page).expect("an address")).collect();
    assert!(mm.kmap_local_page(page).is_none());
    assert_eq!(machine.log_text(), "kmap_local: more than 16 pages mapped\nCall Trace:\n");
    machine.platform().clear_log();
    all.into_iter().rev().for_each(drop);
    assert!(mm.kmap_local_page(page).is_some());
    mm.free_page(page);
    assert_sound(&machine);
}

#[test]
fn devices_get_their_memory_from_the_area() {
    let machine = Topology::new().node(&[(16 * MIB, 80 * MIB)], 1).command_line("cma=8M").boot();
    machine.platform().clear_log();
    let mm = machine.mm();
    let start = free_pages(mm);
    let area = mm.dma_contiguous_default_area().expect("the command line's");
    let range = mm.cma_range(area);
    let inside = mm.dma_alloc_contiguous(300 << 10, Gfp::KERNEL).expect("memory");
    assert!(range.contains(&inside) && inside.is_aligned(Order::new(7).expect("an order")));
    assert_eq!(free_pages(mm), start - 75, "as many pages as are needed");
    // Not single pages, and not for those who cannot wait.
    let (page, atomic) =
        (mm.dma_alloc_contiguous(4096, Gfp::KERNEL), mm.dma_alloc_contiguous(300 << 10, Gfp::ATOMIC_ALLOC));
    let (page, atomic) = (page.expect("memory"), atomic.expect("memory"));
    assert!(!range.contains(&page) && !range.contains(&atomic));
    // When it is full, from elsewhere.
    let all = mm.dma_alloc_contiguous(4 << 20, Gfp::KERNEL).expect("memory");
    assert!(range.contains(&all));
    let more = mm.dma_alloc_contiguous(4 << 20, Gfp::KERNEL).expect("memory");
    assert!(!range.contains(&more));
    assert_eq!(mm.dma_alloc_contiguous(0, Gfp::KERNEL), None);
    for (first, size) in [(inside, 300 << 10), (page, 4096), (atomic, 300 << 10), (all, 4 << 20), (more, 4 << 20)] {
        mm.dma_free_contiguous(first, size);
    }
    assert_eq!(free_pages(mm), start);
    assert_sound(&machine);
}
