//! What belongs to one CPU, found through GS.
//!
//! The GS base of each CPU points to its unit of the first chunk of per-CPU memory, which begins with the static
//! per-CPU variables ([`this_cpu`](super::this_cpu)); the first of them is the CPU's [`PerCpu`] record. The boot
//! processor works on the image's copy of them until [`setup_areas`] has made the units.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::{MaybeUninit, offset_of};
use core::ptr::{NonNull, null_mut, with_exposed_provenance};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use pagevisor_mm::CpuLocal;
use pagevisor_mm::memblock::{AllocError, Memblock};
use pagevisor_mm::percpu::{FirstChunk, FirstChunkConfig, setup_per_cpu_areas};
use pagevisor_shared::NR_CPUS;
use pagevisor_shared::percpu::{PERCPU_DYNAMIC_RESERVE, PERCPU_MODULE_RESERVE};
use pagevisor_shared::region::RegionRef;
use pagevisor_shared::units::{CpuId, PAGE_SIZE};
use x86_64::VirtAddr;
use x86_64::structures::tss::TaskStateSegment;

use super::cpu::{self, msr};
use super::gdt::{self, Gdt};
use super::stacks;
use super::this_cpu::{Initial, percpu};
use crate::platform::KERNEL;

/// Stacks of a CPU that the processor switches to by itself, by index into the TSS's table; gates name them by it.
#[derive(Clone, Copy, Debug)]
#[repr(u16)]
pub enum Ist {
    /// Double faults: the kernel stack may be what is broken.
    DoubleFault = 0,
    /// Non-maskable interrupts.
    Nmi = 1,
    /// Machine checks.
    MachineCheck = 2,
}

/// Number of [`Ist`] stacks.
pub const IST_STACKS: usize = 3;

/// A CPU's record.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct PerCpu {
    /// What `mm` wants to know about the CPU; null until `mm` runs.
    local: AtomicPtr<CpuLocal>,
    /// This record's own address.
    this: AtomicPtr<PerCpu>,
    apic_id: AtomicU32,
    /// Interrupts taken, by [`super::irq::Irq`].
    pub interrupts: [AtomicU64; super::irq::IRQS],
    /// Segments and stacks; written before the CPU uses them, then left to the processor.
    pub tables: UnsafeCell<Tables>,
}

/// What the processor itself reads.
#[derive(Debug)]
pub struct Tables {
    /// The descriptor table.
    pub gdt: Gdt,
    /// The task state: stacks.
    pub tss: TaskStateSegment,
}

// SAFETY: everything else is atomic; `tables` is written by one CPU while it alone knows the record (`gdt::load`), and
// only the processor reads it afterwards.
unsafe impl Sync for PerCpu {}

impl PerCpu {
    /// A record of nobody.
    pub const fn new() -> Self {
        Self {
            local: AtomicPtr::new(null_mut()),
            this: AtomicPtr::new(null_mut()),
            apic_id: AtomicU32::new(0),
            interrupts: [const { AtomicU64::new(0) }; super::irq::IRQS],
            tables: UnsafeCell::new(Tables { gdt: Gdt::new(), tss: TaskStateSegment::new() }),
        }
    }

    /// Makes the record, which is at the start of a unit, that of CPU `number`, whose emergency stacks end at `ist`, and
    /// enters it in the table of CPUs.
    pub fn assign(&'static self, number: CpuId, apic_id: u32, ist: [u64; IST_STACKS]) {
        self.this.store(core::ptr::from_ref(self).cast_mut(), Ordering::Relaxed);
        self.apic_id.store(apic_id, Ordering::Relaxed);
        // SAFETY: the CPU has not loaded these tables yet, and nobody else writes them.
        let tables = unsafe { &mut *self.tables.get() };
        // As a whole: the structure is packed, so its field has no reference.
        let mut stacks = [VirtAddr::zero(); 7];
        for (slot, top) in stacks.iter_mut().zip(ist) {
            *slot = VirtAddr::new_truncate(top);
        }
        tables.tss.interrupt_stack_table = stacks;
        // Release pairs with the acquire in `of`.
        CPUS[number.index()].store(core::ptr::from_ref(self).cast_mut(), Ordering::Release);
        if let Some(word) = CPU_NUMBER.of(number) {
            word.store(number.index() as u32, Ordering::Relaxed);
        }
        if let Some(word) = THIS_CPU_OFF.of(number) {
            word.store(self.unit(), Ordering::Relaxed);
        }
    }

