//! Moving messages between the host and the buffers of the guest's queues. What the guest says of its buffers may be
//! anything: each descriptor is checked, and loops are bounded by the queue's size.
//!
//! Both sides spare each other notifications (`VIRTIO_F_EVENT_IDX`; why no wake-up is lost, [`pagevisor_shared::virtq`]
//! says). The device wants to be told of replies whenever it has taken all that were there, and of buffers for commands
//! only as long as a command waits for one: both by `enable_notification`, which looks again after its fence. A driver
//! without the feature tells of everything, and is interrupted for everything unless its flag says no.

use std::sync::atomic::Ordering;

use pagevisor_shared::command::BUFFER_BYTES;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::mailbox::Mailbox;
use crate::devices::{Input, Tty};

type Chain<'m> = DescriptorChain<&'m GuestMemoryMmap>;

/// Copies commands that wait into buffers, as long as there are both; if only buffers are missing, the driver is asked to
/// tell of the next one. Whether to interrupt.
pub(super) fn send(queue: &mut Queue, ram: &GuestMemoryMmap, mailbox: &Mailbox) -> Result<bool, Error> {
    let mut used = false;
    // A driver that takes back what it has offered cannot keep the device here.
    let mut again = queue.size();
    loop {
        // `iter` refuses an index that is more than a queue's length ahead, also when there is nothing to send.
        let mut chains = queue.iter(ram)?;
        if !mailbox.has_pending() {
            break;
        }
        let Some(chain) = chains.next() else {
            // One that came in before the driver was asked is there now.
            if again != 0 && queue.enable_notification(ram)? {
                again -= 1;
                continue;
            }
            break;
        };
        let head = chain.head_index();
        let Some(letter) = mailbox.take() else {
            // Its requester has given up since.
            queue.go_to_previous_position();
            break;
        };
        if let Err(error) = write(chain, ram, &letter.message) {
            mailbox.put_back(letter);
            return Err(error);
        }
        // Before the guest can reply to it.
        mailbox.sent();
        queue.add_used(ram, head, letter.message.len() as u32)?;
        used = true;
    }
    Ok(used && wants_interrupt(queue, ram)?)
}

/// Whether the driver wants to know that buffers were used (virtio 1.2, 2.7.7; virtio-queue leaves the flag to us).
fn wants_interrupt(queue: &mut Queue, ram: &GuestMemoryMmap) -> Result<bool, Error> {
    // Its fence keeps the flag from being read before the used index is written.
    let needed = queue.needs_notification(ram)?;
    if queue.event_idx_enabled() {
        return Ok(needed);
    }
    let flags: u16 = ram.load(GuestAddress(queue.avail_ring()), Ordering::Relaxed).map_err(Error::GuestMemory)?;
    Ok(needed && u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}

/// Writes `message` to the buffer.
fn write(chain: Chain<'_>, ram: &GuestMemoryMmap, message: &[u8]) -> Result<(), Error> {
    let mut rest = message;
    for descriptor in chain.writable() {
        let (part, behind) = rest.split_at_checked(descriptor.len() as usize).unwrap_or((rest, &[]));
        ram.write_slice(part, descriptor.addr()).map_err(Error::GuestMemory)?;
        rest = behind;
    }
    if rest.is_empty() { Ok(()) } else { Err(Error::InvalidChain) }
}

/// What came of looking for replies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    /// Whether to interrupt.
    pub interrupt: bool,
    /// There are more: the driver will not tell of them.
    pub more: bool,
}

/// Reads the replies that are there and gives their buffers back, then asks the driver to tell of the next one.
pub(super) fn receive(
    queue: &mut Queue,
    ram: &GuestMemoryMmap,
    deliver: &mut dyn FnMut(&[u8]),
) -> Result<Received, Error> {
    let mut used = false;
    let mut bytes = Vec::new();
    // At most a queue's length.
    let chains: Vec<Chain<'_>> = queue.iter(ram)?.collect();
    for chain in chains {
        let head = chain.head_index();
        read(chain, ram, &mut bytes)?;
        deliver(&bytes);
        queue.add_used(ram, head, 0)?;
        used = true;
    }
    let more = queue.enable_notification(ram)?;
    Ok(Received { interrupt: used && wants_interrupt(queue, ram)?, more })
}

/// Reads what programs have written as long as `tty` has room, which otherwise rings when it has some again, and gives
/// the buffers back.
pub(super) fn print(queue: &mut Queue, ram: &GuestMemoryMmap, tty: &Tty) -> Result<Received, Error> {
    let mut used = false;
    let mut bytes = Vec::new();
    // A driver that goes on and on is looked at after what else the device has to do.
    for _ in 0..queue.size() {
        let mut chains = queue.iter(ram)?;
        if !tty.has_room() {
            return Ok(Received { interrupt: used && wants_interrupt(queue, ram)?, more: false });
        }
        let Some(chain) = chains.next() else { break };
        let head = chain.head_index();
        read(chain, ram, &mut bytes)?;
        tty.put(&bytes);
        queue.add_used(ram, head, 0)?;
        used = true;
    }
    let more = queue.enable_notification(ram)?;
    Ok(Received { interrupt: used && wants_interrupt(queue, ram)?, more })
}

/// Puts what `input` has into buffers of programs that read; where it has nothing yet it rings when it has. Then asks the
/// driver to tell of the next one. Whether to interrupt.
pub(super) fn feed(queue: &mut Queue, ram: &GuestMemoryMmap, input: &Input) -> Result<bool, Error> {
    let mut used = false;
    // A driver that goes on and on, which costs it a buffer each time, waits for the next doorbell.
    for _ in 0..queue.size() {
        let Some(chain) = queue.iter(ram)?.next() else {
            if queue.enable_notification(ram)? {
                continue;
            }
            break;
        };
        let head = chain.head_index();
        let room = chain.clone().writable().fold(0, |room: usize, part| room.saturating_add(part.len() as usize));
        let Some(bytes) = input.take(room) else {
            queue.go_to_previous_position();
            break;
        };
        write(chain, ram, &bytes)?;
        queue.add_used(ram, head, bytes.len() as u32)?;
        used = true;
    }
    Ok(used && wants_interrupt(queue, ram)?)
}

/// Reads the buffer, but no more of it than a message may have.
fn read(chain: Chain<'_>, ram: &GuestMemoryMmap, bytes: &mut Vec<u8>) -> Result<(), Error> {
    bytes.clear();
    for descriptor in chain.readable() {
        let start = bytes.len();
        bytes.resize(start + (descriptor.len() as usize).min(BUFFER_BYTES - start), 0);
        if let Some(part) = bytes.get_mut(start..) {
            ram.read_slice(part, descriptor.addr()).map_err(Error::GuestMemory)?;
        }
    }
    Ok(())
}
