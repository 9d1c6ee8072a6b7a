//! Bringing up the application processors, and asking other CPUs to do things.
//!
//! Every CPU gets its record and stacks from memory of its own node and an INIT ([`prepare`]). While they take that in
//! the boot processor goes on; then all get their STARTUP and come up side by side, each finding its record by its APIC
//! id and reporting. [`start`] halts until all have.

use core::arch::global_asm;
use core::hint::spin_loop;
use core::mem::size_of;
use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use pagevisor_mm::memblock::{MEMBLOCK_ALLOC_ACCESSIBLE, Memblock};
use pagevisor_mm::percpu::FirstChunk;
use pagevisor_shared::NR_CPUS;
use pagevisor_shared::layout::START_KERNEL_MAP;
use pagevisor_shared::units::{CpuId, CpuMask, PAGE_SIZE, PhysAddr};

use crate::acpi::Machine;
use crate::arch::cpu::{CR0_BOOT, CR4_BOOT, EFER_BOOT};
use crate::arch::irq::Irq;
use crate::arch::percpu::{self, PerCpu};
use crate::arch::{apic, cpu, entry, fpu, gdt, stacks, traps};
use crate::boot::entry::long_mode;
use crate::log::{pr_err, pr_info};
use crate::memory::LOWEST;
use crate::sync::SpinLock;
use crate::{clock, idle, region};

/// Where the trampoline is copied to: a page below 1 MiB that memblock keeps reserved.
const TRAMPOLINE: u64 = 0x8000;
/// How long a CPU may take to come up. Emulated CPUs share the host's few, so it may take a while.
const PATIENCE: u64 = 10_000_000_000;
/// Every so often CPUs that are missing get another STARTUP, which one that was slow to take in its INIT needs, and
/// one that has started ignores.
const REPEAT_STARTUP: u64 = 20_000_000;
/// Ticks of the local APIC's timer that the boot processor first waits in one go; doubled each time, up to the last.
const FIRST_PAUSE: u32 = 1 << 13;
const LAST_PAUSE: u32 = 1 << 22;

// Real mode at a page boundary: everything relative to CS. 32-bit code with flat segments goes on in the image.
global_asm!(
    r#"
    .section .rodata, "a"
    .globl trampoline_start
trampoline_start:
    .code16
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl trampoline_gdt_ptr - trampoline_start
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x18, $ap_start32 - {kmap}
    .balign 4
trampoline_gdt_ptr:
    .word 31
    .long early_gdt - {kmap}
    .globl trampoline_end
trampoline_end:

    .section .boot.text, "ax"
    .code32
    .type ap_start32, @function
ap_start32:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    "#,
    long_mode!("ap_start64_low", "ap_start64"),
    r#"
    movl $KERNEL_PML4 - {kmap}, %eax
    movq %rax, %cr3
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl $1, %eax
    cpuid
    shrl $24, %ebx
    incl %ebx
    movq $AP_STARTS, %rdi
    movl ${cpus}, %ecx
1:  cmpl %ebx, (%rdi)
    je 2f
    addq ${entry}, %rdi
    decl %ecx
    jnz 1b
3:  cli
    hlt
    jmp 3b
2:  movq 8(%rdi), %rsp
    movq 16(%rdi), %rdi
    xorl %ebp, %ebp
    call ap_main
    ud2
    "#,
    kmap = const START_KERNEL_MAP,
    cr4 = const CR4_BOOT,
    efer = const EFER_BOOT,
    cr0 = const CR0_BOOT,
    cpus = const NR_CPUS,
    entry = const size_of::<Start>(),
    options(att_syntax)
);

/// What the assembly above looks a CPU up by.
#[repr(C)]
struct Start {
    /// The APIC id, plus 1; 0 for an entry not in use.
    apic_id: AtomicU32,
    reserved: AtomicU32,
    /// Top of the kernel stack.
    stack: AtomicU64,
    /// Address of the record.
    record: AtomicUsize,
}

