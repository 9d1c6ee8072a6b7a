//! Getting vCPU threads out of the guest.
//!
//! A vCPU thread runs the guest inside `KVM_RUN`. To stop it, another thread sets the vCPU's `immediate_exit` byte and
//! then sends the thread a signal: if the thread is in the guest, the signal takes it out; if it is about to enter,
//! KVM sees the byte and does not. Either way `KVM_RUN` gives `EINTR`.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use kvm_ioctls::VcpuFd;
use nix::libc::{self, c_int, c_void, siginfo_t};
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::signal::{SIGRTMIN, create_sigset, register_signal_handler};

/// The signal: it only has to interrupt a system call.
fn kick_signal() -> c_int {
    SIGRTMIN()
}

extern "C" fn on_kick(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}

/// Makes the calling thread one that can be kicked: it takes no signal but the kick, and that of the sandbox.
fn prepare_thread() -> Result<(), Errno> {
    static HANDLER: OnceLock<Result<(), Errno>> = OnceLock::new();
    (*HANDLER.get_or_init(|| register_signal_handler(kick_signal(), on_kick)))?;
    let kick = create_sigset(&[kick_signal(), libc::SIGSYS])?;
    // SAFETY: both sets are local and initialised; changing the mask of the calling thread has no other effect.
    let error = unsafe {
        let mut mask = std::mem::zeroed();
        libc::sigfillset(&mut mask);
        match libc::pthread_sigmask(libc::SIG_SETMASK, &mask, std::ptr::null_mut()) {
            0 => libc::pthread_sigmask(libc::SIG_UNBLOCK, &kick, std::ptr::null_mut()),
            error => error,
        }
    };
    if error == 0 { Ok(()) } else { Err(Errno::new(error)) }
}

/// A running vCPU thread.
#[derive(Debug)]
struct Target {
    thread: libc::pthread_t,
    immediate_exit: NonNull<AtomicU8>,
}

// SAFETY: the pointer is to memory that KVM shares with this process and that any thread may access atomically; it is
// valid for as long as the target stands in its gate (see `VcpuGate`).
unsafe impl Send for Target {}

/// Where a vCPU can be kicked, while it runs.
#[derive(Debug, Default)]
pub(crate) struct Kick(Mutex<Option<Target>>);

impl Kick {
    /// Takes the vCPU out of the guest and keeps it from entering until its thread has looked at why
    /// ([`VcpuGate::admit`]). Nothing happens if it does not run.
    pub(crate) fn kick(&self) {
        let target = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = &*target {
            // SAFETY: by `VcpuGate` the vCPU's mapping and its thread exist while the target is set, which the lock
            // held here keeps so.
            unsafe {
                target.immediate_exit.as_ref().store(1, Ordering::SeqCst);
                libc::pthread_kill(target.thread, kick_signal());
            }
        }
    }
}

/// Held by a vCPU thread while its vCPU may be kicked. It borrows the kick and is made from the vCPU, so it has to be
/// dropped before either goes away: [`super::Vcpu::run`] sees to that.
pub(crate) struct VcpuGate<'a> {
    kick: &'a Kick,
    immediate_exit: NonNull<AtomicU8>,
}

impl<'a> VcpuGate<'a> {
    /// Opens the gate for the calling thread, which is to run `vcpu`.
    pub(crate) fn open(kick: &'a Kick, vcpu: &mut VcpuFd) -> Result<Self, Errno> {
        prepare_thread()?;
        let immediate_exit = NonNull::from(&mut vcpu.get_kvm_run().immediate_exit).cast();
        // SAFETY: `pthread_self` always succeeds.
        let thread = unsafe { libc::pthread_self() };
        *kick.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Target { thread, immediate_exit });
        Ok(Self { kick, immediate_exit })
    }

    /// Lets the vCPU enter the guest again. To be called before looking at what a kick was for: what kicks after this
    /// is seen at the next entry.
    pub(crate) fn admit(&self) {
        // SAFETY: the vCPU's mapping exists as long as the gate, which is dropped before the vCPU is.
        unsafe { self.immediate_exit.as_ref() }.store(0, Ordering::SeqCst);
    }
}

impl Drop for VcpuGate<'_> {
    fn drop(&mut self) {
        *self.kick.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
