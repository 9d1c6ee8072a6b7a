//! What the log says of programs that are ended for what they have done (`show_signal_msg`, `show_signal`).

use alloc::string::String;
use alloc::vec;
use core::sync::atomic::Ordering::Relaxed;

use super::{Info, SIGBUS, SIGFPE, SIGILL, SIGSEGV};
use crate::arch::traps::{TrapFrame, vector};
use crate::fs::file::display_name;
use crate::fs::path::PATH_MAX;
use crate::log::pr_info;
use crate::task::Task;
use crate::{platform, region};

/// Says why `task`, which was in user mode with `frame`, is ended by `info`; but only if the processor has found it out.
pub(super) fn report(task: &Task, frame: &TrapFrame, info: &Info) {
    let [trap, error, address] = [0, 1, 2].map(|index| task.signals.trap[index].load(Relaxed));
    // Somebody has sent it; it is of another kind; or it is about a stack.
    if info.code <= 0
        || !matches!(info.number, SIGILL | SIGBUS | SIGFPE | SIGSEGV)
        || trap == 0 && info.number != SIGFPE
    {
        return;
    }
    let (name, pid, place) = (task.name(), task.pid(), place_of(task, frame.rip));
    if trap == vector::PAGE_FAULT {
        if info.number == SIGSEGV {
            let (cpu, [core, socket]) = (task.cpu(), topology(task.cpu()));
            pr_info!(
                "{name}[{pid}]: segfault at {address:x} ip {:016x} sp {:016x} error {error:x}{place} likely on CPU {cpu} (core {core}, socket {socket})",
                frame.rip,
                frame.rsp
            );
        }
    } else if let Some(what) = name_of(trap) {
        pr_info!("traps: {name}[{pid}] {what} ip:{:x} sp:{:x} error:{error:x}{place}", frame.rip, frame.rsp);
    }
}

/// What Linux calls an exception that it tells of.
const fn name_of(trap: u64) -> Option<&'static str> {
    Some(match trap {
        0 => "trap divide error",
        4 => "trap overflow",
        5 => "trap bounds",
        6 => "trap invalid opcode",
        10 => "trap invalid TSS",
        11 => "trap segment not present",
        12 => "trap stack segment",
        13 => "general protection fault",
        17 => "trap alignment check",
        _ => return None,
    })
}

/// The file that `addr` is in, and where that begins and how long it is, as a part of a line; nothing if it is in none
/// (`print_vma_addr`).
fn place_of(task: &Task, addr: u64) -> String {
    let (Some(mm), Some(space)) = (platform::mm(), task.space()) else { return String::new() };
    let mut place = String::new();
    mm.for_each_vma(space, |area| {
        let (start, end) = (area.start.raw(), area.end.raw());
        if (start..end).contains(&addr) {
            let mut path = vec![0; PATH_MAX];
            if let Some(file) = mm.area_file(area, &mut path) {
                let name = display_name(&String::from_utf8_lossy(&path[..file.path_len]));
                place = alloc::format!(" in {name}[{start:x}+{:x}]", end - start);
            }
        }
    });
    place
}

/// Which core of which socket `cpu` is: a node is a socket here, and its CPUs are cores.
fn topology(cpu: usize) -> [usize; 2] {
    let Some(region) = region::get() else { return [0; 2] };
    let node_of = |cpu: usize| region.cpus().get(cpu).map_or(0, |record| record.node.load(Relaxed));
    let node = node_of(cpu);
    [(0..cpu).filter(|other| node_of(*other) == node).count(), node as usize]
}
