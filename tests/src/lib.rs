//! What the tests share: running `pagevisor` as a user does, reading back what it prints, and Linux's own arithmetic
//! to compare with.

pub mod check;
pub mod command;
pub mod company;
pub mod guest;
pub mod linux;
pub mod process;
pub mod program;
pub mod views;
