//! Allocating and freeing.

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::percpu::{
    PCPU_BLOCK_BITS, PCPU_MAX_SLOTS, PCPU_MIN_ALLOC_SIZE, PCPU_MIN_UNIT_SIZE, PcpuRoot, size_to_slot,
};
use pagevisor_shared::region::event::EventKind;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};

use super::{Areas, Locked, PerCpuPtr, area, balance, grow, hints};
use crate::Mm;
use crate::instrument::PercpuAsked;
use crate::platform::{Level, Platform};
use crate::raw::{Chunk, Maps, zero_units};
use crate::sync::Plain;

/// What is asked for, in bits.
#[derive(Clone, Copy)]
struct Wanted {
    bits: usize,
    align: usize,
    /// The caller cannot wait: only where there is memory.
    atomic: bool,
}

impl Wanted {
    /// Computed anew where it is rarely needed: kept, it would be in memory.
    #[inline(always)]
    const fn new(size: u64, align: u64, gfp: Gfp) -> Self {
        Self {
            bits: size.div_ceil(PCPU_MIN_ALLOC_SIZE) as usize,
            align: align.div_ceil(PCPU_MIN_ALLOC_SIZE) as usize,
            atomic: !gfp.contains(Gfp::KERNEL),
        }
    }
}

impl<P: Platform> Mm<P> {
    /// `size` bytes for every CPU, aligned to `align`, all zero (`__alloc_percpu`). `None` when memory is short, or for
    /// more than 32 KiB or an alignment above a page, which is reported.
    #[inline]
    pub fn alloc_percpu(&self, size: u64, align: u64) -> Option<PerCpuPtr> {
        self.alloc_percpu_gfp(size, align, Gfp::KERNEL)
    }

    /// As [`Self::alloc_percpu`]; with flags that lack any of [`Gfp::KERNEL`]'s, without waiting and only from memory
    /// that is there already (`__alloc_percpu_gfp`).
    pub fn alloc_percpu_gfp(&self, size: u64, align: u64, gfp: Gfp) -> Option<PerCpuPtr> {
        self.pcpu_alloc(size, align, false, gfp)
    }

    /// As [`Self::alloc_percpu`], from what is reserved for the static variables of modules
    /// (`__alloc_reserved_percpu`).
    pub fn alloc_reserved_percpu(&self, size: u64, align: u64) -> Option<PerCpuPtr> {
        self.pcpu_alloc(size, align, true, Gfp::KERNEL)
    }

    #[inline(always)]
    fn pcpu_alloc(&self, size: u64, align: u64, reserved: bool, gfp: Gfp) -> Option<PerCpuPtr> {
        let areas = self.percpu.areas.as_ref()?;
        let root = areas.root;
        if size.wrapping_sub(1) >= PCPU_MIN_UNIT_SIZE || align > PAGE_SIZE || !align.is_power_of_two() {
            self.report_illegal(size, align, gfp);
            return None;
        }
        let wanted = Wanted::new(size, align, gfp);
        let locked = Locked::new(self.platform, root);
        let found =
            if reserved { self.take_reserved(areas, root, wanted) } else { self.take_dynamic(areas, root, wanted) };
        locked.unlock();
        let Some((chunk, at)) = found else { return self.alloc_from_new(areas, size, align, reserved, gfp) };
        if chunk.addr() != areas.first.chunk.addr() {
            return self.finish(root, chunk, at, size, align, gfp);
        }
        let ptr = (chunk.base_addr.get() + at as u64 * PCPU_MIN_ALLOC_SIZE).wrapping_sub(root.base_addr.get());
        self.zero_instances(root, PerCpuPtr(ptr), wanted.bits * PCPU_MIN_ALLOC_SIZE as usize);
        if self.traces(EventKind::PercpuAllocPercpu) {
            let asked = PercpuAsked { size, align, reserved, atomic: wanted.atomic, gfp };
            self.trace_percpu_alloc(&asked, chunk.base_addr.get(), at as u64 * PCPU_MIN_ALLOC_SIZE, ptr);
        }
        Some(PerCpuPtr(ptr))
    }

    /// No chunk has room: makes another one, if that may be.
    #[cold]
    #[inline(never)]
    fn alloc_from_new(&self, areas: &Areas, size: u64, align: u64, reserved: bool, gfp: Gfp) -> Option<PerCpuPtr> {
        let (root, wanted) = (areas.root, Wanted::new(size, align, gfp));
        if reserved || wanted.atomic {
            let why = if reserved { "alloc from reserved chunk failed" } else { "atomic alloc failed, no space left" };
            self.report_failed(size, align, wanted.atomic && !reserved, why, gfp);
            return None;
        }
        let found = self.with_pcpu_mutex(root, || {
            let locked = Locked::new(self.platform, root);
            // Somebody else may have been faster.
            let found = self.take_dynamic(areas, root, wanted);
            locked.unlock();
            if found.is_some() {
                return found;
            }
            let chunk = self.create_chunk(root, grow::memory_gfp(gfp))?;
            let locked = Locked::new(self.platform, root);
            self.enter_chunk(root, chunk);
            let found = self.take_from(areas, root, chunk, wanted);
            locked.unlock();
            found
        });
        let Some((chunk, at)) = found else {
            self.report_failed(size, align, false, "failed to allocate new chunk", gfp);
            return None;
        };
        self.finish(root, chunk, at, size, align, gfp)
    }

