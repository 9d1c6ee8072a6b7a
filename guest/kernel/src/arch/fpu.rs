//! The floating-point and vector state of programs (`arch/x86/kernel/fpu`). Ring 0 uses none of it, so it stays in the
//! registers while a program is in the kernel, and is exchanged when another program gets the CPU: eagerly, as emulated
//! ring 0 cannot be told of the first use.
//!
//! Where the processor has XSAVE and something that FXSAVE leaves out, that is used, with room as CPUID says. Where ring 0
//! is emulated it does not execute (`pagevisor.emulated`): FXSAVE does, which leaves out what came with AVX. So it is where
//! the parts that were turned on do not stay so (`keeps_parts`): then programs see XSAVE off, and keep off AVX.

use core::arch::asm;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicU64};

use pagevisor_mm::slab::Cache;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::VirtAddr;

use super::cpu;
use crate::log::pr_info;
use crate::platform;
use crate::sync::Once;

/// CPUID leaf 1 ECX: XSAVE.
const HAS_XSAVE: u32 = 1 << 26;
/// CR4: the kernel has turned XSAVE on.
const CR4_OSXSAVE: u64 = 1 << 18;
/// Parts of the state: x87, SSE, AVX, and the three of AVX-512.
const KNOWN_PARTS: u64 = 0b1110_0111;
/// Those that FXSAVE knows.
const FXSAVE_PARTS: u64 = 0b11;
/// Bytes of the state that FXSAVE knows.
const FXSAVE_BYTES: u64 = 512;
/// What XSAVE and XRSTOR want, and more than FXSAVE does.
const ALIGN: usize = 64;
/// The x87 control word and MXCSR as programs get them, and where in the state they are.
const DEFAULT_FCW: u16 = 0x37f;
const DEFAULT_MXCSR: u32 = 0x1f80;
const MXCSR_OFFSET: u64 = 24;

static EMULATED: AtomicBool = AtomicBool::new(false);
/// Parts that are switched by XSAVE; 0 where FXSAVE is used.
static PARTS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(FXSAVE_BYTES);
static CACHE: Once<Cache> = Once::new();

/// Finds out what there is, and makes the cache of states. On the boot processor, before [`enable`] on any.
pub fn init(emulated: bool) {
    EMULATED.store(emulated, Relaxed);
    if !emulated && cpu::cpuid(1, 0).ecx & HAS_XSAVE != 0 {
        let leaf = cpu::cpuid(0xd, 0);
        let parts = ((leaf.edx as u64) << 32 | leaf.eax as u64) & KNOWN_PARTS;
        // Beside sparing work this keeps clear of QEMU 7.2, which lets nobody turn XSAVE on where it offers neither
        // XSAVEOPT nor XGETBV1 (`cr4_reserved_bits`), and hangs instead of raising an exception.
        if parts & !FXSAVE_PARTS != 0 {
            PARTS.store(parts, Relaxed);
        }
    }
    enable();
    let parts = PARTS.load(Relaxed);
    if parts != 0 {
        // For the parts that are on.
        let bytes = cpu::cpuid(0xd, 0).ebx as u64;
        if keeps_parts(parts, bytes) {
            BYTES.store(bytes, Relaxed);
        } else {
            pr_info!("fpu: XCR0 does not stay {parts:#x}: no AVX for programs");
            PARTS.store(0, Relaxed);
            disable();
        }
    }
    if let Some(mm) = platform::mm() {
        let flags = SlabFlags::HWCACHE_ALIGN.with(SlabFlags::PANIC);
        if let Ok(cache) = mm.kmem_cache_create("task_xstate", BYTES.load(Relaxed) as usize, ALIGN, flags, None) {
            CACHE.set(cache);
        }
    }
}

/// Whether ring 0 is emulated.
pub fn is_emulated() -> bool {
    EMULATED.load(Relaxed)
}

/// Turns XSAVE on in this CPU, if it is used.
pub fn enable() {
    let parts = PARTS.load(Relaxed);
    if parts != 0 {
        let [_, _, cr4] = cpu::control_registers();
        // SAFETY: the processor has it, and the parts are some that it says it has; ring 0 uses none.
        unsafe {
            asm!("mov cr4, {}", in(reg) cr4 | CR4_OSXSAVE, options(nostack, preserves_flags));
            asm!("xsetbv", in("ecx") 0, in("eax") parts as u32, in("edx") (parts >> 32) as u32,
                options(nostack, preserves_flags));
        }
    }
}

