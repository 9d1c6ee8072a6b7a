//! A slab and its list of free objects.

use core::sync::atomic::AtomicU64;

use pagevisor_shared::page::Page;
use pagevisor_shared::slab::{FreelistPlace, FreelistWords, KmemCache, SlabFlags};
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE, Pfn, VirtAddr};

use super::Cache;
use crate::Mm;
use crate::platform::Platform;
use crate::raw::SlabMemory;
use crate::sync::Plain;

/// A slab, taken in once for several of its objects. Whoever has it holds the lock of its node's lists, or the slab is
/// on no list yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlabPage {
    pub(crate) pfn: u32,
    pub(crate) page: &'static Page,
    record: &'static KmemCache,
    memory: SlabMemory,
    /// First byte of the slab.
    start: u64,
}

impl<P: Platform> Mm<P> {
    /// The slab of `cache` whose first frame is `pfn`.
    #[inline(always)]
    pub(crate) fn slab_page(&self, cache: Cache, pfn: u32) -> SlabPage {
        let start = self.virt(Pfn::new(pfn as u64).addr()).raw();
        SlabPage { pfn, page: self.memmap().page(pfn), record: cache.record(), memory: self.slab_memory(), start }
    }
}

impl SlabPage {
    #[inline(always)]
    fn flags(&self) -> SlabFlags {
        SlabFlags::from_bits_truncate(self.record.flags.get())
    }

    /// Objects in it.
    #[inline(always)]
    pub(crate) fn num(&self) -> u32 {
        self.record.num.get()
    }

    /// The first object (`s_mem`, and from the buffer to the object in it).
    #[inline(always)]
    fn first(&self) -> u64 {
        let colour = FreelistWords { index: self.page.index.get(), private: 0 }.colour();
        let colour = colour as u64 * self.record.colour_off.get() as u64;
        self.start + colour + self.record.obj_offset.get() as u64
    }

    /// Objects handed out.
    #[inline]
    pub(crate) fn active(&self) -> u32 {
        self.page._mapcount.get()
    }

    /// The object with that number (`index_to_obj`, and from the buffer to the object in it).
    #[inline(always)]
    pub(crate) fn object(&self, number: u32) -> VirtAddr {
        VirtAddr::new(self.first() + number as u64 * self.record.size.get() as u64)
    }

    /// The number of the object at `addr` (`obj_to_index`); `None` where no object starts.
    #[inline]
    pub(crate) fn number(&self, addr: u64) -> Option<u32> {
        self.number_from(self.first(), addr)
    }

    /// As [`Self::number`], of a slab whose first object is at `first`.
    #[inline]
    fn number_from(&self, first: u64, addr: u64) -> Option<u32> {
        let (offset, size) = (addr.wrapping_sub(first), self.record.size.get() as u64);
        let number = (offset.wrapping_mul(self.record.reciprocal_size.get() as u64) >> 32) as u32;
        (offset < self.num() as u64 * size && number as u64 * size == offset).then_some(number)
    }

    #[inline]
    fn words(&self) -> FreelistWords {
        FreelistWords { index: self.page.index.get(), private: self.page.private.get() }
    }

    /// Where the list of free objects is; 0 if there is none.
    #[inline]
    fn list(&self) -> u64 {
        if self.flags().contains(SlabFlags::OBJFREELIST) {
            self.words().object().map_or(0, |number| self.object(number as u32).raw())
        } else if self.flags().contains(SlabFlags::OFF_SLAB) {
            self.start - ((self.pfn as u64) << PAGE_SHIFT) + self.words().off_slab()
        } else {
            self.start + (PAGE_SIZE << self.record.gfporder.get()) - self.record.freelist_size.get() as u64
        }
    }

