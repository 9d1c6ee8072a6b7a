//! Guests that are told what to do: allocation, freeing, contents, batches, and what goes wrong.

use std::time::{Duration, Instant};

use pagevisor::guest::{Error, ErrorKind, Gfp, Guest, NodeId, OpError, Order, Pfn, ZoneType};
use pagevisor::machine::{End, Machine};
use pagevisor::topology::Topology;
use pagevisor_shared::command::{Op, Placement};
use pagevisor_tests::guest::{guest, sound};

const TWO: &str = r#"
[[node]]
dma = "16M"
dma32 = "112M"
normal = "128M"
[[node]]
normal = "256M"
"#;

/// Free pages, those in pagesets among them. The guest takes pages for its table of handles as they are used for the
/// first time; that is behind us then.
fn free(guest: &Guest) -> u64 {
    let warm = guest.any_cpu().alloc_many(Gfp::KERNEL, Order::ZERO, 4000).unwrap();
    warm.free().unwrap();
    now_free(guest)
}

fn now_free(guest: &Guest) -> u64 {
    let state = guest.state();
    state.free_pages() + state.cached_pages()
}

fn order(raw: u32) -> Order {
    Order::new(raw).unwrap()
}

#[test]
fn a_cpu_does_nothing_and_says_so() {
    guest(TWO, |guest| {
        for cpu in 0..2 {
            let done = guest.cpu(cpu)?.nop()?;
            assert_eq!(done.cpu, cpu);
            assert!(done.ticks < 1 << 40);
        }
        let error = guest.cpu(2).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NoSuchCpu { cpu: 2, cpus: 2 }), "{error}");
        guest.barrier()?;
        Ok(())
    });
}

#[test]
fn pages_come_from_the_node_of_the_cpu() {
    guest(TWO, |guest| {
        for cpu in 0..2 {
            for raw in [0, 3, 10] {
                let pages = guest.cpu(cpu)?.alloc_pages(Gfp::KERNEL, order(raw))?;
                assert_eq!(pages.node()?.index(), cpu as usize);
                assert_eq!(pages.zone()?, ZoneType::Normal);
                assert_eq!(pages.order(), order(raw));
                assert!(pages.pfn().is_aligned(order(raw)));
                pages.free()?;
            }
        }
        Ok(())
    });
}

#[test]
fn what_is_dropped_is_free_again() {
    guest(TWO, |guest| {
        let before = free(guest);
        let pages = guest.cpu(0)?.alloc_pages(Gfp::KERNEL, order(9))?;
        assert_eq!(now_free(guest) + 512, before);
        drop(pages);
        assert_eq!(now_free(guest), before);
        Ok(())
    });
}

#[test]
fn contents_are_kept_and_checked() {
    guest(TWO, |guest| {
        let cpu = guest.cpu(1)?;
        let pages = cpu.alloc_pages(Gfp::KERNEL | Gfp::DMA32, order(3))?;
        assert_eq!((pages.node()?.index(), pages.zone()?), (0, ZoneType::Dma32));
        pages.fill(7)?;
        pages.check(7)?;
        assert_eq!(pages.check(8).unwrap_err().op(), Some(OpError::Mismatch));
        let mut bytes = vec![0; 32 << 10];
        pages.read(0, &mut bytes)?;
        for (word, bytes) in (0..).zip(bytes.as_chunks().0) {
            assert_eq!(u64::from_le_bytes(*bytes), Op::pattern(7, 0, word));
        }
        pages.write(4090, b"across pages")?;
        let mut text = [0; 12];
        pages.read(4090, &mut text)?;
        assert_eq!(&text, b"across pages");
        let error = pages.check(7).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Op { error: OpError::Mismatch, value: 4088, .. }), "{error}");
        assert_eq!(pages.read(32 << 10, &mut [0]).unwrap_err().op(), Some(OpError::Invalid));
        assert_eq!(pages.write(u64::MAX, &[0]).unwrap_err().op(), Some(OpError::Invalid));
        Ok(())
    });
}

#[test]
fn zeroed_pages_are_zero() {
    guest(TWO, |guest| {
        let cpu = guest.cpu(0)?;
        let dirty = cpu.alloc_pages(Gfp::KERNEL, Order::ZERO)?;
        dirty.fill(1)?;
        let pfn = dirty.pfn();
        dirty.free()?;
        let clean = cpu.alloc_pages(Gfp::KERNEL | Gfp::ZERO, Order::ZERO)?;
        assert_eq!(clean.pfn(), pfn, "the pageset gives the page that was freed last");
        let mut bytes = [1; 4096];
        clean.read(0, &mut bytes)?;
        assert!(bytes.iter().all(|byte| *byte == 0));
        Ok(())
    });
}

