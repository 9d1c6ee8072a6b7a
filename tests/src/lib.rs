//! What the tests share: running `pagevisor` as a user does, and reading back what it prints.

pub mod command;
