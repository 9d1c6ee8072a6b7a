//! `sysctl.vm.NAME=VALUE` on the command line: settings that are made when everything is up, as Linux makes them before
//! it starts the first program (`do_sysctl_args`).

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::Mm;
use pagevisor_shared::region::RegionRef;
use pagevisor_shared::zone::MAX_NR_ZONES;

use crate::log::pr_err;
use crate::platform::Kernel;

/// What names a setting of the memory stack. Linux takes a slash for the dot as well.
const PREFIXES: [&str; 2] = ["sysctl.vm.", "sysctl.vm/"];

/// Why a setting was not made.
#[derive(Clone, Copy, Debug)]
pub enum Refused {
    /// There is no such setting.
    Unknown,
    /// The value makes no sense.
    Invalid,
}

/// Makes the settings that `line` asks for. One that cannot be made is complained about in the log.
pub fn apply(mm: &Mm<Kernel>, region: &RegionRef<'_>, line: &str) {
    for word in words(line) {
        let Some((name, value)) = word.split_once('=') else { continue };
        let Some(setting) = PREFIXES.into_iter().find_map(|prefix| name.strip_prefix(prefix)) else { continue };
        let value = value.trim_matches('"');
        let reason = match write(mm, region, setting, value) {
            Ok(()) => continue,
            Err(Refused::Unknown) => "parameter not found",
            Err(Refused::Invalid) => "invalid value",
        };
        pr_err!("Failed to set sysctl parameter 'vm.{setting}={value}': {reason}");
    }
}

/// Makes a setting (`/proc/sys/vm/NAME`).
///
/// # Errors
/// There is none of this name, or not with this value.
pub fn write(mm: &Mm<Kernel>, region: &RegionRef<'_>, setting: &str, value: &str) -> Result<(), Refused> {
    let number = || value.trim().parse::<u32>().map_err(|_| Refused::Invalid);
    // Linux has an `unsigned long` for these.
    let wide =
        |set: fn(&Mm<Kernel>, u64)| value.trim().parse().map(|number| set(mm, number)).map_err(|_| Refused::Invalid);
    let result = match setting {
        "min_free_kbytes" => mm.set_min_free_kbytes(number()?),
        "watermark_scale_factor" => mm.set_watermark_scale_factor(number()?),
        "watermark_boost_factor" => mm.set_watermark_boost_factor(number()?),
        "drop_caches" => mm.set_drop_caches(number()?),
        "zone_reclaim_mode" => mm.set_zone_reclaim_mode(number()?),
        "percpu_pagelist_high_fraction" => mm.set_percpu_pagelist_high_fraction(number()?),
        "lowmem_reserve_ratio" => mm.set_lowmem_reserve_ratio(ratios(region, value)?),
        "overcommit_memory" => mm.set_overcommit_memory(number()?),
        "overcommit_ratio" => mm.set_overcommit_ratio(number()?),
        "max_map_count" => mm.set_max_map_count(number()?),
        "overcommit_kbytes" => return wide(Mm::set_overcommit_kbytes),
        "mmap_min_addr" => return wide(Mm::set_mmap_min_addr),
        "numa_zonelist_order" => return mm.set_numa_zonelist_order(value).map_err(|_| Refused::Invalid),
        _ => return Err(Refused::Unknown),
    };
    result.map_err(|_| Refused::Invalid)
}

/// The ratios with those in `value` in place of the first ones.
fn ratios(region: &RegionRef<'_>, value: &str) -> Result<[u32; MAX_NR_ZONES], Refused> {
    let mut ratios = [0; MAX_NR_ZONES];
    for (ratio, now) in ratios.iter_mut().zip(&region.sysctl().lowmem_reserve_ratio) {
        *ratio = now.load(Relaxed);
    }
    let mut slots = ratios.iter_mut();
    for number in value.split_ascii_whitespace() {
        let slot = slots.next().ok_or(Refused::Invalid)?;
        *slot = number.parse().map_err(|_| Refused::Invalid)?;
    }
    Ok(ratios)
}

/// The words of a command line; quotes keep blanks together.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let words = line.split(move |character: char| {
        quoted ^= character == '"';
        character.is_ascii_whitespace() && !quoted
    });
    words.filter(|word| !word.is_empty())
}
