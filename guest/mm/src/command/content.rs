//! The content of what a handle stands for.
#![allow(unsafe_code, reason = "the content of pages is reached through the direct map")]

use core::ops::Range;
use core::sync::atomic::AtomicU64;

use pagevisor_shared::command::{Op, OpError};
use pagevisor_shared::units::{CpuId, PAGE_SIZE, Pfn, PhysAddr};

use super::handles::{Held, Slot};
use crate::Mm;
use crate::percpu::PerCpuPtr;
use crate::platform::Platform;
use crate::raw::Owned;
use crate::sync::Plain;

/// Words of a page.
const PAGE_WORDS: u64 = PAGE_SIZE / 8;

/// Bytes of an object that are filled or checked at a time.
const CHUNK: usize = 128;

/// Those of the pattern from byte `from` on, a multiple of 8.
fn pattern(seed: u64, number: u32, from: u64) -> [u8; CHUNK] {
    let mut bytes = [0; CHUNK];
    for (word, at) in bytes.as_chunks_mut().0.iter_mut().zip(from / 8..) {
        *word = Op::pattern(seed, number, at).to_le_bytes();
    }
    bytes
}

/// Memory that this CPU has to itself as long as it has this: the handle is locked.
#[derive(Debug)]
pub(super) struct Content<'a> {
    memory: Memory,
    _slot: &'a Slot,
}

/// Where it is.
#[derive(Clone, Copy, Debug)]
enum Memory {
    /// So many frames side by side.
    Frames(Pfn, u64),
    /// An object of so many bytes.
    Object(Owned),
    /// Per-CPU memory, so many bytes for each CPU.
    Percpu(PerCpuPtr, u32),
}

impl<'a> Content<'a> {
    /// The content of what `slot` stands for.
    ///
    /// # Errors
    /// [`OpError::WrongKind`] for a handle that does not stand for memory.
    pub(super) fn new<P: Platform>(mm: &Mm<P>, slot: &'a Slot, held: Held) -> Result<Self, OpError> {
        let memory = match held {
            Held::Block(pfn, order) => Memory::Frames(pfn, order.pages()),
            Held::Range(pfn, count) | Held::Cma(_, pfn, count) => Memory::Frames(pfn, count),
            Held::Kmalloc(addr) | Held::Object(addr) => Memory::Object(Owned::new(addr, mm.ksize(addr) as u64)),
            Held::Vmalloc(addr, pages) => Memory::Object(Owned::new(addr, u64::from(pages) * PAGE_SIZE)),
            Held::Percpu(ptr, size) => Memory::Percpu(ptr, size),
            Held::Cache(_) | Held::Shrinker(_) => return Err(OpError::WrongKind),
        };
        Ok(Self { memory, _slot: slot })
    }

    /// Bytes that there are.
    fn len<P: Platform>(&self, mm: &Mm<P>) -> u64 {
        match self.memory {
            Memory::Frames(_, pages) => pages * PAGE_SIZE,
            Memory::Object(object) => object.len(),
            Memory::Percpu(_, size) => u64::from(size) * mm.cpus.len() as u64,
        }
    }