#[test]
fn a_block_is_split_and_its_pages_merge_again() {
    guest(TWO, |guest| {
        let cpu = guest.cpu(0)?;
        free(guest);
        guest.drain_pages()?;
        let before = guest.state();
        let block = cpu.alloc_pages(Gfp::KERNEL, order(4))?;
        let (first, handle) = (block.pfn(), block.handle());
        let pages = block.split()?;
        assert_eq!(pages.len(), 16);
        for (page, index) in pages.iter().zip(0..) {
            assert_eq!((page.pfn(), page.order()), (first.add(index), Order::ZERO));
        }
        // The block is no block any more.
        assert_eq!(cpu.execute(Op::SplitPage { handle, into: 1 << 20 }).unwrap_err().op(), Some(OpError::BadHandle));
        pages.into_iter().try_for_each(|page| page.free())?;
        guest.drain_pages()?;
        let free = |state: &pagevisor::guest::State| state.zones().map(|zone| zone.free_area).collect::<Vec<_>>();
        assert_eq!(free(&guest.state()), free(&before), "all merged");
        Ok(())
    });
}

#[test]
fn many_blocks_come_in_few_messages() {
    guest(TWO, |guest| {
        let before = guest.machine().traffic().commands;
        let blocks = guest.cpu(0)?.alloc_many(Gfp::KERNEL, Order::ZERO, 10_000)?;
        assert_eq!(blocks.len(), 10_000);
        assert_eq!(guest.machine().traffic().commands - before, 2);
        let mut pfns: Vec<u64> = blocks.pfns().iter().map(|pfn| pfn.raw()).collect();
        pfns.sort_unstable();
        pfns.dedup();
        assert_eq!(pfns.len(), 10_000, "no page twice");
        blocks.free()?;
        sound(guest)?;
        Ok(())
    });
}

#[test]
fn when_memory_runs_out_what_was_got_is_kept() {
    guest("[[node]]\nmem = \"64M\"\n", |guest| {
        let before = free(guest);
        let blocks = guest.cpu(0)?.alloc_many(Gfp::KERNEL | Gfp::NOWARN, order(5), 8192)?;
        assert!(blocks.len() > 300 && blocks.len() < 512, "{}", blocks.len());
        let error = guest.cpu(0)?.alloc_pages(Gfp::KERNEL | Gfp::NOWARN, order(5)).unwrap_err();
        assert_eq!(error.op(), Some(OpError::NoMemory));
        assert!(error.to_string().contains("alloc_pages on CPU 0: out of memory"), "{error}");
        drop(blocks);
        guest.drain_pages()?;
        assert_eq!(guest.state().free_pages(), before);
        assert_eq!(guest.state().cached_pages(), 0);
        Ok(())
    });
}

#[test]
fn a_batch_is_executed_in_order() {
    guest(TWO, |guest| {
        let mut batch = guest.cpu(0)?.batch();
        let kept = batch.alloc(Gfp::KERNEL, order(2));
        let freed = batch.alloc(Gfp::KERNEL, order(0));
        batch.fill(kept, 3);
        batch.write(kept, 16, b"hello");
        batch.read(kept, 16, 5);
        batch.free(freed);
        batch.free(freed);
        batch.check(kept, 3);
        let mut outcome = batch.run()?;
        assert_eq!(outcome.messages(), 1);
        let results: Vec<_> = outcome.results().map(|result| result.err()).collect();
        let [bad, mismatch] = [OpError::BadHandle, OpError::Mismatch].map(Some);
        assert_eq!(results, [None, None, None, None, None, None, bad, mismatch]);
        assert_eq!(outcome.bytes(4), b"hello");
        assert_eq!(outcome.first_error(), Some((6, OpError::BadHandle)));
        assert!(outcome.take(freed).is_none());
        let pages = outcome.take(kept).ok_or("kept")?;
        assert_eq!(Ok(pages.pfn().raw()), outcome.result(0).ok_or("a result")?);
        assert!(outcome.take(kept).is_none(), "once");
        Ok(())
    });
}

#[test]
fn a_batch_of_thousands_is_split() {
    guest(TWO, |guest| {
        let before = free(guest);
        let mut batch = guest.cpu(1)?.batch();
        for _ in 0..2500 {
            let block = batch.alloc(Gfp::KERNEL, Order::ZERO);
            batch.free(block);
        }
        assert_eq!(batch.len(), 5000);
        let outcome = batch.run()?;
        assert_eq!((outcome.len(), outcome.first_error()), (5000, None));
        assert_eq!(outcome.messages(), 3);
        assert!(outcome.ticks() > 0);
        drop(outcome);
        assert_eq!(now_free(guest), before);
        Ok(())
    });
}

#[test]
fn a_batch_that_is_to_stop_stops() {
    guest(TWO, |guest| {
        let mut batch = guest.cpu(0)?.batch().stop_on_error();
        let block = batch.alloc(Gfp::KERNEL, Order::ZERO);
        batch.push(Op::FreePages { handle: 1 << 20, count: 1 });
        batch.free(block);
        let mut outcome = batch.run()?;
        assert_eq!((outcome.len(), outcome.first_error()), (2, Some((1, OpError::BadHandle))));
        assert!(outcome.take(block).is_some(), "it was not freed");
        Ok(())
    });
}

