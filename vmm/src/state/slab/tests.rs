use std::mem::offset_of;

use pagevisor_shared::page::encode_next;
use pagevisor_shared::slab::{self, ArrayCache, KmemCache, KmemCacheNode, SlabFlags};

use super::*;
use crate::state::fake::FakeGuest;
use crate::state::fake::slabs::{FakeCache, caches, direct};
use crate::state::{ListFaultKind, Patience, StateView};

fn cache(view: &StateView, name: &str) -> SlabCache {
    view.slab_caches().unwrap().named(name).unwrap().clone()
}

fn walk(view: &StateView, name: &str) -> SlabWalk {
    let once = Patience { tries: 1, ..Patience::default() };
    view.walk_slabs(&cache(view, name), once, &mut view.slab_budget()).unwrap()
}

fn objects(view: &StateView, walk: &SlabWalk, pfn: u32) -> SlabObjects {
    let slab = walk.nodes.iter().flat_map(NodeWalk::slabs).find(|slab| slab.pfn == pfn).unwrap();
    view.slab_objects(&walk.cache, slab, &walk.arrays).unwrap()
}

#[test]
fn descriptors_are_read_newest_first() {
    let guest = FakeGuest::with_slabs();
    let found = guest.view().slab_caches().unwrap();
    let names: Vec<_> = found.caches.iter().map(|cache| cache.name.as_str()).collect();
    assert_eq!(names, ["kmalloc-8", "scullc", "kmalloc-2k", "kmalloc-64", "kmem_cache"]);
    let small = found.named("kmalloc-64").unwrap();
    assert_eq!((small.size, small.num, small.order.raw(), small.limit), (64, 64, 0, 120));
    assert_eq!((small.flags, small.address), (SlabFlags::OBJFREELIST, direct(caches()[1].gpa())));
    assert_eq!((small.num_slabs(), small.num_objects(), small.stable), (4, 256, true));
    assert_eq!(small.cpus.iter().map(|array| array.avail).collect::<Vec<_>>(), [2, 1]);
    assert!(found.damaged.is_empty() && found.check().is_ok());
}

