//! Caches that watch their objects: red zones, poison, last users (`cache_alloc_debugcheck_after`,
//! `cache_free_debugcheck`).
//!
//! The gates of such a cache's arrays are shut for good (see `watch`), so every allocation and free comes by here. A poisoned cache
//! keeps no list in its free objects, which Linux does and repairs afterwards.

use core::fmt;
use core::sync::atomic::AtomicU8;

use pagevisor_shared::slab::{POISON_END, POISON_FREE, POISON_INUSE, RED_ACTIVE, RED_INACTIVE, SlabFlags};
use pagevisor_shared::units::VirtAddr;

use super::Cache;
use super::page::SlabPage;
use crate::Mm;
use crate::platform::{Level, Platform};
use crate::raw::construct;
use crate::sync::Plain;

/// Lines of a damaged object that are printed.
const MAX_LINES: usize = 6;
/// Lines of an object beside it.
const NEIGHBOUR_LINES: usize = 2;
/// Bytes of a line.
const LINE: usize = 16;

/// Bytes as `print_hex_dump` writes them.
struct Hex<'a>(&'a [AtomicU8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            write!(f, "{}{:02x}", if at == 0 { "" } else { " " }, byte.get())?;
        }
        // What is written stands under what is written, however short the line.
        write!(f, "{:1$}", "", 2 + 3 * (LINE - self.0.len()))?;
        for byte in self.0 {
            let byte = byte.get();
            write!(f, "{}", if byte.is_ascii_graphic() || byte == b' ' { byte as char } else { '.' })?;
        }
        Ok(())
    }
}

/// Places beside an object.
#[derive(Clone, Copy)]
struct Beside {
    /// `dbg_redzone1`, `dbg_redzone2`; 0 without red zones.
    zones: [u64; 2],
    /// `dbg_userword`; 0 without.
    user: u64,
}

impl Beside {
    fn of(cache: Cache, object: VirtAddr) -> Self {
        let (record, flags) = (cache.record(), cache.flags());
        let end = object.raw() - record.obj_offset.get() as u64 + record.size.get() as u64;
        let user = if flags.contains(SlabFlags::STORE_USER) { end - 8 } else { 0 };
        let behind = if user == 0 { end - 8 } else { end - 16 };
        let zones = if flags.contains(SlabFlags::RED_ZONE) { [object.raw() - 8, behind] } else { [0, 0] };
        Self { zones, user }
    }
}

impl<P: Platform> Mm<P> {
    /// Makes all objects of a new slab free ones (`cache_init_objs_debug`).
    pub(super) fn debug_init(&self, cache: Cache, slab: &SlabPage) {
        for number in 0..slab.num() {
            let object = slab.object(number);
            self.write_beside(cache, object, RED_INACTIVE, 0);
            if cache.flags().contains(SlabFlags::POISON) {
                self.poison(cache, object, POISON_FREE);
            }
        }
    }

    fn write_beside(&self, cache: Cache, object: VirtAddr, zone: u64, user: u64) {
        let beside = Beside::of(cache, object);
        for place in beside.zones.into_iter().filter(|place| *place != 0) {
            self.slab_memory().words(place, 1)[0].set(zone);
        }
        if beside.user != 0 {
            self.slab_memory().words(beside.user, 1)[0].set(user);
        }
    }

    /// `poison_obj`.
    fn poison(&self, cache: Cache, object: VirtAddr, byte: u8) {
        let size = cache.record().object_size.get() as usize;
        self.slab_memory().fill(object, size, byte);
        self.slab_memory().byte(object.raw() + size as u64 - 1).set(POISON_END);
    }

    /// An object is about to be handed out (`cache_alloc_debugcheck_after`).
    #[cold]
    pub(super) fn debug_alloc(&self, cache: Cache, object: VirtAddr) {
        let flags = cache.flags();
        if flags.contains(SlabFlags::POISON) {
            self.check_poison_obj(cache, object);
            self.poison(cache, object, POISON_INUSE);
        }
        if let Some(zones) = self.red_zones(cache, object)
            && zones != [RED_INACTIVE; 2]
        {
            let what = format_args!("double free, or memory outside object was overwritten");
            self.slab_error(cache, "cache_alloc_debugcheck_after", what);
            self.print_zones(cache, object, zones);
        }
        self.write_beside(cache, object, RED_ACTIVE, self.platform.caller());
        let ctor = cache.record().ctor.get();
        if ctor != 0 && flags.contains(SlabFlags::POISON) {
            construct(ctor, object);
        }
    }

    /// An object is about to be taken back; tells whether it may be (`cache_free_debugcheck`).
    #[cold]
    pub(super) fn debug_free(&self, cache: Cache, object: VirtAddr) -> bool {
        let slab = self.virt_to_slab(object).map(|(pfn, _)| self.slab_page(cache, pfn));
        if slab.and_then(|slab| slab.number(object.raw())).is_none() {
            self.bad_object(cache, object);
            return false;
        }
        if let Some(zones) = self.red_zones(cache, object)
            && zones != [RED_ACTIVE; 2]
        {
            let twice = zones == [RED_INACTIVE; 2];
            let what = if twice { "double free detected" } else { "memory outside object was overwritten" };
            self.slab_error(cache, "verify_redzone_free", format_args!("{what}"));
            self.print_zones(cache, object, zones);
            self.print_user(cache, object);
            // Free already, it must not be on a list twice.
            if twice {
                return false;
            }
        }
        self.write_beside(cache, object, RED_INACTIVE, self.platform.caller());
        if cache.flags().contains(SlabFlags::POISON) {
            self.poison(cache, object, POISON_FREE);
        }
        true
    }

