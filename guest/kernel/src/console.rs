//! Where programs print: a queue of the monitor device, or without the device the serial line.

use core::hint::spin_loop;
use core::sync::atomic::Ordering;

use pagevisor_shared::device::monitor::QUEUE_CONSOLE;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{Order, PAGE_SIZE};

use crate::log::pr_err;
use crate::monitor::Monitor;
use crate::sync::{Once, SpinLock};
use crate::virtq::{Buffers, Queue};
use crate::{clock, platform, serial};

/// Buffers, of a page each.
const BUFFERS: Order = match Order::new(3) {
    Ok(order) => order,
    Err(_) => Order::ZERO,
};
/// Nanoseconds that the host may take for what was printed when the machine ends.
const PATIENCE: u64 = 2_000_000_000;

/// Where the queue is.
#[derive(Clone, Copy, Debug)]
struct Place {
    device: &'static Monitor,
    size: u16,
    parts: u64,
}

static PLACE: Once<Place> = Once::new();
static QUEUE: Once<Queue> = Once::new();
/// Held by who makes the queue.
static MAKING: SpinLock<()> = SpinLock::new(());

/// Notes the queue, of `size` entries, at physical address `parts`. It gets buffers when somebody prints.
pub fn init(device: &'static Monitor, size: u16, parts: u64) {
    PLACE.set(Place { device, size, parts });
}

/// The queue. `None` without the device, or without memory for buffers.
fn queue() -> Option<&'static Queue> {
    let place = PLACE.get()?;
    let _making = MAKING.lock();
    if QUEUE.get().is_none() {
        let Some(page) = platform::mm()?.alloc_pages(Gfp::KERNEL, BUFFERS) else {
            pr_err!("console: no memory for buffers");
            return None;
        };
        let buffers = Buffers { phys: page.addr().raw(), count: 1 << BUFFERS.raw(), bytes: PAGE_SIZE as usize };
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
