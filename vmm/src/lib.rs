//! Pagevisor host side.

pub mod acpi;
pub mod config;
pub mod layout;
pub mod runtime;
pub mod topology;
