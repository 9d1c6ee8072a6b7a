//! `pagevisor dump`

use std::io::Write;

use super::args::DumpArgs;
use super::failure::Failure;
use super::target::Target;
use crate::dump;

/// `pagevisor dump`: also of a guest that hangs.
pub(super) fn dump(args: &DumpArgs, out: &mut impl Write) -> Result<(), Failure> {
    let target = Target::open(args.name.as_str())?;
    let dumped = {
        let held = target.hold_anyhow()?;
        dump::write(target.view(), held.registers(), &args.file)?
    };
    let (size, written) = (dumped.size >> 20, dumped.written.div_ceil(1 << 20));
    writeln!(out, "{}: {size} MiB, {written} MiB of them written", args.file.display()).map_err(Failure::stdout)
}