/// Whether the processor has taken note that `parts` are on, and says that they take `bytes`, which is the case
/// (`paranoid_xstate_size_valid`). CPUID, which virtual machines leave for, was asked in between: QEMU 7.2's emulated SVM
/// does not intercept XSETBV, so that KVM never hears of it and takes the parts away on the way back.
fn keeps_parts(parts: u64, bytes: u64) -> bool {
    let (low, high): (u32, u32);
    // SAFETY: XSAVE is on; it reads which parts are.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    let others = (2..u64::BITS).filter(|part| parts & 1 << part != 0);
    let end = others.map(|part| cpu::cpuid(0xd, part)).map(|leaf| leaf.eax as u64 + leaf.ebx as u64).max();
    ((high as u64) << 32 | low as u64) == parts && end.is_none_or(|end| end <= bytes)
}

/// Turns XSAVE off in this CPU.
fn disable() {
    let [_, _, cr4] = cpu::control_registers();
    // SAFETY: ring 0 uses none of it, and there are no programs yet.
    unsafe { asm!("mov cr4, {}", in(reg) cr4 & !CR4_OSXSAVE, options(nostack, preserves_flags)) };
}

/// Of the state in `frame`: the control word and the status word of x87, and MXCSR; of an empty one, what masks all.
pub fn exceptions(frame: &[u8]) -> [u32; 3] {
    let word = |at: usize| frame.get(at..).and_then(|rest| rest.first_chunk()).map(|bytes| u16::from_le_bytes(*bytes));
    let [control, status, mxcsr] = [(0, DEFAULT_FCW), (2, 0), (MXCSR_OFFSET as usize, DEFAULT_MXCSR as u16)]
        .map(|(at, without)| word(at).unwrap_or(without).into());
    [control, status, mxcsr]
}

/// Room for a program's state, which is what a new program begins with; its address, or `None` without memory.
pub fn alloc() -> Option<u64> {
    let state = platform::mm()?.kmem_cache_zalloc(*CACHE.get()?, Gfp::KERNEL)?.raw();
    // SAFETY: the room was just made, and is large enough.
    unsafe { reset(state) };
    Some(state)
}

/// Gives back what [`alloc`] gave.
pub fn free(state: u64) {
    if let (Some(mm), Some(cache)) = (platform::mm(), CACHE.get()) {
        mm.kmem_cache_free(*cache, VirtAddr::new(state));
    }
}

/// Makes `state` what a new program begins with.
///
/// # Safety
/// It is from [`alloc`], and nobody else uses it.
pub unsafe fn reset(state: u64) {
    let at = core::ptr::with_exposed_provenance_mut::<u8>(state as usize);
    // SAFETY: the caller's promise; the room is aligned to 64. The control words lie inside.
    unsafe {
        at.write_bytes(0, BYTES.load(Relaxed) as usize);
        at.cast::<u16>().write(DEFAULT_FCW);
        at.add(MXCSR_OFFSET as usize).cast::<u32>().write(DEFAULT_MXCSR);
    }
}

/// Makes the state at `to` the one that this CPU has now, of the program that runs.
///
/// # Safety
/// As for [`reset`].
pub unsafe fn save(to: u64) {
    let parts = PARTS.load(Relaxed);
    // SAFETY: the caller's promise: there is room for all parts.
    unsafe {
        if parts != 0 {
            asm!("xsave64 [{}]", in(reg) to, in("eax") parts as u32, in("edx") (parts >> 32) as u32,
                options(nostack, preserves_flags));
        } else {
            asm!("fxsave64 [{}]", in(reg) to, options(nostack, preserves_flags));
        }
    }
}

/// Gives this CPU the state at `from`.
///
/// # Safety
/// As for [`reset`]; what is there was saved or reset, or is such as those leave.
pub unsafe fn restore(from: u64) {
    let parts = PARTS.load(Relaxed);
    // SAFETY: the caller's promise. The registers belong to programs; the kernel uses none of them.
    unsafe {
        if parts != 0 {
            asm!("xrstor64 [{}]", in(reg) from, in("eax") parts as u32, in("edx") (parts >> 32) as u32,
                options(nostack, preserves_flags));
        } else {
            asm!("fxrstor64 [{}]", in(reg) from, options(nostack, preserves_flags));
        }
    }
}

