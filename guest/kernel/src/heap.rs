//! The heap of the kernel's own Rust: what `alloc` asks for comes from `kmalloc`.
//!
//! So a `Box` is an object of a slab cache, in `slabinfo` with all others. Memory is had as the place allows it: waiting
//! and reclaiming, or at once where interrupts are off. When there is none, the kernel panics and says how much it was
//! to be; who can go on without uses what may fail ([`pagevisor_mm::KBox`], [`pagevisor_mm::KVec`]).

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{null_mut, with_exposed_provenance_mut};

use pagevisor_mm::platform::Platform;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::VirtAddr;

use crate::arch::cpu;
use crate::platform::{KERNEL, mm};

/// `kmalloc` as Rust's allocator.
#[derive(Debug)]
struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

/// What may be done for memory here.
fn gfp() -> Gfp {
    if KERNEL.in_interrupt() { Gfp::ATOMIC_ALLOC } else { Gfp::KERNEL }
}

fn pointer(addr: Option<VirtAddr>) -> *mut u8 {
    addr.map_or(null_mut(), |addr| with_exposed_provenance_mut(addr.raw() as usize))
}

fn address(ptr: *mut u8) -> VirtAddr {
    VirtAddr::new(ptr.expose_provenance() as u64)
}

// SAFETY: `kmalloc_layout` gives memory of at least that size, at a multiple of that alignment, that nobody else has
// until it is freed; `krealloc_layout` likewise, with the content. Neither unwinds: a panic ends the machine.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        pointer(mm().and_then(|mm| mm.kmalloc_layout(layout, gfp())))
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        pointer(mm().and_then(|mm| mm.kmalloc_layout(layout, gfp() | Gfp::ZERO)))
    }

    unsafe fn dealloc(&self, ptr: *mut u8, _layout: Layout) {
        if let Some(mm) = mm() {
            mm.kfree(address(ptr));
        }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let layout = Layout::from_size_align(size, layout.align());
        let (Some(mm), Ok(layout)) = (mm(), layout) else { return null_mut() };
        pointer(mm.krealloc_layout(address(ptr), layout, gfp()))
    }
}

/// What `alloc` is compiled with, where the target is one that unwinds (guest/kernel/rustflags): its functions end in
/// this when a panic passes through them. None does here.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    cpu::invalid_instruction()
}
