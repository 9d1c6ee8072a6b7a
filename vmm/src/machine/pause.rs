//! Pausing a machine: all its vCPUs out of the guest, at a point where the guest's tables are consistent.
//!
//! ```text
//! someone                     a vCPU's thread
//! Pauser::pause
//!   park_request = 1          (the guest's CPUs come to a safe point and stay there)
//!   pausers += 1, kick   ->   KVM_RUN ends: reads the registers, waits in PauseGate::hold
//!   waits for all of them
//!   safe? if not, lets them run on for a moment and kicks again
//! Paused (guard)              held
//!   drop: pausers -= 1   ->   enters the guest again
//!   park_request = 0
//! ```
//!
//! Several may pause at the same time; the machine runs again when the last of them has let go.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pagevisor_shared::region::records::Activity;
use pagevisor_shared::region::zone::PcpState;
use pagevisor_shared::region::{GuestState, RegionRef};

use super::lifecycle::Lifecycle;
use crate::kvm::CpuRegisters;
use crate::memory::GuestMemory;

/// How long vCPUs may take to leave the guest, and the guest to come to a safe point.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a guest that is not at a safe point runs on before it is looked at again: at first, and at most.
const RUN_ON: Duration = Duration::from_millis(1);
const MAX_RUN_ON: Duration = Duration::from_millis(50);

/// Why a machine could not be paused. It runs on then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PauseError {
    /// It has ended.
    #[error("the guest has ended")]
    Ended,
    /// A vCPU's thread is busy outside the guest.
    #[error("CPU {0} did not leave the guest within {PATIENCE:?}")]
    Stuck(usize),
    /// A CPU never waited for work, or somebody kept a lock.
    #[error("CPU {0} did not come to a safe point within {PATIENCE:?}")]
    Unsafe(usize),
}

#[derive(Debug, Default)]
struct State {
    /// How many want the machine paused.
    pausers: usize,
    /// How many want the guest's CPUs to stay at a safe point.
    parkers: usize,
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
        let state = State { pausers: 0, parkers: 0, held: vec![None; vcpus] };
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

    /// Takes all vCPUs out of the guest, at a safe point: each waits for work, runs a program or is about to, and nobody
    /// holds a lock of the allocator.
    /// A guest that has not come up, or is down, is safe anywhere.
    ///
    /// # Errors
    /// When the machine has ended, a vCPU's thread does not leave the guest, or a CPU does not come to a safe point.
    pub fn pause(&self) -> Result<Paused, PauseError> {
        let deadline = Instant::now() + PATIENCE;
        let mut run_on = RUN_ON;
        let request = ParkRequest::new(self.clone());
        loop {
            let mut paused = self.pause_anywhere()?;
            let Some(busy) = self.busy_cpu(paused.registers()) else {
                paused.request = Some(request);
                return Ok(paused);
            };
            // On its way to a program each CPU looks whether it is to stay, but only if something interrupts it.
            (0..paused.registers().len()).filter(|cpu| !self.stays(*cpu)).for_each(|cpu| self.lifecycle.interrupt(cpu));
            drop(paused);
            if Instant::now() >= deadline {
                return Err(PauseError::Unsafe(busy));
            }
            std::thread::sleep(run_on);
            run_on = (run_on * 2).min(MAX_RUN_ON);
        }
    }

    /// Takes all vCPUs out of the guest wherever they are: for a guest that hangs.
    ///
    /// # Errors
    /// When the machine has ended, or a vCPU's thread does not leave the guest.
    pub fn pause_anywhere(&self) -> Result<Paused, PauseError> {
        self.lifecycle.pause.lock().pausers += 1;
        // From here on it is the guard's part to let go.
        let mut paused = Paused { lifecycle: self.lifecycle.clone(), registers: Vec::new(), request: None };
        self.lifecycle.kick_all();
        let deadline = Instant::now() + PATIENCE;
        paused.registers = self.lifecycle.pause.wait_all(deadline, &|| self.lifecycle.ending().is_some())?;
        Ok(paused)
    }

    /// Whether the guest says that a CPU idles or stays where it is.
    fn stays(&self, cpu: usize) -> bool {
        let Ok(region) = self.memory.state().open() else { return false };
        let activity = region.cpus().get(cpu).map(|cpu| cpu.activity.load(Ordering::Relaxed));
        activity.and_then(Activity::new).is_some_and(|activity| activity != Activity::Running)
    }

    /// A CPU that may be inside a change of the guest's tables. The vCPUs are held.
    fn busy_cpu(&self, registers: &[CpuRegisters]) -> Option<usize> {
        let region = self.memory.state().open().ok()?;
        if region.state() != Some(GuestState::Ready) {
            return None;
        }
        // Who keeps a lock while everybody waits is not known; the boot CPU is as good as any.
        let locked = || has_locks(&region).then_some(0);
        let activity: Vec<_> = region.cpus().iter().map(|cpu| cpu.activity.load(Ordering::Relaxed)).collect();
        // A kernel that never says what its CPUs do: those that wait for an interrupt are idle.
        let says = activity.iter().any(|activity| *activity != Activity::Running as u32);
        let safe = |cpu: usize, registers: &CpuRegisters| match activity.get(cpu).copied().and_then(Activity::new) {
            Some(Activity::Idle | Activity::Parked) => true,
            // A program changes none of the kernel's tables.
            _ if registers.in_user_mode() => true,
            _ => !says && registers.waits,
        };
        let busy = registers.iter().enumerate().find(|(cpu, registers)| !safe(*cpu, registers));
        busy.map(|(cpu, _)| cpu).or_else(locked)
    }
}

/// Asks the guest's CPUs to stay at a safe point for as long as it lives.
#[derive(Debug)]
struct ParkRequest(Pauser);

impl ParkRequest {
    fn new(pauser: Pauser) -> Self {
        pauser.ask(1);
        Self(pauser)
    }
}

impl Drop for ParkRequest {
    fn drop(&mut self) {
        self.0.ask(-1);
    }
}

impl Pauser {
    /// Counts who asks, and tells the guest whether anybody does.
    fn ask(&self, change: isize) {
        let mut state = self.lifecycle.pause.lock();
        state.parkers = state.parkers.saturating_add_signed(change);
        // Under the lock, so that the word is always that of the count. A region that is not laid out yet asks nobody.
        if let Ok(region) = self.memory.state().open() {
            region.header().park_request.store(u32::from(state.parkers != 0), Ordering::SeqCst);
        }
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
    /// Taken back after the vCPUs run again.
    request: Option<ParkRequest>,
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
        self.request = None;
    }
}
