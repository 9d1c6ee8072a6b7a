//! The 16550 console, polled: for the machines without a monitor device, and for a kernel that dies early.

use core::fmt;

use pagevisor_shared::device::SERIAL_PORT;

use crate::arch::port;

/// Offset of the line status register.
const LINE_STATUS: u16 = 5;
/// The transmitter takes another byte.
const THR_EMPTY: u8 = 1 << 5;
/// How often to look for a free transmitter before giving a byte up; a port without a device reads as all ones.
const PATIENCE: u32 = 100_000;

/// Writes text, with a carriage return before each line feed.
pub fn write(text: &[u8]) {
    for &byte in text {
        if byte == b'\n' {
            put(b'\r');
        }
        put(byte);
    }
}

fn put(byte: u8) {
    for _ in 0..PATIENCE {
        if port::read::<u8>(SERIAL_PORT + LINE_STATUS) & THR_EMPTY != 0 {
            break;
        }
        core::hint::spin_loop();
    }
    port::write(SERIAL_PORT, byte);
}

/// The console as a target of `write!`.
#[derive(Clone, Copy, Debug)]
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write(text.as_bytes());
        Ok(())
    }
}
