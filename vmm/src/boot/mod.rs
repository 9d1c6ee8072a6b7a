//! What lies in guest memory when the guest starts: the kernel image, and what PVH hands over.

mod elf;
mod pvh;

pub use elf::{ElfError, KernelElf, Segment};
pub use pvh::{BootError, BootPlan, CommandLine};
