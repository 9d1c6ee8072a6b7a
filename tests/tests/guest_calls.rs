//! System calls that libraries make and shells do not. The program is `tests/programs/calls.c`; each of its parts ends with
//! 42 if everything was as it should be, and with the number of the line that was not otherwise.

use pagevisor_tests::command::Output;
use pagevisor_tests::program::Program;

/// What a part ends with that has found nothing wrong.
const FINE: i32 = 42;

static PROGRAM: Program = Program::new("calls", include_bytes!(concat!(env!("OUT_DIR"), "/calls")));

/// Runs the parts `parts`, one after the other in one guest of two nodes with a CPU each.
#[track_caller]
fn fine(parts: &[&str]) -> Output {
    let output = PROGRAM.run(parts);
    assert_eq!(output.code(), FINE, "{}\n{}", output.stdout, output.stderr);
    output
}

#[test]
fn programs_are_told_of_nodes_and_of_where_pages_are() {
    fine(&["policies", "pages"]);
}

#[test]
fn a_file_is_written_to_or_executed() {
    fine(&["busy"]);
}

#[test]
fn children_are_made_with_arguments_of_any_size() {
    fine(&["children", "told"]);
}

#[test]
fn locked_pages_are_counted() {
    fine(&["locked"]);
}

#[test]
fn tmp_holds_half_of_all_memory() {
    // A small guest: all of its half is filled.
    let output = PROGRAM.run_with(&["--node", "mem=48M,cpus=1"], &["room"]);
    assert_eq!(output.code(), FINE, "{}\n{}", output.stdout, output.stderr);
}

#[test]
fn waits_for_words_go_on_to_their_end_and_words_are_changed() {
    let output = fine(&["waits", "operations"]);
    let told = |what: &str| output.stderr.lines().filter(|line| line.contains(what)).count();
    assert_eq!(told("futex operation 6 (LOCK_PI) is not implemented"), 1, "{}", output.stderr);
    assert_eq!(told("System calls: 2 could not be made, as they are not here"), 1, "{}", output.stderr);
}

#[test]
fn as_much_is_promised_as_settings_say_and_used_as_is_told() {
    fine(&["most", "promises", "pieces", "idle"]);
}
