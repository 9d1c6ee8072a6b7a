//! What lies in guest memory when the guest starts: the kernel image, and what PVH hands over.

mod elf;
mod initramfs;
mod pvh;

pub use elf::{ElfError, KernelElf, Segment};
pub use initramfs::{Init, NotAProgram, check_program};
pub use pvh::{BootError, BootPlan, CommandLine};