#[unsafe(no_mangle)]
static AP_STARTS: [Start; NR_CPUS] = [const {
    Start {
        apic_id: AtomicU32::new(0),
        reserved: AtomicU32::new(0),
        stack: AtomicU64::new(0),
        record: AtomicUsize::new(0),
    }
}; NR_CPUS];

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
}

/// Gives the application processors records and stacks, and resets them.
pub fn prepare(machine: &Machine, memblock: &mut Memblock, first: &FirstChunk) {
    let others = || machine.cpus().iter().enumerate().skip(1).filter_map(|(cpu, it)| Some((CpuId::new(cpu)?, it)));
    if others().next().is_none() {
        return;
    }
    for (cpu, it) in others() {
        let size = stacks::STACK_PAGES * PAGE_SIZE;
        let memory = match memblock.alloc_try_nid_raw(size, PAGE_SIZE, LOWEST, MEMBLOCK_ALLOC_ACCESSIBLE, Some(it.node))
        {
            Ok(memory) => memory.raw(),
            Err(error) => panic!("no memory for CPU {}: {error}", cpu.index()),
        };
        let (stack, ist) = stacks::map(cpu, memory);
        let record = percpu::record_in(first, cpu);
        record.assign(cpu, it.apic_id, ist);
        let start = &AP_STARTS[cpu.index()];
        start.stack.store(stack, Ordering::Relaxed);
        start.record.store(core::ptr::from_ref(record).expose_provenance(), Ordering::Relaxed);
        start.apic_id.store(it.apic_id + 1, Ordering::Release);
    }
    place_trampoline();
    others().for_each(|(_, it)| apic::send_init(it.apic_id));
}

fn place_trampoline() {
    let start = &raw const trampoline_start;
    let len = (&raw const trampoline_end).addr() - start.addr();
    // SAFETY: low memory is mapped at its own addresses while boot lasts; the page is reserved for this, and the
    // code is shorter.
    unsafe { core::ptr::copy_nonoverlapping(start, with_exposed_provenance_mut(TRAMPOLINE as usize), len) };
}

/// Ticks that the boot processor has waited for the others.
static WAITED: AtomicU64 = AtomicU64::new(0);
/// Ticks that the others have taken to come up, together.
static STARTING: AtomicU64 = AtomicU64::new(0);

/// What all CPUs together have spent on booting, in ticks, when the boot processor has been at it for `ticks`. Under
/// QEMU's instruction counting these are instructions; the waiting is not among them, in which its clock jumps.
pub fn boot_work(ticks: u64) -> u64 {
    ticks - WAITED.load(Ordering::Relaxed) + STARTING.load(Ordering::Relaxed)
}

/// An application processor's first Rust code.
#[unsafe(no_mangle)]
extern "C" fn ap_main(record: &'static PerCpu) -> ! {
    let start = cpu::rdtsc();
    record.install();
    gdt::load(record);
    traps::load();
    cpu::harden();
    cpu::init_pat();
    fpu::enable();
    entry::init();
    apic::enable();
    STARTING.fetch_add(cpu::rdtsc() - start, Ordering::Relaxed);
    set_online();
    reschedule(CpuId::default());
    idle::run()
}

/// Reports the current CPU.
pub fn set_online() {
    let cpu = percpu::cpu_number();
    let Some(region) = region::get() else { return };
    if let Some(state) = region.cpus().get(cpu as usize) {
        state.online.store(1, Ordering::Relaxed);
    }
    // Release pairs with the acquire in `online`.
    region.header().cpus_online.fetch_or(1 << cpu, Ordering::Release);
}

/// The CPUs that have come up.
pub fn online() -> CpuMask {
    CpuMask(region::get().map_or(1, |region| region.header().cpus_online.load(Ordering::Acquire)))
}

