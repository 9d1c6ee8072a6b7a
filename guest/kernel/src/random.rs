//! Random numbers for programs (`drivers/char/random.c`). Nothing secret is made here: they are random enough for hash tables.

use alloc::vec::Vec;

use pagevisor_shared::errno::Errno;
use pagevisor_shared::random::SplitMix64;
use pagevisor_shared::units::PAGE_SIZE;

use crate::arch::{cpu, uaccess};
use crate::task;

/// Fills `len` bytes of the program's memory from `at` on; gives how many it has (`get_random_bytes_user`).
///
/// # Errors
/// EFAULT if there is no memory at `at`.
pub fn fill(at: u64, len: usize) -> Result<usize, Errno> {
    let (mut numbers, mut done) = (SplitMix64::new(cpu::rdtsc()), 0);
    while done < len && !(done > 0 && task::signal_pending(&task::current())) {
        let piece = (len - done).min(PAGE_SIZE as usize);
        let bytes: Vec<u8> = (0..piece.div_ceil(8)).flat_map(|_| numbers.next().to_le_bytes()).collect();
        let copied = uaccess::write_some(at.wrapping_add(done as u64), &bytes[..piece]);
        done += copied;
        if copied < piece {
            break;
        }
        task::cond_resched();
    }
    if done == 0 && len > 0 { Err(Errno::EFAULT) } else { Ok(done) }
}
