//! Calls on memory.

use pagevisor_mm::mmap::{Limits, MmapRequest, MremapRequest, Space};
use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::uapi::{MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, MAP_TYPE, MLOCK_ONFAULT, PROT_WRITE};
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE, VirtAddr};

use super::iovec::{self, Piece};
use super::{Outcome, files};
use crate::arch::uaccess;
use crate::fs::file::File;
use crate::fs::inode::{Device, Kind};
use crate::platform::{self, Kernel};
use crate::task;

/// The kernel's memory stack.
type Mm = pagevisor_mm::Mm<Kernel>;

/// Whether call `number` is one of these.
#[inline(always)]
pub const fn is_of_memory(number: u32) -> bool {
    matches!(number, 9..=12 | 25..=28 | 149..=152 | 325 | 310 | 311)
}

/// Makes call `number`, which is one of these.
pub fn call(number: u32, args: &[u64; 6]) -> Outcome {
    let task = task::current();
    let (Some(mm), Some(space)) = (platform::mm(), task.space()) else { return Err(Errno::ENOMEM) };
    known(mm, space, &super::limits(&task), number, args)
}

fn known(mm: &Mm, space: Space, limits: &Limits, number: u32, args: &[u64; 6]) -> Outcome {
    let [a, b, c, d, e, _] = *args;
    let addr = VirtAddr::new(a);
    let done = |result: Result<(), Errno>| result.map(|()| 0);
    match number {
        9 => map(mm, space, limits, args),
        10 => done(mm.do_mprotect(space, addr, b, c as u32, limits)),
        11 => done(mm.do_munmap(space, addr, b)),
        12 => Ok(mm.do_brk(space, addr, limits).raw()),
        25 => {
            let request = MremapRequest { addr, old_len: b, new_len: c, flags: d as u32, new_addr: VirtAddr::new(e) };
            mm.do_mremap(space, &request, limits).map(VirtAddr::raw)
        }
        26 => done(mm.do_msync(space, addr, b, c as u32)),
        27 => mincore(mm, space, addr, b, c),
        28 => done(mm.do_madvise(space, addr, b, c as u32)),
        149 => done(mm.do_mlock(space, addr, b, 0, limits)),
        150 => done(mm.do_munlock(space, addr, b)),
        151 => done(mm.do_mlockall(space, a as u32, limits)),
        152 => {
            mm.do_munlockall(space);
            Ok(0)
        }
        310 => other(mm, args, false),
        311 => other(mm, args, true),
        _ if c as u32 & !MLOCK_ONFAULT != 0 => Err(Errno::EINVAL),
        _ => done(mm.do_mlock(space, addr, b, c as u32, limits)),
    }
}

/// `mmap` (`ksys_mmap_pgoff`).
fn map(mm: &Mm, space: Space, limits: &Limits, args: &[u64; 6]) -> Outcome {
    let [addr, len, prot, flags, file, offset] = *args;
    if !offset.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let (addr, prot, flags, pgoff) = (VirtAddr::new(addr), prot as u32, flags as u32, offset >> PAGE_SHIFT);
    let request = MmapRequest { addr, len, prot, flags, file: None, pgoff };
    if flags & MAP_ANONYMOUS != 0 {
        return mm.do_mmap(space, &request, limits).map(VirtAddr::raw);
    }
    let file = files::own()?.get(file)?;
    // Before anybody asks whether there is anything to map.
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    let request = match file.inode.kind {
        Kind::Device(Device::Zero) if flags & MAP_TYPE != MAP_PRIVATE => zeros(&file, request)?,
        _ => MmapRequest { file: Some(file.mapped()?), ..request },
    };
    mm.do_mmap(space, &request, limits).map(VirtAddr::raw)
}

/// `/dev/zero` is shared as memory without a file is, if it may be (`mmap_zero`).
fn zeros(file: &File, request: MmapRequest) -> Result<MmapRequest, Errno> {
    if !file.reads() || request.prot & PROT_WRITE != 0 && !file.writes() {
        return Err(Errno::EACCES);
    }
    Ok(MmapRequest { flags: request.flags & !MAP_TYPE | MAP_SHARED | MAP_ANONYMOUS, ..request })
}

/// `mincore`.
fn mincore(mm: &Mm, space: Space, start: VirtAddr, len: u64, at: u64) -> Outcome {
    const PIECE: u64 = 4096;
    if !start.raw().is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    if !uaccess::is_user_range(start.raw(), len) {
        return Err(Errno::ENOMEM);
    }
    let pages = len.div_ceil(PAGE_SIZE);
    let mut bytes = alloc::vec![0; pages.min(PIECE) as usize];
    let mut done = 0;
    while done < pages {
        let now = PIECE.min(pages - done) as usize;
        mm.do_mincore(space, VirtAddr::new(start.raw() + done * PAGE_SIZE), &mut bytes[..now])?;
        uaccess::write(at + done, &bytes[..now])?;
        done += now as u64;
    }
    Ok(0)
}

/// `process_vm_readv`, `process_vm_writev`.
fn other(mm: &Mm, args: &[u64; 6], write: bool) -> Outcome {
    let [pid, local, local_count, remote, remote_count, flags] = *args;
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let nothing = |pieces: &[Piece]| pieces.iter().all(|[_, len]| *len == 0);
    let local = iovec::import(local, local_count)?;
    if nothing(&local) {
        return Ok(0);
    }
    let remote = iovec::copy(remote, remote_count)?;
    if nothing(&remote) {
        return Ok(0);
    }
    let target = task::find(pid as u32).ok_or(Errno::ESRCH)?;
    let space = target.get_space().ok_or(Errno::ESRCH)?;
    let done = move_pieces(mm, space, &local, &remote, write);
    mm.mmput(space);
    if done == 0 { Err(Errno::EFAULT) } else { Ok(done) }
}

/// Moves bytes between pieces here and those of `space`, until either are done or something is not there; gives how many
/// (`process_vm_rw_core`).
fn move_pieces(mm: &Mm, space: Space, local: &[Piece], remote: &[Piece], write: bool) -> u64 {
    let mut buffer = alloc::vec![0; PAGE_SIZE as usize];
    let (mut pieces, [mut at, mut left], mut done) = (local.iter(), [0; 2], 0);
    for &[mut far, mut rest] in remote {
        while rest != 0 {
            while left == 0 {
                let Some(piece) = pieces.next() else { return done };
                [at, left] = *piece;
            }
            // Up to where a page ends here: all of it is there, or nothing.
            let len = left.min(rest).min(PAGE_SIZE - at % PAGE_SIZE);
            let moved = move_piece(mm, space, at, far, &mut buffer[..len as usize], write) as u64;
            done += moved;
            if moved < len {
                return done;
            }
            [at, left, far, rest] = [at + len, left - len, far.wrapping_add(len), rest - len];
        }
    }
    done
}

/// Moves as many bytes as `buffer` has between the program's own `at` and `far` in `space`; gives how many it could.
fn move_piece(mm: &Mm, space: Space, at: u64, far: u64, buffer: &mut [u8], write: bool) -> usize {
    let far = VirtAddr::new(far);
    if write {
        return if uaccess::read(buffer, at).is_ok() { mm.write_remote_vm(space, far, buffer) } else { 0 };
    }
    let got = mm.read_remote_vm(space, far, buffer);
    if uaccess::write(at, &buffer[..got]).is_ok() { got } else { 0 }
}