#[test]
fn wrong_operations_are_refused_one_by_one() {
    guest(TWO, |guest| {
        let cpu = guest.cpu(0)?;
        let page = cpu.alloc_pages(Gfp::KERNEL, Order::ZERO)?;
        let alloc = |handle, count| Op::AllocPages {
            gfp: Gfp::KERNEL,
            order: Order::ZERO,
            placement: Placement::Local,
            handle,
            count,
        };
        let cases = [
            (Op::FreePages { handle: 77_777, count: 1 }, OpError::BadHandle),
            (Op::FreePages { handle: u32::MAX, count: 1 }, OpError::BadHandle),
            (alloc(page.handle(), 1), OpError::HandleInUse),
            (alloc(5000, 0), OpError::Invalid),
            (alloc(5000, 8193), OpError::Invalid),
            (Op::CmaAlloc { area: 99, pages: 1, align: Order::ZERO, handle: 5000 }, OpError::Unavailable),
            (Op::ReadPage { handle: page.handle(), offset: 4096, len: 1 }, OpError::Invalid),
            (Op::Run { payload: 0, len: 3 }, OpError::Invalid),
        ];
        for (op, error) in cases {
            let found = cpu.execute(op).err().and_then(|error| error.op());
            assert_eq!(found, Some(error), "{op:?}");
        }
        page.fill(1)?;
        Ok(())
    });
}

#[test]
fn policies_choose_the_node() {
    guest(TWO, |guest| {
        let [zero, one] = [0, 1].map(|node| NodeId::new(node).unwrap());
        let cpu = guest.cpu(0)?;
        assert_eq!(cpu.alloc_on(one, Gfp::KERNEL, Order::ZERO)?.node()?, one);
        let mask = pagevisor::guest::NodeMask(0b10);
        assert_eq!(cpu.bind(mask).alloc_pages(Gfp::KERNEL, order(1))?.node()?, one);
        let turns = cpu.interleave(pagevisor::guest::NodeMask(0b11)).alloc_many(Gfp::KERNEL, Order::ZERO, 10)?;
        let nodes: Vec<NodeId> = turns.places()?.into_iter().map(|(node, _)| node).collect();
        assert_eq!(nodes.iter().filter(|node| **node == zero).count(), 5);
        assert!(nodes.windows(2).all(|pair| pair[0] != pair[1]), "{nodes:?}");
        Ok(())
    });
}

#[test]
fn two_threads_drive_two_cpus() {
    guest(TWO, |guest| {
        let work = |number: u32| -> Result<usize, Error> {
            let cpu = guest.cpu(number)?;
            for round in 0..20 {
                let pages = cpu.alloc_pages(Gfp::KERNEL, order(round % 5))?;
                pages.fill(round.into())?;
                pages.check(round.into())?;
            }
            Ok(20)
        };
        std::thread::scope(|scope| {
            let threads = [0, 1].map(|cpu| scope.spawn(move || work(cpu)));
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Result<Vec<_>, _>>()
        })?;
        Ok(())
    });
}

#[test]
fn a_guest_that_powers_off_ends_with_its_code() {
    let guest = Machine::builder().boot().unwrap();
    assert_eq!(guest.shutdown(3).unwrap(), End::Shutdown { code: 3 });
}

#[test]
fn a_guest_that_is_stopped_wakes_who_waits() {
    let guest = Machine::builder().topology(Topology::from_toml(TWO, "two").unwrap()).boot().unwrap();
    let pages = guest.cpu(0).unwrap().alloc_pages(Gfp::KERNEL, Order::ZERO).unwrap();
    guest.machine().stop(pagevisor::machine::StopReason::Request);
    let begin = Instant::now();
    let error = guest.cpu(0).unwrap().nop().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Ended(_)), "{error}");
    assert!(!error.log().is_empty(), "it says what the guest said last");
    drop(pages);
    assert!(begin.elapsed() < Duration::from_secs(2), "nobody waits for a guest that has ended");
}

#[test]
fn a_snapshot_stays_as_it_was() {
    guest(TWO, |guest| {
        let before = free(guest);
        let snapshot = guest.snapshot()?;
        let blocks = guest.cpu(0)?.alloc_many(Gfp::KERNEL, order(3), 100)?;
        assert_eq!(now_free(guest) + 800, before);
        assert_eq!(snapshot.state().free_pages() + snapshot.state().cached_pages(), before);
        assert!(pagevisor::verify::verify(snapshot.view(), snapshot.registers())?.is_sound());
        drop(blocks);
        let frame = Pfn::new(0x1000);
        assert!(snapshot.view().sections()?.zone_of(frame.raw()).is_some());
        Ok(())
    });
}
