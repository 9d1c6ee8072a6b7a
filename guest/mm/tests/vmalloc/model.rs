//! Areas of all kinds, allocated and freed at random, against what a simple model says.

use std::collections::{BTreeMap, HashSet};

use pagevisor_mm::hosted::HostPlatform;
use pagevisor_mm::vmalloc::VmallocRequest;
use pagevisor_mm::{Mm, hosted::Machine};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::layout::{VMALLOC_END, VMALLOC_START};
use pagevisor_shared::pgtable::{Entry, PMD_SIZE, Protection};
use pagevisor_shared::units::{NodeId, PAGE_SIZE, VirtAddr};
use pagevisor_shared::vmalloc::VmFlags;
use proptest::prelude::*;

use super::{MIB, assert_sound, frames, in_use, machine};

#[derive(Clone, Debug)]
enum Step {
    Alloc { pages: u64, align: u64, user: bool, node: Option<usize>, cpu: usize },
    Free { which: usize, cpu: usize, interrupt: bool },
    Purge,
}

fn step() -> impl Strategy<Value = Step> {
    let pages = prop_oneof![6 => 1..40u64, 2 => 40..300u64, 1 => 500..1100u64];
    let align = prop_oneof![6 => Just(0u32), 1 => 1..10u32].prop_map(|shift| PAGE_SIZE << shift);
    let alloc = (pages, align, any::<bool>(), proptest::option::of(0..2usize), 0..2usize);
    prop_oneof![
        6 => alloc.prop_map(|(pages, align, user, node, cpu)| Step::Alloc { pages, align, user, node, cpu }),
        5 => (any::<usize>(), 0..2usize, any::<bool>()).prop_map(|(which, cpu, interrupt)| Step::Free { which, cpu, interrupt }),
        1 => Just(Step::Purge),
    ]
}

/// What is allocated, and what processors may still remember.
#[derive(Default)]
struct Model {
    areas: BTreeMap<u64, u64>,
    stale: Vec<std::ops::Range<u64>>,
}

impl Model {
    fn flushed(&mut self, machine: &Machine) {
        for flush in machine.platform().take_flushes() {
            self.stale.retain(|range| !(flush.start <= range.start && range.end <= flush.end));
        }
    }

    fn add(&mut self, machine: &Machine, addr: u64, pages: u64) {
        self.flushed(machine);
        let end = addr + pages * PAGE_SIZE;
        assert!(VMALLOC_START <= addr && end <= VMALLOC_END, "{addr:#x} is outside");
        let before = self.areas.range(..end + PAGE_SIZE).next_back();
        assert!(before.is_none_or(|(start, pages)| start + (pages + 1) * PAGE_SIZE <= addr), "overlap at {addr:#x}");
        let remembered = self.stale.iter().find(|range| range.start < end && addr < range.end);
        assert!(remembered.is_none(), "{addr:#x} is used again before all processors forgot {remembered:#x?}");
        self.areas.insert(addr, pages);
    }

    fn free(&mut self, which: usize) -> Option<u64> {
        let addr = *self.areas.keys().nth(which % self.areas.len().max(1))?;
        let pages = self.areas.remove(&addr).expect("just seen");
        self.stale.push(addr..addr + pages * PAGE_SIZE);
        Some(addr)
    }

    fn check(&self, mm: &Mm<HostPlatform>) {
        let mut seen = HashSet::new();
        for (addr, pages) in &self.areas {
            for frame in frames(mm, VirtAddr::new(*addr), *pages) {
                assert!(seen.insert(frame), "{frame} is mapped twice");
            }
            assert_eq!(mm.vmalloc_to_page(VirtAddr::new(addr + pages * PAGE_SIZE)), None, "the guard page is mapped");
        }
        let total = mm.region().header().nr_vmalloc_pages.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(total, self.areas.values().sum::<u64>());
    }
}

