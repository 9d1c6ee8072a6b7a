//! Numbers of tasks (`kernel/pid.c`): handed out upwards, and again from the lowest free one when the last is reached.

/// First number that is not given (`pid_max`, `PID_MAX_DEFAULT`).
pub const PID_MAX: u32 = 0x8000;
/// The lowest number that is given again once all have been given (`RESERVED_PIDS`).
pub const RESERVED_PIDS: u32 = 300;

/// Which numbers are taken.
#[derive(Debug)]
pub struct PidMap {
    taken: [u64; PID_MAX as usize / 64],
    /// The number behind the last one given.
    next: u32,
}

impl PidMap {
    /// All are free but 0.
    pub const fn new() -> Self {
        let mut taken = [0; PID_MAX as usize / 64];
        taken[0] = 1;
        Self { taken, next: 1 }
    }

    /// Takes a number; `None` when there is none.
    pub fn alloc(&mut self) -> Option<u32> {
        let pid = match self.first_free(self.next, PID_MAX) {
            Some(pid) => pid,
            None => self.first_free(RESERVED_PIDS, self.next)?,
        };
        self.taken[pid as usize / 64] |= 1 << (pid % 64);
        self.next = pid + 1;
        Some(pid)
    }

    /// Takes `pid`, which is free.
    pub fn take(&mut self, pid: u32) {
        if let Some(word) = self.taken.get_mut(pid as usize / 64) {
            *word |= 1 << (pid % 64);
        }
    }

    /// Gives `pid` back.
    pub fn free(&mut self, pid: u32) {
        let bit = 1 << (pid % 64);
        if let Some(word) = self.taken.get_mut(pid as usize / 64)
            && pid != 0
            && *word & bit != 0
        {
            *word &= !bit;
        }
    }

    fn first_free(&self, from: u32, end: u32) -> Option<u32> {
        let mut pid = from;
        while pid < end {
            let free = !self.taken[pid as usize / 64] >> (pid % 64);
            if free != 0 {
                // Free numbers of the word at `pid` and behind it.
                let found = pid + free.trailing_zeros();
                return (found < end).then_some(found);
            }
            pid = (pid / 64 + 1) * 64;
        }
        None
    }
}
