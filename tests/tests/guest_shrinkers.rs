//! Shrinkers in a running guest: what caches can do without goes when memory is short, and when the host drops caches.

use pagevisor::events::{Item, Kinds};
use pagevisor::guest::{Error, Gfp, Guest, Order, Setting, SlabFlags};
use pagevisor_shared::region::event::{Event, EventKind};
use pagevisor_shared::vmstat::VmEvent;
use pagevisor_tests::guest::guest;
use pagevisor_tests::views;

const TWO_NODES: &str = "[[node]]\nmem = \"64M\"\ncpus = 1\n[[node]]\nmem = \"64M\"\ncpus = 1\n";
const ONE_NODE: &str = "[[node]]\nmem = \"48M\"\n";
const OBJECTS: u32 = 10_000;

/// Pages of slabs that can be reclaimed.
fn reclaimable(guest: &Guest) -> Result<u64, Error> {
    Ok(views::counter(&views::meminfo(&guest.show("meminfo")?), "SReclaimable") / 4)
}

fn shrinks(items: &[Item]) -> Vec<Event> {
    let event = |item: &Item| match item {
        Item::Event(_, event) => *event,
        Item::Lost(..) => panic!("{items:?}"),
    };
    items.iter().map(event).collect()
}

#[test]
fn dropping_caches_frees_what_shrinkers_keep() {
    guest(TWO_NODES, |guest| {
        let cpu = guest.cpu(0)?;
        let cache = cpu.kmem_cache_create("spare", 192, 0, SlabFlags::RECLAIM_ACCOUNT)?;
        let before = reclaimable(guest)?;
        let shrinker = cpu.register_shrinker(&cache, OBJECTS, 2, 0)?;
        // 21 objects of 192 bytes in a page.
        assert!(reclaimable(guest)? >= before + u64::from(OBJECTS / 21));
        let mut events = guest.events(Kinds(EventKind::MmShrinkSlabStart.bit() | EventKind::MmShrinkSlabEnd.bit()))?;
        guest.set(Setting::DropCaches, 0, 1)?;
        assert_eq!(shrinks(&events.read()), [], "1 is for pages");
        guest.set(Setting::DropCaches, 0, 2)?;
        let told = shrinks(&events.read());
        let kinds: Vec<_> = told.iter().map(|event| event.kind).take(2).collect();
        assert_eq!(kinds, [EventKind::MmShrinkSlabStart, EventKind::MmShrinkSlabEnd], "{told:?}");
        assert_eq!(told[0].order, 0, "everything that is there");
        cache.shrink()?;
        assert!(reclaimable(guest)? <= before + 1, "{} pages, {before} before", reclaimable(guest)?);
        assert!(guest.state().event(VmEvent::SlabsScanned) >= u64::from(OBJECTS));
        assert_eq!(shrinker.unregister()?, 0);
        Ok(())
    });
}

#[test]
fn an_allocation_that_runs_short_has_shrinkers_asked() {
    guest(ONE_NODE, |guest| {
        let cpu = guest.cpu(0)?;
        let cache = cpu.kmem_cache_create("spare", 4096, 0, SlabFlags::RECLAIM_ACCOUNT)?;
        let shrinker = cpu.register_shrinker(&cache, 1000, 2, 0)?;
        let mut blocks = Vec::new();
        let gfp = Gfp::KERNEL | Gfp::NORETRY | Gfp::NOWARN;
        while let Ok(block) = cpu.alloc_pages(gfp, Order::new(3)?) {
            blocks.push(block);
        }
        assert!(guest.state().event(VmEvent::SlabsScanned) > 0, "nobody was asked");
        let left = shrinker.unregister()?;
        assert!(left < 1000, "none of 1000 objects was freed");
        Ok(())
    });
}
