//! Damaged guest memory: page tables, page metadata, section and page-block tables.

use super::cases;
use super::region::look;
use crate::state::fake::areas::AREAS;
use crate::state::fake::slabs::{DESCRIPTORS, caches};
use crate::state::fake::{FakeGuest, MIB, PFN4G, meta_gpa};

#[test]
fn damaged_memory() {
    let guest = FakeGuest::with_slabs();
    // Tables, section table, page blocks, metadata of blocks that are on lists and of slabs, descriptors of caches,
    // arrays, freelists, areas of the address space.
    let lists = [0x10, 0x20, 0x400, 0x3001, 0x3005, 0x3002, 0x3200, 0x3400, 0x3010, 0x3011, 0x3020, PFN4G + 2048];
    let slabs: Vec<u32> = caches().iter().flat_map(|cache| cache.slabs.iter().map(|slab| slab.pfn)).collect();
    cases("damaged memory", |random| {
        let damage: Vec<_> = (0..=random.below(3))
            .map(|_| {
                let gpa = match random.below(10) {
                    9 => AREAS + random.below(4 * 16) * 8,
                    4 => meta_gpa(slabs[random.below(slabs.len() as u64) as usize]) + random.below(4) * 8,
                    5 | 6 => DESCRIPTORS + (1 + random.below(5)) * 4096 + random.below(896 / 8) * 8,
                    7 => 51 * MIB + 2 * (16 << 12) + random.below(10) * 4096 + random.below(16) * 8,
                    8 => (u64::from(slabs[random.below(slabs.len() as u64) as usize]) << 12) + random.below(512) * 8,
                    0 => 20 * MIB + random.below(9 * 512) * 8,
                    1 => (24 + random.below(2)) * MIB + random.below(16) * 8,
                    _ => meta_gpa(lists[random.below(lists.len() as u64) as usize]) + random.below(4) * 8,
                };
                let old = guest.memory.read_u64(gpa);
                guest.memory.write_u64(gpa, random.edge(old));
                (gpa, old)
            })
            .collect();
        if let Ok(view) = guest.try_view() {
            look(random, &view);
        }
        for (gpa, old) in damage.into_iter().rev() {
            guest.memory.write_u64(gpa, old);
        }
    });
    assert_eq!(guest.memory.read_u64(20 * MIB + 511 * 8), 0, "the damage was not mended");
}
