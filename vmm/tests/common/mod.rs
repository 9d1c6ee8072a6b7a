//! Running the `pagevisor` command in surroundings of its own.
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Directories for the command to use, gone with the test.
pub struct Sandbox(tempfile::TempDir);

/// How a command ended and what it printed.
#[derive(Debug)]
pub struct Output {
    /// Exit status; `None` when a signal killed it.
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Sandbox {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn runtime(&self) -> PathBuf {
        self.path().join("runtime")
    }

    pub fn cache(&self) -> PathBuf {
        self.path().join("cache")
    }

    /// The command with `args`, not yet run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pagevisor"));
        self.isolate(&mut command).args(args);
        command
    }

    /// Makes `command` use the directories of this sandbox.
    pub fn isolate<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let command = command.env("PAGEVISOR_RUNTIME_DIR", self.runtime()).env("XDG_CACHE_HOME", self.cache());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped())
    }

    /// Runs the command with `args` to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        finish(&mut self.command(args))
    }
}

/// Runs `command` to its end.
pub fn finish(command: &mut Command) -> Output {
    output_of(command.output().unwrap())
}

/// `output` as text.
pub fn output_of(output: std::process::Output) -> Output {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Output { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}
