//! Reading and writing vmalloc memory by way of the page tables and the direct map, as `/dev/kmem` did (`vread`,
//! `vwrite`): for who runs where the addresses mean nothing to the processor.

use pagevisor_shared::units::VirtAddr;

use crate::Mm;
use crate::platform::Platform;
use crate::raw::AreaBytes;

impl<P: Platform> Mm<P> {
    /// Reads the bytes at `addr`; false, with some of them read perhaps, if they are not all in an area of memory.
    pub fn vread(&self, addr: VirtAddr, to: &mut [u8]) -> bool {
        let mut rest = to;
        self.each_part(addr, rest.len(), |part| {
            let Some((now, later)) = core::mem::take(&mut rest).split_at_mut_checked(part.len()) else { return };
            part.read(now);
            rest = later;
        })
    }

    /// Writes the bytes at `addr`; false, with some of them written perhaps, if they are not all in an area of memory that
    /// [`Self::vmalloc`] or a relative gave.
    pub fn vwrite(&self, addr: VirtAddr, from: &[u8]) -> bool {
        let mut rest = from;
        self.each_part(addr, rest.len(), |part| {
            let Some((now, later)) = rest.split_at_checked(part.len()) else { return };
            part.write(now);
            rest = later;
        })
    }

    /// Calls `each` with the parts of `len` bytes at `addr`, each inside a page.
    fn each_part(&self, addr: VirtAddr, len: usize, mut each: impl FnMut(&AreaBytes<'_>)) -> bool {
        let (mut virt, mut left) = (addr.raw(), len as u64);
        while left > 0 {
            // Under the lock, so that it is not freed meanwhile; page by page, as interrupts are off.
            let busy = self.lock_busy();
            let Some(part) = AreaBytes::find(self, &busy, virt, left) else { return false };
            each(&part);
            virt += part.len() as u64;
            left -= part.len() as u64;
        }
        true
    }
}
