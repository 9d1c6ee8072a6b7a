//! Small programs that use memory in all the ways there are; each checks what it finds itself, and ends with 42 if all was
//! right (`tests/programs`).

use std::fs;
use std::os::unix::fs::PermissionsExt;

use pagevisor_tests::command::{Output, pagevisor, run};

/// Runs `program` with `args` in a guest of two nodes with a CPU each.
#[track_caller]
fn fine(name: &str, program: &[u8], args: &[&str]) {
    fine_on(&[], name, program, args);
}

/// As [`fine`], on the machine that the flags `machine` say; gives what was printed.
#[track_caller]
fn fine_on(machine: &[&str], name: &str, program: &[u8], args: &[&str]) -> Output {
    let path = std::env::temp_dir().join(format!("pagevisor-program-{name}-{}", std::process::id()));
    fs::write(&path, program).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let path_text = path.to_str().unwrap();
    let mut command = vec!["run", "--timeout", "100", "--console"];
    command.extend(machine.iter().chain(&["--init", path_text, "--"]).chain(args));
    let output = run(&mut pagevisor(command));
    let _ = fs::remove_file(path);
    assert_eq!(output.code(), 42, "{name}: {}\n{}", output.stdout, output.stderr);
    output
}

macro_rules! program {
    ($name:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $name))
    };
}

#[test]
fn memory_is_of_the_node_of_who_touches_it_first() {
    fine("touch", program!("touch"), &["32"]);
}

#[test]
fn children_of_children_see_what_copies_would_show() {
    fine("cow", program!("cow"), &["16", "3", "2"]);
}

#[test]
fn rights_are_what_they_were_changed_to_and_stacks_grow() {
    fine("flip", program!("flip"), &["8"]);
}

#[test]
fn many_threads_on_four_cpus_map_touch_protect_and_unmap_at_once() {
    let nodes = ["--node", "mem=128M,cpus=2", "--node", "mem=128M,cpus=2"];
    // Where ring 0 is emulated, a round takes a quarter of a minute: five would come near to how long a run may take.
    for rounds in ["3", "2"] {
        fine_on(&nodes, "storm", program!("storm"), &["64", rounds]);
    }
}

#[test]
fn no_cpu_finds_what_another_has_taken_away() {
    fine("stale", program!("stale"), &["4"]);
}

#[test]
fn threads_keep_their_registers() {
    fine("registers", program!("registers"), &["4"]);
}

#[test]
fn who_uses_up_all_memory_is_ended_and_nobody_else() {
    let output = fine_on(&["--node", "mem=40M,cpus=1"], "shortage", program!("shortage"), &[]);
    let killed = output.stderr.lines().filter(|line| line.contains("Out of memory: Killed process")).count();
    assert_eq!(killed, 1, "{}", output.stderr);
}
