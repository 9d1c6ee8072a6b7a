//! Programs in user mode: their memory, faults, signals and children, and what the kernel says when they are wrong. The
//! programs are one, `tests/programs/user.c`; each of its parts ends with 42 if everything was as it should be, and else
//! with 1 and a line that says what was not.

use pagevisor_tests::command::Output;
use pagevisor_tests::program::Program;

/// What a part ends with that has found nothing wrong.
const FINE: i32 = 42;

/// Runs the parts `parts`, one after the other in one guest, until one fails.
fn parts(parts: &[&str]) -> Output {
    static PROGRAM: Program = Program::new("user", include_bytes!(concat!(env!("OUT_DIR"), "/user")));
    PROGRAM.run(parts)
}

#[track_caller]
fn fine(names: &[&str]) -> Output {
    let output = parts(names);
    assert_eq!(output.code(), FINE, "{}\n{}", output.stdout, output.stderr);
    output
}

#[test]
fn a_program_prints_and_ends_with_its_status() {
    let output = fine(&["hello"]);
    assert_eq!(output.stdout, "hello, world\n");
}

#[test]
fn a_program_gets_its_arguments_and_what_the_kernel_tells() {
    fine(&["arguments", "two words", ""]);
}

#[test]
fn every_error_code_of_a_page_fault_reaches_the_handler() {
    fine(&["faults"]);
}

#[test]
fn exceptions_are_signals() {
    fine(&["exceptions"]);
}

/// QEMU's processors, which are the lab's, raise no exceptions of SSE: there nothing happens where a signal was to come.
#[test]
fn exceptions_of_vectors_are_signals() {
    if std::env::var_os("PAGEVISOR_LAB").is_none() {
        fine(&["vectors"]);
        return;
    }
    let output = parts(&["vectors"]);
    assert_eq!(output.code(), 1, "{}\n{}", output.stdout, output.stderr);
    assert!(output.stdout.contains("seen.count == 1 && seen.number == SIGFPE"), "{}", output.stdout);
}

#[test]
fn addresses_that_are_not_there_fail_calls_and_not_the_kernel() {
    fine(&["addresses"]);
}

#[test]
fn memory_can_be_mapped_moved_and_protected() {
    fine(&["memory", "stack", "heap"]);
}

#[test]
fn children_have_copies_of_memory_and_tell_how_they_ended() {
    fine(&["children", "vfork"]);
}

#[test]
fn threads_share_memory_and_sleep_on_words() {
    fine(&["threads"]);
}

#[test]
fn signals_are_handled_blocked_and_nested() {
    fine(&["signals"]);
}

#[test]
fn files_and_pipes_keep_what_is_written() {
    fine(&["files", "pipes"]);
}

#[test]
fn registers_stay_a_programs_own() {
    fine(&["registers"]);
}

#[test]
fn another_program_can_be_run_in_place_of_one() {
    let output = fine(&["exec"]);
    assert_eq!(output.stdout, "hello, world\n");
}

#[test]
fn an_unknown_call_is_told_of_once() {
    let output = fine(&["unknown"]);
    let told = |what: &str| output.stderr.lines().filter(|line| line.contains(what)).count();
    assert_eq!(told("system call 169 (reboot) is not implemented"), 1, "{}", output.stderr);
    assert_eq!(told("is not implemented"), 3, "{}", output.stderr);
}

#[test]
fn a_program_that_is_ended_by_a_signal_ends_the_guest_with_its_number() {
    for (part, status, told) in [
        ("end-read", 128 + 11, "segfault at 10 ip "),
        ("end-divide", 128 + 8, "trap divide error ip:"),
        ("end-privileged", 128 + 11, "] general protection fault ip:"),
        ("end-invalid", 128 + 4, "trap invalid opcode ip:"),
    ] {
        let output = parts(&[part]);
        assert_eq!(output.code(), status, "{part}: {}\n{}", output.stdout, output.stderr);
        let line = output.stderr.lines().find(|line| line.contains(told));
        // As in Linux: the program's file, where that begins and how long it is; and the CPU, if it is a fault of memory.
        let line = line.and_then(|line| line.split_once(" in user[40")).unwrap_or_else(|| panic!("{}", output.stderr));
        let (_, end) = line.1.split_once(']').unwrap_or_else(|| panic!("{}", output.stderr));
        let on_cpu = end.starts_with(" likely on CPU ") && end.contains(" (core 0, socket ") && end.ends_with(')');
        assert!(if part == "end-read" { on_cpu } else { end.is_empty() }, "{part}: {}", output.stderr);
    }
}
