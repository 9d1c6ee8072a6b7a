//! Settings that can be changed while the machine runs (`/proc/sys/vm`): what each accepts, and what follows from it.
//!
//! They are kept in the region's [`Sysctl`](pagevisor_shared::region::records::Sysctl), where the host reads them. One
//! CPU at a time changes them.

use core::fmt;
use core::sync::atomic::{AtomicI64, AtomicU32};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::vmstat::VmEvent;
use pagevisor_shared::zone::MAX_NR_ZONES;

use super::watermark;
use crate::Mm;
use crate::platform::{Level, Platform, Running};
use crate::sync::{self, Plain};

/// The smallest `percpu_pagelist_high_fraction` but 0 (`MIN_PERCPU_PAGELIST_HIGH_FRACTION`).
pub const MIN_PERCPU_PAGELIST_HIGH_FRACTION: u32 = 8;
/// The largest `watermark_scale_factor`.
pub const MAX_WATERMARK_SCALE_FACTOR: u32 = 3000;
/// Settings are Linux's `int`.
pub(crate) const INT_MAX: u32 = i32::MAX as u32;

/// A value that a setting does not accept (`EINVAL`). The setting is what it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadSetting {
    /// The setting.
    pub name: &'static str,
    /// The value.
    pub value: u32,
}

impl fmt::Display for BadSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be {}", self.name, self.value)
    }
}

impl core::error::Error for BadSetting {}

/// What `vm.numa_zonelist_order` reads as.
pub const NUMA_ZONELIST_ORDER: &str = "Node";

/// An order of zonelists that does not exist any more (`EINVAL`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadZonelistOrder;

impl fmt::Display for BadZonelistOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("zonelists are in order of nodes only")
    }
}

impl core::error::Error for BadZonelistOrder {}

/// Passes a value on if it is between `low` and `high` (`proc_dointvec_minmax`).
pub(crate) const fn checked(name: &'static str, value: u32, low: u32, high: u32) -> Result<u32, BadSetting> {
    if low <= value && value <= high { Ok(value) } else { Err(BadSetting { name, value }) }
}

/// What the settings need beside their values.
#[derive(Debug)]
pub(crate) struct Settings {
    lock: AtomicU32,
    /// The `min_free_kbytes` somebody asked for (`user_min_free_kbytes`); -1 for none.
    user_min_free_kbytes: AtomicI64,
    /// Not 0 if nobody wants to know of dropped caches any more.
    drop_silently: AtomicU32,
}

impl Settings {
    /// All as at boot.
    pub(crate) const fn new() -> Self {
        Self { lock: AtomicU32::new(0), user_min_free_kbytes: AtomicI64::new(-1), drop_silently: AtomicU32::new(0) }
    }
}

impl<P: Platform> Mm<P> {
    /// Changes settings, alone.
    pub(crate) fn change<R>(&self, work: impl FnOnce() -> R) -> R {
        sync::lock(&self.settings.lock, || self.platform.relax());
        let result = work();
        sync::unlock(&self.settings.lock);
        result
    }

    /// Works `min_free_kbytes` out anew from the zones' sizes, and all that follows from it (`init_per_zone_wmark_min`).
    /// To be called when the zones' sizes have changed. What [`Self::set_min_free_kbytes`] has set stays, unless more is
    /// needed.
    pub fn recompute_reserves(&self) {
        self.change(|| {
            self.calculate_min_free_kbytes();
            self.setup_per_zone_wmarks();
            self.refresh_zone_stat_thresholds();
            self.setup_per_zone_lowmem_reserve();
        });
    }

    /// `calculate_min_free_kbytes`.
    fn calculate_min_free_kbytes(&self) {
        let pages = self.nr_free_zone_pages(Gfp::USER.zone());
        // Compared before it is clamped.
        let wanted = watermark::int_sqrt(pages * 4 * 16);
        let user = self.settings.user_min_free_kbytes.get();
        if wanted as i64 > user {
            self.region.sysctl().min_free_kbytes.set(watermark::calculate_min_free_kbytes(pages));
        } else {
            let line = format_args!(
                "min_free_kbytes is not updated to {wanted} because user defined value {user} is preferred"
            );
            self.platform.log(Level::Warning, line);
        }
    }

    /// Sets the KiB kept free for emergencies (`vm.min_free_kbytes`). Any Linux `int` not below 0 will do; nobody keeps
    /// the caller from reserving all there is.
    ///
    /// # Errors
    /// [`BadSetting`] for another value.
    pub fn set_min_free_kbytes(&self, kbytes: u32) -> Result<(), BadSetting> {
        let kbytes = checked("min_free_kbytes", kbytes, 0, INT_MAX)?;
        self.change(|| {
            self.settings.user_min_free_kbytes.set(kbytes as i64);
            self.region.sysctl().min_free_kbytes.set(kbytes as u64);
            self.setup_per_zone_wmarks();
        });
        Ok(())
    }

