//! `pagevisor.test=NAME`: things a machine should not do, done on purpose once it is ready, or just before.
//!
//! The host's tests use these to see each kind of end, and the interrupts:
//!
//! | name | what happens |
//! |---|---|
//! | `panic` | a panic with the message `requested on the command line` |
//! | `triple-fault` | an exception without gates: the processor gives up |
//! | `bad-instruction` | an instruction that emulated ring 0 cannot execute (an error on hosts without hardware virtualization; elsewhere it just works and the machine goes on) |
//! | `undefined` | `ud2` |
//! | `page-fault` | a write to an address nobody maps |
//! | `text-write` | a write to the kernel's text |
//! | `stack-overflow` | a recursion without end |
//! | `divide` | a division by zero |
//! | `hang` | an endless loop with interrupts off |
//! | `never-ready` | the machine is up but never says so, and idles for ever |
//! | `provoke` | programs can have the kernel do such things while it works for them: [`provoke`] |
//! | `timer` | the one-shot timer ends a halt; logs `selftest: timer ok` |
//! | `ipi` | every other CPU runs a function; logs `selftest: ipi ok` |
//! | `spaces` | two CPUs use an address space that changes under them; logs `selftest: spaces ok` |
//! | `tasks` | threads that switch, wake each other, move between CPUs, sleep, and end; logs `selftest: tasks ok` |
//! | `vmalloc` | memory is written through its mapping by one CPU and read by all, its addresses used again for other memory; logs `selftest: vmalloc ok` |
//! | `percpu` | every CPU works on its instances of per-CPU variables, static and dynamic; logs `selftest: percpu ok` |
//! | `heap` | boxes, vectors and maps in memory from kmalloc; logs `selftest: heap ok` |
//! | `heap-exhausted` | a vector larger than memory: a panic |
//! | `mem-info` | takes all blocks of order 10, so that an allocation fails with its report; gives them back |
//! | `scatter` | takes blocks of all orders and mobilities, gives every other one back and keeps the rest |
//! | `console` | 2000 lines on the programs' console, then power-off as after a program with exit status 42 |
//! | `layers` | the same, and then leaves slab caches, vmalloc areas and per-CPU memory partly in use; logs `selftest: layers ok` |

mod heap;
mod layers;
mod per_cpu;
pub mod provoke;
mod spaces;
mod tasks;
mod vmalloc;

use alloc::format;
use core::arch::{asm, naked_asm};
use core::hint::black_box;
use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::{AtomicU64, Ordering};

use pagevisor_shared::device::shutdown;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{Order, Pfn};

use crate::arch::irq::Irq;
use crate::arch::{apic, cpu, paging, percpu};
use crate::log::{pr_err, pr_info};
use crate::{clock, console, platform, power, smp};

/// The word on the command line.
pub const OPTION: &str = "pagevisor.test";

/// The test that is done before the machine is ready.
pub const NEVER_READY: &str = "never-ready";

/// Runs the test `name`. Nothing here is inlined, so that backtraces name it.
#[inline(never)]
pub fn run(name: &str) {
    match name {
        "panic" => panic!("requested on the command line"),
        "triple-fault" => cpu::triple_fault(),
        "bad-instruction" => bad_instruction(),
        "undefined" => cpu::invalid_instruction(),
        "page-fault" => write_to(0xffff_c900_dead_b000),
        "text-write" => write_to(paging::image().text),
        "stack-overflow" => pr_info!("{}", overflow(1)),
        "divide" => divide(),
        "hang" => hang(),
        "provoke" => provoke::allow(),
        "timer" => timer(),
        "ipi" => ipi(),
        "spaces" => spaces::run(),
        "tasks" => tasks::run(),
        "vmalloc" => vmalloc::run(),
        "percpu" => per_cpu::run(),
        "heap" => heap::run(),
        "heap-exhausted" => heap::exhaust(),
        "mem-info" => mem_info(),
        "scatter" => scatter(),
        "console" => print(),
        "layers" => {
            scatter();
            layers::run();
        }
        _ => pr_err!("{OPTION}: no test is named {name}"),
    }
}

#[inline(never)]
fn bad_instruction() {
    // SAFETY: it changes nothing but the MMX state, which belongs to nobody in ring 0.
    unsafe { emms() };
    pr_info!("selftest: bad-instruction was executed");
}

