//! A split virtqueue of the monitor device (virtio 1.2, section 2.7), as its driver sees it: a buffer per descriptor.
//!
//! The sides spare each other notifications as [`virtq`] says. Buffers are posted without a word; whoever has posted
//! some calls [`Queue::tell`] before he waits for anything or does something long. Who takes buffers back on an interrupt
//! goes on until [`Queue::rest`] lets him end.

use core::ptr::with_exposed_provenance;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use pagevisor_shared::layout::PAGE_OFFSET;
use pagevisor_shared::virtq;

use crate::monitor::{self, DEVICE_OFFSET, DRIVER_OFFSET, Monitor};
use crate::sync::IrqSpinLock;

/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;
/// Flag of a descriptor: the device writes.
const WRITE: u16 = 2;

/// The buffers of a queue: RAM that was reserved for them, one behind the other, and stays so.
#[derive(Clone, Copy, Debug)]
pub struct Buffers {
    /// Physical address of the first.
    pub phys: u64,
    /// How many there are, at most [`monitor::QUEUE_SIZE`].
    pub count: usize,
    /// Bytes of each, a multiple of 8.
    pub bytes: usize,
}

const _: () = assert!(monitor::QUEUE_SIZE <= 32, "a bit each");

/// A queue. Its parts and its buffers are in RAM that was reserved for them, and stay there.
#[derive(Debug)]
pub struct Queue {
    device: &'static Monitor,
    /// The queue's number.
    number: u32,
    /// Entries, a power of two.
    size: u16,
    /// Address in the direct map of the queue's parts.
    parts: u64,
    buffers: Buffers,
    writable: bool,
    state: IrqSpinLock<State>,
}

#[derive(Debug)]
struct State {
    /// Buffers offered so far, modulo 2^16.
    offered: u16,
    /// Those that the device need not be told of any more.
    told: u16,
    /// Buffers that came back so far.
    returned: u16,
    /// Buffers that are not with the device, a bit each.
    free: u32,
}

impl Queue {
    /// Queue `number` of `device`, of `size` entries, at physical address `parts`, with its buffers.
    pub fn new(device: &'static Monitor, number: u32, size: u16, parts: u64, buffers: Buffers, writable: bool) -> Self {
        let free = ((1u64 << buffers.count) - 1) as u32;
        let state = IrqSpinLock::new(State { offered: 0, told: 0, returned: 0, free });
        Self { device, number, size, parts: PAGE_OFFSET + parts, buffers, writable, state }
    }

    fn half_word(&self, offset: u64) -> &AtomicU16 {
        // SAFETY: callers stay inside the queue's parts, which are RAM that was reserved for them; both sides access
        // them as words like this one, aligned.
        unsafe { &*with_exposed_provenance((self.parts + offset) as usize) }
    }

    fn word(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: as in `half_word`.
        unsafe { &*with_exposed_provenance((self.parts + offset) as usize) }
    }

    /// Where the driver says of which buffer that the device used it wants to hear (`used_event`).
    fn used_event(&self) -> &AtomicU16 {
        self.half_word(DRIVER_OFFSET + 4 + 2 * u64::from(self.size))
    }

    /// Where the device says of which buffer that the driver offers it wants to hear (`avail_event`).
    fn avail_event(&self) -> &AtomicU16 {
        self.half_word(DEVICE_OFFSET + 4 + 8 * u64::from(self.size))
    }

    /// How many buffers the device has used.
    fn used_index(&self) -> &AtomicU16 {
        self.half_word(DEVICE_OFFSET + 2)
    }

    /// Asks the device not to interrupt for this queue; to be repeated before 2^16 buffers have come back.
    pub fn no_interrupts(&self) {
        virtq::ignore(self.used_event(), self.state.lock().returned);
    }

    /// Whether nothing has come back that [`Self::returned`] has not given: the device interrupts for what comes next.
    pub fn rest(&self) -> bool {
        let state = self.state.lock();
        virtq::sleep(self.used_event(), self.used_index(), state.returned)
    }

