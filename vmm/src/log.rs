//! The guest's kernel log, as `dmesg` prints it.

use std::io::{self, Write};

use pagevisor_shared::region::log::{LOG_BYTES, LOG_LINE_MAX, LogRead, LogRecord, LogRing};

/// How often a ring may look damaged before it counts as damaged: one that is overwritten as a whole between two
/// looks at its header can look so for a moment.
const ATTEMPTS: u32 = 3;

/// What [`LogReader::drain`] can fail with.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The ring makes no sense.
    #[error("the guest's log is damaged at position {0:#x}")]
    Corrupt(u64),
    /// The text could not be written.
    #[error("cannot write the log")]
    Io(#[from] io::Error),
}

/// Follows a log ring from its oldest record on.
#[derive(Debug, Default)]
pub struct LogReader {
    next: u64,
    started: bool,
}

impl LogReader {
    /// Writes all records to `out` that are there and not yet written.
    ///
    /// # Errors
    /// When the ring is damaged or `out` takes no more.
    pub fn drain(&mut self, ring: &LogRing<'_>, out: &mut impl Write) -> Result<(), LogError> {
        if !self.started {
            self.started = true;
            self.next = ring.oldest();
        }
        let mut text = [0; LOG_LINE_MAX];
        let mut attempts = 0;
        // A guest that writes as fast as we read must not keep us here for ever. Each record is at least two words,
        // and who follows calls again.
        for _ in 0..LOG_BYTES / 16 {
            match ring.read(self.next, &mut text) {
                LogRead::Record(record, next) => {
                    write_record(out, &record)?;
                    self.next = next;
                }
                LogRead::End => break,
                LogRead::Lost(oldest) => {
                    writeln!(out, "... messages lost: the log was overwritten before they were read")?;
                    self.next = oldest;
                }
                LogRead::Corrupt => {
                    attempts += 1;
                    if attempts == ATTEMPTS {
                        return Err(LogError::Corrupt(self.next));
                    }
                }
            }
        }
        out.flush()?;
        Ok(())
    }
}

/// Writes a record, each of its lines behind the time. What could command a terminal is escaped.
fn write_record(out: &mut impl Write, record: &LogRecord<'_>) -> io::Result<()> {
    let micros = record.nanos / 1000;
    let text = String::from_utf8_lossy(record.text);
    for line in text.trim_end_matches('\n').split('\n') {
        write!(out, "[{:5}.{:06}] ", micros / 1_000_000, micros % 1_000_000)?;
        write_clean(out, line)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// Writes text of the guest's with control characters escaped.
pub(crate) fn write_clean(out: &mut impl Write, text: &str) -> io::Result<()> {
    for part in text.split_inclusive(|c: char| c.is_control() && c != '\t') {
        let escaped = part.chars().next_back().filter(|c| c.is_control() && *c != '\t');
        match escaped {
            Some(control) => {
                out.write_all(&part.as_bytes()[..part.len() - control.len_utf8()])?;
                write!(out, "{}", control.escape_default())?;
            }
            None => out.write_all(part.as_bytes())?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use pagevisor_shared::region::log::LogHeader;

    use super::*;

    struct Ring {
        header: LogHeader,
        words: Vec<AtomicU64>,
    }

    impl Ring {
        fn new() -> Self {
            Self { header: LogHeader::default(), words: (0..256).map(|_| AtomicU64::new(0)).collect() }
        }

        fn ring(&self) -> LogRing<'_> {
            LogRing::new(&self.header, &self.words)
        }
    }

    fn drain(reader: &mut LogReader, ring: &Ring) -> Result<String, LogError> {
        let mut out = Vec::new();
        reader.drain(&ring.ring(), &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn records_print_as_dmesg_prints_them() {
        let ring = Ring::new();
        let mut reader = LogReader::default();
        ring.ring().write(6, 0, 1_234, b"Linux-like memory management");
        ring.ring().write(6, 0, 12_345_678_901, b"two\nlines\n");
        let expected = "[    0.000001] Linux-like memory management\n[   12.345678] two\n[   12.345678] lines\n";
        assert_eq!(drain(&mut reader, &ring).unwrap(), expected);
        assert_eq!(drain(&mut reader, &ring).unwrap(), "");
        ring.ring().write(6, 0, 123_456_000_000_000, b"later");
        assert_eq!(drain(&mut reader, &ring).unwrap(), "[123456.000000] later\n");
    }

    #[test]
    fn text_cannot_command_the_terminal() {
        let ring = Ring::new();
        ring.ring().write(6, 0, 0, b"a\x1b[2Jb\tc\xff\x07");
        let text = drain(&mut LogReader::default(), &ring).unwrap();
        assert_eq!(text, "[    0.000000] a\\u{1b}[2Jb\tc\u{fffd}\\u{7}\n");
    }

    #[test]
    fn an_overwritten_record_is_reported_and_skipped() {
        let ring = Ring::new();
        let mut reader = LogReader::default();
        ring.ring().write(6, 0, 0, b"first");
        drain(&mut reader, &ring).unwrap();
        for number in 0..200 {
            ring.ring().write(6, 0, 0, format!("number {number:03}").as_bytes());
        }
        let text = drain(&mut reader, &ring).unwrap();
        assert!(text.starts_with("... messages lost"), "{text}");
        assert!(text.ends_with("number 199\n"), "{text}");
    }

    #[test]
    fn a_lying_guest_costs_an_error_and_no_more() {
        let ring = Ring::new();
        ring.header.head.store(u64::MAX, Ordering::Relaxed);
        assert!(matches!(drain(&mut LogReader::default(), &ring), Err(LogError::Corrupt(0))));
        ring.header.tail.store(u64::MAX - 1, Ordering::Relaxed);
        assert!(matches!(drain(&mut LogReader::default(), &ring), Err(LogError::Corrupt(_))));
        // All of it is there, and the head is far beyond.
        let ring = Ring::new();
        for _ in 0..256 {
            ring.ring().write(6, 0, 0, b"");
        }
        ring.header.tail.store(0, Ordering::Relaxed);
        ring.header.head.store(256, Ordering::Relaxed);
        assert_eq!(drain(&mut LogReader::default(), &ring).unwrap().lines().count(), 128);
        ring.header.head.store(1 << 40, Ordering::Relaxed);
        assert!(matches!(drain(&mut LogReader::default(), &ring), Err(LogError::Corrupt(0))));
    }
}
