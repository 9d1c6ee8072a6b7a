//! What an address of per-CPU memory is, for `kmem ADDRESS`.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::hex;
use crate::machine::kernel_elf;
use crate::state::{PercpuAddress, PercpuUse, StateView};
use crate::symbols::Symbols;

/// The variable that a static address is in, as crash names it: `per_cpu(NAME, CPU)` and the bytes from its start.
fn variable(state: &StateView, found: &PercpuAddress) -> Option<String> {
    let symbols = Symbols::of_guest(kernel_elf(), state.memory());
    let symbol = symbols.percpu(found.offset)?;
    let offset = if symbol.offset == 0 { String::new() } else { format!("+{}", symbol.offset) };
    Some(format!("per_cpu({}, {}){offset}", symbol.name, found.cpu))
}

/// The CPU's instance of an allocation, as start and size; the address itself for anything else.
fn instance(found: &PercpuAddress) -> (u64, u64) {
    match found.used {
        PercpuUse::Allocated { start, size } => (found.unit.wrapping_add(start), size),
        _ => (found.unit.wrapping_add(found.offset), 0),
    }
}

const fn status(used: PercpuUse) -> &'static str {
    match used {
        PercpuUse::Static => "static",
        PercpuUse::Allocated { .. } => "allocated",
        PercpuUse::Free => "free",
        PercpuUse::Unpopulated => "not populated",
    }
}

/// The line about it, below a heading.
pub(super) fn text(state: &StateView, found: &PercpuAddress) -> String {
    let chunk = if found.chunk == 0 { "(first chunk)".to_owned() } else { format!("{:x}", found.chunk) };
    let (object, size) = instance(found);
    let mut out = format!(
        "{:<16}  CPU  {:<16}  {:>6}  {:<16}  {:>6}  STATUS\n",
        "PERCPU_CHUNK", "UNIT", "OFFSET", "OBJECT", "SIZE"
    );
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "{chunk:<16}  {:>3}  {:<16x}  {:>6x}  {object:<16x}  {size:>6}  {}",
        found.cpu,
        found.unit,
        found.offset,
        status(found.used)
    );
    match (found.used, variable(state, found)) {
        (PercpuUse::Static, Some(variable)) => out += &format!("  {variable}\n"),
        _ => out += "\n",
    }
    out
}

/// The same as JSON.
pub(super) fn to_json(state: &StateView, found: &PercpuAddress) -> Value {
    let (object, size) = instance(found);
    let allocated = matches!(found.used, PercpuUse::Allocated { .. });
    let pointer = found.pointer_base.wrapping_add(object.wrapping_sub(found.unit));
    json!({
        "chunk": (found.chunk != 0).then(|| hex(found.chunk)),
        "cpu": found.cpu,
        "unit": hex(found.unit),
        "offset": found.offset,
        "status": status(found.used),
        "object": allocated.then(|| hex(object)),
        "size": allocated.then_some(size),
        "pointer": allocated.then(|| hex(pointer)),
        "variable": (found.used == PercpuUse::Static).then(|| variable(state, found)).flatten(),
    })
}