    /// Takes objects into `slots`, as many as there are and there is room for; gives how many (`alloc_block`,
    /// `slab_get_obj`).
    #[inline]
    pub(crate) fn take(&self, slots: &[AtomicU64]) -> u32 {
        let active = self.active();
        let count = (slots.len() as u32).min(self.num().saturating_sub(active));
        let slots = &slots[..count as usize];
        if self.flags().contains(SlabFlags::LINKED) {
            self.take_linked(slots);
        } else if count != 0 {
            let (first, size) = (self.first(), self.record.size.get() as u64);
            let list = self.memory.bytes(self.list() + active as u64, count as usize);
            for (slot, number) in slots.iter().zip(list) {
                slot.set(first + number.get() as u64 * size);
            }
            if active + count == self.num() && self.flags().contains(SlabFlags::OBJFREELIST) {
                // The list was in the last object.
                self.page.private.set(0);
            }
        }
        self.page._mapcount.set(active + count);
        count
    }

    fn take_linked(&self, slots: &[AtomicU64]) {
        let (first, size) = (self.first(), self.record.size.get() as u64);
        let (mut next, last) = (self.page.private.get(), self.num() - 1);
        for slot in slots {
            let object = first + next.wrapping_sub(1).min(last) as u64 * size;
            next = self.memory.half(object).get() as u32;
            slot.set(object);
        }
        self.page.private.set(next);
    }

    /// Takes back the first of `objects`, as far as they are objects of this slab, of which `active` were handed out
    /// (`slab_put_obj`); gives how many.
    #[inline(always)]
    pub(crate) fn put(&self, objects: &[AtomicU64], active: u32) -> usize {
        let flags = self.flags();
        let objects = &objects[..objects.len().min(active as usize)];
        let Some(first) = objects.first() else { return 0 };
        let count = if flags.contains(SlabFlags::LINKED) {
            self.put_linked(objects)
        } else {
            let start = self.first();
            let Some(number) = self.number_from(start, first.get()) else { return 0 };
            let list = if !flags.contains(SlabFlags::OBJFREELIST) || self.page.private.get() != 0 {
                self.list()
            } else {
                // The first that comes back to a slab without free objects holds their list.
                self.page.private.set(number + 1);
                first.get()
            };
            self.put_numbers(objects, (start, number), list + active as u64)
        };
        self.page._mapcount.set(active - count as u32);
        count
    }

    /// Writes the numbers of objects, of which the first has `number`, below `end`, downwards, until one is not of this
    /// slab, whose first object is at `start`; gives how many.
    #[inline(always)]
    fn put_numbers(&self, objects: &[AtomicU64], (start, mut number): (u64, u32), end: u64) -> usize {
        let (size, num) = (self.record.size.get() as u64, self.num());
        let (mut at, mut rest) = (end, objects);
        while let Some(object) = rest.first() {
            // Objects are often freed in the order in which they were handed out, or the other way round.
            let run = put_run(self.memory, rest, (object.get(), size), (number, num), at);
            at -= run as u64;
            rest = &rest[run..];
            // Behind it, it may be a neighbour's.
            match rest.first().and_then(|next| self.number_from(start, next.get())) {
                Some(next) => number = next,
                None => break,
            }
        }
        (end - at) as usize
    }

    /// Links objects in front of those that are free, until one is not of this slab; gives how many.
    #[inline(always)]
    fn put_linked(&self, objects: &[AtomicU64]) -> usize {
        let (first, size) = (self.first(), self.record.size.get() as u64);
        let (bytes, shift) = (self.num() as u64 * size, size.trailing_zeros());
        let (mut next, mut count) = (self.page.private.get(), 0);
        for object in objects {
            let offset = object.get().wrapping_sub(first);
            if offset >= bytes || offset & (size - 1) != 0 {
                break;
            }
            self.memory.half(object.get()).set(next as u16);
            next = (offset >> shift) as u32 + 1;
            count += 1;
        }
        self.page.private.set(next);
        count
    }

