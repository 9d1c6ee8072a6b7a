//! The kernel's command line: the words it knows, Linux's rules for the rest (unknown words are ignored).
//! The memory stack reads words of its own from it, and so does [`crate::sysctl`].

use pagevisor_shared::device::cmdline;
use pagevisor_shared::units::PhysAddr;

/// What the command line says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// `virtio_mmio.device=<size>@<base>:<irq>`: where the monitor device's registers are.
    pub monitor: Option<PhysAddr>,
    /// `pagevisor.zeroed`: RAM is zero but for what the loader put there.
    pub zeroed: bool,
    /// `pagevisor.emulated`: ring 0 is emulated.
    pub emulated: bool,
    /// `pagevisor.idle_clear=PAGES`: how much free memory a CPU clears before it halts; none unless it is said, so that
    /// runs of a machine leave the same.
    pub idle_clear: u32,
    /// `pagevisor.exit`: power off when ready.
    pub exit: bool,
    /// `loglevel=N`.
    pub loglevel: Option<u8>,
    /// `dump=a,b`.
    pub dump: Option<&'static str>,
    /// `bench=a,b`.
    pub bench: Option<&'static str>,
    /// `rdinit=PATH`: the program to start.
    pub rdinit: Option<&'static str>,
    /// `pagevisor.test=NAME` (see [`crate::selftest`]).
    pub test: Option<&'static str>,
}

/// Reads `line`.
pub fn parse(line: &'static str) -> Options {
    let mut options = Options::default();
    for word in line.split_ascii_whitespace() {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        match name {
            cmdline::VIRTIO_MMIO => options.monitor = device(value),
            cmdline::ZEROED => options.zeroed = true,
            cmdline::EMULATED => options.emulated = true,
            cmdline::IDLE_CLEAR => options.idle_clear = value.parse().unwrap_or(0),
            cmdline::EXIT => options.exit = true,
            cmdline::LOGLEVEL => options.loglevel = value.parse().ok(),
            cmdline::DUMP => options.dump = Some(value),
            cmdline::BENCH => options.bench = Some(value),
            cmdline::RDINIT => options.rdinit = Some(value),
            crate::selftest::OPTION => options.test = Some(value),
            _ => {}
        }
    }
    options
}

/// The base of `<size>@<base>:<irq>`.
fn device(value: &str) -> Option<PhysAddr> {
    let (_size, rest) = value.split_once('@')?;
    let (base, _irq) = rest.split_once(':')?;
    let base = match base.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => base.parse(),
    };
    base.ok().map(PhysAddr::new)
}
