//! A machine boots, serves, and adds up.

use pagevisor_mm::check::violations;
use pagevisor_mm::hosted::Topology;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{Order, Pfn};

#[test]
fn boots_serves_and_adds_up() {
    let machine = Topology::new()
        .node(&[(0, 640 << 10), (1 << 20, 128 << 20)], 1)
        .node(&[(4 << 30, (4 << 30) + (256 << 20))], 1)
        .reserve(16 << 20, 18 << 20)
        .boot();
    println!("{}", machine.log_text());
    let mm = machine.mm();
    assert_eq!(violations(mm), []);
    let blocks: Vec<(Pfn, Order)> = (0..500)
        .map(|i| Order::new(i % 11).unwrap())
        .filter_map(|order| Some((mm.alloc_pages(Gfp::KERNEL | Gfp::NOWARN, order)?, order)))
        .collect();
    assert!(blocks.len() > 100);
    assert_eq!(violations(mm), []);
    for (pfn, order) in blocks {
        mm.free_pages(pfn, order);
    }
    assert_eq!(violations(mm), []);
    mm.drain_all_pages(None);
    assert_eq!(violations(mm), []);
}
