//! Programs that guests run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::command::{Output, pagevisor, run};

/// A program, which a build script has built into the test.
#[derive(Debug)]
pub struct Program {
    name: &'static str,
    bytes: &'static [u8],
    path: OnceLock<PathBuf>,
}

impl Program {
    /// The program with these bytes.
    pub const fn new(name: &'static str, bytes: &'static [u8]) -> Self {
        Self { name, bytes, path: OnceLock::new() }
    }

    /// The program, as a file.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn path(&self) -> &str {
        let path = self.path.get_or_init(|| {
            let directory = std::env::temp_dir().join(format!("pagevisor-programs-{}", std::process::id()));
            fs::create_dir_all(&directory).expect("a directory");
            let path = directory.join(self.name);
            fs::write(&path, self.bytes).expect("the program is written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it may be executed");
            path
        });
        path.to_str().expect("a path of text")
    }

    /// Runs it with `args` as the first program of a guest.
    pub fn run(&self, args: &[&str]) -> Output {
        self.run_with(&[], args)
    }

    /// As [`Self::run`], with more arguments for `pagevisor run`.
    pub fn run_with(&self, more: &[&str], args: &[&str]) -> Output {
        let mut all = vec!["run", "--timeout", "100", "--console", "--init", self.path()];
        all.extend(more);
        all.push("--");
        all.extend(args);
        run(&mut pagevisor(all))
    }
}
