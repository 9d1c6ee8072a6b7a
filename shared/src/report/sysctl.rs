//! Settings: what `sysctl` prints of the ones the guest has, and fault injection's as debugfs has them.

use core::fmt::{self, Write};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use crate::gfp::Gfp;
use crate::region::RegionRef;
use crate::region::records::FaultState;

/// `sysctl vm`, as far as there are such settings here, in its order.
///
/// # Errors
/// Those of `out`.
pub fn sysctl(region: &RegionRef<'_>, out: &mut dyn Write) -> fmt::Result {
    let settings = region.sysctl();
    let get = |word: &AtomicU32| word.load(Relaxed);
    out.write_str("vm.lowmem_reserve_ratio = ")?;
    for (place, ratio) in settings.lowmem_reserve_ratio.iter().enumerate() {
        write!(out, "{}{}", if place == 0 { "" } else { "\t" }, get(ratio))?;
    }
    writeln!(out, "\nvm.max_map_count = {}", get(&settings.max_map_count))?;
    writeln!(out, "vm.min_free_kbytes = {}", settings.min_free_kbytes.load(Relaxed))?;
    writeln!(out, "vm.mmap_min_addr = {}", settings.mmap_min_addr.load(Relaxed))?;
    // There is one order left.
    writeln!(out, "vm.numa_zonelist_order = Node")?;
    writeln!(out, "vm.overcommit_kbytes = {}", settings.overcommit_kbytes.load(Relaxed))?;
    let rest = [
        ("overcommit_memory", &settings.overcommit_memory),
        ("overcommit_ratio", &settings.overcommit_ratio),
        ("percpu_pagelist_high_fraction", &settings.percpu_pagelist_high_fraction),
        ("watermark_boost_factor", &settings.watermark_boost_factor),
        ("watermark_scale_factor", &settings.watermark_scale_factor),
        ("zone_reclaim_mode", &settings.zone_reclaim_mode),
    ];
    rest.iter().try_for_each(|(name, word)| writeln!(out, "vm.{name} = {}", get(word)))
}

/// Flags as text, whatever they are.
struct Flags(u32);

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Gfp::from_bits(self.0) {
            Some(gfp) => write!(f, "{:#x}({gfp})", self.0),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

/// `/sys/kernel/debug/fail_page_alloc`, a line for each of its files; then what Linux does not have: the flags that an
/// allocation needs in order to fail, the N-th allocation that fails (how many from now, of which CPU), and how many
/// allocations were looked at and failed.
///
/// # Errors
/// Those of `out`.
pub fn fail_page_alloc(region: &RegionRef<'_>, out: &mut dyn Write) -> fmt::Result {
    fault(&region.sysctl().fail_page_alloc, true, out)
}

/// `/sys/kernel/debug/failslab`, as [`fail_page_alloc`].
///
/// # Errors
/// Those of `out`.
pub fn failslab(region: &RegionRef<'_>, out: &mut dyn Write) -> fmt::Result {
    fault(&region.sysctl().failslab, false, out)
}

/// The files in their order: those of pages, or of objects, and those of both.
fn fault(state: &FaultState, pages: bool, out: &mut dyn Write) -> fmt::Result {
    let get = |word: &AtomicU32| word.load(Relaxed);
    let yes = |word: &AtomicU32| if get(word) == 0 { 'N' } else { 'Y' };
    if pages {
        writeln!(out, "ignore-gfp-highmem {}", yes(&state.ignore_gfp_highmem))?;
    } else {
        writeln!(out, "cache-filter       {}", yes(&state.cache_filter))?;
    }
    writeln!(out, "ignore-gfp-wait    {}", yes(&state.ignore_gfp_reclaim))?;
    writeln!(out, "interval           {}", get(&state.interval))?;
    if pages {
        writeln!(out, "min-order          {}", get(&state.min_order))?;
    }
    writeln!(out, "probability        {}", get(&state.probability))?;
    writeln!(out, "space              {}", state.space.load(Relaxed))?;
    writeln!(out, "times              {}", get(&state.times).cast_signed())?;
    writeln!(out, "gfp                {}", Flags(get(&state.gfp)))?;
    writeln!(out, "nth                {}", state.nth.load(Relaxed))?;
    match get(&state.nth_cpu) {
        u32::MAX => writeln!(out, "nth-cpu            any")?,
        cpu => writeln!(out, "nth-cpu            {cpu}")?,
    }
    if pages {
        writeln!(out, "nth-min-order      {}", get(&state.nth_min_order))?;
    }
    writeln!(out, "nth-gfp            {}", Flags(get(&state.nth_gfp)))?;
    writeln!(out, "looked-at          {}", state.looked_at.load(Relaxed))?;
    writeln!(out, "failed             {}", state.failed.load(Relaxed))
}
