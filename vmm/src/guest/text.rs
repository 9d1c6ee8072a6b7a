//! What a guest says: over its serial line, and in its log.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::log::LogReader;
use crate::machine::Machine;

/// Most bytes of serial output that are kept: the last ones.
const MAX_CONSOLE: usize = 64 << 10;
/// Lines that an error carries.
const LAST_LINES: usize = 12;

/// The end of what a guest says over its serial line, and the lines of the VMM about it.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail(Arc<Mutex<Vec<u8>>>);

impl Tail {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock()).into_owned()
    }

    pub(super) fn push(&self, bytes: &[u8]) {
        let mut kept = self.lock();
        kept.extend_from_slice(bytes);
        let surplus = kept.len().saturating_sub(MAX_CONSOLE);
        kept.drain(..surplus);
    }
}

impl io::Write for Tail {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The guest's log, line by line; empty while it has none.
pub(super) fn log(machine: &Machine) -> Vec<String> {
    let Ok(region) = machine.memory().state().open() else { return Vec::new() };
    let mut text = Vec::new();
    // A damaged ring gives what was read before the damage.
    let _ = LogReader::default().drain(&region.log(), &mut text);
    lines(&String::from_utf8_lossy(&text))
}

/// What an error says of the guest's last words.
pub(super) fn last_words(machine: Option<&Machine>, console: &Tail) -> Vec<String> {
    let mut said = machine.map(log).unwrap_or_default();
    if said.is_empty() {
        said = lines(&console.text());
    }
    said.split_off(said.len().saturating_sub(LAST_LINES))
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.trim_end().to_owned()).filter(|line| !line.is_empty()).collect()
}