    /// Sets the distance between watermarks in 1/10000 of a zone (`vm.watermark_scale_factor`), 1 to 3000.
    ///
    /// # Errors
    /// [`BadSetting`] for another value.
    pub fn set_watermark_scale_factor(&self, factor: u32) -> Result<(), BadSetting> {
        let factor = checked("watermark_scale_factor", factor, 1, MAX_WATERMARK_SCALE_FACTOR)?;
        self.change(|| {
            self.region.sysctl().watermark_scale_factor.set(factor);
            self.setup_per_zone_wmarks();
        });
        Ok(())
    }

    /// Sets how far stealing from another migrate type may raise the watermarks (`vm.watermark_boost_factor`), in
    /// 1/10000 of the high watermark; 0 for not at all. A boost that is in effect stays.
    ///
    /// # Errors
    /// [`BadSetting`] for a value that is no Linux `int`.
    pub fn set_watermark_boost_factor(&self, factor: u32) -> Result<(), BadSetting> {
        let factor = checked("watermark_boost_factor", factor, 0, INT_MAX)?;
        self.change(|| self.region.sysctl().watermark_boost_factor.set(factor));
        Ok(())
    }

    /// Sets the ratios of what zones keep from allocations that could have used a higher one, by zone type
    /// (`vm.lowmem_reserve_ratio`); 0 for nothing.
    ///
    /// # Errors
    /// [`BadSetting`] when one is no Linux `int`.
    pub fn set_lowmem_reserve_ratio(&self, ratios: [u32; MAX_NR_ZONES]) -> Result<(), BadSetting> {
        for ratio in ratios {
            checked("lowmem_reserve_ratio", ratio, 0, INT_MAX)?;
        }
        self.change(|| {
            for (slot, ratio) in self.region.sysctl().lowmem_reserve_ratio.iter().zip(ratios) {
                slot.set(ratio);
            }
            self.setup_per_zone_lowmem_reserve();
        });
        Ok(())
    }

    /// Sets whether a node is reclaimed before its neighbours are asked (`vm.zone_reclaim_mode`): 1 to reclaim, 2 and 4
    /// for how; 0 for not at all. Nothing follows before an allocation looks at it.
    ///
    /// # Errors
    /// [`BadSetting`] for a value that is no Linux `int`.
    pub fn set_zone_reclaim_mode(&self, mode: u32) -> Result<(), BadSetting> {
        let mode = checked("zone_reclaim_mode", mode, 0, INT_MAX)?;
        self.change(|| self.region.sysctl().zone_reclaim_mode.set(mode));
        Ok(())
    }

    /// Drops what can be had again (`vm.drop_caches`, `drop_caches_sysctl_handler`): 1 for what is cached of files, of
    /// which there is nothing, 2 for objects of slabs, 3 for both. 4 drops nothing, but says that the log need not tell
    /// of it from now on. Not from interrupts.
    ///
    /// # Errors
    /// [`BadSetting`] for another value.
    pub fn set_drop_caches(&self, value: u32) -> Result<(), BadSetting> {
        let value = checked("drop_caches", value, 1, 4)?;
        if value & 1 != 0 {
            self.count_vm_events(VmEvent::DropPagecache, 1);
        }
        if value & 2 != 0 {
            self.drop_slab();
            self.count_vm_events(VmEvent::DropSlab, 1);
        }
        if self.settings.drop_silently.get() == 0 {
            let Running { pid, comm } = self.platform.current();
            self.platform.log(Level::Info, format_args!("{comm} ({pid}): drop_caches: {value}"));
        }
        if value & 4 != 0 {
            self.settings.drop_silently.set(1);
        }
        Ok(())
    }

    /// Sets the order of zonelists (`vm.numa_zonelist_order`). There is one left: by node. Its name and `default` are
    /// accepted, or what begins like them, and change nothing (`__parse_numa_zonelist_order`).
    ///
    /// # Errors
    /// [`BadZonelistOrder`] for another value.
    pub fn set_numa_zonelist_order(&self, order: &str) -> Result<(), BadZonelistOrder> {
        if matches!(order.as_bytes().first(), Some(b'd' | b'D' | b'n' | b'N')) {
            return Ok(());
        }
        let line = format_args!("Ignoring unsupported numa_zonelist_order value:  {order}");
        self.platform.log(Level::Warning, line);
        Err(BadZonelistOrder)
    }

    /// Sets the fraction of a zone that pagesets may hold together (`vm.percpu_pagelist_high_fraction`): 8 or more for
    /// an eighth or less, 0 for as much as is between the zone's watermarks.
    ///
    /// # Errors
    /// [`BadSetting`] for 1 to 7, and for a value that is no Linux `int`.
    pub fn set_percpu_pagelist_high_fraction(&self, fraction: u32) -> Result<(), BadSetting> {
        if fraction != 0 {
            checked("percpu_pagelist_high_fraction", fraction, MIN_PERCPU_PAGELIST_HIGH_FRACTION, INT_MAX)?;
        }
        self.change(|| {
            let setting = &self.region.sysctl().percpu_pagelist_high_fraction;
            if setting.get() != fraction {
                setting.set(fraction);
                self.setup_pagesets();
            }
        });
        Ok(())
    }
}
