//! The monitor's interrupt: a message the guest chooses, sent by writing an eventfd.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Decides which message an eventfd sends. KVM's routing table does; a test can do without it.
pub trait MsiRoute: Send + Sync {
    /// From now on the eventfd sends this message.
    ///
    /// # Errors
    /// When it cannot be sent.
    fn set(&self, address: u64, data: u32) -> io::Result<()>;
}

/// The interrupt.
pub struct Interrupt {
    fd: EventFd,
    routed: AtomicBool,
    route: Box<dyn MsiRoute>,
}

impl Interrupt {
    /// An interrupt that goes nowhere until it is routed.
    pub(super) fn new(route: Box<dyn MsiRoute>) -> io::Result<Self> {
        let fd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self { fd, routed: AtomicBool::new(false), route })
    }

    pub(super) fn fd(&self) -> &EventFd {
        &self.fd
    }

    pub(super) fn route(&self, address: u64, data: u32) -> io::Result<()> {
        self.route.set(address, data)?;
        self.routed.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn unroute(&self) {
        self.routed.store(false, Ordering::Relaxed);
    }

    /// Sends the message; without one, the driver polls.
    pub(super) fn raise(&self) {
        if self.routed.load(Ordering::Relaxed) {
            // A full counter means that an interrupt is already on its way.
            let _ = self.fd.write(1);
        }
    }
}
