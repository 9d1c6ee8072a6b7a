//! The content of what was allocated.
//!
//! The promise it rests on: whoever makes an [`Owned`] was given that much memory at that address by `kmalloc`, a slab
//! cache, `vmalloc`, the page allocator or the per-CPU allocator, has not given it back as long as it uses the value, and
//! lets nobody else use it meanwhile.

use pagevisor_shared::units::{PhysAddr, VirtAddr};

use crate::Mm;
use crate::platform::Platform;

/// Memory of somebody's own: so many bytes at an address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owned {
    addr: VirtAddr,
    len: u64,
}

impl Owned {
    /// `len` bytes at `addr`, which are the caller's.
    pub(crate) fn new(addr: VirtAddr, len: u64) -> Self {
        Self { addr, len }
    }

    /// Bytes.
    pub(crate) fn len(self) -> u64 {
        self.len
    }

    /// Physical address of byte `offset`, and how many bytes follow it there, at most `left`. Addresses of the vmalloc
    /// space are looked up, for who runs where they mean nothing to the processor.
    #[inline]
    fn at<P: Platform>(self, mm: &Mm<P>, offset: u64, left: usize) -> Option<(PhysAddr, usize)> {
        let addr = VirtAddr::new(self.addr.raw() + offset);
        if !Mm::<P>::is_vmalloc_addr(addr) {
            let base = mm.direct_map().base().addr().get() as u64;
            return Some((PhysAddr::new(addr.raw().wrapping_sub(base)), left));
        }
        let mapping = mm.walk_kernel(addr)?;
        Some((mapping.phys, mapping.rest.min(left as u64) as usize))
    }

    /// How many of `len` bytes from `offset` on there are.
    fn within(self, offset: u64, len: usize) -> usize {
        self.len.saturating_sub(offset).min(len as u64) as usize
    }

    /// Reads bytes from `offset` on; those behind the end are left as they are.
    pub(crate) fn read<P: Platform>(self, mm: &Mm<P>, mut offset: u64, to: &mut [u8]) {
        let len = self.within(offset, to.len());
        let mut rest = &mut to[..len];
        while let Some((phys, now)) = self.at(mm, offset, rest.len()).filter(|(_, now)| *now != 0) {
            let (part, later) = rest.split_at_mut(now);
            // SAFETY: memory that the caller owns (promise of this room), inside its bounds.
            unsafe { mm.direct_map().copy_to(phys, part) };
            rest = later;
            offset += now as u64;
            if rest.is_empty() {
                return;
            }
        }
    }

    /// Writes bytes from `offset` on, as far as there is room.
    pub(crate) fn write<P: Platform>(self, mm: &Mm<P>, mut offset: u64, from: &[u8]) {
        let mut rest = &from[..self.within(offset, from.len())];
        while let Some((phys, now)) = self.at(mm, offset, rest.len()).filter(|(_, now)| *now != 0) {
            let (part, later) = rest.split_at(now);
            // SAFETY: as in `read`.
            unsafe { mm.direct_map().copy_in(phys, part) };
            rest = later;
            offset += now as u64;
            if rest.is_empty() {
                return;
            }
        }
    }

    /// The word at `offset`.
    pub(crate) fn word<P: Platform>(self, mm: &Mm<P>, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read(mm, offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Writes the word at `offset`.
    pub(crate) fn set_word<P: Platform>(self, mm: &Mm<P>, offset: u64, word: u64) {
        self.write(mm, offset, &word.to_le_bytes());
    }
}
