//! What the command reads is what the guest's programs read: all of it, in order, and no more than they ask for.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write, pipe};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;

use pagevisor_tests::command::{Output, Running, pagevisor, start_with};

/// `pagevisor run` of busybox with `args` and this input.
fn busybox(args: &[&str], stdin: impl Into<Stdio>) -> Running {
    let run = ["run", "--timeout", "100", "--console", "--init", "busybox", "--"];
    start_with(&mut pagevisor(run.into_iter().chain(args.iter().copied())), stdin)
}

/// The same to its end, with `input` through a pipe.
fn fed(args: &[&str], input: Vec<u8>) -> Output {
    let (reader, mut writer) = pipe().unwrap();
    let running = busybox(args, reader);
    let feeder = thread::spawn(move || writer.write_all(&input));
    let output = running.finish();
    drop(feeder.join().unwrap());
    output
}

#[test]
fn lines_go_through_pipes_on_both_sides() {
    assert_eq!(fed(&["cat"], b"a\nb\n".to_vec()).success(), "a\nb\n");
    assert_eq!(fed(&["wc", "-l"], b"a\nb\nc".to_vec()).success().trim(), "2");
}

#[test]
fn a_shell_reads_its_script_there() {
    let output = fed(&["sh"], b"x=$((6*7))\necho $x | cat\nexit 3\n".to_vec());
    assert_eq!((output.code(), output.stdout.as_str()), (3, "42\n"), "{}", output.stderr);
}

#[test]
fn a_mebibyte_arrives_whole_although_it_is_read_late() {
    let input: Vec<u8> = (0..16384).flat_map(|line| format!("{line:063x}\n").into_bytes()).collect();
    let path = std::env::temp_dir().join(format!("pagevisor-sum-{}", std::process::id()));
    std::fs::write(&path, &input).unwrap();
    let here = Command::new("busybox").arg("md5sum").stdin(File::open(&path).unwrap()).output().unwrap();
    let _ = std::fs::remove_file(path);
    let output = fed(&["sh", "-c", "sleep 1; md5sum"], input).success();
    assert_eq!(output, String::from_utf8_lossy(&here.stdout));
}

#[test]
fn what_is_read_and_printed_again_is_the_same() {
    let input: String = (0..3000).map(|line| format!("{line:063x}\n")).collect();
    let output = fed(&["cat"], input.clone().into_bytes()).success();
    assert!(output == input, "{} of {} bytes", output.len(), input.len());
}

#[test]
fn a_file_is_read_to_its_end() {
    let path = std::env::temp_dir().join(format!("pagevisor-input-{}", std::process::id()));
    std::fs::write(&path, vec![b'x'; 40_000]).unwrap();
    let output = busybox(&["sh", "-c", "wc -c; wc -c"], File::open(&path).unwrap()).finish();
    let _ = std::fs::remove_file(path);
    assert_eq!(output.success(), "40000\n0\n");
}

#[test]
fn what_nobody_asks_for_stays_there() {
    let (mut reader, mut writer) = pipe().unwrap();
    writer.write_all(b"left").unwrap();
    drop(writer);
    let output = busybox(&["true"], reader.try_clone().unwrap()).finish();
    assert_eq!(output.code(), 0, "{}", output.stderr);
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "left");
}

/// A run whose output is read while it goes on. Its own time limit ends it.
fn talk(args: &[&str]) -> (Child, BufReader<ChildStdout>) {
    let run = ["run", "--timeout", "100", "--init", "busybox", "--"];
    let mut command = pagevisor(run.into_iter().chain(args.iter().copied()));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let output = child.stdout.take().unwrap();
    (child, BufReader::new(output))
}

fn line(output: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line
}

#[test]
fn who_polls_learns_of_input_when_it_comes() {
    let (mut child, mut output) = talk(&["sh", "-c", "read -t 1 x || echo none; read -t 90 x; echo $x; cat"]);
    let mut input = child.stdin.take().unwrap();
    assert_eq!(line(&mut output), "none\n");
    // What the first `read` asked for is the second's.
    input.write_all(b"late\n").unwrap();
    assert_eq!(line(&mut output), "late\n");
    input.write_all(b"rest\n").unwrap();
    assert_eq!(line(&mut output), "rest\n");
    drop(input);
    assert_eq!(line(&mut output), "");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_program_that_waits_for_input_is_ended_by_a_signal() {
    let (mut child, mut output) = talk(&["sh", "-c", "echo up; cat"]);
    assert_eq!(line(&mut output), "up\n");
    // SAFETY: kill takes no pointers; the child is ours and not reaped.
    assert_eq!(unsafe { libc::kill(child.id().cast_signed(), libc::SIGINT) }, 0);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