/// Leaves memory as some use does: pages on pagesets, blocks in use, compound and not, page blocks of all mobilities.
#[inline(never)]
fn scatter() {
    let Some(mm) = platform::mm() else { return };
    let (mut kept, mut failed) = (0u32, 0u32);
    for turn in 0..96u32 {
        let order = if turn < 48 { 0 } else { turn % 10 };
        let Ok(order) = Order::new(order) else { continue };
        let gfp = match turn % 4 {
            0 => Gfp::KERNEL,
            1 => Gfp::HIGHUSER_MOVABLE,
            2 => Gfp::KERNEL | Gfp::RECLAIMABLE,
            _ => Gfp::KERNEL | Gfp::COMP | Gfp::DMA32,
        };
        match mm.alloc_pages(gfp, order) {
            Some(block) if turn / 4 % 2 == 0 => mm.free_pages(block, order),
            Some(_) => kept += 1,
            None => failed += 1,
        }
    }
    // Some that stay on a pageset together.
    let pages = [(); 8].map(|()| mm.alloc_pages(Gfp::KERNEL, Order::ZERO));
    pages.into_iter().flatten().for_each(|page| mm.free_pages(page, Order::ZERO));
    if failed == 0 {
        pr_info!("selftest: scatter ok, {kept} blocks kept");
    } else {
        pr_err!("selftest: scatter failed: {failed} allocations");
    }
}

/// Lines of 64 bytes, numbered.
#[inline(never)]
fn print() {
    for number in 0..2000 {
        let line = format!("{number:063}\n");
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            rest = &rest[console::write(rest)..];
        }
    }
    power::off(shutdown::INIT_EXIT | 42);
}

/// `emms`, which KVM's emulator does not know. It hides in an operand (`0f 77 c3`: `emms; ret`): the check of the
/// kernel's ELF finds only instructions that may run anywhere.
#[unsafe(naked)]
unsafe extern "C" fn emms() {
    naked_asm!("jmp 2f + 1", "2:", "mov eax, 0x90c3770f", "ret")
}

#[inline(never)]
fn write_to(address: u64) {
    // SAFETY: nothing is mapped there, or not writable: the processor refuses, which is the test.
    unsafe { with_exposed_provenance_mut::<u64>(address as usize).write_volatile(1) };
}

#[inline(never)]
fn overflow(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if depth == 0 { 0 } else { overflow(depth + 1) + frame[(depth & 63) as usize] }
}

#[inline(never)]
fn divide() {
    // SAFETY: raises #DE.
    unsafe { asm!("xor edx, edx", "div {0}", in(reg) 0u64, inout("rax") 1u64 => _, out("rdx") _, options(nostack)) };
}

#[inline(never)]
fn hang() -> ! {
    cpu::irq_disable();
    loop {
        core::hint::spin_loop();
    }
}

#[inline(never)]
fn timer() {
    const TIME: u64 = 5_000_000;
    clock::calibrate(power::timer_port());
    let (before, start) = (Irq::Timer.count(), clock::nanos());
    cpu::irq_disable();
    apic::arm_timer(TIME);
    cpu::halt_with_irqs();
    let (came, waited) = (Irq::Timer.count() - before, clock::nanos() - start);
    if came == 1 && waited >= TIME / 2 {
        pr_info!("selftest: timer ok after {} us", waited / 1000);
    } else {
        pr_err!("selftest: timer failed: {came} interrupts in {} us", waited / 1000);
    }
}

#[inline(never)]
fn ipi() {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    let others = smp::online().0 & !(1 << percpu::cpu_number());
    for round in 1..=3 {
        SEEN.store(0, Ordering::Relaxed);
        smp::call_function(
            smp::online(),
            |value| {
                SEEN.fetch_or((value as u64) << percpu::cpu_number(), Ordering::Relaxed);
            },
            1,
        );
        if SEEN.load(Ordering::Relaxed) != others {
            pr_err!("selftest: ipi failed in round {round}: {:#x} of {others:#x}", SEEN.load(Ordering::Relaxed));
            return;
        }
    }
    smp::online().iter().for_each(smp::reschedule);
    pr_info!("selftest: ipi ok, {} calls", Irq::CallFunction.total());
}

#[inline(never)]
fn mem_info() {
    const MOST: usize = 1024;
    let Some(mm) = platform::mm() else { return };
    let mut blocks = [Pfn::default(); MOST];
    let mut taken = 0;
    while let Some(slot) = blocks.get_mut(taken) {
        let Some(block) = mm.alloc_pages(Gfp::KERNEL, Order::MAX) else { break };
        *slot = block;
        taken += 1;
    }
    blocks[..taken].iter().for_each(|&block| mm.free_pages(block, Order::MAX));
    if taken < MOST {
        pr_info!("selftest: mem-info ok after {taken} blocks");
    } else {
        pr_err!("selftest: mem-info failed: more than {MOST} blocks of memory");
    }
}