    /// Has the area's pages populated, clears it, and gives its pointer.
    #[inline(never)]
    fn finish(&self, root: &PcpuRoot, chunk: Chunk, at: usize, size: u64, align: u64, gfp: Gfp) -> Option<PerCpuPtr> {
        let wanted = Wanted::new(size, align, gfp);
        // Who cannot wait was given an area that has memory.
        let populated = chunk.immutable.get() != 0
            || wanted.atomic
            || self.populate_area(root, chunk, at, wanted.bits, grow::memory_gfp(gfp));
        if !populated {
            let locked = Locked::new(self.platform, root);
            area::give(root, chunk, &chunk.maps(), at);
            root.balance_pending.set(1);
            locked.unlock();
            self.report_failed(size, align, false, "failed to populate", gfp);
            return None;
        }
        let ptr = (chunk.base_addr.get() + at as u64 * PCPU_MIN_ALLOC_SIZE).wrapping_sub(root.base_addr.get());
        if chunk.immutable.get() != 0 {
            self.zero_instances(root, PerCpuPtr(ptr), wanted.bits * PCPU_MIN_ALLOC_SIZE as usize);
        } else {
            let (start, len) = (at as u64 * PCPU_MIN_ALLOC_SIZE, wanted.bits as u64 * PCPU_MIN_ALLOC_SIZE);
            chunk.zero_pages(self.direct_map(), self.cpus.len(), start, len);
        }
        if self.traces(EventKind::PercpuAllocPercpu) {
            let reserved = chunk.addr() == root.reserved_chunk.get();
            let asked = PercpuAsked { size, align, reserved, atomic: wanted.atomic, gfp };
            self.trace_percpu_alloc(&asked, chunk.base_addr.get(), at as u64 * PCPU_MIN_ALLOC_SIZE, ptr);
        }
        Some(PerCpuPtr(ptr))
    }

    /// Takes an area of the reserved chunk.
    fn take_reserved(&self, areas: &Areas, root: &PcpuRoot, wanted: Wanted) -> Option<(Chunk, usize)> {
        let chunk = Chunk::at(root.reserved_chunk.get())?;
        self.take_from(areas, root, chunk, wanted)
    }

    /// Takes an area of the first chunk that has one, those with small free areas first.
    #[inline(always)]
    fn take_dynamic(&self, areas: &Areas, root: &PcpuRoot, wanted: Wanted) -> Option<(Chunk, usize)> {
        let first = size_to_slot(wanted.bits as u32 * PCPU_MIN_ALLOC_SIZE as u32);
        let mut mask = root.slot_mask.get() & areas.serving & (u32::MAX << first);
        while mask != 0 {
            let slot = mask.trailing_zeros() as usize;
            let mut next = root.slots[slot % PCPU_MAX_SLOTS].get();
            while let Some(chunk) = Chunk::at(next) {
                next = chunk.next.get();
                if let Some(found) = self.take_from(areas, root, chunk, wanted) {
                    return Some(found);
                }
            }
            mask &= mask - 1;
        }
        None
    }

    /// Takes an area of `chunk`, if there is one.
    #[inline(always)]
    fn take_from(&self, areas: &Areas, root: &PcpuRoot, chunk: Chunk, wanted: Wanted) -> Option<(Chunk, usize)> {
        let computed;
        let maps = if chunk.addr() == areas.first.chunk.addr() {
            &areas.first.maps
        } else {
            computed = chunk.maps();
            &computed
        };
        let populated = wanted.atomic && chunk.immutable.get() == 0;
        let at = hints::find_fit(chunk, maps, wanted.bits, wanted.align, populated)?;
        area::take(root, chunk, maps, at, wanted.bits);
        Some((chunk, at))
    }

    /// Clears all CPUs' instances of an allocation of the first chunk that nobody has been told of.
    #[inline(always)]
    fn zero_instances(&self, root: &PcpuRoot, ptr: PerCpuPtr, len: usize) {
        zero_units(root, self.cpus.len(), root.base_addr.get().wrapping_add(ptr.0), len);
    }

