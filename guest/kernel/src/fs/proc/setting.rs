//! `/proc/sys/vm`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::errno::Errno;

use crate::{platform, region, sysctl};

macro_rules! settings {
    ($($name:ident = $text:literal, $rights:literal;)*) => {
        /// A setting.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[allow(missing_docs, reason = "named as the files are")]
        pub enum Setting { $($name),* }

        impl Setting {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The file's name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// Who may do what.
            pub const fn rights(self) -> u32 {
                match self { $(Self::$name => $rights),* }
            }
        }
    };
}

settings! {
    DropCaches = "drop_caches", 0o200;
    LowmemReserveRatio = "lowmem_reserve_ratio", 0o644;
    MaxMapCount = "max_map_count", 0o644;
    MinFreeKbytes = "min_free_kbytes", 0o644;
    MmapMinAddr = "mmap_min_addr", 0o644;
    NumaZonelistOrder = "numa_zonelist_order", 0o644;
    OvercommitKbytes = "overcommit_kbytes", 0o644;
    OvercommitMemory = "overcommit_memory", 0o644;
    OvercommitRatio = "overcommit_ratio", 0o644;
    PercpuPagelistHighFraction = "percpu_pagelist_high_fraction", 0o644;
    WatermarkBoostFactor = "watermark_boost_factor", 0o644;
    WatermarkScaleFactor = "watermark_scale_factor", 0o644;
    ZoneReclaimMode = "zone_reclaim_mode", 0o644;
}

impl Setting {
    /// The value, and a line feed.
    ///
    /// # Errors
    /// EINVAL for what is only written.
    pub fn text(self) -> Result<Vec<u8>, Errno> {
        let region = region::get().ok_or(Errno::EIO)?;
        let now = region.sysctl();
        let number = match self {
            Self::DropCaches => return Err(Errno::EINVAL),
            Self::NumaZonelistOrder => return Ok(Vec::from(b"Node\n")),
            Self::LowmemReserveRatio => {
                let ratios = now.lowmem_reserve_ratio.iter().map(|ratio| format!("{}", ratio.load(Relaxed)));
                let ratios: Vec<String> = ratios.collect();
                return Ok(format!("{}\n", ratios.join("\t")).into_bytes());
            }
            Self::MinFreeKbytes => now.min_free_kbytes.load(Relaxed),
            Self::MmapMinAddr => now.mmap_min_addr.load(Relaxed),
            Self::OvercommitKbytes => now.overcommit_kbytes.load(Relaxed),
            Self::MaxMapCount => now.max_map_count.load(Relaxed).into(),
            Self::OvercommitMemory => now.overcommit_memory.load(Relaxed).into(),
            Self::OvercommitRatio => now.overcommit_ratio.load(Relaxed).into(),
            Self::PercpuPagelistHighFraction => now.percpu_pagelist_high_fraction.load(Relaxed).into(),
            Self::WatermarkBoostFactor => now.watermark_boost_factor.load(Relaxed).into(),
            Self::WatermarkScaleFactor => now.watermark_scale_factor.load(Relaxed).into(),
            Self::ZoneReclaimMode => now.zone_reclaim_mode.load(Relaxed).into(),
        };
        Ok(format!("{number}\n").into_bytes())
    }

    /// Makes the setting.
    ///
    /// # Errors
    /// EPERM for what programs may not change, EINVAL for a value that makes no sense.
    pub fn write(self, from: &[u8]) -> Result<(), Errno> {
        // That takes CAP_SYS_RAWIO, which nobody has (`mmap_min_addr_handler`).
        if self == Self::MmapMinAddr {
            return Err(Errno::EPERM);
        }
        let value = core::str::from_utf8(from).map_err(|_| Errno::EINVAL)?.trim();
        let (mm, region) = (platform::mm().ok_or(Errno::EIO)?, region::get().ok_or(Errno::EIO)?);
        sysctl::write(mm, region, self.name(), value).map_err(|_| Errno::EINVAL)
    }
}
