//! The commands about running guests: `list`, `show`, `stop`, `log`.

use std::io::Write;
use std::time::Duration;

use serde::Serialize;

use super::args::{ListArgs, LogArgs, NameArgs, ShowArgs};
use super::failure::{Context, Failure};
use super::target::Target;
use super::text::duration;
use crate::error::exit_status;
use crate::log::LogReader;
use crate::report::View;
use crate::runtime::{ClientError, Connection, GuestName, RegionMap, RuntimeDir, RuntimeDirError, Status};

/// How long a guest may take to end when asked to.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// How often a followed log is looked at. There is nothing to wait on: logging costs the guest no exit.
const LOG_INTERVAL: Duration = Duration::from_millis(50);

pub(super) fn connect(name: &GuestName) -> Result<Connection, Failure> {
    match RuntimeDir::open(&RuntimeDir::locate())? {
        Some(dir) => Ok(Connection::open(&dir, name)?),
        None => Err(RuntimeDirError::NoSuchGuest(name.clone()).into()),
    }
}

/// A line of `list`.
#[derive(Serialize)]
struct Listed {
    name: String,
    #[serde(flatten)]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// `pagevisor list`
pub(super) fn list(args: &ListArgs, out: &mut impl Write) -> Result<(), Failure> {
    let mut listed = Vec::new();
    if let Some(dir) = RuntimeDir::open(&RuntimeDir::locate())? {
        for name in dir.guests()? {
            let (status, error) = match Connection::open(&dir, &name).and_then(|connection| connection.status()) {
                Ok(status) => (Some(status), None),
                // It has ended since.
                Err(ClientError::Directory(RuntimeDirError::NoSuchGuest(_))) => continue,
                Err(error) => (None, Some(super::failure::one_line(&error))),
            };
            listed.push(Listed { name: name.to_string(), status, error });
        }
    }
    let text = if args.json { json(&listed)? } else { table(&listed) };
    out.write_all(text.as_bytes()).map_err(Failure::stdout)
}

fn json(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value);
    Ok(text.map_err(|error| Failure::new(exit_status::FAILURE, Context("cannot write JSON", error)))? + "\n")
}

fn table(listed: &[Listed]) -> String {
    let width = listed.iter().map(|guest| guest.name.len()).max().unwrap_or(0).max("NAME".len());
    let mut text = format!(
        "{:width$}  {:>7}  {:8}  {:>5}  {:>4}  {:>8}  UPTIME\n",
        "NAME", "PID", "STATE", "NODES", "CPUS", "MEMORY"
    );
    for guest in listed {
        text += &match &guest.status {
            Some(s) => {
                let (memory, uptime) =
                    (format!("{}M", (s.memory + (1 << 19)) >> 20), duration(Duration::from_millis(s.uptime_ms)));
                let (pid, state, nodes, cpus) = (s.pid, s.state, s.nodes, s.cpus);
                format!("{:width$}  {pid:>7}  {state:8}  {nodes:>5}  {cpus:>4}  {memory:>8}  {uptime}\n", guest.name)
            }
            None => format!("{:width$}  {}\n", guest.name, guest.error.as_deref().unwrap_or_default()),
        };
    }
    text
}

/// `pagevisor stop`
pub(super) fn stop(args: &NameArgs) -> Result<(), Failure> {
    Ok(connect(&args.name)?.stop(STOP_PATIENCE)?)
}

/// `pagevisor log`
pub(super) fn log(args: &LogArgs, out: &mut impl Write) -> Result<(), Failure> {
    let connection = connect(&args.name)?;
    let region = RegionMap::new(connection.attach()?.region)
        .map_err(|error| Failure::new(exit_status::FAILURE, Context("cannot map the guest's state region", error)))?;
    let mut reader = LogReader::default();
    if args.follow {
        while !connection.wait_closed(LOG_INTERVAL) {
            reader.drain(&region.log(), out)?;
        }
    }
    // The mapping outlives the guest: this prints its last words.
    Ok(reader.drain(&region.log(), out)?)
}

/// The view that the words after the guest's name ask for, and whether as JSON.
///
/// A view's options may look like anything, so clap takes no part in reading them; `--json` may stand among them.
fn parse_view(words: &[String]) -> Result<(View, bool), Failure> {
    let json = words.iter().any(|word| word == "--json");
    let words: Vec<&str> = words.iter().map(String::as_str).filter(|word| *word != "--json").collect();
    let view = words.join(" ").parse().map_err(|error| Failure::new(exit_status::USAGE, error))?;
    Ok((view, json))
}

/// `pagevisor show`
pub(super) fn show(args: &ShowArgs, out: &mut impl Write) -> Result<(), Failure> {
    let (view, json) = parse_view(&args.view)?;
    Ok(view.render(Target::open(&args.target)?.view(), json, out)?)
}
