//! `pagevisor verify`

use std::io::Write;

use super::args::VerifyArgs;
use super::failure::{Context, Failure};
use super::target::Target;
use crate::error::exit_status;
use crate::verify::{self, Report};

/// `pagevisor verify`: status 9 when something was found.
pub(super) fn verify(args: &VerifyArgs, out: &mut impl Write) -> Result<u8, Failure> {
    let target = Target::open(&args.target)?;
    let report = {
        let held = target.hold()?;
        verify::verify(target.view(), held.registers())?
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
