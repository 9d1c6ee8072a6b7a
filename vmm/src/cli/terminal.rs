//! A terminal that is drawn on.

use std::io::{self, IsTerminal, Read, Stdin, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};

/// Another screen, without a cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[2J";
/// Back to what was there.
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// The terminal of this process, taken for drawing; given back when dropped.
pub(super) struct Terminal {
    stdin: Stdin,
    /// How keys came before; `None` when they do not come from a terminal.
    before: Option<Termios>,
}

impl Terminal {
    /// Takes it; `None` when the standard output is no terminal.
    pub fn take() -> io::Result<Option<Self>> {
        if !io::stdout().is_terminal() {
            return Ok(None);
        }
        let stdin = io::stdin();
        let before = if stdin.is_terminal() { Some(tcgetattr(&stdin)?) } else { None };
        if let Some(before) = &before {
            let mut raw = before.clone();
            // Keys come one by one and unseen; those that are signals stay signals.
            raw.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
            raw.control_chars[SpecialCharacterIndices::VMIN as usize] = 0;
            raw.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
            tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
        }
        let terminal = Self { stdin, before };
        let mut out = io::stdout().lock();
        out.write_all(ENTER.as_bytes())?;
        out.flush()?;
        Ok(Some(terminal))
    }

    /// Lines and columns.
    pub fn size(&self) -> (usize, usize) {
        // SAFETY: `winsize` is plain data and valid when zero.
        let mut size: libc::winsize = unsafe { std::mem::zeroed() };
        // SAFETY: the request writes to a `winsize`, which `size` is.
        let done = unsafe { libc::ioctl(io::stdout().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
        if done == 0 && size.ws_row > 0 && size.ws_col > 0 {
            (size.ws_row.into(), size.ws_col.into())
        } else {
            (24, 80)
        }
    }

    /// Where keys come from, if they come from a terminal.
    pub fn keys(&self) -> Option<BorrowedFd<'_>> {
        self.before.as_ref().map(|_| self.stdin.as_fd())
    }

    /// A key that was pressed.
    pub fn key(&self) -> Option<u8> {
        let mut key = [0];
        self.before.as_ref()?;
        matches!(self.stdin.lock().read(&mut key), Ok(1)).then_some(key[0])
    }

    /// Draws `text`, cut to the terminal.
    pub fn draw(&self, text: &str) -> io::Result<()> {
        let (lines, columns) = self.size();
        let mut screen = String::from("\x1b[H");
        for (number, line) in text.lines().take(lines).enumerate() {
            screen += if number == 0 { "" } else { "\r\n" };
            screen.extend(line.chars().take(columns));
            screen += "\x1b[K";
        }
        screen += "\x1b[J";
        let mut out = io::stdout().lock();
        out.write_all(screen.as_bytes())?;
        out.flush()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // There is nothing more to do for a terminal that takes neither.
        if let Some(before) = &self.before {
            let _ = tcsetattr(&self.stdin, SetArg::TCSANOW, before);
        }
        let mut out = io::stdout().lock();
        let _ = out.write_all(LEAVE.as_bytes());
        let _ = out.flush();
    }
}
