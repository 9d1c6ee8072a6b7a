//! The heap of the kernel's own Rust: what `alloc` asks for comes from `kmalloc`.
//!
//! So a `Box` is an object of a slab cache, in `slabinfo` with all others. Memory is had as the place allows it: waiting
//! and reclaiming, or at once where interrupts are off.
//!
//! What is small does not fail while there is any memory at all, as in Linux, where the OOM killer makes room for it: it is
//! taken from the reserves below the watermarks, and the program for which the kernel works ends for it before it goes on
//! ([`crate::signal::oom`]). What is large (above `PAGE_ALLOC_COSTLY_ORDER`) is had page by page where no block is free, and
//! may fail: who lets programs choose sizes asks first (`try_reserve`). Where nothing is left the kernel panics and says how
//! much it was to be; who can go on without uses what may fail ([`pagevisor_mm::KBox`], [`pagevisor_mm::KVec`]).

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{copy_nonoverlapping, null_mut, with_exposed_provenance_mut};

use pagevisor_mm::page_alloc::PAGE_ALLOC_COSTLY_ORDER;
use pagevisor_mm::platform::Platform;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};

use crate::arch::cpu;
use crate::platform::{KERNEL, mm};
use crate::signal::oom;

/// `kmalloc` as Rust's allocator.
#[derive(Debug)]
struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

/// What may be done for memory here.
fn gfp() -> Gfp {
    if KERNEL.in_interrupt() { Gfp::ATOMIC_ALLOC } else { Gfp::KERNEL }
}

/// Bytes above which an allocation may fail.
const COSTLY: usize = (PAGE_SIZE as usize) << PAGE_ALLOC_COSTLY_ORDER;

/// Allocates as `flags` say beside what the place does.
fn allocate(layout: Layout, flags: Gfp) -> Option<VirtAddr> {
    let (mm, gfp) = (mm()?, gfp() | flags);
    if layout.size() > COSTLY && layout.align() <= PAGE_SIZE as usize {
        return mm.kvmalloc(layout.size(), gfp | Gfp::NOWARN);
    }
    mm.kmalloc_layout(layout, gfp | Gfp::NOWARN).or_else(|| {
        oom::blame();
        mm.kmalloc_layout(layout, gfp | Gfp::MEMALLOC)
    })
}

fn pointer(addr: Option<VirtAddr>) -> *mut u8 {
    addr.map_or(null_mut(), |addr| with_exposed_provenance_mut(addr.raw() as usize))
}

fn address(ptr: *mut u8) -> VirtAddr {
    VirtAddr::new(ptr.expose_provenance() as u64)
}

// SAFETY: `kmalloc_layout` and `kvmalloc` give memory of at least that size, at a multiple of that alignment (the latter at
// least of a page), that nobody else has until it is freed; `krealloc_layout` likewise, with the content. None unwinds: a panic
// ends the machine.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        pointer(allocate(layout, Gfp::NONE))
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        pointer(allocate(layout, Gfp::ZERO))
    }

    unsafe fn dealloc(&self, ptr: *mut u8, _layout: Layout) {
        if let Some(mm) = mm() {
            mm.kvfree(address(ptr));
        }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Ok(new) = Layout::from_size_align(size, layout.align()) else { return null_mut() };
        // Most often there is room in the object.
        if new.size().max(layout.size()) <= COSTLY
            && let Some(mm) = mm()
            && let Some(addr) = mm.krealloc_layout(address(ptr), new, gfp() | Gfp::NOWARN)
        {
            return pointer(Some(addr));
        }
        let moved = pointer(allocate(new, Gfp::NONE));
        if !moved.is_null() {
            // SAFETY: both are this heap's, of at least so many bytes, and the new one is nobody else's.
            unsafe { copy_nonoverlapping(ptr, moved, layout.size().min(size)) };
            // SAFETY: the caller gives it up, with the layout it was had with.
            unsafe { self.dealloc(ptr, layout) };
        }
        moved
    }
}

/// What `alloc` is compiled with, where the target is one that unwinds (guest/kernel/rustflags): its functions end in
/// this when a panic passes through them. None does here.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    cpu::invalid_instruction()
}