    /// The address of the unit that begins with this record.
    fn unit(&self) -> u64 {
        core::ptr::from_ref(self).expose_provenance() as u64
    }

    /// Makes this CPU find the record, and the rest of its unit, through GS.
    pub fn install(&'static self) {
        // SAFETY: the unit lives for ever and is the one this CPU was given.
        unsafe { cpu::wrmsr(msr::GS_BASE, self.unit()) };
    }

    /// Gives CPU `number`, whose record this is, what `mm` wants to know about it, once, from the boot processor.
    pub fn set_local(&self, number: CpuId, local: CpuLocal) {
        assert!(self.local.load(Ordering::Relaxed).is_null(), "a CPU is told twice who it is");
        // SAFETY: room for it is at that offset of every unit.
        let Some(room) = (unsafe { super::this_cpu::instance::<LocalRoom>(local_offset(), number) }) else { return };
        // SAFETY: nobody knows the address yet, and only the boot processor comes here.
        let local = unsafe { (*room.0.get()).write(local) };
        // Release: who finds the address finds what is there.
        self.local.store(local, Ordering::Release);
    }

    /// Its local APIC's id.
    pub fn apic_id(&self) -> u32 {
        self.apic_id.load(Ordering::Relaxed)
    }
}

static CPUS: [AtomicPtr<PerCpu>; NR_CPUS] = [const { AtomicPtr::new(null_mut()) }; NR_CPUS];

/// The records, first of all variables: a record's address is that of the unit.
#[unsafe(link_section = ".data..percpu..first")]
pub(super) static RECORD: Initial<PerCpu> = Initial::new(PerCpu::new());

/// Room for what `mm` wants to know about a CPU. Written once by the boot processor ([`PerCpu::set_local`]) before its
/// address is given to anybody, and only read afterwards.
struct LocalRoom(UnsafeCell<MaybeUninit<CpuLocal>>);

// SAFETY: as just said.
unsafe impl Sync for LocalRoom {}

/// In the part of the variables that is zero at first, which is not copied.
#[unsafe(link_section = ".data..percpu..zero")]
static LOCAL_ROOM: Initial<LocalRoom> = Initial::new(LocalRoom(UnsafeCell::new(MaybeUninit::uninit())));

percpu! {
    /// The CPU's number (`cpu_number`).
    pub CPU_NUMBER: u32 = 0;
    /// The address of the CPU's unit (`this_cpu_off`): what turns a per-CPU pointer into an address.
    pub THIS_CPU_OFF: u64 = 0;
}

unsafe extern "C" {
    /// Where the image has what the variables hold at first.
    static __per_cpu_load: u8;
    // Their link addresses begin at 0: symbols there are sizes. What is not zero at first ends with `__per_cpu_initial_end`.
    static __per_cpu_initial_end: u8;
    static __per_cpu_end: u8;
}

fn local_offset() -> u64 {
    let offset: u64;
    // SAFETY: gives the address, which the linker script puts below 2 GiB.
    unsafe {
        asm!("mov {:e}, offset {}", out(reg) offset, sym LOCAL_ROOM, options(nostack, nomem, pure, preserves_flags));
    }
    offset
}

/// Makes the boot processor find the variables in the image, before there are units.
pub fn init_boot(apic_id: u32) {
    // SAFETY: the record is the first of the variables, and the image's copy is used by nobody else.
    let record: &'static PerCpu = unsafe { &*(&raw const __per_cpu_load).cast() };
    record.install();
    record.assign(CpuId::default(), apic_id, stacks::boot_ist());
    gdt::load(record);
}

