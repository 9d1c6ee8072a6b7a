//! Restartable sequences. The program is `tests/programs/rseq.c`; each of its parts ends with 42 if everything was as it
//! should be, and with the number of the line that was not otherwise. In guests of two nodes with a CPU each.

use pagevisor_tests::command::Output;
use pagevisor_tests::program::Program;

/// What a part ends with that has found nothing wrong.
const FINE: i32 = 42;

static PROGRAM: Program = Program::new("rseq", include_bytes!(concat!(env!("OUT_DIR"), "/rseq")));

#[track_caller]
fn fine(part: &str) -> Output {
    let output = PROGRAM.run(&[part]);
    assert_eq!(output.code(), FINE, "{}\n{}", output.stdout, output.stderr);
    output
}

#[test]
fn an_area_says_where_its_thread_runs_for_as_long_as_it_is_registered() {
    fine("register");
}

#[test]
fn handled_signals_and_other_cpus_interrupt_a_section_and_calls_do_not() {
    fine("signals");
}

#[test]
fn a_section_without_end_ends_when_somebody_else_is_to_run_or_a_signal_comes() {
    fine("endless");
}

#[test]
fn counters_of_cpus_are_exact_though_threads_come_in_between() {
    fine("counters");
}

#[test]
fn what_is_no_section_ends_the_program() {
    let output = fine("faults");
    assert!(output.stderr.contains("Unexpected rseq signature 0x"), "{}", output.stderr);
    assert!(output.stderr.contains(", expecting 0x53053053 (pid="), "{}", output.stderr);
}

#[test]
fn a_copy_of_a_program_has_its_area_and_threads_and_other_programs_have_not() {
    fine("family");
}
