//! The `pagevisor` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    pagevisor::cli::main()
}