/// Gives every CPU its unit, on its own node, and moves the boot processor to its (`setup_per_cpu_areas`). The others'
/// records are still to be assigned.
///
/// # Errors
/// [`AllocError`] when memory is short.
pub fn setup_areas(region: &RegionRef<'static>, memblock: &mut Memblock) -> Result<FirstChunk, AllocError> {
    let load = &raw const __per_cpu_load;
    // SAFETY: the image has the variables there. Nobody writes them meanwhile: interrupts are off, and the other
    // processors do not run.
    let initial = unsafe { core::slice::from_raw_parts(load, (&raw const __per_cpu_initial_end).addr()) };
    let config = FirstChunkConfig {
        static_size: (&raw const __per_cpu_end).addr() as u64,
        initial,
        reserved_size: PERCPU_MODULE_RESERVE,
        dyn_size: PERCPU_DYNAMIC_RESERVE,
        atom_size: PAGE_SIZE,
    };
    let first = setup_per_cpu_areas(&KERNEL, region, memblock, &config)?;
    let (boot, apic_id) = (CpuId::default(), this().apic_id());
    let record = record_in(&first, boot);
    record.assign(boot, apic_id, stacks::boot_ist());
    record.install();
    gdt::load(record);
    Ok(first)
}

/// The record in the unit of `cpu`.
pub fn record_in(first: &FirstChunk, cpu: CpuId) -> &'static PerCpu {
    // SAFETY: a unit begins with the record, as it was in the image, and lives for ever.
    unsafe { &*with_exposed_provenance(first.unit(cpu).raw() as usize) }
}

/// The address of the unit of `cpu`, once it has one.
pub fn unit_of(cpu: CpuId) -> Option<u64> {
    of(cpu).map(PerCpu::unit)
}

/// The record of `cpu`, once it has one.
pub fn of(cpu: CpuId) -> Option<&'static PerCpu> {
    // SAFETY: only `assign` stores here, addresses of records that live for ever.
    NonNull::new(CPUS[cpu.index()].load(Ordering::Acquire)).map(|record| unsafe { record.as_ref() })
}

/// The current CPU's record. GS must have been set, which is the first thing every CPU does.
#[inline(always)]
pub fn this() -> &'static PerCpu {
    let this: *const PerCpu;
    // SAFETY: GS points to this CPU's unit, in whose record the field holds its own address; it lives for ever.
    unsafe {
        asm!("mov {}, gs:[{} + {}]", out(reg) this, sym RECORD, const offset_of!(PerCpu, this),
            options(nostack, readonly, preserves_flags, pure));
        &*this
    }
}

/// What `mm` wants to know about the current CPU; null until `mm` runs.
#[inline(always)]
pub fn local() -> *const CpuLocal {
    let local;
    // SAFETY: GS points to this CPU's unit, which begins with the record.
    unsafe {
        asm!("mov {}, gs:[{} + {}]", out(reg) local, sym RECORD, const offset_of!(PerCpu, local),
            options(nostack, readonly, preserves_flags, pure));
    }
    local
}

/// [`CpuLocal::slab_array`] of the current CPU, out of its unit. Nothing of use until `mm` runs.
#[inline(always)]
pub fn slab_array() -> usize {
    let offset;
    // SAFETY: GS points to this CPU's unit, which has the room for the record there.
    unsafe {
        asm!("mov {}, gs:[{} + {}]", out(reg) offset, sym LOCAL_ROOM, const CpuLocal::SLAB_ARRAY_OFFSET,
            options(nostack, readonly, preserves_flags, pure));
    }
    offset
}

/// Number of the current CPU.
#[inline(always)]
pub fn cpu_number() -> u32 {
    CPU_NUMBER.read()
}

/// The records of all CPUs but the current one.
pub fn others() -> impl Iterator<Item = &'static PerCpu> {
    let me = this();
    (0..NR_CPUS).filter_map(CpuId::new).filter_map(of).filter(move |record| !core::ptr::eq(*record, me))
}
