//! Recorded allocations, to be done again: the text of Linux's `trace_pipe` (and of `pagevisor events`) with the events
//! `mm_page_alloc` and `mm_page_free`.
//!
//! ```text
//!            <...>-812     [003] d..1.   93.214581: mm_page_alloc: page=00000000c0f1 pfn=0x1a2c00 order=3 migratetype=0 gfp_flags=GFP_KERNEL
//!            <...>-812     [003] d..1.   93.214977: mm_page_free: page=00000000c0f1 pfn=0x1a2c00 order=3
//! ```
//!
//! What counts is the order of the events, the CPU, the order of the block, and the flags. Frames only tell which
//! allocation a free belongs to: the machine that repeats them gives frames of its own. The order is kept on each CPU,
//! and wherever two events are about the same block: [`pagevisor_shared::command::trace`] says more.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, Read};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{MAX_ORDER, Order};

/// Slots that are free before one is used again. Who uses a slot waits for the one who has freed it; what was freed
/// this long ago has been freed by all means.
const SPARE: usize = 1024;
/// Most bytes of a line, and lines of a trace.
const MAX_LINE: u64 = 1 << 16;
const MAX_LINES: u32 = u32::MAX - 1;

/// Something to be done again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceRecord {
    /// The CPU that did it.
    pub cpu: u32,
    /// What it did.
    pub action: Action,
    /// The line that says so, from 1.
    pub line: u32,
}

/// What was done. Slots stand for allocations; one that was freed is used again after a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// A block was allocated.
    Alloc {
        /// Where it goes.
        slot: u32,
        /// Its order.
        order: Order,
        /// The flags.
        gfp: Gfp,
    },
    /// A block was freed, as a whole.
    Free {
        /// Where it is.
        slot: u32,
    },
}

/// A trace that was read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Trace {
    /// What is to be done, in this order.
    pub records: Vec<TraceRecord>,
    /// Slots that are needed.
    pub slots: u32,
    /// Frees of what was allocated before the trace begins: they cannot be done again.
    pub skipped: usize,
}

/// Text that is no trace.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct BadTrace {
    /// The line, from 1; 0 for the text as a whole.
    pub line: u32,
    /// What is wrong with it.
    pub reason: String,
}

/// A block that is allocated.
struct Block {
    slot: u32,
    /// Frame behind its last one.
    end: u64,
    /// Pages of it that have not been freed. A block may be freed page by page.
    left: u64,
}

#[derive(Default)]
struct Reader {
    trace: Trace,
    /// Lines so far.
    lines: u32,
    /// By first frame.
    blocks: BTreeMap<u64, Block>,
    /// In the order in which they were freed.
    free_slots: VecDeque<u32>,
}

impl Trace {
    /// Reads the text of a trace, of any length. Lines of other events, and comments, are passed over.
    ///
    /// # Errors
    /// When an event lacks something, there is none, or the text cannot be read.
    pub fn read(mut text: impl BufRead) -> Result<Self, BadTrace> {
        let (mut reader, mut line) = (Reader::default(), Vec::new());
        loop {
            line.clear();
            let bad = |line, reason: String| BadTrace { line, reason };
            let number = reader.lines + 1;
            let len = text.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
            let len = len.map_err(|error| bad(number, error.to_string()))?;
            if len == 0 {
                break;
            }
            if len as u64 == MAX_LINE || number > MAX_LINES {
                return Err(bad(number, "the text is no trace: it is too long".to_owned()));
            }
            reader.lines = number;
            reader.line(&String::from_utf8_lossy(&line)).map_err(|reason| bad(number, reason))?;
        }
        match reader.trace.records.is_empty() {
            true => Err(BadTrace { line: 0, reason: "there is no mm_page_alloc in it".to_owned() }),
            false => Ok(reader.trace),
        }
    }
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), String> {
        if line.trim_start().starts_with('#') {
            return Ok(());
        }
        // `mm_page_free_batched` comes with a `mm_page_free` of its own.
        if let Some((head, fields)) = line.split_once(" mm_page_alloc: ") {
            let (cpu, order) = (cpu(head)?, order(fields)?);
            let gfp = field(fields, "gfp_flags")?;
            let gfp = gfp.parse().map_err(|_| format!("{gfp:?} is not a set of GFP flags"))?;
            self.alloc(cpu, frame(fields)?, order, gfp);
        } else if let Some((head, fields)) = line.split_once(" mm_page_free: ") {
            self.free(cpu(head)?, frame(fields)?, order(fields)?);
        }
        Ok(())
    }

    fn push(&mut self, cpu: u32, action: Action) {
        self.trace.records.push(TraceRecord { cpu, action, line: self.lines });
    }

    /// Frame 0 stands for an allocation that failed. It is tried again, and keeps what it may get this time.
    fn alloc(&mut self, cpu: u32, pfn: u64, order: Order, gfp: Gfp) {
        let end = pfn.saturating_add(order.pages());
        // Events were lost if the frames are still taken.
        while pfn != 0
            && let Some((&first, _)) = self.blocks.range(..end).next_back().filter(|(_, block)| block.end > pfn)
        {
            self.release(cpu, first);
        }
        let oldest = if self.free_slots.len() > SPARE { self.free_slots.pop_front() } else { None };
        let slot = oldest.unwrap_or_else(|| {
            self.trace.slots += 1;
            self.trace.slots - 1
        });
        self.push(cpu, Action::Alloc { slot, order, gfp });
        if pfn != 0 {
            self.blocks.insert(pfn, Block { slot, end, left: order.pages() });
        }
    }

    fn free(&mut self, cpu: u32, pfn: u64, order: Order) {
        let block = self.blocks.range_mut(..=pfn).next_back().filter(|(_, block)| block.end > pfn);
        let Some((&first, block)) = block else {
            self.trace.skipped += 1;
            return;
        };
        block.left = block.left.saturating_sub(order.pages());
        if block.left == 0 {
            self.release(cpu, first);
        }
    }

    fn release(&mut self, cpu: u32, first: u64) {
        if let Some(Block { slot, .. }) = self.blocks.remove(&first) {
            self.free_slots.push_back(slot);
            self.push(cpu, Action::Free { slot });
        }
    }
}

