//! Where programs print and read: queues of the monitor device. Without the device they print on the serial line, and there
//! is nothing to read.
//!
//! The host is asked for input when a program wants some and none is left, and is asked for a buffer at a time. What it
//! answers is whoever's reads first; an answer without bytes is an end of file for one of them.

use core::hint::spin_loop;
use core::sync::atomic::Ordering;

use pagevisor_shared::device::monitor::{QUEUE_CONSOLE, QUEUE_INPUT};
use pagevisor_shared::errno::Errno;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{Order, PAGE_SIZE};

use crate::log::pr_err;
use crate::monitor::Monitor;
use crate::sync::{IrqSpinLock, Once, SpinLock};
use crate::task::{Sleep, WaitQueue};
use crate::virtq::{Buffers, Queue};
use crate::{clock, platform, serial};

/// Buffers, of a page each.
const BUFFERS: Order = match Order::new(3) {
    Ok(order) => order,
    Err(_) => Order::ZERO,
};
/// Nanoseconds that the host may take for what was printed when the machine ends.
const PATIENCE: u64 = 2_000_000_000;

/// The buffer of what is read.
const INPUT: Order = match Order::new(4) {
    Ok(order) => order,
    Err(_) => Order::ZERO,
};

/// Where the queues are.
#[derive(Clone, Copy, Debug)]
struct Place {
    device: &'static Monitor,
    size: u16,
    parts: u64,
    input_parts: u64,
}

/// What the host has answered.
#[derive(Debug)]
struct Answer {
    /// The part of the buffer that nobody has read yet.
    start: usize,
    end: usize,
    /// It was an end of file, of which nobody has been told.
    is_end: bool,
    /// It is to come: the buffer is with the host.
    is_asked: bool,
}

static PLACE: Once<Place> = Once::new();
static QUEUE: Once<Queue> = Once::new();
static INPUT_QUEUE: Once<Queue> = Once::new();
static ANSWER: IrqSpinLock<Answer> = IrqSpinLock::new(Answer { start: 0, end: 0, is_end: false, is_asked: false });
/// Those who wait for an answer.
static READERS: WaitQueue = WaitQueue::new();
/// Held by who makes a queue.
static MAKING: SpinLock<()> = SpinLock::new(());

/// Notes the queues, of `size` entries, at physical addresses: that of what is printed and that of what is read. They get
/// buffers when somebody prints, or reads.
pub fn init(device: &'static Monitor, size: u16, parts: u64, input_parts: u64) {
    PLACE.set(Place { device, size, parts, input_parts });
}

/// `2^order` pages for buffers.
fn pages(order: Order) -> Option<u64> {
    let page = platform::mm()?.alloc_pages(Gfp::KERNEL, order);
    if page.is_none() {
        pr_err!("console: no memory for buffers");
    }
    Some(page?.addr().raw())
}

/// The queue of what is printed. `None` without the device, or without memory for buffers.
fn queue() -> Option<&'static Queue> {
    let place = PLACE.get()?;
    let _making = MAKING.lock();
    if QUEUE.get().is_none() {
        let buffers = Buffers { phys: pages(BUFFERS)?, count: 1 << BUFFERS.raw(), bytes: PAGE_SIZE as usize };
        QUEUE.set(Queue::new(place.device, QUEUE_CONSOLE, place.size, place.parts, buffers, false));
    }
    QUEUE.get()
}

/// Prints the start of `text` and gives how much of it: 0 when there is no room at the moment because the host has not
/// taken what was printed before.
pub fn write(text: &[u8]) -> usize {
    let Some(queue) = queue() else {
        serial::write(text);
        return text.len();
    };
    let mut done = 0;
    while done < text.len()
        && let Some(buffer) = queue.take()
    {
        let part = &text[done..text.len().min(done + PAGE_SIZE as usize)];
        for (word, bytes) in queue.words(buffer).iter().zip(part.chunks(8)) {
            let mut value = [0; 8];
            value[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_le_bytes(value), Ordering::Relaxed);
        }
        queue.post(buffer, part.len());
        done += part.len();
    }
    queue.tell();
    done
}

/// Waits, within reason, until the host has taken everything.
pub fn flush() {
    let Some(queue) = QUEUE.get() else { return };
    let began = clock::nanos();
    while !queue.is_drained() && clock::nanos() - began < PATIENCE {
        spin_loop();
    }
}

/// The queue of what is read, of one buffer. `None` without the device.
fn input_queue() -> Result<Option<&'static Queue>, Errno> {
    let Some(place) = PLACE.get() else { return Ok(None) };
    let _making = MAKING.lock();
    if INPUT_QUEUE.get().is_none() {
        let bytes = (PAGE_SIZE as usize) << INPUT.raw();
        let buffers = Buffers { phys: pages(INPUT).ok_or(Errno::ENOMEM)?, count: 1, bytes };
        INPUT_QUEUE.set(Queue::new(place.device, QUEUE_INPUT, place.size, place.input_parts, buffers, true));
    }
    Ok(INPUT_QUEUE.get())
}

/// The host has interrupted: notes what it answered, if it did. Interrupts are off.
pub fn receive() {
    let Some(queue) = INPUT_QUEUE.get() else { return };
    loop {
        match queue.returned() {
            Some((_, len)) => {
                *ANSWER.lock() = Answer { start: 0, end: len, is_end: len == 0, is_asked: false };
                READERS.wake_all();
            }
            None if queue.rest() => return,
            None => {}
        }
    }
}

/// Asks the host, unless it was asked already or what it has answered is not read yet. Whether there is an answer.
fn ask(queue: &Queue) -> bool {
    let mut answer = ANSWER.lock();
    let is_there = answer.start < answer.end || answer.is_end;
    if !is_there && !core::mem::replace(&mut answer.is_asked, true) {
        // Telling the host takes long.
        drop(answer);
        queue.post_all();
    }
    is_there
}

/// Reads what is there, if something is: bytes, or none at the end of file.
fn take(queue: &Queue, to: &mut [u8]) -> Option<usize> {
    let mut answer = ANSWER.lock();
    if core::mem::take(&mut answer.is_end) {
        return Some(0);
    }
    let len = to.len().min(answer.end - answer.start);
    if len == 0 {
        return None;
    }
    // SAFETY: the device has given the buffer back, since there is something to copy, and gets it again once all of that has
    // been read; both is known under the lock.
    let bytes = unsafe { queue.bytes(0, answer.end) };
    to[..len].copy_from_slice(&bytes[answer.start..answer.start + len]);
    answer.start += len;
    Some(len)
}

/// Reads what is there, at least one byte, and waits for it unless `now`. Nothing at the end of file.
///
/// # Errors
/// EINTR, ENOMEM; EAGAIN with `now`.
pub fn read(to: &mut [u8], now: bool) -> Result<usize, Errno> {
    let Some(queue) = input_queue()? else { return Ok(0) };
    if to.is_empty() {
        return Ok(0);
    }
    let mut look = || take(queue, to).or_else(|| if ask(queue) { take(queue, to) } else { None });
    match look() {
        None if now => Err(Errno::EAGAIN),
        None => READERS.wait_for(Sleep::LIGHT, look),
        Some(len) => Ok(len),
    }
}

/// Whether [`read`] would not wait. If it would, the host is asked.
pub fn is_readable() -> bool {
    match input_queue() {
        Ok(Some(queue)) => ask(queue),
        Ok(None) | Err(_) => true,
    }
}