#[test]
fn damaged_descriptors_are_told_and_the_others_shown() {
    let word = |cache: &FakeCache, offset: usize| cache.gpa() + offset as u64;
    for (offset, value, what) in [
        (offset_of!(KmemCache, id), 9, "number of a slab cache"),
        (offset_of!(KmemCache, flags), 1, "flags of a slab cache"),
        (offset_of!(KmemCache, gfporder), 11, "order of a slab cache"),
        (offset_of!(KmemCache, size), 0, "size of a slab cache's objects"),
        (offset_of!(KmemCache, num), 0, "number of objects of a slab"),
        (offset_of!(KmemCache, num), 65, "number of objects of a slab"),
        (offset_of!(KmemCache, size), u32::MAX, "number of objects of a slab"),
    ] {
        let guest = FakeGuest::with_slabs();
        guest.memory.write_u32(word(&caches()[1], offset), value);
        let found = guest.view().slab_caches().unwrap();
        assert_eq!(found.damaged.iter().map(|damage| damage.what).collect::<Vec<_>>(), [what]);
        assert_eq!(found.caches.len(), 4);
        assert!(found.check().unwrap_err().is_corrupt());
    }
    let guest = FakeGuest::with_slabs();
    for address in [1, direct(1 << 40), direct(caches()[1].gpa()) + 8, u64::MAX] {
        guest.region().slab_caches()[2].store(address, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(guest.view().slab_caches().unwrap().damaged[0].what, "address of a slab cache");
    }
}

#[test]
fn names_hold_no_control_characters() {
    let guest = FakeGuest::with_slabs();
    guest.memory.write(caches()[3].gpa() + offset_of!(KmemCache, name) as u64, b"\x1b[2J x\xff");
    assert_eq!(guest.view().slab_caches().unwrap().caches[1].name, "?[2J?x?");
}

#[test]
fn slabs_and_arrays_are_walked() {
    let guest = FakeGuest::with_slabs();
    let view = guest.view();
    for name in ["kmalloc-8", "scullc", "kmalloc-2k", "kmalloc-64", "kmem_cache"] {
        let walk = walk(&view, name);
        assert!(walk.is_verified(), "{name}: {walk:?}");
    }
    let small = walk(&view, "kmalloc-64");
    assert_eq!(SlabList::ALL.map(|list| small.nodes[0].count(list)), [1, 1, 1]);
    assert_eq!(SlabList::ALL.map(|list| small.nodes[1].count(list)), [1, 0, 0]);
    assert_eq!((small.slabs(), small.active(), small.arrays.len(), small.allocated()), (4, 136, 6, 130));
}

#[test]
fn every_object_has_a_state() {
    use ObjectState::{Free, Held, InUse};
    let guest = FakeGuest::with_slabs();
    let view = guest.view();
    let small = walk(&view, "kmalloc-64");
    let partial = objects(&view, &small, 0x3102);
    assert_eq!(partial.s_mem, direct(0x310_2000));
    let expected = |number| match number {
        0 | 9 => Held(Holder::Cpu(0)),
        1..9 => InUse,
        _ => Free,
    };
    assert_eq!(partial.states, (0..64).map(expected).collect::<Vec<_>>());
    let full = objects(&view, &small, 0x3103);
    assert_eq!((full.allocated(), full.states[63]), (63, Held(Holder::Shared(0))));
    let far = objects(&view, &small, caches()[1].slabs[3].pfn);
    let alien = Held(Holder::Alien { on: 0, of: 1 });
    assert_eq!(far.states[..8], [Held(Holder::Cpu(1)), alien, alien, Free, InUse, InUse, InUse, Free]);
    assert_eq!(objects(&view, &small, 0x3104).states, [Free; 64]);
    // A colour moves the objects; the list is behind them, or elsewhere.
    let plain = objects(&view, &walk(&view, "kmem_cache"), 0x3100);
    assert_eq!((plain.s_mem, plain.states), (direct(0x310_0080), vec![InUse, InUse, InUse, Free]));
    assert_eq!(objects(&view, &walk(&view, "kmalloc-2k"), 0x3106).states, [InUse, InUse, Free, InUse]);
    let tiny = objects(&view, &walk(&view, "kmalloc-8"), 0x3109);
    assert_eq!((tiny.allocated(), [2, 300, 500].map(|number| tiny.states[number])), (509, [Free; 3]));
    assert_eq!(partial.object_at(direct(0x310_2047)), Some((direct(0x310_2040), InUse)));
    assert_eq!(partial.object_at(direct(0x310_1fff)), None);
}

#[test]
fn red_zones_in_front_of_objects_are_no_part_of_lists() {
    let small = caches()[1].clone();
    for flags in [SlabFlags::OBJFREELIST, SlabFlags::LINKED] {
        let [plain, red] = [0, 8].map(|obj_offset| {
            let guest = FakeGuest::with_slabs();
            guest.install(&FakeCache { flags, obj_offset, ..small.clone() });
            let view = guest.view();
            let walk = walk(&view, "kmalloc-64");
            assert!(walk.is_verified(), "{walk:?}");
            small.slabs.iter().map(|slab| objects(&view, &walk, slab.pfn)).collect::<Vec<_>>()
        });
        assert_eq!(plain, red);
        assert!(red.iter().all(|slab| slab.faults.is_empty()), "{red:?}");
        assert_eq!(red[3].states[7], ObjectState::Free);
    }
}

#[test]
fn pages_lead_to_their_slabs() {
    let guest = FakeGuest::with_slabs();
    let view = guest.view();
    for (pfn, name, first) in
        [(0x3102, "kmalloc-64", 0x3102), (0x3106, "kmalloc-2k", 0x3106), (0x3107, "kmalloc-2k", 0x3106)]
    {
        let (cache, slab) = view.slab_of(pfn).unwrap().unwrap();
        assert_eq!((cache.name.as_str(), slab.pfn), (name, first));
    }
    for pfn in [0x3001, 0x3101, 0x3108, 0x8000, 1 << 40] {
        assert!(view.slab_of(pfn).unwrap().is_none(), "{pfn:#x}");
    }
    // A page behind the slab's end, and one that belongs to another cache than its first.
    guest.set_meta(0x3108, 6, 1 << 31 | 1 << 30 | 3);
    guest.set_meta(0x3108, 7, 2);
    guest.set_meta(0x3107, 6, 1 << 31 | 1 << 30 | 2);
    assert!(view.slab_of(0x3108).unwrap().is_none() && view.slab_of(0x3107).unwrap().is_none());
}

#[test]
fn damaged_lists_are_told() {
    let small = &caches()[1];
    let at = |offset: usize| small.node_gpa(0) + offset as u64;
    type Damage<'d> = &'d dyn Fn(&FakeGuest);
    let cases: [(Damage<'_>, Option<ListFaultKind>); 6] = [
        (&|guest| guest.set_meta(0x3103, 6, 1 << 30 | 3), Some(ListFaultKind::NotSlab)),
        (&|guest| guest.set_meta(0x3103, 0, 0), Some(ListFaultKind::NotSlab)),
        (&|guest| guest.set_meta(0x3103, 2, 65), Some(ListFaultKind::NotSlab)),
        (&|guest| guest.set_meta(0x3103, 4, encode_next(0x3103, 0x3103)), Some(ListFaultKind::BackLink { found: 0 })),
        (&|guest| guest.set_meta(0x3103, 2, 64 - 1), None),
        (&|guest| guest.memory.write_u64(at(offset_of!(KmemCacheNode, total_slabs)), 2), None),
    ];
    for (number, (damage, expected)) in cases.iter().enumerate() {
        let guest = FakeGuest::with_slabs();
        damage(&guest);
        let found = walk(&guest.view(), "kmalloc-64");
        assert!(!found.is_verified(), "case {number}");
        if let Some(expected) = expected {
            let fault = found.nodes[0].faults.iter().find_map(|fault| match fault {
                SlabListFault::List(SlabList::Full, fault) => Some(fault.kind),
                _ => None,
            });
            assert_eq!(fault, Some(*expected), "case {number}");
        }
    }
}

#[test]
fn damaged_arrays_and_freelists_are_told() {
    let small = &caches()[1];
    let array = |cpu: usize, offset: usize| small.gpa() + (slab::cpu_cache_offset(cpu) + offset) as u64;
    type Damage<'d> = &'d dyn Fn(&FakeGuest);
    let cases: [(Damage<'_>, ArrayFaultKind); 4] = [
        (
            &|guest| guest.memory.write_u32(array(0, offset_of!(ArrayCache, avail)), 121),
            ArrayFaultKind::Overfull { avail: 121, limit: 120 },
        ),
        (
            &|guest| {
                guest.memory.write_u32(array(0, offset_of!(ArrayCache, avail)), u32::MAX);
                guest.memory.write_u32(array(0, offset_of!(ArrayCache, limit)), u32::MAX);
            },
            ArrayFaultKind::TooMany,
        ),
        (
            &|guest| guest.memory.write_u64(array(0, offset_of!(ArrayCache, entry)), 0x1000),
            ArrayFaultKind::Unmapped { address: 0x1000 },
        ),
        (
            &|guest| guest.memory.write_u64(51 * (1 << 20) + 2 * (16 << 12) + 8, small.object(0, 0)),
            ArrayFaultKind::Twice { object: small.object(0, 0), other: Holder::Cpu(0) },
        ),
    ];
    for (damage, expected) in cases {
        let guest = FakeGuest::with_slabs();
        damage(&guest);
        let found = walk(&guest.view(), "kmalloc-64");
        assert_eq!(found.arrays.faults, [ArrayFault { holder: Holder::Cpu(0), kind: expected }]);
    }
    let large = &caches()[2];
    let list = 52 * (1 << 20) + u64::from(large.slabs[0].pfn & 0xff) * 64;
    let guest = FakeGuest::with_slabs();
    guest.memory.write(list + 3, &[4]);
    let view = guest.view();
    assert_eq!(objects(&view, &walk(&view, "kmalloc-2k"), 0x3106).faults, [FreelistFault::NoObject(4)]);
    guest.set_meta(0x3106, 2, 2);
    guest.memory.write(list + 2, &[1, 1]);
    assert_eq!(objects(&view, &walk(&view, "kmalloc-2k"), 0x3106).faults, [FreelistFault::Twice(1)]);
    // Linked objects: a circle, an end too soon, no end.
    for (object, next, fault) in [
        (300, 3, FreelistFault::More(2)),
        (2, 3, FreelistFault::Twice(2)),
        (500, 0, FreelistFault::NoList),
        (500, 513, FreelistFault::NoObject(512)),
    ] {
        let guest = FakeGuest::with_slabs();
        guest.memory.write(0x310_9000 + object * 8, &u16::to_le_bytes(next));
        let view = guest.view();
        assert_eq!(objects(&view, &walk(&view, "kmalloc-8"), 0x3109).faults, [fault]);
    }
    // The object that a CPU holds is free as well.
    guest.set_meta(0x3102, 2, 9);
    guest.memory.write(0x310_2000 + 10 * 64 + 9, &[9]);
    let small_walk = walk(&view, "kmalloc-64");
    let fault = FreelistFault::FreeAndHeld(small.object(0, 9), Holder::Cpu(0));
    assert_eq!(objects(&view, &small_walk, 0x3102).faults, [fault]);
}
