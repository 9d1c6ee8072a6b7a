//! Figures of the memory stack in a process of the host's.

use std::process::Command;
use std::thread::available_parallelism;

use crate::table::{Row, Table};

/// What more threads may add to the time of one, as a share, as long as there is a processor for each.
const FLAT: f64 = 1.2;

/// Time per pair of kmalloc and kfree with 1, 2, 4 and 8 threads, by the program that `PAGEVISOR_SCALING` names. Threads
/// for which there is no processor share one, so only the others have a bound.
pub fn scaling() -> Result<Table, String> {
    let program = std::env::var_os("PAGEVISOR_SCALING").ok_or("PAGEVISOR_SCALING names no program")?;
    let output = Command::new(&program).output().map_err(|error| format!("{}: {error}", program.display()))?;
    if !output.status.success() {
        return Err(format!("{}: {}", program.display(), String::from_utf8_lossy(&output.stderr)));
    }
    let processors = available_parallelism().map_err(|error| error.to_string())?.get();
    let text = String::from_utf8_lossy(&output.stdout);
    let mut rows: Vec<Row> = Vec::new();
    for line in text.lines() {
        let figure = || line.split_once('\t').and_then(|(n, ns)| Some((n.parse().ok()?, ns.parse().ok()?)));
        let (threads, nanos): (usize, f64) = figure().ok_or_else(|| format!("'{line}' is no figure"))?;
        let alone = rows.first().map(|row| row.value);
        let bound = alone.filter(|_| threads <= processors).map(|alone| alone * FLAT);
        rows.push(Row { reference: alone, bound, ..Row::new(format!("kmalloc(64) + kfree, {threads} CPUs"), nanos) });
    }
    let title = format!("Per-CPU arrays, hosted; this machine has {processors} processors");
    Ok(Table { title, unit: "ns per pair and CPU", reference: "1 CPU", rows })
}
