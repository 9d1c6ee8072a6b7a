//! Free memory that CPUs clear while they have nothing else to do (`pagevisor.idle_clear`).

use std::error::Error;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor::guest::Guest;
use pagevisor::report::View;
use pagevisor::workload::Workload;
use pagevisor_shared::region::records::CpuState;
use pagevisor_tests::guest::{Outcome, guest, guest_appended, sound};
use serde_json::Value;

const TWO_NODES: &str = "[[node]]\nmem = \"64M\"\ncpus = 1\n[[node]]\nmem = \"64M\"\ncpus = 1\n";

fn sum(guest: &Guest, of: fn(&CpuState) -> &AtomicU64) -> u64 {
    guest.view().region().cpus().iter().map(|cpu| of(cpu).load(Relaxed)).sum()
}

/// What the view of that name shows.
fn zeroed(guest: &Guest) -> Result<Value, Box<dyn Error>> {
    let mut text = Vec::new();
    View::Zeroed.render(guest.view(), true, &mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Has a program of the kernel's touch 256 pages, which it writes to and gives back.
fn touch(guest: &Guest) -> Outcome {
    let workload: Workload = "fault:kind=anon,pages=256,cpus=0".parse()?;
    guest.run(&workload)?;
    guest.drain_pages()?;
    Ok(())
}

#[test]
fn what_idle_cpus_have_cleared_is_not_cleared_for_who_wants_zeros() {
    guest_appended(TWO_NODES, "pagevisor.idle_clear=64", |guest| {
        touch(guest)?;
        let cpu = guest.cpu(0)?;
        // Each command wakes the CPU, which clears a little more before it halts.
        for _ in 0..200 {
            cpu.kmalloc(8, pagevisor::guest::Gfp::KERNEL)?.free()?;
        }
        let idle = sum(guest, |cpu| &cpu.idle_cleared);
        assert!(idle >= 256, "{idle} pages");
        sound(guest)?;
        let (cleared, known) = (sum(guest, |cpu| &cpu.pages_cleared), sum(guest, |cpu| &cpu.clears_saved));
        touch(guest)?;
        let cleared = sum(guest, |cpu| &cpu.pages_cleared) - cleared;
        let known = sum(guest, |cpu| &cpu.clears_saved) - known;
        assert!(known >= 256 && cleared < 64, "{known} known, {cleared} cleared");
        let shown = zeroed(guest)?;
        let all = |name: &str| shown["all"][name].as_u64();
        assert_eq!(all("pages_cleared"), Some(sum(guest, |cpu| &cpu.pages_cleared)));
        assert_eq!(all("clears_saved"), Some(sum(guest, |cpu| &cpu.clears_saved)));
        assert_eq!(all("idle_cleared"), Some(sum(guest, |cpu| &cpu.idle_cleared)));
        sound(guest)?;
        Ok(())
    });
}

#[test]
fn nobody_clears_unless_told() {
    guest(TWO_NODES, |guest| {
        let known_zero = |shown: &Value| shown["all"]["known_zero"].as_u64().ok_or("no number");
        let before = known_zero(&zeroed(guest)?)?;
        touch(guest)?;
        assert_eq!(sum(guest, |cpu| &cpu.idle_cleared), 0);
        // What the program wrote to is free again, but not known to be zero any more.
        let after = known_zero(&zeroed(guest)?)?;
        assert!(after <= before - 256, "{before} before, {after} after");
        Ok(())
    });
}
