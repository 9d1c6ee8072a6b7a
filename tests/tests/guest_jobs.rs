//! Programs that are stopped, sleep, and leave things behind; and what the kernel does wrong for one. The program is
//! `tests/programs/jobs.c`, whose parts end as those of `user.c`.

use pagevisor_tests::command::Output;
use pagevisor_tests::program::Program;

/// What a part ends with that has found nothing wrong.
const FINE: i32 = 42;

static PROGRAM: Program = Program::new("jobs", include_bytes!(concat!(env!("OUT_DIR"), "/jobs")));

#[track_caller]
fn fine(output: Output) -> Output {
    assert_eq!(output.code(), FINE, "{}\n{}", output.stdout, output.stderr);
    output
}

#[test]
fn children_stop_and_go_on_and_the_parent_is_told() {
    fine(PROGRAM.run(&["stops", "asks"]));
}

#[test]
fn sleepers_sleep_their_time_unless_they_handle_a_signal_and_what_all_use_is_counted() {
    fine(PROGRAM.run(&["naps", "clocks"]));
}

#[test]
fn signals_wait_and_are_waited_for() {
    static PROGRAM: Program = Program::new("signals", include_bytes!(concat!(env!("OUT_DIR"), "/signals")));
    fine(PROGRAM.run(&["dropped", "stacks", "waiting", "timers"]));
}

#[test]
fn who_waits_for_a_robust_mutex_learns_that_its_owner_has_died() {
    fine(PROGRAM.run(&["robust"]));
}

#[test]
fn files_have_times_that_can_be_set() {
    fine(PROGRAM.run(&["times"]));
}

#[test]
fn an_oops_ends_the_program_and_not_the_guest() {
    let output = fine(PROGRAM.run_with(&["--append", "pagevisor.test=provoke"], &["oops"]));
    for line in [
        "BUG: unable to handle page fault for address: ffffc900deadb000",
        "#PF: supervisor write access in kernel mode",
        "#PF: error_code(0x0002) - not-present page",
        "Oops: 0002 [#1]",
        "#PF: error_code(0x0009) - reserved bit violation",
        "Oops: 0009 [#2]",
        "Oops: 0002 [#3]",
    ] {
        assert!(output.stderr.contains(line), "{line} is missing in\n{}", output.stderr);
    }
    assert!(!output.stderr.contains("Kernel panic"), "{}", output.stderr);
}
