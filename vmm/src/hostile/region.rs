//! Damaged state regions.

use pagevisor_shared::region::event::{EventRead, EventRingState};
use pagevisor_shared::region::log::{LOG_LINE_MAX, LogRead};
use pagevisor_shared::region::{RegionLayout, Table};
use pagevisor_shared::units::CpuId;

use super::{Random, cases};
use crate::report::{View, summary, summary_json};
use crate::state::StateView;
use crate::state::fake::FakeGuest;
use crate::verify::verify;

/// Every view that has no argument, and some that have.
const VIEWS: [&str; 42] = [
    "buddyinfo",
    "pagetypeinfo",
    "zoneinfo",
    "meminfo",
    "vmstat",
    "iomem",
    "extfrag_index",
    "unusable_index",
    "node/0/meminfo",
    "node/1/numastat",
    "node/2/vmstat",
    "node/0/distance",
    "node/1/cpulist",
    "node/0/cpumap",
    "numa",
    "kmem -f",
    "kmem -n",
    "kmem -p 1048576",
    "kmem -V",
    "kmem -z",
    "kmem -g",
    "sysctl",
    "fail_page_alloc",
    "failslab",
    "cma",
    "zeroed",
    "slabinfo",
    "vmallocinfo",
    "kmem -v",
    "kmem -s",
    "kmem -S",
    "kmem -S kmalloc-64",
    "kmem -s ffff888003102040",
    "kmem -i",
    "kmem 3102040",
    "kmem ffff888003106800",
    "kmem ffffea0000060020",
    "vtop ffff888003102040",
    "vtop ffffea0000062040",
    "vtop ffffc90000000000",
    "page_owner",
    "page_owner sites",
];

/// Lets one reader look. What it says of a damaged guest is its own matter; that it says something is the test.
pub(super) fn look(random: &mut Random, view: &StateView) {
    let mut out = Vec::new();
    let pick = random.below(VIEWS.len() as u64 + 6) as usize;
    match VIEWS.get(pick) {
        Some(name) => {
            let parsed: View = name.parse().unwrap();
            drop(parsed.render(view, random.below(2) == 0, &mut out));
        }
        None if pick == VIEWS.len() => drop(verify(view, &[])),
        None if pick == VIEWS.len() + 1 => drop(view.free_list_digest()),
        None if pick == VIEWS.len() + 2 => {
            let mut text = String::new();
            summary(view, &mut text).unwrap();
        }
        None if pick == VIEWS.len() + 3 => drop(summary_json(view)),
        None if pick == VIEWS.len() + 4 => read_log(view),
        None => read_events(view),
    }
}

/// Follows the log to its end, which there must be: a reader never goes back.
fn read_log(view: &StateView) {
    let region = view.region();
    let (log, mut text) = (region.log(), [0; LOG_LINE_MAX]);
    let mut position = log.oldest();
    for _ in 0..1 << 16 {
        let next = match log.read(position, &mut text) {
            LogRead::Record(_, next) | LogRead::Lost(next) => next,
            LogRead::End | LogRead::Corrupt => return,
        };
        assert!(next > position, "the log's reader goes from {position} to {next}");
        position = next;
    }
    panic!("the log has no end");
}

fn read_events(view: &StateView) {
    let region = view.region();
    for ring in (0..region.nr_cpus()).filter_map(CpuId::new).filter_map(|cpu| region.events(cpu)) {
        let mut position = ring.oldest();
        for _ in 0..8192 {
            position = match ring.read(position) {
                EventRead::Event(_) | EventRead::Corrupt => position + 1,
                EventRead::Lost(next) => {
                    assert!(next > position);
                    next
                }
                EventRead::End => break,
            };
        }
    }
}

/// Offset of a word to damage: the header, the log's head, a record, or the start of an event ring.
fn place(random: &mut Random, layout: &RegionLayout) -> u64 {
    let within = |random: &mut Random, start: u64, bytes: u64| start + random.below(bytes / 8) * 8;
    match random.below(9) {
        8 => {
            let (offset, ..) = layout.tables[Table::Slab as usize];
            within(random, offset, 64)
        }
        0 | 1 => within(random, 0, 2048),
        2 => within(random, RegionLayout::LOG_OFFSET, 128),
        3 => {
            let (offset, stride, count) = layout.tables[Table::Event as usize];
            assert_eq!(stride as usize, size_of::<EventRingState>());
            offset + random.below(count.into()) * u64::from(stride) + random.below(32) * 8
        }
        _ => {
            let (offset, stride, count) = layout.tables[random.below(Table::Event as u64) as usize];
            within(random, offset, (u64::from(stride) * u64::from(count)).max(8))
        }
    }
}

#[test]
fn damaged_regions() {
    let guest = FakeGuest::with_slabs();
    let layout = guest.region().layout().clone();
    cases("damaged regions", |random| {
        let damage: Vec<_> = (0..=random.below(4))
            .map(|_| {
                let at = place(random, &layout);
                let old = guest.word(at);
                guest.set_word(at, random.edge(old));
                (at, old)
            })
            .collect();
        if let Ok(view) = guest.try_view() {
            look(random, &view);
        }
        for (at, old) in damage.into_iter().rev() {
            guest.set_word(at, old);
        }
    });
    let mut out = Vec::new();
    "kmem -f".parse::<View>().unwrap().render(&guest.view(), false, &mut out).unwrap();
    assert!(String::from_utf8(out).unwrap().contains("(verified)"), "the damage was not mended");
}
