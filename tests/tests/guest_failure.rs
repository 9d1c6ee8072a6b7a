//! What a test that fails tells about its guest.

use std::env;
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor::guest::{Gfp, Order};
use pagevisor_tests::guest::guest;

const TWO: &str = "[[node]]\nmem = \"48M\"\n[[node]]\nmem = \"64M\"\n";
/// Set for the process that is to fail, to how.
const HOW: &str = "PAGEVISOR_TEST_FAILS";

/// A test that has had events, and fails.
fn fails(how: &str) {
    guest(TWO, |guest| {
        // The first of a migrate type takes a block of another, which is one of the events that are recorded.
        let kind = Gfp::KERNEL | Gfp::RECLAIMABLE;
        guest.cpu(0)?.alloc_many(kind, Order::ZERO, 64)?.free()?;
        match how {
            "error" => return Err("this is the error".into()),
            "panic" => panic!("this is the panic"),
            _ => {
                let region = guest.memory().state().open().expect("its state");
                region.zones()[1].present_pages.fetch_add(1, Relaxed);
            }
        }
        Ok(())
    });
}

/// What is printed by a process of this program in which the test `name` fails.
fn output_of(name: &str, how: &str) -> String {
    let program = env::current_exe().expect("a path");
    let output = Command::new(program).args(["--exact", name]).env(HOW, how).output().expect("it runs");
    assert_eq!(output.status.code(), Some(101), "{how}: the test did not fail");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn a_test_that_fails_prints_topology_state_events_and_log() {
    const NAME: &str = "a_test_that_fails_prints_topology_state_events_and_log";
    if let Ok(how) = env::var(HOW) {
        return fails(&how);
    }
    for (how, said) in [("error", "this is the error"), ("panic", "this is the panic"), ("damage", "present")] {
        let text = output_of(NAME, how);
        let part = |name: &str| text.find(&format!("\n{name}:\n")).unwrap_or_else(|| panic!("no {name}:\n{text}"));
        let starts = ["Topology", "State", "Last events", "Log"].map(part);
        assert!(starts.is_sorted(), "{text}");
        let [topology, state, events, log] = starts;
        assert!(text[topology..state].contains("mem = \"48M\"") && text[topology..state].contains("mem = \"64M\""));
        assert!(text[state..events].contains("buddyinfo:\nNode 0, zone"), "{text}");
        let lines: Vec<&str> = text[events..log].trim().lines().skip(1).collect();
        assert!((1..=40).contains(&lines.len()), "{text}");
        assert!(lines.iter().any(|line| line.contains("mm_page_alloc_extfrag: page=")), "{text}");
        assert!(text[log..].lines().nth(2).is_some_and(|line| line.starts_with('[')), "{text}");
        assert!(text.contains(said), "{text}");
    }
}
