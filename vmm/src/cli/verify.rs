//! `pagevisor verify`

use std::io::Write;

use super::args::VerifyArgs;
use super::failure::{Context, Failure};
use super::remote::connect;
use crate::error::exit_status;
use crate::runtime::Phase;
use crate::state::StateView;
use crate::verify::{self, Report};

/// `pagevisor verify`: status 9 when something was found.
pub(super) fn verify(args: &VerifyArgs, out: &mut impl Write) -> Result<u8, Failure> {
    let connection = connect(&args.name)?;
    let attached = connection.attach()?;
    if attached.guest.state == Phase::Booting {
        return Err(Failure::new(exit_status::FAILURE, format!("guest '{}' is still booting", args.name)));
    }
    let view = StateView::of_attached(attached)?;
    let report = {
        let paused = connection.pause()?;
        verify::verify(&view, paused.registers())?
    };
    print(&report, args.json, out)?;
    Ok(if report.is_sound() { exit_status::OK } else { exit_status::CORRUPT })
}

fn print(report: &Report, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    if json {
        let text = serde_json::to_string_pretty(&report.json());
        let text = text.map_err(|error| Failure::new(exit_status::FAILURE, Context("cannot write JSON", error)))?;
        return writeln!(out, "{text}").map_err(Failure::stdout);
    }
    for finding in &report.findings {
        writeln!(out, "{finding}").map_err(Failure::stdout)?;
    }
    if report.more != 0 {
        writeln!(out, "... and {} more", report.more).map_err(Failure::stdout)?;
    }
    writeln!(out, "{}", report.summary()).map_err(Failure::stdout)
}
