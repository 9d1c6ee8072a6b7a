//! Commands that nobody waited for long enough: what they allocate is freed, and their handles can be used again.

use std::time::{Duration, Instant};

use pagevisor::guest::{Error, ErrorKind, Gfp, Guest, Order};
use pagevisor_shared::command::Op;
use pagevisor_tests::guest::guest;

const TWO_CPUS: &str = "[[node]]\nmem = \"64M\"\ncpus = 2\n";
/// A guest that is paused does not answer in any time.
const SHORT: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(20);

fn timed_out<T>(result: Result<T, Error>) {
    let error = result.err().expect("nobody answers");
    assert!(matches!(error.kind(), ErrorKind::TimedOut { .. }), "{error}");
}

/// Free pages once no pageset has any, and the lowest free handle. The guest's table of handles grows by a page for some
/// hundred of them, and keeps it: a test that uses many has used as many before.
fn left(guest: &Guest) -> (u64, u32) {
    guest.drain_pages().expect("an answer");
    let page = guest.any_cpu().alloc_pages(Gfp::KERNEL, Order::ZERO).expect("a page");
    let handle = page.handle();
    drop(page);
    guest.drain_pages().expect("an answer");
    (guest.state().free_pages(), handle)
}

/// Waits until all is as it was.
fn comes_back(guest: &Guest, before: (u64, u32)) {
    let begin = Instant::now();
    loop {
        let now = left(guest);
        if now == before {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{now:?} instead of {before:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_is_allocated_late_is_freed() {
    guest(TWO_CPUS, |guest| {
        let before = left(guest);
        let cpu = guest.cpu(1)?.within(SHORT);
        let patient = guest.cpu(1)?;
        let [block, given, dropped] =
            [3, 2, 1].map(|raw| patient.alloc_pages(Gfp::KERNEL, Order::new(raw).expect("an order")).expect("memory"));
        let split = patient.alloc_pages(Gfp::KERNEL, Order::new(4)?)?;
        let paused = guest.pause()?;
        timed_out(cpu.alloc_pages(Gfp::KERNEL, Order::new(5)?));
        timed_out(cpu.alloc_many(Gfp::KERNEL, Order::ZERO, 100));
        let mut batch = cpu.batch();
        let first = batch.alloc(Gfp::KERNEL, Order::ZERO);
        batch.alloc(Gfp::KERNEL, Order::new(1)?);
        batch.free(first);
        timed_out(batch.run());
        // What is dropped now is not waited for.
        let begin = Instant::now();
        drop((block, given, dropped, split));
        assert!(begin.elapsed() < Duration::from_secs(1));
        drop(paused);
        comes_back(guest, before);
        assert_eq!(guest.machine().traffic().late, 3);
        Ok(())
    });
}

#[test]
fn what_is_split_or_freed_late_is_freed_once() {
    guest(TWO_CPUS, |guest| {
        let before = left(guest);
        let hasty = guest.cpu(0)?.within(SHORT);
        let take = |raw| hasty.within(PATIENCE).alloc_pages(Gfp::KERNEL, Order::new(raw).expect("an order"));
        let (freed, many) = (take(3)?, hasty.within(PATIENCE).alloc_many(Gfp::KERNEL, Order::ZERO, 50)?);
        // What is split and freed is so in the time that its allocation had.
        let split = hasty.within(SHORT).alloc_pages(Gfp::KERNEL, Order::new(4)?);
        let paused = guest.pause()?;
        timed_out(freed.free_on(&hasty));
        if let Ok(split) = split {
            timed_out(split.split());
        }
        drop(many);
        drop(paused);
        comes_back(guest, before);
        Ok(())
    });
}

#[test]
fn a_batch_of_many_messages_is_given_up_on_half_way() {
    guest(TWO_CPUS, |guest| {
        drop(guest.cpu(1)?.alloc_many(Gfp::KERNEL, Order::ZERO, 400)?);
        let before = left(guest);
        // In the first message, between the two, and in the second one, or thereabouts.
        for time in [1, 150] {
            let mut batch = guest.cpu(1)?.within(Duration::from_millis(time)).batch();
            let mut blocks = Vec::new();
            for round in 0..150 {
                blocks.push(batch.alloc(Gfp::KERNEL, Order::ZERO));
                if round >= 75 {
                    batch.free(blocks[round - 75]);
                }
                (0..13).for_each(|_| batch.push(Op::Nop));
            }
            drop(batch.run());
        }
        comes_back(guest, before);
        Ok(())
    });
}

#[test]
fn a_busy_cpu_answers_late() {
    guest(TWO_CPUS, |guest| {
        let before = left(guest);
        std::thread::scope(|scope| {
            let work = "random:ops=1500,hold=16,cpus=0".parse().expect("a workload");
            let busy = scope.spawn(move || guest.run(&work).expect("a report"));
            std::thread::sleep(Duration::from_millis(20));
            // As long as the CPU is busy, these are not answered; which of them are is not the point.
            let hasty = guest.cpu(0).expect("the CPU").within(SHORT);
            let answered = (0..10).filter_map(|_| hasty.alloc_pages(Gfp::KERNEL, Order::ZERO).ok()).count();
            println!("{answered} of 10 in time");
            assert!(busy.join().expect("the workload").allocs > 0);
        });
        comes_back(guest, before);
        Ok(())
    });
}

#[test]
fn nothing_grows_while_nobody_answers() {
    guest(TWO_CPUS, |guest| {
        let before = left(guest);
        let sent = guest.machine().traffic().commands;
        let cpu = guest.cpu(0)?.within(Duration::from_micros(200));
        let paused = guest.pause()?;
        for _ in 0..1000 {
            timed_out(cpu.alloc_many(Gfp::KERNEL, Order::ZERO, 8));
        }
        // The guest has no more buffers than that; the rest was taken back.
        assert!(guest.machine().traffic().commands - sent <= 16);
        drop(paused);
        comes_back(guest, before);
        Ok(())
    });
}
