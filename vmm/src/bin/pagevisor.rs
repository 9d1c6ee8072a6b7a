//! The pagevisor command.
fn main() {}
