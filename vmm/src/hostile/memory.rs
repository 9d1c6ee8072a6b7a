//! Damaged guest memory: page tables, page metadata, section and page-block tables.

use super::cases;
use super::region::look;
use crate::state::fake::{FakeGuest, MIB, PFN4G, meta_gpa};

#[test]
fn damaged_memory() {
    let guest = FakeGuest::used();
    // Tables, section table, page blocks, metadata of blocks that are on lists.
    let lists = [0x10, 0x20, 0x400, 0x3001, 0x3005, 0x3002, 0x3200, 0x3400, 0x3010, 0x3011, 0x3020, PFN4G + 2048];
    cases("damaged memory", |random| {
        let damage: Vec<_> = (0..=random.below(3))
            .map(|_| {
                let gpa = match random.below(4) {
                    0 => 20 * MIB + random.below(4 * 512) * 8,
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
