//! What the guest sends over its serial line.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use crate::log::write_clean;

/// Bytes kept for the report on a guest that dies early.
const KEPT: usize = 8 << 10;
/// A line longer than this is printed in pieces.
const MAX_LINE: usize = 1024;

/// Serial output. The newest of it is kept; with `--console` it is printed as well, line by line.
#[derive(Clone, Debug)]
pub(super) struct SerialLog(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    live: bool,
    kept: VecDeque<u8>,
    line: Vec<u8>,
}

impl SerialLog {
    /// An empty log, printed on stderr if `live`.
    pub fn new(live: bool) -> Self {
        Self(Arc::new(Mutex::new(Inner { live, kept: VecDeque::new(), line: Vec::new() })))
    }

    /// What was kept, clean of what could command a terminal.
    pub fn kept(&self) -> String {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = inner.kept.iter().copied().collect();
        let mut text = Vec::new();
        for line in String::from_utf8_lossy(&bytes).lines() {
            // Writing to a vector cannot fail.
            let _ = write_clean(&mut text, line.trim_end_matches('\r'));
            text.push(b'\n');
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Write for SerialLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for &byte in bytes {
            if inner.kept.len() == KEPT {
                inner.kept.pop_front();
            }
            inner.kept.push_back(byte);
            if !inner.live {
                continue;
            }
            if byte != b'\n' {
                inner.line.push(byte);
            }
            if byte == b'\n' || inner.line.len() == MAX_LINE {
                inner.print();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Inner {
    fn print(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        let mut text = Vec::new();
        // Writing to a vector cannot fail.
        let _ = write_clean(&mut text, line.trim_end_matches('\r'));
        text.push(b'\n');
        self.line.clear();
        // A guest must not die of a reader that has gone.
        self.live = io::stderr().write_all(&text).is_ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_output_is_kept_clean() {
        let mut serial = SerialLog::new(false);
        serial.write_all(b"first\r\n").unwrap();
        serial.write_all(b"\x1b[31mred\n").unwrap();
        assert_eq!(serial.kept(), "first\n\\u{1b}[31mred\n");
        for _ in 0..KEPT {
            serial.write_all(b"x").unwrap();
        }
        assert_eq!(serial.kept().len(), KEPT + 1);
    }
}
