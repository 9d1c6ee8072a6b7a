//! Static per-CPU variables, and operations on the current CPU's instances that are one instruction each.
//!
//! The linker script puts the variables at link addresses from 0 on, so that a variable's address is its offset in
//! every CPU's unit, and `gs:[variable]` is the current CPU's, wherever GS points: to the initial section in the image
//! at first, and from `percpu::setup_areas` on to the CPU's unit of the first chunk.
//!
//! One instruction: an interrupt comes before it or behind it, and the CPU that it begins on is the one that it
//! ends on. So no lock prefix is needed, as only the CPU itself writes its instance; who reads another CPU's sees some
//! recent value.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_mm::percpu::PerCpuPtr;
use pagevisor_shared::units::CpuId;

/// What a static per-CPU variable holds at first. Its own address is no place in memory.
#[repr(transparent)]
pub struct Initial<T>(UnsafeCell<T>);

// SAFETY: nobody gets at what is inside: the variable is only named in GS-relative instructions.
unsafe impl<T> Sync for Initial<T> {}

impl<T> Initial<T> {
    /// `value` at first, on every CPU.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }
}

/// A type that a register holds.
pub trait Word {
    /// As others see it.
    type Shared: Sync + 'static;
}

impl Word for u32 {
    type Shared = AtomicU32;
}

impl Word for u64 {
    type Shared = AtomicU64;
}

/// The instance of `cpu` of the per-CPU variable at `offset`, once the CPU has its unit.
///
/// # Safety
/// A variable whose type `T` stands for is at that offset of the units; `T` may be shared.
pub unsafe fn instance<T: Sync + 'static>(offset: u64, cpu: CpuId) -> Option<&'static T> {
    let unit = super::percpu::unit_of(cpu)?;
    // SAFETY: units live for ever, and the caller's promise.
    Some(unsafe { &*core::ptr::with_exposed_provenance((unit + offset) as usize) })
}

/// Defines static per-CPU variables of type `u32` or `u64`: `percpu! { /// Doc. pub NAME: u64 = 0; }`. The name is
/// that of a value whose methods are the operations (`this_cpu_read` and so on).
macro_rules! percpu {
    ($($(#[$meta:meta])* $vis:vis $name:ident: $word:tt = $initial:expr;)*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "named like a static, which it stands for")]
        $vis struct $name;

        const _: () = {
            #[unsafe(link_section = ".data..percpu")]
            static CELL: $crate::arch::this_cpu::Initial<$word> = $crate::arch::this_cpu::Initial::new($initial);

            #[allow(dead_code, reason = "every variable has all operations")]
            impl $name {
                $crate::arch::this_cpu::operations!(CELL, $word);
            }
        };
    )*};
}

/// The operations on the per-CPU variable `$cell` of type `u32` or `u64`, each one instruction.
macro_rules! operations {
    ($cell:ident, u32) => { $crate::arch::this_cpu::operations!($cell, u32, "dword ptr ", ":e"); };
    ($cell:ident, u64) => { $crate::arch::this_cpu::operations!($cell, u64, "qword ptr ", ":r"); };
    ($cell:ident, $word:ty, $size:literal, $reg:literal) => {
        /// Its offset in every CPU's unit.
        #[inline(always)]
        pub fn offset(self) -> u64 {
            let offset: u64;
            // SAFETY: gives the address, which the linker script puts below 2 GiB.
            unsafe {
                ::core::arch::asm!("mov {:e}, offset {}", out(reg) offset, sym $cell,
                    options(nostack, nomem, pure, preserves_flags));
            }
            offset
        }

        /// The instance of `cpu`, once the CPU has its unit (`per_cpu`).
        pub fn of(
            self,
            cpu: ::pagevisor_shared::units::CpuId,
        ) -> Option<&'static <$word as $crate::arch::this_cpu::Word>::Shared> {
            // SAFETY: the variable is one such word.
            unsafe { $crate::arch::this_cpu::instance(self.offset(), cpu) }
        }

        /// Reads it (`this_cpu_read`).
        #[inline(always)]
        pub fn read(self) -> $word {
            let value: $word;
            // SAFETY: GS points to where the variable has its instance for this CPU.
            unsafe {
                ::core::arch::asm!(concat!("mov {", $reg, "}, gs:[{}]"), out(reg) value, sym $cell,
                    options(nostack, readonly, preserves_flags));
            }
            value
        }

        /// Writes it (`this_cpu_write`).
        #[inline(always)]
        pub fn write(self, value: $word) {
            // SAFETY: as for `read`; only this CPU writes it.
            unsafe {
                ::core::arch::asm!(concat!("mov gs:[{}], {", $reg, "}"), sym $cell, in(reg) value,
                    options(nostack, preserves_flags));
            }
        }

        /// Adds `value`, wrapping (`this_cpu_add`).
        #[inline(always)]
        pub fn add(self, value: $word) {
            // SAFETY: as for `write`.
            unsafe {
                ::core::arch::asm!(concat!("add gs:[{}], {", $reg, "}"), sym $cell, in(reg) value, options(nostack));
            }
        }

        /// Subtracts `value`, wrapping (`this_cpu_sub`).
        #[inline(always)]
        pub fn sub(self, value: $word) {
            // SAFETY: as for `write`.
            unsafe {
                ::core::arch::asm!(concat!("sub gs:[{}], {", $reg, "}"), sym $cell, in(reg) value, options(nostack));
            }
        }

        /// Adds 1, wrapping (`this_cpu_inc`).
        #[inline(always)]
        pub fn inc(self) {
            // SAFETY: as for `write`.
            unsafe { ::core::arch::asm!(concat!("inc ", $size, "gs:[{}]"), sym $cell, options(nostack)) };
        }

        /// Subtracts 1, wrapping (`this_cpu_dec`).
        #[inline(always)]
        pub fn dec(self) {
            // SAFETY: as for `write`.
            unsafe { ::core::arch::asm!(concat!("dec ", $size, "gs:[{}]"), sym $cell, options(nostack)) };
        }

        /// Clears the bits that are not in `mask` (`this_cpu_and`).
        #[inline(always)]
        pub fn and(self, mask: $word) {
            // SAFETY: as for `write`.
            unsafe {
                ::core::arch::asm!(concat!("and gs:[{}], {", $reg, "}"), sym $cell, in(reg) mask, options(nostack));
            }
        }

        /// Sets the bits of `mask` (`this_cpu_or`).
        #[inline(always)]
        pub fn or(self, mask: $word) {
            // SAFETY: as for `write`.
            unsafe {
                ::core::arch::asm!(concat!("or gs:[{}], {", $reg, "}"), sym $cell, in(reg) mask, options(nostack));
            }
        }

        /// Adds `value`, wrapping; gives what was there before. The sum is one addition away
        /// (`this_cpu_add_return`).
        #[inline(always)]
        pub fn fetch_add(self, value: $word) -> $word {
            let old: $word;
            // SAFETY: as for `write`.
            unsafe {
                ::core::arch::asm!(concat!("xadd gs:[{}], {", $reg, "}"), sym $cell, inlateout(reg) value => old,
                    options(nostack));
            }
            old
        }

        /// Writes `value`; gives what was there before (`this_cpu_xchg`). The processor locks the bus for it, as it does
        /// for every exchange with memory.
        #[inline(always)]
        pub fn xchg(self, value: $word) -> $word {
            let old: $word;
            // SAFETY: as for `write`.
            unsafe {
                ::core::arch::asm!(concat!("xchg gs:[{}], {", $reg, "}"), sym $cell, inlateout(reg) value => old,
                    options(nostack, preserves_flags));
            }
            old
        }

        /// Writes `new` if `old` is there; gives what was there (`this_cpu_cmpxchg`).
        #[inline(always)]
        pub fn cmpxchg(self, old: $word, new: $word) -> $word {
            let found: $word;
            // SAFETY: as for `write`.
            unsafe {
                ::core::arch::asm!(concat!("cmpxchg gs:[{}], {", $reg, "}"), sym $cell, in(reg) new,
                    inlateout("rax") old => found, options(nostack));
            }
            found
        }
    };
}

