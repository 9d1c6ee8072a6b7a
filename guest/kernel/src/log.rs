//! The kernel log: levelled messages with the time since boot.
//!
//! Messages go to the log ring of the state region, which the host reads while it runs, and those more severe than
//! the console's level go to the serial port too. Before the region is found they wait in a small ring of the
//! kernel's own; nothing is lost unless it overflows.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

use pagevisor_mm::platform::Level;
use pagevisor_shared::region::log::{LOG_LINE_MAX, LogHeader, LogRead, LogRecord, LogRing};

use crate::arch::percpu;
use crate::sync::{IrqSpinGuard, IrqSpinLock};
use crate::{clock, serial};

/// Words of the ring that holds messages until the region is found.
const EARLY_WORDS: usize = 1024;

static EARLY_HEADER: LogHeader = LogHeader { head: AtomicU64::new(0), tail: AtomicU64::new(0) };
static EARLY_RING: [AtomicU64; EARLY_WORDS] = [const { AtomicU64::new(0) }; EARLY_WORDS];
static STATE: IrqSpinLock<State> = IrqSpinLock::new(State { ring: None, line: Line::new() });
/// Messages with a level below this go to the serial port.
static CONSOLE_LEVEL: AtomicU8 = AtomicU8::new(0);
static DYING: AtomicBool = AtomicBool::new(false);

struct State {
    ring: Option<LogRing<'static>>,
    line: Line<LOG_LINE_MAX>,
}

/// Text being put together; what does not fit is cut.
#[derive(Debug)]
pub struct Line<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Line<N> {
    /// An empty line.
    pub const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    /// Starts anew with `text`.
    pub fn format(&mut self, text: fmt::Arguments<'_>) {
        self.len = 0;
        // Cutting is this type's purpose; a `Display` that fails leaves what it wrote.
        let _ = self.write_fmt(text);
    }

    /// The text, empty when cutting has broken it.
    pub fn text(&self) -> &str {
        core::str::from_utf8(self.bytes()).unwrap_or("")
    }

    /// The text's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl<const N: usize> Write for Line<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let len = text.len().min(N - self.len);
        self.bytes[self.len..self.len + len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}

fn state() -> IrqSpinGuard<'static, State> {
    if DYING.load(Relaxed) { STATE.lock_at_any_price() } else { STATE.lock() }
}

const fn early_ring() -> LogRing<'static> {
    LogRing::new(&EARLY_HEADER, &EARLY_RING)
}

/// Writes a message.
pub fn write(level: Level, text: fmt::Arguments<'_>) {
    let mut state = state();
    let State { ring, line } = &mut *state;
    line.format(text);
    let (cpu, nanos) = (percpu::cpu_number() as u8, clock::nanos());
    // A message may have several lines; a record has one.
    for text in line.bytes().split(|&byte| byte == b'\n') {
        ring.as_ref().unwrap_or(&early_ring()).write(level as u8, cpu, nanos, text);
        print(&LogRecord { level: level as u8, cpu, nanos, text });
    }
}

fn print(record: &LogRecord<'_>) {
    if record.level >= CONSOLE_LEVEL.load(Relaxed) {
        return;
    }
    let micros = record.nanos / 1000;
    // The serial port takes everything.
    let _ = write!(serial::Serial, "[{:5}.{:06}] ", micros / 1_000_000, micros % 1_000_000);
    serial::write(record.text);
    serial::write(b"\n");
}

/// Calls `each` with the messages that wait in the early ring.
fn for_early(mut each: impl FnMut(&LogRecord<'_>)) {
    let ring = early_ring();
    let mut text = [0; LOG_LINE_MAX];
    let mut position = ring.oldest();
    while let LogRead::Record(record, next) = ring.read(position, &mut text) {
        each(&record);
        position = next;
    }
}

/// Lets the log go to the region's ring from now on, the messages so far first.
pub fn attach(region: LogRing<'static>) {
    let mut state = state();
    for_early(|record| region.write(record.level, record.cpu, record.nanos, record.text));
    state.ring = Some(region);
}

/// Sets the console's level; messages that it would have shown so far are shown now.
pub fn set_console_level(level: u8) {
    let _state = state();
    let before = CONSOLE_LEVEL.swap(level, Relaxed);
    for_early(|record| {
        if record.level >= before {
            print(record);
        }
    });
}

/// The kernel dies: the lock is no longer respected. Shows everything on the console when there is no region.
pub fn dying() {
    DYING.store(true, Relaxed);
    if STATE.lock_at_any_price().ring.is_none() {
        set_console_level(Level::Debug as u8 + 1);
    }
}

/// Logs at a level: `pr!(Warning, "...")`.
macro_rules! pr {
    ($level:ident, $($arg:tt)*) => {
        $crate::log::write(pagevisor_mm::platform::Level::$level, format_args!($($arg)*))
    };
}
/// Logs an error.
macro_rules! pr_err { ($($arg:tt)*) => { $crate::log::pr!(Err, $($arg)*) }; }
/// Logs a warning.
macro_rules! pr_warn { ($($arg:tt)*) => { $crate::log::pr!(Warning, $($arg)*) }; }
/// Logs information.
macro_rules! pr_info { ($($arg:tt)*) => { $crate::log::pr!(Info, $($arg)*) }; }
pub(crate) use {pr, pr_err, pr_info, pr_warn};
