//! The 16550 console: what the guest sends goes to a writer. It has no input and raises no interrupt.

use std::convert::Infallible;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use vm_superio::{Serial, Trigger};

use super::bus::Device;

/// Number of ports.
pub const SERIAL_PORTS: u64 = 8;

/// Where the guest's serial output goes. It is called from vCPU threads, a byte at a time; one that blocks stops the
/// vCPU.
pub type Console = Box<dyn Write + Send>;

/// The guests of this VMM poll the line status; nobody waits for an interrupt.
struct NoInterrupt;

impl Trigger for NoInterrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The console device.
pub struct SerialConsole(Mutex<Serial<NoInterrupt, vm_superio::serial::NoEvents, Console>>);

impl SerialConsole {
    /// A console whose output goes to `out`.
    pub fn new(out: Console) -> Self {
        Self(Mutex::new(Serial::new(NoInterrupt, out)))
    }
}

impl Device for SerialConsole {
    /// KVM gives the bytes of `rep insb` together; each of them is a read of the same port.
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut serial = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        data.fill_with(|| serial.read(offset as u8));
    }

    /// As [`Self::read`]. A writer that fails loses the byte: the guest cannot help it.
    fn write(&self, offset: u64, data: &[u8]) {
        let mut serial = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for &byte in data {
            let _ = serial.write(offset as u8, byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    struct Tap(Sender<u8>);

    impl Write for Tap {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            for &byte in data {
                self.0.send(byte).map_err(|_| std::io::ErrorKind::BrokenPipe)?;
            }
            Ok(data.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_sent_come_out_and_the_transmitter_is_always_empty() {
        let (sender, receiver) = channel();
        let serial = Arc::new(SerialConsole::new(Box::new(Tap(sender))));
        serial.write(0, b"ab");
        serial.write(0, b"c");
        assert_eq!(receiver.try_iter().collect::<Vec<u8>>(), b"abc");
        let mut status = [0];
        serial.read(5, &mut status);
        assert_eq!(status[0] & 0x60, 0x60);
        // Nobody reads any more: the guest must not notice.
        drop(receiver);
        serial.write(0, b"d");
    }
}
