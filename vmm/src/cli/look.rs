//! Looking into a guest: one that this process runs, or one of another process.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::args::RunArgs;
use super::failure::{Context, Failure};
use super::session::Session;
use crate::error::exit_status;
use crate::machine::Machine;
use crate::report::{ReportError, proc_tree, summary, summary_json};
use crate::state::StateView;

/// The files of `--proc-dir`.
pub(super) fn proc_files(machine: &Machine) -> Result<Vec<(PathBuf, String)>, Failure> {
    let files = proc_tree(&StateView::of_machine(machine)?)?;
    Ok(files.into_iter().map(|(path, text)| (path.into(), text)).collect())
}

/// Prints the summary of a guest that became ready, and the views that were asked for.
///
/// A view that does not verify is printed like the others; the failure comes after all of them.
pub(super) fn report(session: &Session<'_>, args: &RunArgs, out: &mut impl Write) -> Result<(), Failure> {
    let state = StateView::of_machine(&session.machine)?;
    let boot = Boot::of(session, &state);
    if args.json {
        report_json(session, args, &state, &boot, out)
    } else {
        report_text(session, args, &state, &boot, out)
    }
}

fn report_text(
    session: &Session<'_>,
    args: &RunArgs,
    state: &StateView,
    boot: &Boot,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = summary(state, &mut text);
    text += &boot.text();
    session.reports.iter().for_each(|(name, report)| text += &format!("Workload {name}: {report}\n"));
    out.write_all(text.as_bytes()).map_err(Failure::stdout)?;
    let mut worst = Ok(());
    for view in &args.show {
        write!(out, "\n{view}:\n").map_err(Failure::stdout)?;
        worst = worst.and(finding(view.render(state, false, out))?);
    }
    worst
}

fn report_json(
    session: &Session<'_>,
    args: &RunArgs,
    state: &StateView,
    boot: &Boot,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let json_error = |error| Failure::new(exit_status::FAILURE, Context("cannot write JSON", error));
    let mut views = Map::new();
    let mut worst = Ok(());
    for view in &args.show {
        let mut text = Vec::new();
        worst = worst.and(finding(view.render(state, true, &mut text))?);
        views.insert(view.to_string(), serde_json::from_slice(&text).map_err(json_error)?);
    }
    let mut document = json!({ "boot": boot.json(), "summary": summary_json(state), "views": views });
    if let (false, Value::Object(document)) = (session.reports.is_empty(), &mut document) {
        let reports = session.reports.iter().map(|(name, report)| json!({ "workload": name, "report": report.json() }));
        document.insert("workloads".to_owned(), reports.collect());
    }
    if let (Some(name), Value::Object(document)) = (session.name(), &mut document) {
        document.insert("name".to_owned(), name.as_str().into());
        document.insert("pid".to_owned(), std::process::id().into());
    }
    let text = serde_json::to_string_pretty(&document).map_err(json_error)?;
    writeln!(out, "{text}").map_err(Failure::stdout)?;
    worst
}

/// Tells what a view found from what kept it from being printed.
fn finding(result: Result<(), ReportError>) -> Result<Result<(), Failure>, Failure> {
    match result {
        Err(error @ ReportError::Unverified { .. }) => Ok(Err(error.into())),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(Ok(())),
    }
}

/// What booting cost.
struct Boot {
    /// From this process's exec to the start of the machine.
    exec_to_start: Option<Duration>,
    /// From there to the guest being ready.
    start_to_ready: Option<Duration>,
    /// From the kernel's first instruction to its being ready, by the guest's clock.
    entry_to_ready: Option<Duration>,
}

impl Boot {
    fn of(session: &Session<'_>, state: &StateView) -> Self {
        let times = session.machine.times();
        let region = state.region();
        let header = region.header();
        let [entry, ready, khz] =
            [&header.tsc_entry, &header.tsc_ready, &header.tsc_khz].map(|word| word.load(Ordering::Relaxed));
        let cycles = ready.checked_sub(entry).filter(|_| entry != 0);
        let nanos = cycles.and_then(|cycles| u128::from(cycles).checked_mul(1_000_000)?.checked_div(khz.into()));
        Self {
            exec_to_start: times.exec_to_start,
            start_to_ready: times.start_to_ready,
            entry_to_ready: nanos.and_then(|nanos| u64::try_from(nanos).ok()).map(Duration::from_nanos),
        }
    }

    /// KVM counts no instructions, so there is no figure for them here.
    fn text(&self) -> String {
        let time = |time: Option<Duration>| match time {
            Some(time) => format!("{:.1} ms", time.as_secs_f64() * 1e3),
            None => "unknown".to_owned(),
        };
        format!(
            "Boot: {} from the machine's start to ready, {} of it in the guest's kernel; instructions: not counted on KVM\n",
            time(self.start_to_ready),
            time(self.entry_to_ready),
        )
    }

    fn json(&self) -> Value {
        let millis = |time: Option<Duration>| time.map(|time| time.as_secs_f64() * 1e3);
        json!({
            "exec_to_start_ms": millis(self.exec_to_start),
            "start_to_ready_ms": millis(self.start_to_ready),
            "entry_to_ready_ms": millis(self.entry_to_ready),
            "guest_instructions": Value::Null,
        })
    }
}
