//! Where the driver says a queue is, and whether that can be.

use pagevisor_shared::device::monitor;
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Why a queue cannot be used. The text completes "although ...".
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QueueSetupError {
    /// Size.
    #[error("its size of {0} is no power of two up to {max}", max = monitor::QUEUE_MAX)]
    Size(u32),
    /// Alignment of a part.
    #[error("its {0} at {1:#x} is misaligned")]
    Alignment(&'static str, u64),
    /// Not in RAM.
    #[error("it does not lie in RAM")]
    NotInRam,
}

/// What the driver wrote about a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueSetup {
    /// Entries.
    pub size: u32,
    /// Address of the descriptor table.
    pub descriptors: u64,
    /// Address of the available ring (the driver area).
    pub available: u64,
    /// Address of the used ring (the device area).
    pub used: u64,
}

impl Default for QueueSetup {
    fn default() -> Self {
        Self { size: monitor::QUEUE_MAX.into(), descriptors: 0, available: 0, used: 0 }
    }
}

impl QueueSetup {
    /// The queue, ready for use.
    ///
    /// # Errors
    /// When its size or an alignment is not as virtio wants it, or a part does not lie in `ram`.
    pub fn build(&self, ram: &GuestMemoryMmap) -> Result<Queue, QueueSetupError> {
        let bad_size = |_: Error| QueueSetupError::Size(self.size);
        let misaligned = |what, at| move |_: Error| QueueSetupError::Alignment(what, at);
        let mut queue = Queue::new(monitor::QUEUE_MAX).map_err(bad_size)?;
        let size = u16::try_from(self.size).map_err(|_| QueueSetupError::Size(self.size))?;
        queue.try_set_size(size).map_err(bad_size)?;
        let descriptors = GuestAddress(self.descriptors);
        queue.try_set_desc_table_address(descriptors).map_err(misaligned("descriptor table", self.descriptors))?;
        let available = GuestAddress(self.available);
        queue.try_set_avail_ring_address(available).map_err(misaligned("available ring", self.available))?;
        let used = GuestAddress(self.used);
        queue.try_set_used_ring_address(used).map_err(misaligned("used ring", self.used))?;
        queue.set_ready(true);
        if queue.is_valid(ram) { Ok(queue) } else { Err(QueueSetupError::NotInRam) }
    }
}
