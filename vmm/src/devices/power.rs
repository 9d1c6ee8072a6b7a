//! How a guest ends the machine: the shutdown port, and the reset line of the keyboard controller.

use std::sync::Arc;

use pagevisor_shared::device::SHUTDOWN_MAGIC;

use super::bus::Device;

/// Port of the keyboard controller's commands.
pub const I8042_COMMAND: u64 = 0x64;
/// The command that pulses the reset line.
const I8042_RESET: u8 = 0xfe;

/// What a guest may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PowerRequest {
    /// Power off, with a code ([`pagevisor_shared::device::shutdown`]).
    Off(u16),
    /// Start over, which here ends the machine as well.
    Reset,
}

/// Who is told.
pub type PowerSink = Arc<dyn Fn(PowerRequest) + Send + Sync>;

/// [`pagevisor_shared::device::SHUTDOWN_PORT`].
pub struct ShutdownPort(pub PowerSink);

impl Device for ShutdownPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, &[a, b, c, d]) = (offset, data) {
            let word = u32::from_le_bytes([a, b, c, d]);
            if word & 0xffff_0000 == SHUTDOWN_MAGIC {
                (self.0)(PowerRequest::Off(word as u16));
            }
        }
    }
}

/// As much of a keyboard controller as PC kernels use to reset a machine.
pub struct ResetPort(pub PowerSink);

impl Device for ResetPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Nothing to read, ready for a command.
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data == [I8042_RESET] {
            (self.0)(PowerRequest::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn requests(send: impl Fn(PowerSink)) -> Vec<PowerRequest> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        send(Arc::new(move |request| sink.lock().unwrap().push(request)));
        let seen = seen.lock().unwrap();
        seen.clone()
    }

    #[test]
    fn only_a_word_with_the_magic_powers_off() {
        let seen = requests(|sink| {
            let port = ShutdownPort(sink);
            port.write(0, &0x2000u16.to_le_bytes());
            port.write(0, &0x3400u32.to_le_bytes());
            port.write(2, &(SHUTDOWN_MAGIC | 1).to_le_bytes());
            port.write(0, &(SHUTDOWN_MAGIC | 1).to_le_bytes()[..3]);
            port.write(0, &(SHUTDOWN_MAGIC | 7).to_le_bytes());
        });
        assert_eq!(seen, [PowerRequest::Off(7)]);
    }

    #[test]
    fn only_the_reset_command_resets() {
        let seen = requests(|sink| {
            let port = ResetPort(sink);
            port.write(0, &[0xaa]);
            port.write(0, &[0xfe, 0xfe]);
            port.write(0, &[0xfe]);
        });
        assert_eq!(seen, [PowerRequest::Reset]);
    }
}
