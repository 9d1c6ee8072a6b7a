//! The commands about programs in a guest: `ps`, `vm`, `vtop`.

use std::io::Write;

use clap::Args;

use super::failure::Failure;
use super::target::Target;
use crate::report::{ProcessView, View};

/// `pagevisor ps`
#[derive(Args, Debug)]
pub struct PsArgs {
    /// The guest, or a file that `pagevisor dump` wrote
    #[arg(value_name = "NAME|FILE")]
    pub target: String,

    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

/// `pagevisor vm`
#[derive(Args, Debug)]
pub struct VmArgs {
    /// The guest, or a file that `pagevisor dump` wrote
    #[arg(value_name = "NAME|FILE")]
    pub target: String,

    /// Number of the task
    #[arg(value_name = "PID")]
    pub pid: u32,

    /// Show every page, and where it is
    #[arg(short)]
    pub pages: bool,

    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

/// `pagevisor vtop`
#[derive(Args, Debug)]
pub struct VtopArgs {
    /// The guest, or a file that `pagevisor dump` wrote
    #[arg(value_name = "NAME|FILE")]
    pub target: String,

    /// Number of the task
    #[arg(value_name = "PID")]
    pub pid: u32,

    /// The program's address, hexadecimal
    #[arg(value_name = "ADDRESS", value_parser = address)]
    pub address: u64,

    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

fn address(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).map_err(|error| error.to_string())
}

fn render(target: &str, view: ProcessView, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    Ok(View::Process(view).render(Target::open(target)?.view(), json, out)?)
}

/// `pagevisor ps`
pub(super) fn ps(args: &PsArgs, out: &mut impl Write) -> Result<(), Failure> {
    render(&args.target, ProcessView::Ps, args.json, out)
}

/// `pagevisor vm`
pub(super) fn vm(args: &VmArgs, out: &mut impl Write) -> Result<(), Failure> {
    render(&args.target, ProcessView::Vm(args.pid, args.pages), args.json, out)
}

/// `pagevisor vtop`
pub(super) fn vtop(args: &VtopArgs, out: &mut impl Write) -> Result<(), Failure> {
    render(&args.target, ProcessView::Vtop(args.pid, args.address), args.json, out)
}
