//! Bad accesses of the kernel's own while it works for a program (`drivers/misc/lkdtm`), which ends with that. A program asks
//! for them by writing their names to `/proc/provoke-crash`, which is there with `pagevisor.test=provoke` only.

use core::ptr::with_exposed_provenance;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::errno::Errno;
use pagevisor_shared::pgtable::Entry;
use pagevisor_shared::units::PAGE_SIZE;

use crate::arch::{cpu, paging};
use crate::log::pr_info;
use crate::platform;

static ALLOWED: AtomicBool = AtomicBool::new(false);

/// The highest bit of an entry's address: no processor has so much memory that it means anything.
const RESERVED: u64 = 1 << 51;
/// Bits of a physical address at most, for that to be so.
const MAX_BITS: u32 = 51;

/// From now on programs may ask.
pub(super) fn allow() {
    ALLOWED.store(true, Relaxed);
    pr_info!("selftest: programs may provoke faults");
}

/// Whether programs may ask.
pub fn is_allowed() -> bool {
    ALLOWED.load(Relaxed)
}

/// Does what `name` says; if that is not the end of the program, it was not what it should have been.
///
/// # Errors
/// EINVAL for a name that there is not, EIO if nothing has happened.
pub fn provoke(name: &[u8]) -> Result<(), Errno> {
    match name.trim_ascii() {
        b"page-fault" => super::write_to(0xffff_c900_dead_b000),
        b"reserved" => reserved(),
        _ => return Err(Errno::EINVAL),
    }
    Err(Errno::EIO)
}

/// Reads a page whose entry has a bit set that must not be.
#[inline(never)]
fn reserved() {
    if cpu::cpuid(0x8000_0008, 0).eax & 0xff > MAX_BITS {
        return;
    }
    let Some(at) = platform::mm().and_then(|mm| mm.vmalloc(PAGE_SIZE)) else { return };
    let mut table = paging::table_at(paging::root().raw());
    for level in (1..=3).rev() {
        table = paging::table_at(Entry(table.entry(at.raw(), level).load(Relaxed)).address(0).raw());
    }
    table.entry(at.raw(), 0).fetch_or(RESERVED, Relaxed);
    cpu::invlpg(at.raw());
    let word = with_exposed_provenance::<u64>(at.raw() as usize);
    // SAFETY: the processor refuses, which is the test; otherwise it is a page that nobody else has.
    let value = unsafe { word.read_volatile() };
    pr_info!("selftest: a reserved bit was taken, and {value:#x} was read");
}