fn run(steps: Vec<Step>) {
    let machine = machine();
    let mm = machine.mm();
    let mut model = Model::default();
    mm.vfree(mm.vmalloc(1).expect("a page"));
    mm.purge_vmap_areas();
    machine.platform().take_flushes();
    let start = in_use(mm).1;
    for step in steps {
        match step {
            Step::Alloc { pages, align, user, node, cpu } => {
                let flags = if user { VmFlags::USERMAP } else { VmFlags::ALLOW_HUGE_VMAP };
                let node = node.and_then(NodeId::new);
                let request = VmallocRequest { align, flags, node, ..VmallocRequest::new(pages * PAGE_SIZE) };
                if let Some(addr) = machine.on_cpu(cpu, |mm| mm.vmalloc_range(&request)) {
                    assert_eq!(addr.raw() % align, 0);
                    model.add(&machine, addr.raw(), pages);
                }
            }
            Step::Free { which, cpu, interrupt } => {
                let Some(addr) = model.free(which).map(VirtAddr::new) else { continue };
                machine.on_cpu(cpu, |mm| match interrupt {
                    true => machine.platform().interrupt(|| mm.vfree(addr)),
                    false => mm.vfree(addr),
                });
                mm.vfree_deferred();
            }
            Step::Purge => {
                mm.purge_vmap_areas();
                model.flushed(&machine);
                assert!(model.stale.is_empty(), "a purge leaves {:#x?}", model.stale);
            }
        }
    }
    model.check(mm);
    assert_sound(mm);
    while let Some(addr) = model.free(0) {
        mm.vfree(VirtAddr::new(addr));
    }
    mm.purge_vmap_areas();
    assert_eq!(in_use(mm).1, start, "page tables are left");
    assert_eq!(mm.vmalloc_areas(), (0, 1), "the space is not whole again");
    assert_sound(mm);
    assert_eq!(machine.log_text(), "");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn areas_are_what_a_model_says(steps in proptest::collection::vec(step(), 1..120)) {
        run(steps);
    }
}

#[test]
fn large_areas_are_mapped_by_large_pages_where_they_fit() {
    let machine = machine();
    let mm = machine.mm();
    // Records and the top's table stay.
    mm.vfree(mm.vmalloc(1).expect("memory"));
    mm.purge_vmap_areas();
    let before = in_use(mm);
    let addr = mm.vmalloc(5 * MIB + 3 * PAGE_SIZE).expect("memory");
    assert_eq!(addr.raw() % PMD_SIZE, 0);
    let large = |offset| {
        let mapping = mm.walk_kernel(VirtAddr::new(addr.raw() + offset)).expect("mapped");
        (mapping.entry.0 & Entry::LARGE != 0, mapping.rest)
    };
    assert_eq!(large(0), (true, 2 * MIB));
    assert_eq!(large(2 * MIB + 5), (true, 2 * MIB - 5));
    assert_eq!(large(4 * MIB), (false, PAGE_SIZE));
    assert_eq!(frames(mm, addr, 5 * 256 + 3).len(), 1283);
    assert_eq!(mm.find_vm_area(addr).expect("an area").nr_pages, 1283);
    mm.vfree(addr);
    mm.purge_vmap_areas();
    assert_eq!(in_use(mm), before);
    assert_sound(mm);
}