/// As the operations on static variables, for 64-bit words of dynamic per-CPU memory: one instruction, with the pointer in
/// a register.
pub mod dynamic {
    use super::{PerCpuPtr, asm};

    /// Reads the current CPU's instance (`this_cpu_read`).
    ///
    /// # Safety
    /// `ptr` is allocated, 8 bytes or more of it are behind it, and it is aligned to 8.
    #[inline(always)]
    pub unsafe fn read(ptr: PerCpuPtr) -> u64 {
        let value;
        // SAFETY: GS points to this CPU's unit, and the caller's promise.
        unsafe {
            asm!("mov {}, gs:[{}]", out(reg) value, in(reg) ptr.raw(), options(nostack, readonly, preserves_flags));
        }
        value
    }

    /// Writes the current CPU's instance (`this_cpu_write`).
    ///
    /// # Safety
    /// As for [`read`].
    #[inline(always)]
    pub unsafe fn write(ptr: PerCpuPtr, value: u64) {
        // SAFETY: GS points to this CPU's unit, and the caller's promise.
        unsafe { asm!("mov gs:[{}], {}", in(reg) ptr.raw(), in(reg) value, options(nostack, preserves_flags)) };
    }

    /// Adds to the current CPU's instance, wrapping (`this_cpu_add`).
    ///
    /// # Safety
    /// As for [`read`].
    #[inline(always)]
    pub unsafe fn add(ptr: PerCpuPtr, value: u64) {
        // SAFETY: GS points to this CPU's unit, and the caller's promise.
        unsafe { asm!("add gs:[{}], {}", in(reg) ptr.raw(), in(reg) value, options(nostack)) };
    }

    /// Adds 1 to the current CPU's instance, wrapping (`this_cpu_inc`).
    ///
    /// # Safety
    /// As for [`read`].
    #[inline(always)]
    pub unsafe fn inc(ptr: PerCpuPtr) {
        // SAFETY: GS points to this CPU's unit, and the caller's promise.
        unsafe { asm!("inc qword ptr gs:[{}]", in(reg) ptr.raw(), options(nostack)) };
    }

    /// Exchanges the current CPU's instance for `value` (`this_cpu_xchg`).
    ///
    /// # Safety
    /// As for [`read`].
    #[inline(always)]
    pub unsafe fn xchg(ptr: PerCpuPtr, value: u64) -> u64 {
        let old;
        // SAFETY: GS points to this CPU's unit, and the caller's promise.
        unsafe {
            asm!("xchg gs:[{}], {}", in(reg) ptr.raw(), inlateout(reg) value => old, options(nostack, preserves_flags));
        }
        old
    }

    /// Writes `new` to the current CPU's instance if `old` is there; gives what was there (`this_cpu_cmpxchg`).
    ///
    /// # Safety
    /// As for [`read`].
    #[inline(always)]
    pub unsafe fn cmpxchg(ptr: PerCpuPtr, old: u64, new: u64) -> u64 {
        let found;
        // SAFETY: GS points to this CPU's unit, and the caller's promise.
        unsafe {
            asm!("cmpxchg gs:[{}], {}", in(reg) ptr.raw(), in(reg) new, inlateout("rax") old => found, options(nostack));
        }
        found
    }
}

pub(crate) use {operations, percpu};
