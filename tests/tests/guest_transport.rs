//! No command is lost on its way into the guest, no reply on its way back, however often the CPUs halt in between.

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

fn commands(count: &std::sync::atomic::AtomicU32) -> u32 {
    count.load(std::sync::atomic::Ordering::Relaxed)
}