    /// A slab of free objects is about to be given back (`slab_destroy_debugcheck`).
    #[cold]
    pub(super) fn debug_destroy(&self, cache: Cache, slab: &SlabPage) {
        for number in 0..slab.num() {
            let object = slab.object(number);
            if cache.flags().contains(SlabFlags::POISON) {
                self.check_poison_obj(cache, object);
            }
            if let Some(zones) = self.red_zones(cache, object) {
                for (zone, what) in zones.into_iter().zip(["start", "end"]) {
                    if zone != RED_INACTIVE {
                        let what = format_args!("{what} of a freed object was overwritten");
                        self.slab_error(cache, "slab_destroy_debugcheck", what);
                    }
                }
            }
        }
    }

    /// What the red zones of an object hold.
    fn red_zones(&self, cache: Cache, object: VirtAddr) -> Option<[u64; 2]> {
        let beside = Beside::of(cache, object);
        (beside.zones[0] != 0).then(|| beside.zones.map(|place| self.slab_memory().words(place, 1)[0].get()))
    }

    fn print_zones(&self, cache: Cache, object: VirtAddr, [one, two]: [u64; 2]) {
        let buffer = object.raw() - cache.record().obj_offset.get() as u64;
        let line = format_args!("{buffer:016x}: redzone 1:{one:#x}, redzone 2:{two:#x}");
        self.platform.log(Level::Err, line);
    }

    fn print_user(&self, cache: Cache, object: VirtAddr) {
        let place = Beside::of(cache, object).user;
        if place != 0 {
            let user = self.slab_memory().words(place, 1)[0].get();
            self.platform.log(Level::Err, format_args!("Last user: ({user:#018x})"));
        }
    }

    /// Reports a free object that is not as it was left, and what its neighbours are like (`check_poison_obj`).
    fn check_poison_obj(&self, cache: Cache, object: VirtAddr) {
        let size = cache.record().object_size.get() as usize;
        let bytes = self.slab_memory().bytes(object.raw(), size);
        let expected = |at: usize| if at + 1 == size { POISON_END } else { POISON_FREE };
        let mut lines = 0;
        for (line, chunk) in bytes.chunks(LINE).enumerate() {
            let wrong = chunk.iter().enumerate().any(|(at, byte)| byte.get() != expected(LINE * line + at));
            if !wrong || lines == MAX_LINES {
                continue;
            }
            if lines == 0 {
                cache.record().errors.bump(1);
                let (name, start) = (cache.name(), object.raw());
                let head = format_args!("Slab corruption (Not tainted): {name} start={start:016x}, len={size}");
                self.platform.log(Level::Err, head);
                self.print_objinfo(cache, object, 0);
            }
            self.dump_line(LINE * line, chunk);
            lines += 1;
        }
        if lines == 0 {
            return;
        }
        let Some(slab) = self.virt_to_slab(object).map(|(pfn, _)| self.slab_page(cache, pfn)) else { return };
        let Some(number) = slab.number(object.raw()) else { return };
        let before = number.checked_sub(1).map(|prev| ("Prev", prev));
        let behind = Some(number + 1).filter(|next| *next < slab.num()).map(|next| ("Next", next));
        for (which, number) in [before, behind].into_iter().flatten() {
            let object = slab.object(number);
            let line = format_args!("{which} obj: start={:016x}, len={size}", object.raw());
            self.platform.log(Level::Err, line);
            self.print_objinfo(cache, object, NEIGHBOUR_LINES);
        }
    }

    /// What is beside an object, and its first lines (`print_objinfo`).
    fn print_objinfo(&self, cache: Cache, object: VirtAddr, lines: usize) {
        if let Some([one, two]) = self.red_zones(cache, object) {
            self.platform.log(Level::Err, format_args!("Redzone: {one:#x}/{two:#x}"));
        }
        self.print_user(cache, object);
        let bytes = self.slab_memory().bytes(object.raw(), cache.record().object_size.get() as usize);
        for (line, chunk) in bytes.chunks(LINE).enumerate().take(lines) {
            self.dump_line(LINE * line, chunk);
        }
    }

    /// A line of an object. Where all of it but a bit is as a free object's, it is the memory that is to blame (`dump_line`).
    fn dump_line(&self, offset: usize, bytes: &[AtomicU8]) {
        self.platform.log(Level::Err, format_args!("{offset:03x}: {}", Hex(bytes)));
        let mut wrong = bytes.iter().map(|byte| byte.get() ^ POISON_FREE).filter(|difference| *difference != 0);
        if let (Some(difference), None) = (wrong.next(), wrong.next())
            && difference.is_power_of_two()
        {
            self.platform.log(Level::Err, format_args!("Single bit error detected. Probably bad RAM."));
            self.platform.log(Level::Err, format_args!("Run memtest86+ or a similar memory test tool."));
        }
    }
}
