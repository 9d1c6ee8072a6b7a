//! A device: what `open`, `read`, `write` and trimming do.

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::VirtAddr;

use super::media::Media;
use crate::Mm;
use crate::platform::Platform;
use crate::raw::Owned;

/// Bytes of a set's structure (`struct scull_qset`): where its array is, and the next structure.
const SET_BYTES: u64 = 16;
const DATA: u64 = 0;
const NEXT: u64 = 8;

/// A device (`struct scull_dev`). Dropping it trims it.
#[derive(Debug)]
pub(crate) struct Device<'a, P: Platform> {
    mm: &'a Mm<P>,
    media: Media,
    gfp: Gfp,
    /// The first set's structure; 0 for none.
    first: u64,
    /// Bytes that were written: the end of the last one.
    size: u64,
    /// Quanta that were ever allocated.
    pub(crate) got: u64,
    /// Quanta that were given back.
    pub(crate) put: u64,
}

/// Where a byte of a device is.
struct Place {
    /// Number of the set, and of the quantum in it.
    set: u64,
    quantum: u64,
    /// Byte in the quantum, and how many there are from it on.
    at: u64,
    left: usize,
}

impl<'a, P: Platform> Device<'a, P> {
    /// A device without content, as after `open` for writing.
    pub(crate) fn open(mm: &'a Mm<P>, media: Media, gfp: Gfp) -> Self {
        Self { mm, media, gfp, first: 0, size: 0, got: 0, put: 0 }
    }

    /// Bytes of content.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    fn place(&self, offset: u64) -> Place {
        let (quantum, item) = (self.media.quantum(), self.media.quantum() * self.media.qset());
        let rest = offset % item;
        let at = rest % quantum;
        Place { set: offset / item, quantum: rest / quantum, at, left: (quantum - at) as usize }
    }

    fn quantum(&self, addr: u64) -> Owned {
        Owned::new(VirtAddr::new(addr), self.media.quantum())
    }

    /// The array of a set whose structure is at `set`, or nothing.
    fn array(&self, set: u64) -> Option<Owned> {
        let data = structure(set).word(self.mm, DATA);
        (data != 0).then(|| Owned::new(VirtAddr::new(data), 8 * self.media.qset()))
    }

    /// The structure of set `number`, which is made if need be and wanted (`scull_follow`).
    fn follow(&mut self, number: u64, make: bool) -> Option<u64> {
        if self.first == 0 && make {
            self.first = self.new_set()?;
        }
        let mut set = Some(self.first).filter(|set| *set != 0)?;
        for _ in 0..number {
            let mut next = structure(set).word(self.mm, NEXT);
            if next == 0 && make {
                next = self.new_set()?;
                structure(set).set_word(self.mm, NEXT, next);
            }
            set = Some(next).filter(|set| *set != 0)?;
        }
        Some(set)
    }

    fn new_set(&self) -> Option<u64> {
        self.mm.kzalloc(SET_BYTES as usize, self.gfp).map(VirtAddr::raw)
    }

    /// Reads from `offset` on, at most to the end of a quantum; gives how many bytes. None at the end, and where nothing
    /// was written (`scull_read`).
    pub(crate) fn read(&mut self, offset: u64, to: &mut [u8]) -> usize {
        if offset >= self.size {
            return 0;
        }
        let place = self.place(offset);
        let Some(array) = self.follow(place.set, false).and_then(|set| self.array(set)) else { return 0 };
        let quantum = array.word(self.mm, 8 * place.quantum);
        if quantum == 0 {
            return 0;
        }
        let len = to.len().min(place.left).min((self.size - offset) as usize);
        self.quantum(quantum).read(self.mm, place.at, &mut to[..len]);
        len
    }

    /// Writes to `offset` and on, at most to the end of a quantum; gives how many bytes, or nothing if there is no memory
    /// (`scull_write`).
    pub(crate) fn write(&mut self, offset: u64, from: &[u8]) -> Option<usize> {
        let (mm, place) = (self.mm, self.place(offset));
        let set = self.follow(place.set, true)?;
        if structure(set).word(mm, DATA) == 0 {
            let array = mm.kzalloc(8 * self.media.qset() as usize, self.gfp)?;
            structure(set).set_word(mm, DATA, array.raw());
        }
        let array = self.array(set)?;
        let mut quantum = array.word(mm, 8 * place.quantum);
        if quantum == 0 {
            quantum = self.media.get(mm, self.gfp)?.raw();
            array.set_word(mm, 8 * place.quantum, quantum);
            self.got += 1;
        }
        let len = from.len().min(place.left);
        self.quantum(quantum).write(mm, place.at, &from[..len]);
        self.size = self.size.max(offset + len as u64);
        Some(len)
    }

    /// Gives all memory back (`scull_trim`).
    pub(crate) fn trim(&mut self) {
        let mut set = self.first;
        while set != 0 {
            if let Some(array) = self.array(set) {
                for number in 0..self.media.qset() {
                    let quantum = array.word(self.mm, 8 * number);
                    if quantum != 0 {
                        self.media.put(self.mm, VirtAddr::new(quantum));
                        self.put += 1;
                    }
                }
                self.mm.kfree(VirtAddr::new(structure(set).word(self.mm, DATA)));
            }
            let next = structure(set).word(self.mm, NEXT);
            self.mm.kfree(VirtAddr::new(set));
            set = next;
        }
        (self.first, self.size) = (0, 0);
    }
}

impl<P: Platform> Drop for Device<'_, P> {
    fn drop(&mut self) {
        self.trim();
    }
}

/// The structure at `addr`.
fn structure(addr: u64) -> Owned {
    Owned::new(VirtAddr::new(addr), SET_BYTES)
}