/// Starts the CPUs of `machine` and waits for them. Those that don't come are reported and done without.
pub fn start(machine: &Machine) {
    let all = u64::MAX >> (64 - machine.cpus().len());
    let missing = || CpuMask(all & !online().0);
    let begin = clock::nanos();
    while missing().0 != 0 && clock::nanos() - begin < PATIENCE {
        for cpu in missing().iter() {
            apic::send_startup(machine.cpus()[cpu.index()].apic_id, PhysAddr::new(TRAMPOLINE));
        }
        let (sent, tsc) = (clock::nanos(), cpu::rdtsc());
        let mut ticks = FIRST_PAUSE;
        while missing().0 != 0 && clock::nanos() - sent < REPEAT_STARTUP {
            pause(ticks, &|| missing().0 == 0);
            ticks = (2 * ticks).min(LAST_PAUSE);
        }
        WAITED.fetch_add(cpu::rdtsc() - tsc, Ordering::Relaxed);
    }
    if missing().0 != 0 {
        pr_err!("smp: CPUs {} failed to report alive state", missing());
    }
    pr_info!("smp: Brought up {} CPUs in {} nodes", online().weight(), machine.nr_nodes());
}

/// Waits a little for `done`, which an interrupt announces. Halting leaves the host's processor to the CPUs that are
/// waited for. The timer bounds it, for CPUs that never come; how long a tick is does not matter.
fn pause(ticks: u32, done: &dyn Fn() -> bool) {
    apic::arm_timer_ticks(ticks);
    cpu::irq_disable();
    // An interrupt that came before is seen here, one that comes later ends the halt.
    if !done() {
        cpu::halt_with_irqs();
        cpu::irq_disable();
    }
    apic::disarm_timer();
    cpu::irq_enable();
}

/// A function that other CPUs are to run.
struct Call {
    function: AtomicUsize,
    argument: AtomicUsize,
    /// CPUs that have not run it yet.
    pending: AtomicU64,
}

static CALL: Call = Call { function: AtomicUsize::new(0), argument: AtomicUsize::new(0), pending: AtomicU64::new(0) };
/// Held by the CPU that uses [`CALL`].
static CALLER: SpinLock<()> = SpinLock::new(());

/// Runs `function` with `argument` on all other CPUs of `cpus` that are online and waits until they have
/// (`smp_call_function_many`). It runs in their interrupt handlers.
pub fn call_function(cpus: CpuMask, function: fn(usize), argument: usize) {
    let targets = CpuMask(cpus.0 & online().0 & !(1 << percpu::cpu_number()));
    // Whoever has the lock may be waiting for this very CPU, whose interrupts may be off: serve it meanwhile.
    let _caller = loop {
        if let Some(guard) = CALLER.try_lock() {
            break guard;
        }
        run_called_functions();
        spin_loop();
    };
    CALL.function.store(function as usize, Ordering::Relaxed);
    CALL.argument.store(argument, Ordering::Relaxed);
    // Release pairs with the acquire in `run_called_functions`: who sees its bit sees the function.
    CALL.pending.store(targets.0, Ordering::Release);
    for record in targets.iter().filter_map(percpu::of) {
        apic::send(record.apic_id(), Irq::CallFunction);
    }
    // Acquire pairs with the release below: what the functions did is visible.
    while CALL.pending.load(Ordering::Acquire) != 0 {
        spin_loop();
    }
}

/// Runs the function that another CPU wants this one to run, if there is one.
pub fn run_called_functions() {
    // An interrupt in the midst would run it as well and take the bit away; then the one that is taken away here would be the
    // next call's, whose function would never run.
    let flags = cpu::irq_save();
    let me = 1 << percpu::cpu_number();
    if CALL.pending.load(Ordering::Acquire) & me != 0 {
        run_called_function(me);
    }
    cpu::irq_restore(flags);
}

/// Runs it, and takes this CPU's bit `me` away. Interrupts are off.
fn run_called_function(me: u64) {
    // SAFETY: `call_function` stored a function of this type before it set this CPU's bit, and changes neither until
    // the bit is cleared.
    let function: fn(usize) = unsafe { core::mem::transmute(CALL.function.load(Ordering::Relaxed)) };
    function(CALL.argument.load(Ordering::Relaxed));
    CALL.pending.fetch_and(!me, Ordering::Release);
}

/// Ends the halt of `cpu`, if it halts (`smp_send_reschedule`).
pub fn reschedule(cpu: CpuId) {
    if let Some(record) = percpu::of(cpu) {
        apic::send(record.apic_id(), Irq::Reschedule);
    }
}
