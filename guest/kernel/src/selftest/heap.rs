//! The kernel's own heap: values of all kinds, each where and what it should be, and all memory back in the end.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::hint::black_box;

use pagevisor_mm::Mm;
use pagevisor_shared::units::VirtAddr;

use crate::arch::cpu;
use crate::log::{pr_err, pr_info};
use crate::platform::{self, Kernel};

/// More of an alignment than slabs have by themselves.
#[repr(align(512))]
struct Aligned([u8; 600]);

/// Uses the heap in various ways.
#[inline(never)]
pub fn run() {
    let Some(mm) = platform::mm() else { return };
    match checks(mm) {
        Ok(()) => pr_info!("selftest: heap ok"),
        Err(why) => pr_err!("selftest: heap failed: {why}"),
    }
}

/// The name of the cache that a value lies in, and the bytes it may use.
fn home<T>(mm: &Mm<Kernel>, at: *const T) -> (Option<String>, usize) {
    let addr = VirtAddr::new(at.addr() as u64);
    (mm.virt_to_cache(addr).map(|cache| format!("{}", cache.name())), mm.ksize(addr))
}

fn checks(mm: &Mm<Kernel>) -> Result<(), &'static str> {
    let small = Box::new(0x1234_5678_u64);
    if home(mm, &raw const *small) != (Some("kmalloc-8".into()), 8) {
        return Err("a box of eight bytes is no object of kmalloc-8");
    }
    let aligned = Box::new(Aligned([7; 600]));
    if !(&raw const *aligned).addr().is_multiple_of(512) || aligned.0[599] != 7 {
        return Err("a box is not aligned");
    }
    let mut list = Vec::new();
    for number in 0..3000_u32 {
        list.push(number);
    }
    if home(mm, list.as_ptr()) != (None, 16 << 10) || !list.iter().copied().eq(0..3000) {
        return Err("a vector of 16 KiB is no block of pages, or lost its content as it grew");
    }
    list.truncate(40);
    list.shrink_to_fit();
    if !list.iter().copied().eq(0..40) {
        return Err("a vector lost its content as it shrank");
    }
    let names: BTreeMap<_, _> = (0..50).rev().map(|number| (format!("name {number:02}"), number)).collect();
    if !names.values().copied().eq(0..50) || names.get("name 17") != Some(&17) {
        return Err("a map is out of order");
    }
    let flags = cpu::irq_save();
    let atomic = Box::try_from(Vec::from([1_u8; 200]).into_boxed_slice()).map(|bytes: Box<[u8; 200]>| bytes[199]);
    cpu::irq_restore(flags);
    if atomic != Ok(1) {
        return Err("there is nothing where interrupts are off");
    }
    if Vec::<u8>::new().try_reserve(1 << 40).is_ok() {
        return Err("there is more memory than there is");
    }
    Ok(())
}

/// Asks for more than there can be, from where nobody expects that to fail.
#[inline(never)]
pub fn exhaust() {
    let much = Vec::<u64>::with_capacity(black_box(1 << 30));
    pr_err!("selftest: there are {} bytes", 8 * much.capacity());
}
