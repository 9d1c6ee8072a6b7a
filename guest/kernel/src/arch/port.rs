//! I/O ports.

use core::arch::asm;

/// Widths of a port access.
pub trait Width: Sized {
    /// Reads the port.
    fn read(port: u16) -> Self;
    /// Writes the port.
    fn write(port: u16, value: Self);
}

macro_rules! width {
    ($ty:ty, $reg:tt) => {
        impl Width for $ty {
            #[inline(always)]
            fn read(port: u16) -> Self {
                let value;
                // SAFETY: reading a port touches no memory; what a device does upon it is the caller's business.
                unsafe { asm!(concat!("in ", $reg, ", dx"), out($reg) value, in("dx") port, options(nomem, nostack)) };
                value
            }

            #[inline(always)]
            fn write(port: u16, value: Self) {
                // SAFETY: no device of this machine reaches guest memory because of a port write.
                unsafe { asm!(concat!("out dx, ", $reg), in("dx") port, in($reg) value, options(nomem, nostack)) };
            }
        }
    };
}

width!(u8, "al");
width!(u16, "ax");
width!(u32, "eax");

/// Reads `port`.
#[inline(always)]
pub fn read<T: Width>(port: u16) -> T {
    T::read(port)
}

/// Writes `value` to `port`.
#[inline(always)]
pub fn write<T: Width>(port: u16, value: T) {
    T::write(port, value);
}