#[test]
fn zeroed_protected_placed() {
    let machine = machine();
    let mm = machine.mm();
    let node = NodeId::new(1).expect("node 1");
    let addr = mm.vmalloc_node(64 * PAGE_SIZE, node).expect("memory");
    assert!(frames(mm, addr, 64).into_iter().all(|frame| mm.page_to_nid(frame) == Some(node)));
    // Dirty it, so that zeroed memory must be cleared.
    assert!(mm.vwrite(addr, &[0xa5; 64 * 4096]));
    mm.vfree(addr);
    let zeroed = mm.vzalloc_node(64 * PAGE_SIZE, node).expect("memory");
    let mut bytes = vec![1; 64 * 4096];
    assert!(mm.vread(zeroed, &mut bytes));
    assert!(bytes.iter().all(|byte| *byte == 0));
    mm.vfree(zeroed);
    let code = mm.vmalloc_with(3 * PAGE_SIZE, Gfp::KERNEL, Protection::KERNEL_ROX).expect("memory");
    let entry = mm.walk_kernel(code).expect("mapped").entry.0;
    assert_eq!(entry & (Entry::WRITABLE | Entry::NO_EXECUTE | Entry::PRESENT), Entry::PRESENT);
    mm.vfree(code);
    let user = mm.vmalloc_user(20 * PAGE_SIZE).expect("memory");
    // Each page can be held by itself.
    let held = frames(mm, user, 20);
    assert!(held.iter().all(|frame| mm.get_page(*frame)));
    mm.vfree(user);
    held.iter().for_each(|frame| mm.put_page(*frame));
    assert_sound(mm);
}

#[test]
fn content_stays_where_it_was_written() {
    let machine = machine();
    let mm = machine.mm();
    let areas: Vec<_> = (1..40u64).map(|pages| (mm.vmalloc(pages * PAGE_SIZE - 100).expect("memory"), pages)).collect();
    for (addr, pages) in &areas {
        let bytes: Vec<u8> = (0..pages * PAGE_SIZE - 100).map(|at| (at ^ at >> 8 ^ pages) as u8).collect();
        assert!(mm.vwrite(*addr, &bytes));
    }
    for (addr, pages) in &areas {
        let mut bytes = vec![0; (pages * PAGE_SIZE - 100) as usize];
        assert!(mm.vread(*addr, &mut bytes));
        assert!(bytes.iter().zip(0u64..).all(|(byte, at)| *byte == (at ^ at >> 8 ^ pages) as u8));
        mm.vfree(*addr);
        assert!(!mm.vread(*addr, &mut bytes), "it is freed");
    }
    assert_sound(mm);
}

#[test]
fn many_cpus_at_once() {
    let machine = pagevisor_mm::hosted::Topology::new().node(&[(16 * MIB, 400 * MIB)], 4).boot();
    let mm = machine.mm();
    mm.vfree(mm.vmalloc(1).expect("a page"));
    mm.purge_vmap_areas();
    let before = in_use(mm).1;
    std::thread::scope(|scope| {
        for cpu in 0..4 {
            let machine = &machine;
            scope.spawn(move || machine.on_cpu(cpu, |mm| churn(mm, cpu as u64)));
        }
    });
    mm.purge_vmap_areas();
    assert_eq!(mm.vmalloc_areas(), (0, 1));
    assert_eq!(in_use(mm).1, before);
    assert_sound(mm);
}

/// Fills areas with a pattern of the CPU's own, and looks for it before it frees them.
fn churn(mm: &Mm<HostPlatform>, cpu: u64) {
    let mut random = pagevisor_shared::random::SplitMix64::new(cpu);
    let mut held: Vec<(VirtAddr, u64)> = Vec::new();
    for round in 0..600 {
        if random.below(100) == 0 {
            mm.purge_vmap_areas();
        }
        if held.len() < 12 {
            let pages = 1 + random.below(30);
            let addr = mm.vmalloc(pages * PAGE_SIZE).expect("memory");
            assert!(mm.vwrite(addr, &(cpu << 32 | round).to_le_bytes().repeat(pages as usize * 512)));
            held.push((addr, cpu << 32 | round));
        } else {
            let (addr, mark) = held.swap_remove(random.below(12) as usize);
            let mut found = [0; 8];
            assert!(mm.vread(addr, &mut found));
            assert_eq!(u64::from_le_bytes(found), mark, "somebody else wrote to {addr}");
            mm.vfree(addr);
        }
    }
    held.into_iter().for_each(|(addr, _)| mm.vfree(addr));
}
