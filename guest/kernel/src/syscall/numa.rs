//! Calls on nodes: where memory comes from and where pages are (`mm/mempolicy.c`, `mm/migrate.c`). There is no policy but the
//! default one, and pages stay where they are: these calls tell, and change nothing.

use pagevisor_mm::mmap::Space;
use pagevisor_shared::errno::Errno;
use pagevisor_shared::report::counters;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};

use super::Outcome;
use crate::arch::uaccess;
use crate::platform::{self, Kernel};
use crate::{region, task};

/// The kernel's memory stack.
type Mm = pagevisor_mm::Mm<Kernel>;

/// `get_mempolicy`: the node of a page and not a policy; of an address and not of the task; nodes that may be used.
const MPOL_F_NODE: u64 = 1;
const MPOL_F_ADDR: u64 = 2;
const MPOL_F_MEMS_ALLOWED: u64 = 4;
/// The policy that is none.
const MPOL_DEFAULT: u32 = 0;
/// `move_pages`: pages that are one process's alone, and pages of several.
const MPOL_MF_MOVE: u64 = 2;
const MPOL_MF_MOVE_ALL: u64 = 4;
/// Bytes of a set of nodes, whatever their number.
const MASK_BYTES: u64 = 8;

/// Makes call `number`, if it is one of these.
pub fn call(number: u32, args: &[u64; 6]) -> Option<Outcome> {
    Some(match number {
        239 => policy(args),
        279 => pages(args),
        _ => return None,
    })
}

/// `get_mempolicy` (`kernel_get_mempolicy`).
fn policy(args: &[u64; 6]) -> Outcome {
    let [policy, mask, bits, addr, flags, _] = *args;
    let region = region::get().ok_or(Errno::ENOSYS)?;
    if mask != 0 && bits < region.nr_nodes() as u64 {
        return Err(Errno::EINVAL);
    }
    let (value, nodes) = policy_of(addr, flags)?;
    if policy != 0 {
        uaccess::write_u32(policy, value)?;
    }
    if mask != 0 {
        write_mask(mask, bits, nodes)?;
    }
    Ok(0)
}

/// A policy or a node, and a set of nodes (`do_get_mempolicy`).
fn policy_of(addr: u64, flags: u64) -> Result<(u32, u64), Errno> {
    if flags & !(MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED) != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & MPOL_F_MEMS_ALLOWED != 0 {
        let region = region::get().filter(|_| flags == MPOL_F_MEMS_ALLOWED).ok_or(Errno::EINVAL)?;
        return Ok((MPOL_DEFAULT, counters::nodes_with_memory(region).0));
    }
    if flags & MPOL_F_ADDR == 0 {
        // The node that comes next is one of a policy that spreads pages.
        return if addr == 0 && flags & MPOL_F_NODE == 0 { Ok((MPOL_DEFAULT, 0)) } else { Err(Errno::EINVAL) };
    }
    let (Some(mm), Some(space)) = (platform::mm(), task::current().space()) else { return Err(Errno::EFAULT) };
    let addr = VirtAddr::new(addr);
    mm.find_vma(space, addr).filter(|area| area.start <= addr).ok_or(Errno::EFAULT)?;
    let value = if flags & MPOL_F_NODE == 0 { MPOL_DEFAULT } else { mm.lookup_node(space, addr)?.index() as u32 };
    Ok((value, 0))
}

/// Writes a set of nodes to the program's mask of `bits` bits, one of which does not count (`copy_nodes_to_user`).
fn write_mask(at: u64, bits: u64, nodes: u64) -> Result<(), Errno> {
    // No bits at all are as many as there can be, which are too many.
    let bytes = bits.wrapping_sub(1).div_ceil(64).wrapping_mul(8);
    if bytes > PAGE_SIZE {
        return Err(Errno::EINVAL);
    }
    if bytes > MASK_BYTES {
        uaccess::clear(at + MASK_BYTES, (bytes - MASK_BYTES) as usize)?;
    }
    uaccess::write(at, &nodes.to_le_bytes()[..bytes.min(MASK_BYTES) as usize])
}

/// `move_pages` (`kernel_move_pages`), for who does not say where to.
fn pages(args: &[u64; 6]) -> Outcome {
    let [pid, count, pages, nodes, status, flags] = *args;
    if flags & !(MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) != 0 {
        return Err(Errno::EINVAL);
    }
    let mm = platform::mm().ok_or(Errno::ENOSYS)?;
    let space = match pid as u32 {
        0 => task::current().get_space(),
        pid => task::find(pid).ok_or(Errno::ESRCH)?.get_space(),
    };
    let space = space.ok_or(Errno::EINVAL)?;
    // As a kernel without migration has it.
    let result = if nodes == 0 { tell_nodes(mm, space, count, pages, status) } else { Err(Errno::ENOSYS) };
    mm.mmput(space);
    result
}

/// Writes the node of each page, or why there is none (`do_pages_stat`).
fn tell_nodes(mm: &Mm, space: Space, count: u64, pages: u64, status: u64) -> Outcome {
    for index in 0..count {
        let addr = uaccess::read_u64(pages.wrapping_add(8 * index))?;
        let told = match mm.node_of_page(space, VirtAddr::new(addr)) {
            Ok(node) => node.index() as u32,
            Err(error) => error.to_result() as u32,
        };
        uaccess::write_u32(status.wrapping_add(4 * index), told)?;
    }
    Ok(0)
}
