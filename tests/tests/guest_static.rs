//! Programs that nobody wrote for this kernel: Debian's busybox, and those that bring a C library and Rust's.

use pagevisor_tests::command::{pagevisor, run};
use pagevisor_tests::program::Program;

/// Runs busybox as `sh` with `script`; gives what it printed.
#[track_caller]
fn shell(script: &str) -> String {
    let args = ["run", "--timeout", "100", "--console", "--init", "busybox", "--", "sh", "-c", script];
    run(&mut pagevisor(args)).success()
}

/// The number behind `key` in the line that begins with it.
#[track_caller]
fn number(text: &str, key: &str, column: usize) -> u64 {
    let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("no {key} in\n{text}"));
    line.split_whitespace().nth(column).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{line}"))
}

#[test]
fn a_shell_runs_pipes_and_tells_how_they_end() {
    let text = shell(
        "echo one two three | tr ' ' '\\n' | sort -r | while read word; do echo \"<$word>\"; done; (exit 3); echo $?; \
         echo text > /tmp/a && cat /tmp/a | wc -c; sleep 1 & kill -STOP $!; kill -CONT $!; kill $!; wait $!; echo $?",
    );
    assert_eq!(text, "<two>\n<three>\n<one>\n3\n5\nTerminated\n143\n");
}

#[test]
fn a_program_sees_what_it_has_mapped() {
    let text = shell("cat /proc/self/maps");
    let lines: Vec<&str> = text.lines().collect();
    let of_file = |rights: &str| lines.iter().any(|line| line.contains(rights) && line.ends_with(" /bin/busybox"));
    assert!(of_file(" r--p 00000000 00:02 ") && of_file(" r-xp ") && of_file(" rw-p "), "{text}");
    assert_eq!(lines.iter().filter(|line| line.ends_with("[heap]")).count(), 1, "{text}");
    assert!(lines.last().is_some_and(|line| line.ends_with("                  [stack]")), "{text}");
    // In order, without overlaps.
    let bounds = lines.iter().flat_map(|line| line.split(' ').next().unwrap_or_default().split('-'));
    let bounds: Vec<u64> = bounds.map(|word| u64::from_str_radix(word, 16).expect("an address")).collect();
    assert!(bounds.is_sorted(), "{text}");
}

#[test]
fn free_ps_and_top_tell_of_the_machine() {
    let text = shell("free; echo; ps; echo; top -b -n1");
    let [total, used, free, cache] = [1, 2, 3, 5].map(|column| number(&text, "Mem:", column));
    assert!(total > 400 << 10 && used + free <= total && free > total / 2, "{text}");
    // The program's own pages.
    assert!(cache >= 1 << 10, "{text}");
    assert!(text.contains("[kthreadd]") && text.contains("    1 0        /bin/busybox sh -c free"), "{text}");
    assert!(text.contains("\nCPU:") && text.contains("\nLoad average: 0."), "{text}");
    let top = text.lines().find(|line| line.ends_with("% top -b -n1")).unwrap_or_else(|| panic!("no top in\n{text}"));
    assert!(top.contains(" R "), "{top}");
}

#[test]
fn a_c_library_has_threads() {
    static PROGRAM: Program = Program::new("threads", include_bytes!(concat!(env!("OUT_DIR"), "/threads")));
    let output = PROGRAM.run(&["argument"]);
    assert_eq!(output.code(), 42, "{}\n{}", output.stdout, output.stderr);
    assert!(output.stdout.contains("4000 turns, sum 10000, argument\n"), "{}", output.stdout);
}

#[test]
fn a_program_can_be_anywhere_and_execute_its_stack() {
    static PROGRAM: Program = Program::new("pie", include_bytes!(concat!(env!("OUT_DIR"), "/pie")));
    let output = PROGRAM.run(&[]);
    assert_eq!(output.code(), 42, "{}\n{}", output.stdout, output.stderr);
}

#[test]
fn a_programs_code_and_data_can_share_a_page() {
    static PROGRAM: Program = Program::new("packed", include_bytes!(concat!(env!("OUT_DIR"), "/packed")));
    let output = PROGRAM.run(&[]);
    assert_eq!(output.code(), 42, "{}\n{}", output.stdout, output.stderr);
}

#[test]
fn rusts_library_has_threads() {
    static PROGRAM: Program = Program::new("threads-rs", include_bytes!(concat!(env!("OUT_DIR"), "/threads-rs")));
    let output = PROGRAM.run(&[]);
    assert_eq!(output.code(), 42, "{}\n{}", output.stdout, output.stderr);
    assert!(output.stdout.starts_with("300000 6 1200\n"), "{}", output.stdout);
    assert!(output.stdout.contains("on purpose"), "{}", output.stdout);
}
