//! Pausing a machine: all its vCPUs out of the guest, at a point where the guest's tables are consistent.
//!
//! ```text
//! someone                     a vCPU's thread
//! Pauser::pause
//!   pausers += 1, kick   ->   KVM_RUN ends: reads the registers, waits in PauseGate::hold
//!   waits for all of them
//!   safe? if not, lets them run on for a moment and kicks again
//! Paused (guard)              held
//!   drop: pausers -= 1   ->   enters the guest again
//! ```
//!
//! Several may pause at the same time; the machine runs again when the last of them has let go.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pagevisor_shared::region::zone::PcpState;
use pagevisor_shared::region::{GuestState, RegionRef};

use super::lifecycle::Lifecycle;
use crate::kvm::CpuRegisters;
use crate::memory::GuestMemory;

/// How long vCPUs may take to leave the guest, and the guest to come to a safe point.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a guest that is not at a safe point runs on before it is looked at again.
const RUN_ON: Duration = Duration::from_millis(1);

/// Why a machine could not be paused. It runs on then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PauseError {
    /// It has ended.
    #[error("the guest has ended")]
    Ended,
    /// A vCPU's thread is busy outside the guest.
    #[error("CPU {0} did not leave the guest within {PATIENCE:?}")]
    Stuck(usize),
}

#[derive(Debug, Default)]
struct State {
    /// How many want the machine paused.
    pausers: usize,
    /// Registers of the vCPUs that are held.
    held: Vec<Option<CpuRegisters>>,
}

/// Where vCPU threads wait while the machine is paused.
#[derive(Debug)]
pub(super) struct PauseGate {
    state: Mutex<State>,
    changed: Condvar,
}

impl PauseGate {
    /// Of a machine with `vcpus` vCPUs.
    pub(super) fn new(vcpus: usize) -> Self {
        let state = State { pausers: 0, held: vec![None; vcpus] };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds the calling thread, that of vCPU `cpu`, as long as the machine is paused and not `ended`.
    pub(super) fn hold(&self, cpu: usize, registers: &dyn Fn() -> CpuRegisters, ended: &dyn Fn() -> bool) {
        let mut state = self.lock();
        if state.pausers == 0 || ended() {
            return;
        }
        if let Some(slot) = state.held.get_mut(cpu) {
            *slot = Some(registers());
        }
        self.changed.notify_all();
        while state.pausers != 0 && !ended() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(slot) = state.held.get_mut(cpu) {
            *slot = None;
        }
    }

    /// Lets everyone who waits look again.
    pub(super) fn wake(&self) {
        // The lock: nobody is between looking and waiting then.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Waits until all vCPUs are held and gives their registers; after `deadline`, the first that is not.
    fn wait_all(&self, deadline: Instant, ended: &dyn Fn() -> bool) -> Result<Vec<CpuRegisters>, PauseError> {
        let mut state = self.lock();
        loop {
            if ended() {
                return Err(PauseError::Ended);
            }
            let Some(missing) = state.held.iter().position(Option::is_none) else {
                return Ok(state.held.iter().flatten().copied().collect());
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(PauseError::Stuck(missing));
            }
            (state, _) = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Pauses a machine. Clones are for the same machine, and outlive it.
#[derive(Clone, Debug)]
pub struct Pauser {
    lifecycle: Arc<Lifecycle>,
    memory: Arc<GuestMemory>,
}

impl Pauser {
    pub(super) fn new(lifecycle: Arc<Lifecycle>, memory: Arc<GuestMemory>) -> Self {
        Self { lifecycle, memory }
    }

    /// Takes all vCPUs out of the guest, at a safe point.
    ///
    /// A guest that keeps one of the allocator's locks for two seconds is taken where it is: it hangs, or died, and
    /// who looks at it finds the lock.
    ///
    /// # Errors
    /// When the machine has ended, or a vCPU's thread does not leave the guest.
    pub fn pause(&self) -> Result<Paused, PauseError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let paused = self.hold(deadline)?;
            if self.is_safe() || Instant::now() >= deadline {
                return Ok(paused);
            }
            drop(paused);
            std::thread::sleep(RUN_ON);
        }
    }

    /// Takes all vCPUs out of the guest, wherever they are.
    fn hold(&self, deadline: Instant) -> Result<Paused, PauseError> {
        self.lifecycle.pause.lock().pausers += 1;
        // From here on it is the guard's part to let go.
        let mut paused = Paused { lifecycle: self.lifecycle.clone(), registers: Vec::new() };
        self.lifecycle.kick_all();
        paused.registers = self.lifecycle.pause.wait_all(deadline, &|| self.lifecycle.ending().is_some())?;
        Ok(paused)
    }

    /// Whether nobody is inside a change of the allocator's tables. The vCPUs are held.
    fn is_safe(&self) -> bool {
        let Ok(region) = self.memory.state().open() else { return true };
        region.state() != Some(GuestState::Ready) || !has_locks(&region)
    }
}

/// Whether a lock of the allocator is held.
fn has_locks(region: &RegionRef<'_>) -> bool {
    let zones = region
        .zones()
        .iter()
        .any(|zone| zone.lock.load(Ordering::Relaxed) != 0 || zone.seq.load(Ordering::Relaxed) & 1 != 0);
    // The first lock of a pageset stays taken while something watches allocations.
    let held = |pcp: &PcpState| {
        let closed = u32::from(pcp.hot.load(Ordering::Relaxed) != 0);
        pcp.lock.load(Ordering::Relaxed) != closed || pcp.hot_lock.load(Ordering::Relaxed) != 0
    };
    zones || region.pcps().iter().any(held)
}

/// A machine that is paused for as long as this lives.
#[derive(Debug)]
pub struct Paused {
    lifecycle: Arc<Lifecycle>,
    registers: Vec<CpuRegisters>,
}

impl Paused {
    /// The vCPUs' registers, by CPU.
    pub fn registers(&self) -> &[CpuRegisters] {
        &self.registers
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        {
            let mut state = self.lifecycle.pause.lock();
            state.pausers = state.pausers.saturating_sub(1);
        }
        self.lifecycle.pause.changed.notify_all();
    }
}
