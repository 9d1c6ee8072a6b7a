//! Settings of address spaces that can be changed while the machine runs (`/proc/sys/vm`).

use super::account::OVERCOMMIT_NEVER;
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;
use crate::zone::settings::{BadSetting, INT_MAX, checked};

impl<P: Platform> Mm<P> {
    /// Sets how much memory programs may be promised (`vm.overcommit_memory`): 0 for as much as is plausible, 1 for any
    /// amount, 2 for no more than the limit. What was promised stays.
    ///
    /// # Errors
    /// [`BadSetting`] for another value.
    pub fn set_overcommit_memory(&self, mode: u32) -> Result<(), BadSetting> {
        let mode = checked("overcommit_memory", mode, 0, OVERCOMMIT_NEVER)?;
        self.change(|| self.region.sysctl().overcommit_memory.set(mode));
        Ok(())
    }

    /// Sets the percentage of RAM that may be promised in mode 2 (`vm.overcommit_ratio`); it holds from now on, and not an
    /// amount in KiB (`overcommit_ratio_handler`).
    ///
    /// # Errors
    /// [`BadSetting`] for a value that is no Linux `int`.
    pub fn set_overcommit_ratio(&self, percent: u32) -> Result<(), BadSetting> {
        let percent = checked("overcommit_ratio", percent, 0, INT_MAX)?;
        self.change(|| {
            self.region.sysctl().overcommit_ratio.set(percent);
            self.region.sysctl().overcommit_kbytes.set(0);
        });
        Ok(())
    }

    /// Sets the KiB that may be promised in mode 2 (`vm.overcommit_kbytes`); they hold from now on, and no percentage
    /// (`overcommit_kbytes_handler`).
    pub fn set_overcommit_kbytes(&self, kbytes: u64) {
        self.change(|| {
            self.region.sysctl().overcommit_kbytes.set(kbytes);
            self.region.sysctl().overcommit_ratio.set(0);
        });
    }

    /// Sets how many areas a program may have (`vm.max_map_count`). Those it has stay.
    ///
    /// # Errors
    /// [`BadSetting`] for a value that is no Linux `int`.
    pub fn set_max_map_count(&self, areas: u32) -> Result<(), BadSetting> {
        let areas = checked("max_map_count", areas, 0, INT_MAX)?;
        self.change(|| self.region.sysctl().max_map_count.set(areas));
        Ok(())
    }

    /// Sets the lowest address that programs may map (`vm.mmap_min_addr`). What is mapped stays.
    pub fn set_mmap_min_addr(&self, addr: u64) {
        self.change(|| self.region.sysctl().mmap_min_addr.set(addr));
    }
}
