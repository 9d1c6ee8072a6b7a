//! How far an experiment is: a bar on a terminal, a line for each finished run elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::text::duration;
use crate::experiment::{Event, RunResult};

/// Cells of the bar.
const WIDTH: usize = 30;

/// Tells on stderr how far an experiment is.
#[derive(Debug)]
pub(super) struct Progress {
    style: Style,
    started: Instant,
    total: usize,
    missing: usize,
    finished: usize,
    failed: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Style {
    Bar,
    Lines,
    Nothing,
}

impl Progress {
    /// A bar if stderr is a terminal, else lines; neither when `quiet`.
    pub fn new(quiet: bool) -> Self {
        let style = match (quiet, io::stderr().is_terminal()) {
            (true, _) => Style::Nothing,
            (false, true) => Style::Bar,
            (false, false) => Style::Lines,
        };
        Self { style, started: Instant::now(), total: 0, missing: 0, finished: 0, failed: 0 }
    }

    /// Takes note of what happened and shows it.
    pub fn show(&mut self, event: Event<'_>) {
        let mut line = None;
        match event {
            Event::Begin { finished, missing } => {
                (self.total, self.missing) = (finished + missing, missing);
                if finished != 0 {
                    line = Some(format!("{finished} of {} runs have a result already", self.total));
                }
            }
            Event::Finished { run, record } => {
                self.finished += 1;
                let took = duration(Duration::from_millis(record.host_ms));
                if let RunResult::Failed(reason) = &record.result {
                    self.failed += 1;
                    line = Some(format!("failed: {run}: {reason}"));
                } else if self.style == Style::Lines {
                    line = Some(format!("{run}: {took}"));
                }
                let count = format!("[{}/{}] ", self.total - self.missing + self.finished, self.total);
                line = line.map(|line| count + &line);
            }
            Event::Tick => {}
        }
        // A stderr that takes nothing has no use for progress.
        let _ = self.print(line.as_deref());
    }

    fn print(&self, line: Option<&str>) -> io::Result<()> {
        let mut out = io::stderr().lock();
        match (self.style, line) {
            (Style::Nothing, _) | (Style::Lines, None) => Ok(()),
            (Style::Lines, Some(line)) => writeln!(out, "{line}"),
            (Style::Bar, line) => {
                let line = line.map(|line| format!("\r\x1b[K{line}\n")).unwrap_or_default();
                write!(out, "{line}\r\x1b[K{}", self.bar(self.started.elapsed()))?;
                out.flush()
            }
        }
    }

    /// `[#######                       ] 7 of 30 runs, 1 failed, 12.3 s, about 1m02s left`
    fn bar(&self, elapsed: Duration) -> String {
        let done = self.total - self.missing + self.finished;
        let cells = (WIDTH * done).checked_div(self.total).unwrap_or(WIDTH);
        let mut text = format!("[{:<WIDTH$}] {done} of {} runs", "#".repeat(cells), self.total);
        if self.failed != 0 {
            text += &format!(", {} failed", self.failed);
        }
        text += &format!(", {}", duration(elapsed));
        if self.finished != 0 && self.finished < self.missing {
            let left = elapsed.mul_f64((self.missing - self.finished) as f64 / self.finished as f64);
            text += &format!(", about {} left", duration(left));
        }
        text
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if self.style == Style::Bar {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_counts_what_was_there_before() {
        let mut progress =
            Progress { style: Style::Bar, started: Instant::now(), total: 30, missing: 24, finished: 0, failed: 0 };
        let bar = |progress: &Progress| progress.bar(Duration::from_millis(12_345));
        assert_eq!(bar(&progress), "[######                        ] 6 of 30 runs, 12.3 s");
        (progress.finished, progress.failed) = (12, 1);
        let half = "[##################            ] 18 of 30 runs, 1 failed, 12.3 s, about 12.3 s left";
        assert_eq!(bar(&progress), half);
        progress.finished = 24;
        assert_eq!(bar(&progress), format!("[{}] 30 of 30 runs, 1 failed, 12.3 s", "#".repeat(30)));
        (progress.total, progress.missing, progress.finished, progress.failed) = (0, 0, 0, 0);
        assert_eq!(bar(&progress), format!("[{}] 0 of 0 runs, 12.3 s", "#".repeat(30)));
    }
}
