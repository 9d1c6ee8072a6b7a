//! What programs print comes out of `pagevisor run`, whole and in order, and so does their exit status.

use pagevisor_tests::command::{pagevisor, run};

/// Lines as the kernel's test prints them.
fn lines() -> String {
    (0..2000).map(|number| format!("{number:063}\n")).collect()
}

#[test]
fn everything_that_was_printed_arrives_with_the_exit_status() {
    let output = run(&mut pagevisor(["run", "--append", "pagevisor.test=console", "--timeout", "60"]));
    assert_eq!(output.code(), 42, "{}", output.stderr);
    assert!(output.stdout == lines(), "{} of {} bytes", output.stdout.len(), lines().len());
}

#[test]
fn a_program_that_cannot_be_run_is_refused_with_the_reason() {
    let refused = |program: &str, why: &str| {
        let output = run(&mut pagevisor(["run", "--init", program]));
        assert_eq!(output.code(), 2, "{}", output.stderr);
        assert!(output.stderr.contains(why), "{}", output.stderr);
        assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    };
    refused("no-such-program", "is neither a file nor a program in $PATH");
    let text = std::env::temp_dir().join(format!("pagevisor-no-program-{}", std::process::id()));
    std::fs::write(&text, "no program\n").unwrap();
    refused(text.to_str().unwrap(), "is no executable of x86-64 Linux");
    let _ = std::fs::remove_file(text);
    let arguments = run(&mut pagevisor(["run", "--", "sh"]));
    assert_eq!(arguments.code(), 2);
    assert!(arguments.stderr.contains("--init"), "{}", arguments.stderr);
}
