//! Where pages are, for those who ask (`get_mempolicy`, `move_pages`).

use pagevisor_mm::memory::FaultKind;
use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::uapi::{MAP_ANONYMOUS, MAP_PRIVATE, PROT_NONE};
use pagevisor_shared::units::{NodeId, PAGE_SIZE, VirtAddr};

use crate::{LIMITS, assert_sound, load, machine, private, rss, store};

const TOP: u64 = 0x7000_0000_0000;

#[test]
fn a_page_is_on_the_node_of_who_touched_it_first() {
    let machine = machine();
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let base = private(mm, space, TOP, 4);
    let nodes = [0, 1].map(|node| NodeId::new(node).expect("a node"));
    let at = |page: u64| VirtAddr::new(base + page * PAGE_SIZE + 7);
    machine.on_cpu(0, |mm| store(mm, space, base, 1));
    machine.on_cpu(1, |mm| store(mm, space, base + PAGE_SIZE, 1));
    assert_eq!(load(mm, space, base + 2 * PAGE_SIZE).1, Some(FaultKind::Zero));
    let told = [0, 1, 2, 3, 4].map(|page| mm.node_of_page(space, at(page)));
    assert_eq!(told, [Ok(nodes[0]), Ok(nodes[1]), Err(Errno::EFAULT), Err(Errno::ENOENT), Err(Errno::EFAULT)]);
    // Who asks for the policy's node brings in what is missing, as a read does.
    assert_eq!([0, 1].map(|page| mm.lookup_node(space, at(page))), nodes.map(Ok));
    let zero = mm.lookup_node(space, at(2)).expect("the zero page's");
    assert_eq!((mm.lookup_node(space, at(3)), mm.lookup_node(space, at(4))), (Ok(zero), Err(Errno::EFAULT)));
    assert_eq!((mm.node_of_page(space, at(3)), rss(space)), (Err(Errno::EFAULT), 2), "it is the zero page now");
    let request = pagevisor_mm::mmap::MmapRequest {
        addr: VirtAddr::new(0),
        len: PAGE_SIZE,
        prot: PROT_NONE,
        flags: MAP_PRIVATE | MAP_ANONYMOUS,
        file: None,
        pgoff: 0,
    };
    let closed = mm.do_mmap(space, &request, &LIMITS).expect("mapped");
    assert_eq!(
        (mm.lookup_node(space, closed), mm.node_of_page(space, closed)),
        (Err(Errno::EFAULT), Err(Errno::ENOENT))
    );
    assert_sound(mm);
    mm.mmput(space);
    assert_sound(mm);
}
