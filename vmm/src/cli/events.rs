//! `pagevisor events`: what a guest's allocator does.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use super::args::EventsArgs;
use super::failure::{Context, Failure};
use super::signals::{self, Signals};
use super::target::Target;
use crate::error::exit_status;
use crate::events::{EventReader, Kinds, Perfetto, Renderer};
use crate::machine::kernel_elf;
use crate::runtime::Connection;
use crate::state::StateView;
use crate::symbols::Symbols;

/// How often the rings are looked at: there is nothing to wait on, since recording costs the guest no exit.
const INTERVAL: Duration = Duration::from_millis(20);

/// Where events go.
enum Sink<'o, W> {
    Text { out: &'o mut W, json: bool },
    Perfetto { file: File, trace: Perfetto },
}

impl<W: Write> Sink<'_, W> {
    /// Reads what is new and writes it.
    fn drain(&mut self, view: &StateView, reader: &mut EventReader, renderer: &Renderer) -> Result<(), Failure> {
        let region = view.region();
        let items = reader.read(&region);
        match self {
            Self::Text { out, json } => {
                out.write_all(renderer.lines(&items, *json).as_bytes()).map_err(Failure::stdout)?;
                out.flush().map_err(Failure::stdout)
            }
            Self::Perfetto { file, trace } => {
                file.write_all(&trace.append(&region, renderer, &items)).map_err(cannot_write)
            }
        }
    }

    /// Nothing more comes.
    fn finish(&mut self) -> Result<(), Failure> {
        match self {
            Self::Text { .. } => Ok(()),
            Self::Perfetto { file, trace } => file.write_all(&trace.finish()).map_err(cannot_write),
        }
    }
}

fn cannot_write(error: std::io::Error) -> Failure {
    Failure::new(exit_status::FAILURE, Context("cannot write the trace", error))
}

pub(super) fn host(what: &'static str) -> impl Fn(std::io::Error) -> Failure {
    move |error| Failure::new(exit_status::FAILURE, Context(what, error))
}

/// `pagevisor events`; gives the exit status.
pub(super) fn events(args: &EventsArgs, out: &mut impl Write) -> Result<u8, Failure> {
    let signals = Signals::block().map_err(host("cannot wait for signals"))?;
    let (connection, view) = Target::guest(&args.name)?;
    let region = view.region();
    let mut sink = match &args.perfetto {
        None => Sink::Text { out, json: args.json },
        Some(path) => {
            let mut file = File::create(path).map_err(cannot_write)?;
            let mut trace = Perfetto::default();
            file.write_all(&trace.begin(&region)).map_err(cannot_write)?;
            Sink::Perfetto { file, trace }
        }
    };
    let waits = args.follow || args.duration.is_some();
    // What was recorded before is told where nothing is asked for that was not recorded before.
    let mut reader = match args.kinds {
        Some(kinds) if waits => {
            let reader = EventReader::from_now(&region, kinds);
            connection.record_events(kinds.0)?;
            reader
        }
        kinds => EventReader::from_oldest(&region, kinds.unwrap_or(Kinds::ALL)),
    };
    let renderer = Renderer::new(&region, Some(Symbols::of_guest(kernel_elf(), view.memory())));
    let status = if waits {
        follow(args.duration, &connection, &signals, || sink.drain(&view, &mut reader, &renderer))?
    } else {
        0
    };
    // The mapping outlives the guest: these are its last events.
    sink.drain(&view, &mut reader, &renderer)?;
    sink.finish()?;
    Ok(status)
}

/// Calls `drain` until there is a reason to end: `duration` is over, the guest is, or a signal comes; gives the exit status
/// that goes with it.
pub(super) fn follow(
    duration: Option<Duration>,
    connection: &Connection,
    signals: &Signals,
    mut drain: impl FnMut() -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let begin = Instant::now();
    loop {
        let left = duration.map(|duration| duration.saturating_sub(begin.elapsed()));
        if left == Some(Duration::ZERO) || connection.wait_closed(left.unwrap_or(INTERVAL).min(INTERVAL)) {
            return Ok(exit_status::OK);
        }
        if let Some(signal) = signals.take() {
            return Ok(signals::exit_status(signal));
        }
        drain()?;
    }
}
