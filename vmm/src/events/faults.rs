//! Page faults as a table: a line for each, with the processor's error code decoded.

use std::fmt::Write as _;

use pagevisor_shared::region::event::Event;
use pagevisor_shared::region::fault::PageFault;
use pagevisor_shared::units::CpuId;
use serde_json::{Value, json};

use super::{Item, Renderer};

/// Tells of faults, and of nothing else.
#[derive(Debug)]
pub struct FaultRenderer {
    renderer: Renderer,
    /// Only those of this thread.
    pid: Option<u32>,
}

impl FaultRenderer {
    /// What is above the lines.
    pub const HEADER: &'static str =
        "      TIME CPU   PID FROM   ADDRESS          IP               ERROR    KIND        CYCLES\n";

    /// For the guest of `renderer`; of thread `pid`, or of all.
    pub const fn new(renderer: Renderer, pid: Option<u32>) -> Self {
        Self { renderer, pid }
    }

    /// The lines of `items`.
    pub fn lines(&self, items: &[Item], json: bool) -> String {
        let mut text = String::new();
        for item in items {
            // Writing to a string cannot fail.
            let _ = match item {
                Item::Lost(..) if json => write!(text, "{}", self.renderer.json_line(item)),
                Item::Lost(..) => write!(text, "{}", self.renderer.line(item)),
                Item::Event(cpu, event) => match self.wanted(event) {
                    Some(fault) if json => writeln!(text, "{}", self.json(*cpu, event, &fault)),
                    Some(fault) => writeln!(text, "{}", self.line(*cpu, event, &fault)),
                    None => Ok(()),
                },
            };
        }
        text
    }

    fn wanted(&self, event: &Event) -> Option<PageFault> {
        PageFault::decode(event).filter(|fault| self.pid.is_none_or(|pid| pid == fault.pid))
    }

    fn line(&self, cpu: CpuId, event: &Event, fault: &PageFault) -> String {
        let micros = self.renderer.nanos(event.tsc) / 1000;
        let PageFault { user, address, error, ip, pid, resolution, major, ticks } = fault;
        format!(
            "{:>3}.{:06} {:>3} {pid:>5} {:6} {address:016x} {ip:016x} {:8} {:9} {ticks:>8}{}",
            micros / 1_000_000,
            micros % 1_000_000,
            cpu.index(),
            if *user { "user" } else { "kernel" },
            error.to_string(),
            resolution.name(),
            if *major { " major" } else { "" },
        )
    }

    fn json(&self, cpu: CpuId, event: &Event, fault: &PageFault) -> Value {
        json!({
            "time_ns": self.renderer.nanos(event.tsc),
            "cpu": cpu.index(),
            "pid": fault.pid,
            "from": if fault.user { "user" } else { "kernel" },
            "address": format!("{:#x}", fault.address),
            "ip": format!("{:#x}", fault.ip),
            "error_code": fault.error.0,
            "error": fault.error.letters().collect::<Vec<_>>(),
            "kind": fault.resolution.name(),
            "major": fault.major,
            "cycles": fault.ticks,
        })
    }
}