    /// Frees what [`Self::alloc_percpu`] and its like gave (`free_percpu`). A pointer that is not allocated is reported,
    /// and nothing else happens.
    #[inline]
    pub fn free_percpu(&self, ptr: PerCpuPtr) {
        let Some(Areas { root, first, .. }) = &self.percpu.areas else { return self.report_bad_free(ptr) };
        let root = *root;
        if self.traces(EventKind::PercpuFreePercpu) {
            self.trace_free_of(root, ptr);
        }
        let locked = Locked::new(self.platform, root);
        let offset = ptr.0.wrapping_sub(first.start);
        if offset >= first.len || !ptr.0.is_multiple_of(PCPU_MIN_ALLOC_SIZE) {
            return self.free_other(root, locked, ptr, false);
        }
        let at = first.bit + (offset / PCPU_MIN_ALLOC_SIZE) as usize;
        if area::give(root, first.chunk, &first.maps, at) {
            return locked.unlock();
        }
        self.free_other(root, locked, ptr, true);
    }

    /// The end of a free of what is not allocated in the dynamic part of the first chunk. `here` tells that it would have to
    /// be.
    #[inline(never)]
    fn free_other(&self, root: &PcpuRoot, locked: Locked<'_, P>, ptr: PerCpuPtr, here: bool) {
        let freed = !here && self.free_elsewhere(root, ptr);
        locked.unlock();
        if !freed {
            self.report_bad_free(ptr);
        }
    }

    /// Records that what `ptr` points to is about to be freed.
    #[cold]
    #[inline(never)]
    fn trace_free_of(&self, root: &PcpuRoot, ptr: PerCpuPtr) {
        let locked = Locked::new(self.platform, root);
        let found = self.find_chunk(root, ptr).map(|(chunk, _, at)| (chunk.base_addr.get(), at));
        locked.unlock();
        if let Some((base, at)) = found {
            self.trace_percpu_free(base, at as u64 * PCPU_MIN_ALLOC_SIZE, ptr.0);
        }
    }

    /// Frees what is not in the dynamic part of the first chunk; whether it was allocated.
    #[inline(never)]
    fn free_elsewhere(&self, root: &PcpuRoot, ptr: PerCpuPtr) -> bool {
        let Some((chunk, maps, at)) = self.find_chunk(root, ptr) else { return false };
        let freed = area::give(root, chunk, &maps, at);
        if balance::is_surplus(root, chunk) {
            root.balance_pending.set(1);
        }
        freed
    }

    /// The chunk that `ptr` points into, and the bit it means (`pcpu_chunk_addr_search`): one of the first chunk's parts, or
    /// the one that has the area which the first CPU's instance would be in. Under the lock.
    #[inline(always)]
    pub(super) fn find_chunk(&self, root: &PcpuRoot, ptr: PerCpuPtr) -> Option<(Chunk, Maps, usize)> {
        let addr = root.base_addr.get().wrapping_add(ptr.0);
        if !addr.is_multiple_of(PCPU_MIN_ALLOC_SIZE) {
            return None;
        }
        let unit = VirtAddr::new(addr.wrapping_add(root.unit_off[0].get()));
        let first = [root.first_chunk.get(), root.reserved_chunk.get()].into_iter();
        let further = core::iter::once_with(|| self.area_chunk(unit));
        for chunk in first.chain(further).filter_map(Chunk::at) {
            let at = addr.wrapping_sub(chunk.base_addr.get()) / PCPU_MIN_ALLOC_SIZE;
            let (start, end) = (chunk.start_offset.get() / 4, chunk.end_offset.get() / 4);
            let bits = u64::from(chunk.nr_pages.get()) * PCPU_BLOCK_BITS as u64;
            if at >= start.into() && at < bits - u64::from(end) {
                return Some((chunk, chunk.maps(), at as usize));
            }
        }
        None
    }

    #[cold]
    fn report_illegal(&self, size: u64, align: u64, gfp: Gfp) {
        if !gfp.contains(Gfp::NOWARN) {
            let text = format_args!("illegal size ({size}) or align ({align}) for percpu allocation");
            self.platform.log(Level::Warning, text);
            self.platform.dump_stack();
        }
    }

    /// Says that an allocation failed; after some, that no more of it is said.
    #[cold]
    fn report_failed(&self, size: u64, align: u64, atomic: bool, why: &str, gfp: Gfp) {
        if atomic {
            if let Some(root) = self.percpu.root() {
                root.atomic_alloc_failed.set(1);
                root.balance_pending.set(1);
            }
            return;
        }
        let left = self.percpu.warnings.get();
        if gfp.contains(Gfp::NOWARN) || left == 0 {
            return;
        }
        self.percpu.warnings.set(left - 1);
        self.platform.log(
            Level::Warning,
            format_args!("percpu: allocation failed, size={size} align={align} atomic={}, {why}", u8::from(atomic)),
        );
        self.platform.dump_stack();
        if left == 1 {
            self.platform.log(Level::Info, format_args!("percpu: limit reached, disable warning"));
        }
    }

    #[cold]
    fn report_bad_free(&self, ptr: PerCpuPtr) {
        let text = format_args!("free_percpu(): percpu ptr {:#x} is not allocated", ptr.0);
        self.platform.log(Level::Warning, text);
        self.platform.dump_stack();
    }
}
