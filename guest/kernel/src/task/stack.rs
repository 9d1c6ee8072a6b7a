//! Kernel stacks: areas of `vmalloc`, each with an unmapped page below it, so that an overflow ends in a double fault
//! instead of damage. As in Linux (`kernel/fork.c`, `cached_stacks`), each CPU keeps two that were given back.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::vmalloc::VmallocRequest;
use pagevisor_shared::NR_CPUS;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::sched::THREAD_SIZE;
use pagevisor_shared::units::{NodeId, PAGE_SIZE, VirtAddr};
use pagevisor_shared::vmalloc::VmFlags;
use pagevisor_shared::vmstat::NodeStat;

use super::object::{Task, try_current};
use crate::arch::percpu;
use crate::arch::traps::TrapFrame;
use crate::platform;
use crate::region;

/// Stacks that a CPU keeps (`NR_CACHED_STACKS`).
const NR_CACHED_STACKS: usize = 2;

/// Stacks that were given back, by CPU. Only the CPU itself takes one or puts one there, but an interrupt may come
/// between: so each slot is exchanged as a whole.
static CACHED: [[AtomicU64; NR_CACHED_STACKS]; NR_CPUS] =
    [const { [const { AtomicU64::new(0) }; NR_CACHED_STACKS] }; NR_CPUS];

fn cached() -> &'static [AtomicU64; NR_CACHED_STACKS] {
    &CACHED[percpu::cpu_number() as usize % NR_CPUS]
}

/// The node of `cpu`.
fn node_of(cpu: usize) -> Option<NodeId> {
    let node = region::get()?.cpus().get(cpu)?.node.load(Relaxed);
    NodeId::new(node as usize)
}

/// Gives `task` a stack, on the node of the CPU that it is to begin on; whether there was memory for it
/// (`alloc_thread_stack_node`).
pub(super) fn alloc(task: &Task, cpu: usize) -> bool {
    let Some(mm) = platform::mm() else { return false };
    let kept = cached().iter().map(|slot| slot.swap(0, Relaxed)).find(|stack| *stack != 0);
    let stack = kept.map(VirtAddr::new).or_else(|| {
        let request = VmallocRequest {
            align: THREAD_SIZE,
            gfp: Gfp::KERNEL,
            flags: VmFlags(0),
            node: node_of(cpu),
            ..VmallocRequest::new(THREAD_SIZE)
        };
        mm.vmalloc_range(&request)
    });
    let Some(stack) = stack else { return false };
    task.record.stack.store(stack.raw(), Relaxed);
    task.stack_node.store(node_of(cpu).unwrap_or_default().index() as u32, Relaxed);
    account(task, 1);
    true
}

/// Counts the stack of `task` (`account_kernel_stack`).
fn account(task: &Task, sign: i64) {
    let node = NodeId::new(task.stack_node.load(Relaxed) as usize);
    if let (Some(mm), Some(node)) = (platform::mm(), node) {
        mm.mod_node_page_state(node, NodeStat::NrKernelStack, sign * (THREAD_SIZE >> 10) as i64);
    }
}

/// Takes the stack of `task`, which runs no more, if it has one from [`alloc`] (`put_task_stack`).
pub(super) fn free(task: &Task) {
    let stack = task.record.stack.swap(0, Relaxed);
    let Some(mm) = platform::mm() else { return };
    if stack == 0 {
        return;
    }
    account(task, -1);
    for slot in cached() {
        if slot.compare_exchange(0, stack, Relaxed, Relaxed).is_ok() {
            return;
        }
    }
    mm.vfree_atomic(VirtAddr::new(stack));
}

/// Where the stack of `task` ends.
pub(super) fn top(task: &Task) -> u64 {
    task.record.stack.load(Relaxed) + THREAD_SIZE
}

/// Where the registers of user mode are on the kernel stack of `task`: the processor puts them there.
pub fn frame(task: &Task) -> u64 {
    top(task) - size_of::<TrapFrame>() as u64
}

/// Whether `address` is in the page below the current task's stack.
pub fn is_guard(address: u64) -> bool {
    let base = try_current().map_or(0, |task| task.record.stack.load(Relaxed));
    base != 0 && base.wrapping_sub(address).wrapping_sub(1) < PAGE_SIZE
}

/// Whether the bytes from `first` to `last` are on the current task's stack.
#[inline(always)]
pub fn holds(first: u64, last: u64) -> bool {
    let base = try_current().map_or(0, |task| task.record.stack.load(Relaxed));
    base != 0 && first >= base && first <= last && last - base < THREAD_SIZE
}