/// The number in the first `[003]` that holds one.
fn cpu(head: &str) -> Result<u32, String> {
    let in_brackets = head.split('[').skip(1).filter_map(|rest| rest.split_once(']'));
    in_brackets.filter_map(|(number, _)| number.parse().ok()).next().ok_or_else(|| "no CPU, such as [003]".to_owned())
}

/// What follows `NAME=`, up to the next blank.
fn field<'a>(fields: &'a str, name: &str) -> Result<&'a str, String> {
    let value = fields.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value.ok_or_else(|| format!("no {name}="))
}

fn frame(fields: &str) -> Result<u64, String> {
    let text = field(fields, "pfn")?;
    let number = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        // Before Linux 5.13.
        None => text.parse(),
    };
    number.map_err(|_| format!("{text:?} is not a frame"))
}

fn order(fields: &str) -> Result<Order, String> {
    let text = field(fields, "order")?;
    let order = text.parse().ok().and_then(|order| Order::new(order).ok());
    order.ok_or_else(|| format!("{text:?} is not an order: that is 0 to {}", MAX_ORDER - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alloc(pfn: &str, order: u32) -> String {
        format!(
            " x-1 [002] d..1. 1.5: mm_page_alloc: page=0 pfn={pfn} order={order} migratetype=0 gfp_flags=GFP_KERNEL\n"
        )
    }

    fn free(pfn: &str, order: u32) -> String {
        format!(" <...>-812 [000] d..1. 1.6: mm_page_free: page=00000000c0f1 pfn={pfn} order={order}\n")
    }

    /// `+SLOT/ORDER` and `-SLOT` for each record, with its CPU.
    fn actions(text: &str) -> Vec<String> {
        let trace = Trace::read(text.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
        let action = |record: &TraceRecord| match record.action {
            Action::Alloc { slot, order, .. } => format!("{}+{slot}/{}", record.cpu, order.raw()),
            Action::Free { slot } => format!("{}-{slot}", record.cpu),
        };
        trace.records.iter().map(action).collect()
    }

    #[test]
    fn events_become_actions() {
        let other = "# tracer: nop\n x-1 [001] d..1. 1.5: mm_page_free_batched: page=0 pfn=0x10 order=0\nnonsense\n";
        let text = [other.to_owned(), alloc("0x10", 0), alloc("0x800", 3), free("0x10", 0), alloc("32", 1)].concat();
        assert_eq!(actions(&text), ["2+0/0", "2+1/3", "0-0", "2+2/1"]);
        let trace = Trace::read(text.as_bytes()).unwrap();
        assert_eq!((trace.slots, trace.skipped), (3, 0));
        assert_eq!(trace.records.iter().map(|record| record.line).collect::<Vec<_>>(), [4, 5, 6, 7]);
        let Action::Alloc { gfp, .. } = trace.records[0].action else { panic!("{trace:?}") };
        assert_eq!(gfp, Gfp::KERNEL);
    }

    #[test]
    fn a_block_freed_in_parts_is_freed_with_its_last_part() {
        let text = [alloc("0x10", 2), free("0x12", 1), free("0x10", 0), alloc("0x20", 0), free("0x11", 0)].concat();
        assert_eq!(actions(&text), ["2+0/2", "2+1/0", "0-0"]);
    }

    #[test]
    fn slots_are_used_again() {
        let pair = |pfn: usize| [alloc(&pfn.to_string(), 0), free(&pfn.to_string(), 0)].concat();
        let text: String = (1..5000).map(pair).collect();
        assert_eq!(Trace::read(text.as_bytes()).unwrap().slots as usize, SPARE + 1);
        let actions = actions(&text);
        let second = 2 * (SPARE + 1);
        assert_eq!(actions[second - 2..second + 2], ["2+1024/0", "0-1024", "2+0/0", "0-0"]);
    }

    #[test]
    fn what_the_trace_lacks_is_made_up_for() {
        let text = [free("0x99", 0), alloc("0x10", 2), alloc("0x12", 0), alloc("0x0", 9), alloc("0x0", 9)].concat();
        assert_eq!(actions(&text), ["2+0/2", "2-0", "2+1/0", "2+2/9", "2+3/9"], "a lost free; two that failed");
        assert_eq!(Trace::read(text.as_bytes()).unwrap().skipped, 1);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let refused = |text: &str| Trace::read(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(refused(""), "line 0: there is no mm_page_alloc in it");
        assert_eq!(refused(&format!("\n{}", alloc("0x10", 11))), "line 2: \"11\" is not an order: that is 0 to 10");
        assert_eq!(refused(&alloc("zero", 0)), "line 1: \"zero\" is not a frame");
        assert_eq!(refused(&alloc("0x10", 0).replace("[002]", "002")), "line 1: no CPU, such as [003]");
        assert_eq!(refused(&alloc("0x10", 0).replace("KERNEL", "COLONEL")), {
            "line 1: \"GFP_COLONEL\" is not a set of GFP flags"
        });
        assert_eq!(refused(" x-1 [002] 1.5: mm_page_free: pfn=0x10\n"), "line 1: no order=");
        let long = "x".repeat(MAX_LINE as usize);
        assert_eq!(refused(&format!("\n\n{long}")), "line 3: the text is no trace: it is too long");
    }
}
