//! Figures of Pagevisor: instructions per operation beside Linux's, what instrumentation costs, the cost of booting, how
//! the slab allocator scales, the VMM's memory, the wall time until the guest is ready beside QEMU's, and what clients cost a guest. Run by
//! scripts/bench.

mod hosted;
mod icount;
mod kvm;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use pagevisor_tests::command::kernel_elf;
use table::{Row, Table};

const USAGE: &str = "\
Usage: scripts/bench [--json FILE] [--only PART]... [--linux FILE]

  --json FILE   write the figures there too
  --only PART   measure only this part (may be given again): instructions, user, instrumentation, boot, scaling,
                memory, time, or clients
  --linux FILE  Linux's figures [scripts/linux-6.1-icount.tsv]

Exit status: 0, 1 when a figure misses its bound, 2 for bad usage.";

const PARTS: [&str; 8] = ["instructions", "user", "instrumentation", "boot", "scaling", "memory", "time", "clients"];

struct Args {
    json: Option<PathBuf>,
    only: Vec<String>,
    linux: PathBuf,
}

fn args() -> Result<Args, String> {
    let mut args = Args { json: None, only: Vec::new(), linux: PathBuf::from("scripts/linux-6.1-icount.tsv") };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--json" => args.json = Some(value()?.into()),
            "--linux" => args.linux = value()?.into(),
            "--only" => {
                let part = value()?;
                if !PARTS.contains(&part.as_str()) {
                    return Err(format!("no part '{part}'"));
                }
                args.only.push(part);
            }
            other => return Err(format!("unknown argument '{other}'")),
        }
    }
    Ok(args)
}

fn main() -> ExitCode {
    let args = match args() {
        Ok(args) => args,
        Err(error) => {
            eprintln!("bench: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match measure(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("bench: a figure misses its bound");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> Result<bool, String> {
    let wanted = |part: &str| args.only.is_empty() || args.only.iter().any(|p| p == part);
    let elf = kernel_elf();
    let mut tables = Vec::new();
    if wanted("instructions") {
        let linux = icount::reference(&args.linux)?;
        show(&mut tables, icount::operations(&elf, &linux)?);
    }
    if wanted("user") {
        let linux = icount::reference(&args.linux)?;
        show(&mut tables, icount::user(&elf, &linux)?);
    }
    if wanted("instrumentation") {
        let bare =
            std::env::var_os("PAGEVISOR_BARE_KERNEL").ok_or("no kernel without instrumentation to compare with")?;
        show(&mut tables, icount::instrumentation(&elf, Path::new(&bare))?);
    }
    if wanted("boot") {
        show(&mut tables, icount::boots(&elf)?);
    }
    if wanted("scaling") {
        show(&mut tables, hosted::scaling()?);
    }
    if ["memory", "time", "clients"].into_iter().any(wanted) {
        if kvm::usable() {
            if wanted("memory") {
                show(&mut tables, kvm::memory()?);
            }
            if wanted("time") {
                show(&mut tables, kvm::time(&elf)?);
            }
            if wanted("clients") {
                show(&mut tables, kvm::clients()?);
            }
        } else {
            println!("No usable /dev/kvm on this machine: no figures of memory, wall time and clients.\n");
        }
    }
    if let Some(path) = &args.json {
        let json = serde_json::Value::from_iter(tables.iter().map(Table::json));
        std::fs::write(path, format!("{json:#}\n")).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(tables.iter().flat_map(|t| &t.rows).all(Row::holds))
}

fn show(tables: &mut Vec<Table>, table: Table) {
    println!("{table}");
    tables.push(table);
}
