//! A slab and its list of free objects.

use pagevisor_shared::page::Page;
use pagevisor_shared::slab::{FreelistPlace, FreelistWords, SlabFlags};
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE, PhysAddr, VirtAddr};

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
    memory: SlabMemory,
    flags: SlabFlags,
    pub(crate) num: u32,
    size: u32,
    reciprocal: u32,
    obj_offset: u32,
    freelist_size: u32,
    /// First byte of the slab, and behind its last.
    start: u64,
    end: u64,
    /// First buffer (`s_mem`).
    s_mem: u64,
    /// Virtual address of physical address 0.
    base: u64,
}

impl<P: Platform> Mm<P> {
    /// The slab of `cache` whose first frame is `pfn`.
    #[inline]
    pub(crate) fn slab_page(&self, cache: Cache, pfn: u32) -> SlabPage {
        let record = cache.record();
        let page = self.memmap().page(pfn);
        let base = self.virt(PhysAddr::new(0)).raw();
        let start = base + ((pfn as u64) << PAGE_SHIFT);
        let colour = FreelistWords { index: page.index.get(), private: 0 }.colour();
        SlabPage {
            pfn,
            page,
            memory: self.slab_memory(),
            flags: cache.flags(),
            num: record.num.get(),
            size: record.size.get(),
            reciprocal: record.reciprocal_size.get(),
            obj_offset: record.obj_offset.get(),
            freelist_size: record.freelist_size.get(),
            start,
            end: start + (PAGE_SIZE << record.gfporder.get()),
            s_mem: start + colour as u64 * record.colour_off.get() as u64,
            base,
        }
    }
}

impl SlabPage {
    /// Objects handed out.
    #[inline]
    pub(crate) fn active(&self) -> u32 {
        self.page._mapcount.get()
    }

    /// Whether `addr` is inside the slab.
    #[inline(always)]
    pub(crate) fn contains(&self, addr: u64) -> bool {
        self.start <= addr && addr < self.end
    }

    /// The object with that number (`index_to_obj`, and from the buffer to the object in it).
    #[inline(always)]
    pub(crate) fn object(&self, number: u32) -> VirtAddr {
        VirtAddr::new(self.s_mem + number as u64 * self.size as u64 + self.obj_offset as u64)
    }

    /// The number of the object at `addr` (`obj_to_index`); `None` where no object starts.
    #[inline]
    pub(crate) fn number(&self, addr: u64) -> Option<u32> {
        let offset = addr.wrapping_sub(self.s_mem + self.obj_offset as u64);
        let number = (offset.wrapping_mul(self.reciprocal as u64) >> 32) as u32;
        (offset < self.end - self.start && number < self.num && number as u64 * self.size as u64 == offset)
            .then_some(number)
    }

    #[inline]
    fn words(&self) -> FreelistWords {
        FreelistWords { index: self.page.index.get(), private: self.page.private.get() }
    }

    /// Where the list of free objects is; 0 if there is none.
    #[inline]
    fn list(&self) -> u64 {
        if self.flags.contains(SlabFlags::OBJFREELIST) {
            self.words().object().map_or(0, |number| self.object(number as u32).raw())
        } else if self.flags.contains(SlabFlags::OFF_SLAB) {
            self.base + self.words().off_slab()
        } else {
            self.end - self.freelist_size as u64
        }
    }

    /// Takes up to `most` objects and gives each to `put` (`alloc_block`, `slab_get_obj`). Gives how many.
    #[inline]
    pub(crate) fn take(&self, most: u32, mut put: impl FnMut(u64)) -> u32 {
        let active = self.active();
        let count = most.min(self.num.saturating_sub(active));
        if self.flags.contains(SlabFlags::LINKED) {
            self.take_linked(count, put);
        } else if count != 0 {
            let list = self.memory.bytes(self.list() + active as u64, count as usize);
            for number in list {
                put(self.object(number.get() as u32).raw());
            }
            if active + count == self.num && self.flags.contains(SlabFlags::OBJFREELIST) {
                // The list was in the last object.
                self.page.private.set(0);
            }
        }
        self.page._mapcount.set(active + count);
        count
    }

    fn take_linked(&self, count: u32, mut put: impl FnMut(u64)) {
        let mut first = self.page.private.get();
        for _ in 0..count {
            let object = self.object(first.wrapping_sub(1) % self.num).raw();
            first = self.memory.half(object).get() as u32;
            put(object);
        }
        self.page.private.set(first);
    }

    /// Takes back the object with that number (`slab_put_obj`).
    #[inline]
    pub(crate) fn put(&self, number: u32) {
        let active = self.active() - 1;
        self.page._mapcount.set(active);
        if self.flags.contains(SlabFlags::LINKED) {
            self.memory.half(self.object(number).raw()).set(self.page.private.get() as u16);
            self.page.private.set(number + 1);
            return;
        }
        if self.page.private.get() == 0 && self.flags.contains(SlabFlags::OBJFREELIST) {
            self.page.private.set(number + 1);
        }
        self.memory.bytes(self.list() + active as u64, 1)[0].set(number as u8);
    }

    /// Numbers of the free objects, in the order they are handed out. For checks.
    pub(crate) fn free_numbers(&self) -> impl Iterator<Item = u32> {
        let (active, num) = (self.active().min(self.num), self.num);
        let linked = self.flags.contains(SlabFlags::LINKED);
        let mut first = self.page.private.get();
        let list = if linked || active == num { 0 } else { self.list() };
        (active..num).map_while(move |slot| {
            if !linked {
                return Some(self.memory.bytes(list + slot as u64, 1)[0].get() as u32);
            }
            let number = first.checked_sub(1).filter(|number| *number < num)?;
            first = self.memory.half(self.object(number).raw()).get() as u32;
            Some(number)
        })
    }

    /// Makes a list of all objects, in order (`cache_init_objs`). `place` is what lies in the page's words from now on.
    pub(crate) fn init_list(&self, colour: u16, off_slab: u64) {
        let place = if self.flags.contains(SlabFlags::LINKED) {
            for number in 0..self.num {
                let next = if number + 1 == self.num { 0 } else { number + 2 };
                self.memory.half(self.object(number).raw()).set(next as u16);
            }
            FreelistPlace::Linked(Some(0))
        } else if self.flags.contains(SlabFlags::OBJFREELIST) {
            FreelistPlace::Object(Some((self.num - 1) as u16))
        } else if self.flags.contains(SlabFlags::OFF_SLAB) {
            FreelistPlace::OffSlab(off_slab)
        } else {
            FreelistPlace::OnSlab
        };
        let words = FreelistWords::new(colour, place);
        self.page.index.set(words.index);
        self.page.private.set(words.private);
        if self.flags.contains(SlabFlags::LINKED) {
            return;
        }
        let list = self.list();
        if list.is_multiple_of(8) {
            // Eight numbers at a time.
            let mut numbers = 0x0706_0504_0302_0100_u64;
            for word in self.memory.words(list, self.num as usize / 8) {
                word.set(numbers);
                numbers = numbers.wrapping_add(0x0808_0808_0808_0808);
            }
            for number in self.num & !7..self.num {
                self.memory.bytes(list + number as u64, 1)[0].set(number as u8);
            }
        } else {
            for number in 0..self.num {
                self.memory.bytes(list + number as u64, 1)[0].set(number as u8);
            }
        }
    }

    /// Physical address of the list that is off the slab.
    pub(crate) fn off_slab_list(&self) -> Option<VirtAddr> {
        self.flags.contains(SlabFlags::OFF_SLAB).then(|| VirtAddr::new(self.list()))
    }
}