    /// Numbers of the free objects, in the order they are handed out. For checks.
    pub(crate) fn free_numbers(&self) -> impl Iterator<Item = u32> {
        let (active, num) = (self.active().min(self.num()), self.num());
        let linked = self.flags().contains(SlabFlags::LINKED);
        let mut first = self.page.private.get();
        let list = if linked || active == num { 0 } else { self.list() };
        (active..num).map_while(move |slot| {
            if !linked {
                return Some(self.memory.byte(list + slot as u64).get() as u32);
            }
            let number = first.checked_sub(1).filter(|number| *number < num)?;
            first = self.memory.half(self.object(number).raw()).get() as u32;
            Some(number)
        })
    }

    /// Makes a list of all objects, in order (`cache_init_objs`). `place` is what lies in the page's words from now on.
    pub(crate) fn init_list(&self, colour: u16, off_slab: u64) {
        let place = if self.flags().contains(SlabFlags::LINKED) {
            for number in 0..self.num() {
                let next = if number + 1 == self.num() { 0 } else { number + 2 };
                self.memory.half(self.object(number).raw()).set(next as u16);
            }
            FreelistPlace::Linked(Some(0))
        } else if self.flags().contains(SlabFlags::OBJFREELIST) {
            FreelistPlace::Object(Some((self.num() - 1) as u16))
        } else if self.flags().contains(SlabFlags::OFF_SLAB) {
            FreelistPlace::OffSlab(off_slab)
        } else {
            FreelistPlace::OnSlab
        };
        let words = FreelistWords::new(colour, place);
        self.page.index.set(words.index);
        self.page.private.set(words.private);
        if self.flags().contains(SlabFlags::LINKED) {
            return;
        }
        let list = self.list();
        if list.is_multiple_of(8) {
            // Eight numbers at a time.
            let mut numbers = 0x0706_0504_0302_0100_u64;
            for word in self.memory.words(list, self.num() as usize / 8) {
                word.set(numbers);
                numbers = numbers.wrapping_add(0x0808_0808_0808_0808);
            }
            for number in self.num() & !7..self.num() {
                self.memory.byte(list + number as u64).set(number as u8);
            }
        } else {
            for number in 0..self.num() {
                self.memory.byte(list + number as u64).set(number as u8);
            }
        }
    }

    /// Physical address of the list that is off the slab.
    pub(crate) fn off_slab_list(&self) -> Option<VirtAddr> {
        self.flags().contains(SlabFlags::OFF_SLAB).then(|| VirtAddr::new(self.list()))
    }
}

/// Writes the numbers of objects below `end`: of the first, at `addr`, whose `number`, of `num`, is given, and of the
/// others as long as each lies just before the one in front of it, or each just behind. Gives how many.
#[inline(always)]
fn put_run(
    memory: SlabMemory,
    objects: &[AtomicU64],
    (addr, size): (u64, u64),
    (number, num): (u32, u32),
    end: u64,
) -> usize {
    let (step, one, most) = match objects.get(1) {
        Some(next) if next.get() == addr + size => (size, 1, num.saturating_sub(number).max(1)),
        _ => (size.wrapping_neg(), u32::MAX, number + 1),
    };
    let objects = &objects[..objects.len().min(most as usize)];
    let (mut expected, mut at) = (addr, end);
    // Four numbers in a word, the first in its last byte.
    let mut numbers = number.wrapping_mul(0x0101_0101).wrapping_add(one.wrapping_mul(0x0001_0203));
    let more = one.wrapping_mul(0x0404_0404);
    for four in objects.as_chunks::<4>().0 {
        let second = expected.wrapping_add(step);
        let third = second.wrapping_add(step);
        let fourth = third.wrapping_add(step);
        if !memory.are_four(four, [expected, second, third, fourth]) {
            break;
        }
        at -= 4;
        memory.set_four(at, numbers);
        numbers = numbers.wrapping_add(more);
        expected = fourth.wrapping_add(step);
    }
    let done = (end - at) as usize;
    let mut number = number.wrapping_add(one.wrapping_mul(done as u32));
    for object in objects.get(done..).unwrap_or_default() {
        if object.get() != expected {
            break;
        }
        at -= 1;
        memory.byte(at).set(number as u8);
        (number, expected) = (number.wrapping_add(one), expected.wrapping_add(step));
    }
    (end - at) as usize
}
