//! Pagevisor host side.

pub mod acpi;
pub mod boot;
pub mod cli;
pub mod config;
pub mod devices;
pub mod dump;
pub mod error;
pub mod events;
pub mod experiment;
pub mod guest;
#[cfg(test)]
mod hostile;
pub mod kvm;
pub mod layout;
mod log;
pub mod machine;
pub mod memory;
pub mod procdir;
pub mod report;
pub mod runtime;
pub mod sandbox;
pub mod state;
pub mod symbols;
pub mod topology;
pub mod tunable;
pub mod verify;
pub mod workload;
