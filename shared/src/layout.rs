//! The guest's address space, which is Linux's x86-64 layout with 4 levels, and the places both sides must know.

/// Direct map of all RAM (`__PAGE_OFFSET_BASE_L4`).
pub const PAGE_OFFSET: u64 = 0xffff_8880_0000_0000;
/// Start of the vmalloc area (`VMALLOC_START`).
pub const VMALLOC_START: u64 = 0xffff_c900_0000_0000;
/// Last byte of the vmalloc area (`VMALLOC_END`), 32 TiB in all.
pub const VMALLOC_END: u64 = 0xffff_e8ff_ffff_ffff;
/// The memory map: page metadata, indexed by frame number (`VMEMMAP_START`).
pub const VMEMMAP_START: u64 = 0xffff_ea00_0000_0000;
/// Kernel text mapping (`__START_KERNEL_map`).
pub const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// Physical address the kernel image is linked for (`LOAD_PHYSICAL_ADDR`): 16 MiB.
pub const KERNEL_PHYS: u64 = 16 << 20;
/// Virtual address at which the kernel maps the state region: a window of its own below the kernel text.
pub const STATE_REGION_VIRT: u64 = 0xffff_ffff_0000_0000;
/// Most bytes of that window.
pub const STATE_REGION_WINDOW: u64 = 64 << 20;
/// First address above user space (`TASK_SIZE_MAX`).
pub const TASK_SIZE_MAX: u64 = 0x7fff_ffff_f000;
