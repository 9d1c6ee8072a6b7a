//! Commands from end to end: the host's API, the queues, the guest's CPUs.

use std::time::{Duration, Instant};

use pagevisor::guest::{Gfp, Guest, OpError, Order};
use pagevisor_shared::command::workload::{Count, Kind, Params, Report};
use pagevisor_shared::command::{MAX_HANDLE, Op};
use pagevisor_shared::units::CpuMask;
use pagevisor_tests::guest::guest;

const SMALL: &str = "[[node]]\nmem = \"64M\"\n";
const TWO_NODES: &str = "[[node]]\nmem = \"64M\"\ncpus = 2\n[[node]]\nmem = \"64M\"\ncpus = 2\n";

/// Steps of workloads that are to go on for a while: about 0.2 ms each where ring 0 is emulated, far less in the lab.
fn amount() -> u64 {
    if std::env::var_os("PAGEVISOR_LAB").is_some() { 400 } else { 150 }
}

/// Runs a workload, from CPU 0; gives the words of its report.
fn run(guest: &Guest, params: &Params) -> Result<Vec<u64>, Box<dyn std::error::Error>> {
    run_on(guest, 0, params)
}

fn run_on(guest: &Guest, cpu: u32, params: &Params) -> Result<Vec<u64>, Box<dyn std::error::Error>> {
    let payload: Vec<u8> = params.encode().iter().flat_map(|word| word.to_le_bytes()).collect();
    let op = Op::Run { payload: 0, len: payload.len() as u32 };
    let executed = guest.cpu(cpu)?.execute_with(op, &payload)?;
    Ok(executed.payload.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
}

#[test]
fn each_cpu_executes_what_is_aimed_at_it() {
    guest(TWO_NODES, |guest| {
        for cpu in 0..4 {
            assert_eq!(guest.cpu(cpu)?.nop()?.cpu, cpu);
        }
        let pages = guest.cpu(2)?.alloc_pages(Gfp::KERNEL, Order::new(2)?)?;
        assert_eq!(pages.node()?.index(), 1);
        pages.fill(3)?;
        pages.check(3)?;
        drop(pages);
        guest.barrier()?;
        let wrong = guest.cpu(1)?.execute(Op::FreePages { handle: MAX_HANDLE - 1, count: 1 });
        assert_eq!(wrong.err().and_then(|error| error.op()), Some(OpError::BadHandle));
        Ok(())
    });
}

#[test]
fn many_threads_drive_many_cpus() {
    guest(TWO_NODES, |guest| {
        std::thread::scope(|scope| {
            for thread in 0..8u32 {
                scope.spawn(move || {
                    let cpu = guest.cpu(thread % 4).expect("the CPU");
                    for _ in 0..5 {
                        let pages = cpu.alloc_many(Gfp::KERNEL, Order::ZERO, 16).expect("memory");
                        assert_eq!(pages.len(), 16);
                    }
                });
            }
        });
        Ok(())
    });
}

#[test]
fn every_workload_runs() {
    guest(TWO_NODES, |guest| {
        for kind in Kind::ALL {
            for cpus in [CpuMask(0), CpuMask(0b1101)] {
                let exhausts = matches!(kind, Kind::DmaExhaust | Kind::NodeExhaust);
                // Each block, and each page that is touched, costs where ring 0 is emulated.
                let (order, touch) = match kind {
                    _ if exhausts => (Order::MAX, 0),
                    Kind::Access => (Order::new(5)?, 1),
                    _ => (Order::ZERO, 1),
                };
                let params = Params { ops: 8, fill: 1, hold: 4, touch, cpus, order, ..Params::new(kind) };
                let report = run(guest, &params)?;
                assert_eq!(report.len(), Report::words(2), "{kind:?}");
                assert_eq!(report[Count::Allocs as usize], report[Count::Freed as usize], "{kind:?} {cpus}");
                assert!(report[Count::Ticks as usize] > 0, "{kind:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn workloads_stop_where_the_guest_can_be_verified() {
    guest(TWO_NODES, |guest| {
        std::thread::scope(|scope| {
            let params = [
                Params { ops: amount(), cpus: CpuMask(0b0110), touch: 1, ..Params::new(Kind::ProducerConsumer) },
                Params { ops: amount(), cpus: CpuMask(0b1001), ..Params::new(Kind::Random) },
            ];
            for params in params {
                scope.spawn(move || run(guest, &params).map(drop).expect("a report"));
            }
            // Each pause lets the guest go on a little only, so there are not too many.
            for _ in 0..3 {
                std::thread::sleep(Duration::from_millis(20));
                let report = guest.verify().expect("a safe point");
                assert!(report.is_sound(), "{:?}", report.findings);
            }
        });
        Ok(())
    });
}

#[test]
fn workloads_that_need_the_same_cpus_take_turns() {
    guest(TWO_NODES, |guest| {
        std::thread::scope(|scope| {
            for cpu in 0..4 {
                let params = Params { ops: 40, hold: 8, cpus: CpuMask(0b1111), ..Params::new(Kind::ProducerConsumer) };
                scope.spawn(move || run_on(guest, cpu, &params).map(drop).expect("a report"));
                scope.spawn(|| guest.barrier().expect("all CPUs"));
            }
        });
        Ok(())
    });
}

#[test]
fn a_workload_leaves_the_same_twice() {
    let mut results = Vec::new();
    for _ in 0..2 {
        guest(SMALL, |guest| {
            let params = Params { ops: amount(), keep: true, seed: 7, ..Params::new(Kind::Random) };
            let mut report = run(guest, &params)?;
            report[Count::Ticks as usize] = 0;
            results.push((report, guest.show("buddyinfo")?));
            Ok(())
        });
    }
    assert_eq!(results[0], results[1]);
}

/// What commands cost, in ticks; on a host that emulates ring 0 they are mostly its own.
#[test]
fn batches_spread_the_cost_of_a_message() {
    guest(SMALL, |guest| {
        let cpu = guest.cpu(0)?;
        let begin = Instant::now();
        (0..20).try_for_each(|_| cpu.nop().map(drop))?;
        let message = begin.elapsed() / 20;
        let begin = Instant::now();
        let mut batch = cpu.batch();
        (0..1000).for_each(|_| batch.push(Op::Nop));
        let outcome = batch.run()?;
        assert_eq!(outcome.len(), 1000);
        let operation = begin.elapsed() / 1000;
        println!("a message {message:?}, an operation {operation:?}");
        assert!(operation * 2 < message, "an operation {operation:?}, a message {message:?}");
        Ok(())
    });
}
