//! No command is lost on its way into the guest, no reply on its way back, however often the CPUs halt in between.

use std::time::Duration;

use pagevisor::devices::monitor::{NoReply, Signals};
use pagevisor::guest::Guest;
use pagevisor_shared::command::{CommandHeader, Op};
use pagevisor_tests::guest::guest;

const FOUR_CPUS: &str = "[[node]]\nmem = \"128M\"\ncpus = [0, 1, 2, 3]\n";

/// Where ring 0 is emulated, a command takes milliseconds.
fn rounds() -> u32 {
    if std::env::var_os("PAGEVISOR_LAB").is_some() { 1500 } else { 400 }
}

#[test]
fn each_of_many_commands_is_answered() {
    guest(FOUR_CPUS, |guest| {
        for round in 0..rounds() {
            guest.cpu(round % 4)?.nop()?;
        }
        let done: u64 = guest.view().region().cpus().iter().map(|cpu| u64::from(commands(&cpu.commands))).sum();
        assert_eq!(done, u64::from(rounds()), "commands that the CPUs have counted");
        Ok(())
    });
}

/// Sends commands without waiting for any, then waits for all; gives how often driver and device disturbed each other.
fn burst(guest: &Guest, count: u32, cpu: impl Fn(u32) -> u32) -> Result<Signals, NoReply> {
    let before = guest.machine().signals();
    let nop = [Op::Nop.encode()];
    let submit = |number| {
        let header = CommandHeader { cpu: cpu(number), ..CommandHeader::default() };
        guest.machine().submit(header, &nop, &[])
    };
    let waiting: Vec<_> = (0..count).map(submit).collect::<Result<_, _>>()?;
    for waiting in waiting {
        waiting.wait(Duration::from_secs(20))?;
    }
    let after = guest.machine().signals();
    let kicks = std::array::from_fn(|queue| after.kicks[queue] - before.kicks[queue]);
    Ok(Signals { kicks, interrupts: after.interrupts - before.interrupts })
}

#[test]
fn a_burst_of_commands_costs_few_notifications() {
    guest(FOUR_CPUS, |guest| {
        let count = rounds();
        let one = burst(guest, count, |_| 2)?;
        println!("{count} commands to one CPU: {one:?}");
        let all = burst(guest, count, |number| number % 4)?;
        println!("{count} commands to four CPUs in turn: {all:?}");
        // Told of each, the sides would disturb each other three times for a command.
        assert!(3 * one.total() < 2 * u64::from(count), "{count} commands, {one:?}");
        assert!(all.total() < 2 * u64::from(count), "{count} commands, {all:?}");
        Ok(())
    });
}

/// Threads with few commands in flight each: the sides fall asleep and wake each other all the time.
#[test]
fn nobody_sleeps_over_a_command() {
    guest(FOUR_CPUS, |guest| {
        std::thread::scope(|scope| {
            for thread in 0..6u32 {
                scope.spawn(move || {
                    for round in 0..rounds() / 24 {
                        burst(guest, 1 + (round + thread) % 4, |number| (number + thread) % 4).expect("answers");
                    }
                });
            }
        });
        Ok(())
    });
}

fn commands(count: &std::sync::atomic::AtomicU32) -> u32 {
    count.load(std::sync::atomic::Ordering::Relaxed)
}