    /// Refuses bytes that are not all there.
    fn check<P: Platform>(&self, mm: &Mm<P>, offset: u64, len: usize) -> Result<(), OpError> {
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= self.len(mm));
        if inside { Ok(()) } else { Err(OpError::Invalid) }
    }

    /// Reads `len` bytes from `offset` on into words, the last one filled up with zeros.
    pub(super) fn read<P: Platform>(
        &self,
        mm: &Mm<P>,
        offset: u64,
        len: usize,
        to: &[AtomicU64],
    ) -> Result<(), OpError> {
        self.check(mm, offset, len)?;
        if let Some(last) = to.last() {
            last.set(0);
        }
        if let Memory::Frames(first, _) = self.memory {
            // SAFETY: the bounds of pages that are RAM and belong to the locked handle were checked; the words are the
            // reply's, which this CPU is writing.
            unsafe { mm.direct_map().copy_out(PhysAddr::new(first.addr().raw() + offset), to, len) };
            return Ok(());
        }
        for (at, word) in (0..len).step_by(8).zip(to) {
            let mut bytes = [0; 8];
            self.get(mm, offset + at as u64, &mut bytes[..(len - at).min(8)]);
            word.set(u64::from_le_bytes(bytes));
        }
        Ok(())
    }

    /// Writes `from`, from `offset` on.
    pub(super) fn write<P: Platform>(&self, mm: &Mm<P>, offset: u64, from: &[u8]) -> Result<(), OpError> {
        self.check(mm, offset, from.len())?;
        if let Memory::Frames(first, _) = self.memory {
            // SAFETY: as in `read`.
            unsafe { mm.direct_map().copy_in(PhysAddr::new(first.addr().raw() + offset), from) };
        } else {
            self.put(mm, offset, from);
        }
        Ok(())
    }

    /// Calls `work` with the object that has the bytes from `offset` on, where in it they are, and which of the `len`
    /// bytes these are.
    fn objects<P: Platform>(
        &self,
        mm: &Mm<P>,
        offset: u64,
        len: usize,
        mut work: impl FnMut(Owned, u64, Range<usize>),
    ) {
        match self.memory {
            Memory::Frames(..) => {}
            Memory::Object(object) => work(object, offset, 0..len),
            Memory::Percpu(ptr, size) => {
                let (size, mut done) = (u64::from(size), 0);
                while done < len && size != 0 {
                    let at = offset + done as u64;
                    let Some(cpu) = CpuId::new((at / size) as usize) else { return };
                    let now = (size - at % size).min((len - done) as u64) as usize;
                    work(Owned::new(mm.per_cpu_ptr(ptr, cpu), size), at % size, done..done + now);
                    done += now;
                }
            }
        }
    }

    /// Reads bytes of what is no frames, all of which are there.
    fn get<P: Platform>(&self, mm: &Mm<P>, offset: u64, to: &mut [u8]) {
        self.objects(mm, offset, to.len(), |object, at, part| object.read(mm, at, &mut to[part]));
    }

    /// Writes them.
    fn put<P: Platform>(&self, mm: &Mm<P>, offset: u64, from: &[u8]) {
        self.objects(mm, offset, from.len(), |object, at, part| object.write(mm, at, &from[part]));
    }

    /// Writes the pattern of block `number`; of the last word as much as there is room for.
    pub(super) fn fill<P: Platform>(&self, mm: &Mm<P>, seed: u64, number: u32) {
        if let Memory::Frames(..) = self.memory {
            self.each(mm, |at, word| {
                word.set(Op::pattern(seed, number, at));
                true
            });
            return;
        }
        let len = self.len(mm);
        for at in (0..len).step_by(CHUNK) {
            let now = (len - at).min(CHUNK as u64) as usize;
            self.put(mm, at, &pattern(seed, number, at)[..now]);
        }
    }

    /// The byte offset of the first word that is not as [`Self::fill`] wrote it.
    pub(super) fn mismatch<P: Platform>(&self, mm: &Mm<P>, seed: u64, number: u32) -> Option<u64> {
        if let Memory::Frames(..) = self.memory {
            return self.each(mm, |at, word| word.get() == Op::pattern(seed, number, at)).map(|at| 8 * at);
        }
        let len = self.len(mm);
        (0..len).step_by(CHUNK).find_map(|at| {
            let now = (len - at).min(CHUNK as u64) as usize;
            let (wanted, mut found) = (pattern(seed, number, at), [0; CHUNK]);
            self.get(mm, at, &mut found[..now]);
            let wrong = (0..now).find(|&byte| found[byte] != wanted[byte])?;
            Some((at + wrong as u64) & !7)
        })
    }

    /// Calls `work` with the words of frames in order, until it says no; gives the number of that one.
    fn each<P: Platform>(&self, mm: &Mm<P>, mut work: impl FnMut(u64, &AtomicU64) -> bool) -> Option<u64> {
        let Memory::Frames(first, pages) = self.memory else { return None };
        for page in 0..pages {
            // SAFETY: the page is RAM: it belongs to the handle.
            let words = unsafe { mm.direct_map().words(first.add(page)) };
            for (at, word) in (page * PAGE_WORDS..).zip(words) {
                if !work(at, word) {
                    return Some(at);
                }
            }
        }
        None
    }
}
