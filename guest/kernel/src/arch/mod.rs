//! The processor: everything that only x86-64 has.

pub mod cpu;
pub mod mem;
pub mod port;