    /// Gives a buffer to the device, the first `len` bytes of it, without telling it.
    pub fn post(&self, buffer: usize, len: usize) {
        let mut state = self.state.lock();
        let at = DESCRIPTOR * buffer as u64;
        let address = self.buffers.phys + (buffer * self.buffers.bytes) as u64;
        self.word(at).store(address as u32, Ordering::Relaxed);
        self.word(at + 4).store((address >> 32) as u32, Ordering::Relaxed);
        self.word(at + 8).store(len as u32, Ordering::Relaxed);
        self.half_word(at + 12).store(if self.writable { WRITE } else { 0 }, Ordering::Relaxed);
        let slot = u64::from(state.offered & (self.size - 1));
        self.half_word(DRIVER_OFFSET + 4 + 2 * slot).store(buffer as u16, Ordering::Relaxed);
        state.offered = state.offered.wrapping_add(1);
        state.free &= !(1 << buffer);
        // Release: the device that sees the count sees the buffer.
        self.half_word(DRIVER_OFFSET + 2).store(state.offered, Ordering::Release);
    }

    /// Tells the device of all buffers that were posted, by whichever CPU, if it wants to hear of one of them.
    pub fn tell(&self) {
        let (old, new) = {
            let mut state = self.state.lock();
            let (old, new) = (state.told, state.offered);
            state.told = new;
            (old, new)
        };
        if virtq::must_tell(self.avail_event(), new, old) {
            self.device.notify(self.number);
        }
    }

    /// Gives all buffers to the device.
    pub fn post_all(&self) {
        for buffer in 0..self.buffers.count {
            self.post(buffer, self.buffers.bytes);
        }
        self.tell();
    }

    /// Takes the next buffer back that the device has done with: its number and how many bytes the device wrote. What
    /// the device says of buffers that it was not given is passed over.
    pub fn returned(&self) -> Option<(usize, usize)> {
        let mut state = self.state.lock();
        self.next_returned(&mut state)
    }

    fn next_returned(&self, state: &mut State) -> Option<(usize, usize)> {
        loop {
            // Acquire pairs with the device's release: the entry, and what is in the buffer.
            if self.used_index().load(Ordering::Acquire) == state.returned {
                return None;
            }
            let slot = u64::from(state.returned & (self.size - 1));
            let buffer = self.word(DEVICE_OFFSET + 4 + 8 * slot).load(Ordering::Relaxed) as usize;
            let len = self.word(DEVICE_OFFSET + 8 + 8 * slot).load(Ordering::Relaxed) as usize;
            state.returned = state.returned.wrapping_add(1);
            if buffer < self.buffers.count && state.free & 1 << buffer == 0 {
                state.free |= 1 << buffer;
                return Some((buffer, len.min(self.buffers.bytes)));
            }
        }
    }

    /// Takes a buffer that is not with the device, to write into. The queue is one that does not interrupt.
    pub fn take(&self) -> Option<usize> {
        let mut state = self.state.lock();
        while self.next_returned(&mut state).is_some() {}
        virtq::ignore(self.used_event(), state.returned);
        let buffer = state.free.trailing_zeros() as usize;
        if buffer >= self.buffers.count {
            return None;
        }
        state.free &= !(1 << buffer);
        Some(buffer)
    }

    /// Whether the device has given all buffers back. For queues that do not interrupt.
    pub fn is_drained(&self) -> bool {
        let mut state = self.state.lock();
        while self.next_returned(&mut state).is_some() {}
        virtq::ignore(self.used_event(), state.returned);
        state.free.count_ones() as usize == self.buffers.count
    }

    /// Address of a buffer in the direct map.
    fn address(&self, buffer: usize) -> u64 {
        PAGE_OFFSET + self.buffers.phys + (buffer % self.buffers.count * self.buffers.bytes) as u64
    }

    /// The first `len` bytes of a buffer that the device has given back.
    ///
    /// # Safety
    /// The buffer is the driver's, and is not given to the device as long as the slice is in use.
    pub unsafe fn bytes(&self, buffer: usize, len: usize) -> &[u8] {
        let address = self.address(buffer);
        // SAFETY: the buffer is RAM that was reserved for it, reached through the direct map; nobody writes it now.
        unsafe { core::slice::from_raw_parts(with_exposed_provenance(address as usize), len.min(self.buffers.bytes)) }
    }

    /// The words of a buffer. The device may read them at any time, so they are to be written before it is posted.
    pub fn words(&self, buffer: usize) -> &[AtomicU64] {
        let address = self.address(buffer);
        // SAFETY: as in `bytes`; atomics are valid whatever they hold and may be changed by others.
        unsafe { core::slice::from_raw_parts(with_exposed_provenance(address as usize), self.buffers.bytes / 8) }
    }
}
