//! `kmem -i`: memory by what it is used for.

use std::fmt::{self, Write};
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::report::counters;
use pagevisor_shared::units::PAGE_SIZE;
use pagevisor_shared::vmstat::{NodeStat, ZoneStat};
use serde_json::{Value, json};

use crate::state::StateView;

/// What there is, in pages. There are no buffers, no pools of huge pages and no swap.
struct Usage {
    total: u64,
    /// What programs may be promised, and what they are.
    commit_limit: u64,
    committed: u64,
    free: u64,
    cached: u64,
    slab: u64,
}

impl Usage {
    fn of(state: &StateView) -> Self {
        let region = state.region();
        let node = |item| counters::global_node_page_state(&region, item);
        let slab = node(NodeStat::NrSlabReclaimable).wrapping_add(node(NodeStat::NrSlabUnreclaimable));
        let total = counters::totalram_pages(&region);
        Self {
            total,
            commit_limit: region.sysctl().commit_limit(total),
            committed: region.header().roots.committed_as.load(Relaxed).max(0) as u64,
            free: counters::global_zone_page_state(&region, ZoneStat::NrFreePages),
            cached: node(NodeStat::NrFilePages).wrapping_sub(node(NodeStat::NrSwapcached)),
            slab,
        }
    }

    const fn used(&self) -> u64 {
        self.total.wrapping_sub(self.free)
    }
}

/// As crash writes an amount (`pages_to_size`).
fn size(pages: u64) -> String {
    let bytes = pages.wrapping_mul(PAGE_SIZE);
    let text = match bytes {
        0 => "0".to_owned(),
        1..0x10_0000 => format!("{} KB", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{:.1} MB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GB", bytes as f64 / f64::from(1 << 30)),
    };
    text.replace(".0 ", " ")
}

/// A row; `whole` is what there is of it in all, if that is a part of something.
fn row(out: &mut dyn Write, name: &str, pages: u64, whole: Option<(u64, &str)>) -> fmt::Result {
    write!(out, "{name:>13}  {pages:>7}  {:>11}  ", size(pages))?;
    match whole {
        None => writeln!(out, "       ----"),
        Some((whole, of)) => {
            writeln!(out, "{:>3}% of {of}", pages.wrapping_mul(100).checked_div(whole).unwrap_or(0))
        }
    }
}

/// `kmem -i`.
///
/// # Errors
/// Those of `out`.
pub fn usage(state: &StateView, out: &mut dyn Write) -> fmt::Result {
    let usage = Usage::of(state);
    let memory = Some((usage.total, "TOTAL MEM"));
    out.write_str("                 PAGES        TOTAL      PERCENTAGE\n")?;
    row(out, "TOTAL MEM", usage.total, None)?;
    row(out, "FREE", usage.free, memory)?;
    row(out, "USED", usage.used(), memory)?;
    row(out, "BUFFERS", 0, memory)?;
    row(out, "CACHED", usage.cached, memory)?;
    row(out, "SLAB", usage.slab, memory)?;
    out.write_char('\n')?;
    row(out, "TOTAL HUGE", 0, None)?;
    row(out, "HUGE FREE", 0, Some((0, "TOTAL HUGE")))?;
    out.write_char('\n')?;
    row(out, "TOTAL SWAP", 0, None)?;
    row(out, "SWAP USED", 0, Some((0, "TOTAL SWAP")))?;
    row(out, "SWAP FREE", 0, Some((0, "TOTAL SWAP")))?;
    out.write_char('\n')?;
    row(out, "COMMIT LIMIT", usage.commit_limit, None)?;
    row(out, "COMMITTED", usage.committed, Some((usage.commit_limit, "TOTAL LIMIT")))
}

/// `kmem -i` as JSON, in pages.
pub fn usage_json(state: &StateView) -> Value {
    let usage = Usage::of(state);
    json!({
        "total_mem": usage.total,
        "free": usage.free,
        "used": usage.used(),
        "buffers": 0,
        "cached": usage.cached,
        "slab": usage.slab,
        "total_huge": 0,
        "huge_free": 0,
        "total_swap": 0,
        "swap_used": 0,
        "swap_free": 0,
        "commit_limit": usage.commit_limit,
        "committed": usage.committed,
    })
}
