//! `pagevisor slabtop`: a guest's slab caches, kept up to date on the terminal.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::args::SlabtopArgs;
use super::failure::{Context, Failure};
use super::signals::{self, Signals};
use super::target::Target;
use super::terminal::Terminal;
use crate::error::exit_status;
use crate::report::{SlabSort, slab_info, slabtop as screen};
use crate::runtime::Connection;
use crate::state::StateView;

/// Lines above the first cache.
const HEAD: usize = 7;
/// How often the size of the terminal and the guest's life are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// The screen, and what is wrong with caches that are not on it.
fn text(view: &StateView, sort: SlabSort, lines: Option<usize>) -> Result<(String, Result<(), Failure>), Failure> {
    let caches = view.slab_caches()?;
    let infos: Vec<_> = caches.caches.iter().map(slab_info).collect();
    Ok((screen(&infos, sort, lines), caches.check().map_err(Failure::from)))
}

fn host(what: &'static str) -> impl Fn(std::io::Error) -> Failure {
    move |error| Failure::new(exit_status::FAILURE, Context(what, error))
}

/// `pagevisor slabtop`; gives the exit status.
pub(super) fn slabtop(args: &SlabtopArgs, out: &mut impl Write) -> Result<u8, Failure> {
    let signals = Signals::block().map_err(host("cannot wait for signals"))?;
    let target = Target::open(&args.target)?;
    let (connection, view) = match &target {
        Target::Guest(connection, view) if !args.once => (connection, view),
        // A dump does not change.
        _ => {
            let (text, damage) = text(target.view(), args.sort, None)?;
            out.write_all(text.as_bytes()).map_err(Failure::stdout)?;
            return damage.map(|()| exit_status::OK);
        }
    };
    let Some(terminal) = Terminal::take().map_err(host("cannot take the terminal"))? else {
        let message = "the standard output is not a terminal (try --once)";
        return Err(Failure::new(exit_status::USAGE, message));
    };
    live(args, connection, view, &signals, &terminal)
}

/// Draws until there is a reason to end.
fn live(
    args: &SlabtopArgs,
    connection: &Connection,
    view: &StateView,
    signals: &Signals,
    terminal: &Terminal,
) -> Result<u8, Failure> {
    let mut sort = args.sort;
    loop {
        let size = terminal.size();
        let (text, _) = text(view, sort, Some(size.0.saturating_sub(HEAD)))?;
        terminal.draw(&text).map_err(Failure::stdout)?;
        let next = Instant::now() + args.delay;
        loop {
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() || terminal.size() != size {
                break;
            }
            wait(signals, terminal, left.min(LOOK));
            if let Some(signal) = signals.take() {
                return Ok(signals::exit_status(signal));
            }
            match terminal.key() {
                Some(b'q' | b'Q') => return Ok(exit_status::OK),
                Some(b' ' | b'\n') => break,
                Some(key) if let Some(chosen) = SlabSort::of(key.to_ascii_lowercase().into()) => {
                    sort = chosen;
                    break;
                }
                _ => {}
            }
            if connection.wait_closed(Duration::ZERO) {
                return Ok(exit_status::OK);
            }
        }
    }
}

/// Sleeps until a signal or a key comes, at most for `time`.
fn wait(signals: &Signals, terminal: &Terminal, time: Duration) {
    let fds = [Some(signals.as_fd()), terminal.keys()];
    let mut fds: Vec<_> = fds.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    let timeout = PollTimeout::try_from(time.as_millis() + 1).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(_) => std::thread::sleep(time),
    }
}
