//! The devices a guest sees: a serial console, where programs print, two ways to end the machine, and the monitor.
//!
//! Everything that arrives here was chosen by the guest. A device checks it, and answers nonsense with nothing, an
//! error state or a log line, never with a panic.

mod bus;
mod input;
pub mod monitor;
mod power;
mod serial;
mod tty;

pub use bus::{Bus, Device};
pub use input::{Input, InputReader};
pub use power::{I8042_COMMAND, PowerRequest, PowerSink, ResetPort, ShutdownPort};
pub use serial::{Console, SERIAL_PORTS, SerialConsole};
pub use tty::{Tty, TtyWriter};