/// Makes the state at `to` a copy of that at `from`.
///
/// # Safety
/// As for [`reset`], for both.
pub unsafe fn copy(to: u64, from: u64) {
    let [from, to] = [from, to].map(|state| core::ptr::with_exposed_provenance_mut::<u64>(state as usize));
    // SAFETY: the caller's promise; sizes are multiples of 8.
    unsafe { core::ptr::copy_nonoverlapping(from, to, BYTES.load(Relaxed) as usize / 8) };
}

/// Bytes of a state.
pub fn bytes() -> usize {
    BYTES.load(Relaxed) as usize
}

/// The bytes of `state`, for a signal frame.
///
/// # Safety
/// It is from [`alloc`], and nobody writes it while the bytes are used.
pub unsafe fn bytes_of<'a>(state: u64) -> &'a [u8] {
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(state as usize), bytes()) }
}

/// Bytes of the state in a signal frame.
pub fn frame_bytes() -> usize {
    if PARTS.load(Relaxed) != 0 { bytes() + size_of::<u32>() } else { bytes() }
}

/// Whether signal frames have more than FXSAVE knows, and say so (`UC_FP_XSTATE`).
pub fn frames_extend() -> bool {
    PARTS.load(Relaxed) != 0
}

/// What a signal frame says of the state in it, in bytes that FXSAVE leaves alone (`struct _fpx_sw_bytes`).
const SOFTWARE_BYTES: usize = 464;
/// `FP_XSTATE_MAGIC1`, where those bytes begin, and `FP_XSTATE_MAGIC2` behind the state.
const MAGIC_1: u32 = 0x4650_5853;
const MAGIC_2: u32 = 0x4650_5845;

/// Says in `frame`, which begins with a state and is [`frame_bytes`] long, what it is (`save_sw_bytes`).
pub fn describe(frame: &mut [u8]) {
    let parts = PARTS.load(Relaxed);
    if parts != 0 {
        let size = bytes();
        frame[SOFTWARE_BYTES..][..4].copy_from_slice(&MAGIC_1.to_ne_bytes());
        frame[SOFTWARE_BYTES + 4..][..4].copy_from_slice(&(frame_bytes() as u32).to_ne_bytes());
        frame[SOFTWARE_BYTES + 8..][..8].copy_from_slice(&parts.to_ne_bytes());
        frame[SOFTWARE_BYTES + 16..][..4].copy_from_slice(&(size as u32).to_ne_bytes());
        frame[size..][..4].copy_from_slice(&MAGIC_2.to_ne_bytes());
    }
}

/// Whether `frame` has more than FXSAVE knows (`check_xstate_in_sigframe`).
fn is_extended(frame: &[u8]) -> bool {
    let is_at = |at: usize, magic: u32| frame.get(at..at + 4) == Some(&magic.to_ne_bytes()[..]);
    is_at(SOFTWARE_BYTES, MAGIC_1) && is_at(bytes(), MAGIC_2)
}

/// Puts what a program says its state is into `state`, so that [`restore`] takes it: without what the processor would refuse
/// (`fpu__restore_sig`). Parts that are not in its frame begin anew.
///
/// # Safety
/// It is from [`alloc`], and nobody else uses it.
pub unsafe fn set_user(state: u64, frame: &[u8]) {
    /// Bits of MXCSR that every processor with SSE2 has.
    const MXCSR_MASK: u32 = 0xffff;
    /// The header behind what FXSAVE knows: which parts are there, their form, zeros.
    const HEADER_WORDS: usize = 8;
    let at = core::ptr::with_exposed_provenance_mut::<u8>(state as usize);
    let len = frame.len().min(bytes());
    // SAFETY: the caller's promise; all that is written is inside, and aligned as its type.
    unsafe {
        core::ptr::copy_nonoverlapping(frame.as_ptr(), at, len);
        let mxcsr = at.add(MXCSR_OFFSET as usize).cast::<u32>();
        mxcsr.write(mxcsr.read() & MXCSR_MASK);
        let parts = PARTS.load(Relaxed);
        if parts != 0 {
            let header = at.add(FXSAVE_BYTES as usize).cast::<u64>();
            header.write(if is_extended(frame) { header.read() & parts } else { FXSAVE_PARTS });
            header.add(1).write_bytes(0, HEADER_WORDS - 1);
        }
    }
}
