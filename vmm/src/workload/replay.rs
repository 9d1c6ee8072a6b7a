//! Traces on their way to a guest: [`pagevisor_shared::command::trace`] says in which order it does them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use pagevisor_shared::command::workload::{MAX_IDS, Params, Part, TraceRecord};
use pagevisor_shared::command::{BUFFER_BYTES, CommandHeader, RawOp};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{CpuId, CpuMask};

use super::trace::{self, Action, Trace};

/// Most records of a message, behind head, operation and parameters.
pub(super) const MAX_RECORDS: usize = (BUFFER_BYTES - CommandHeader::BYTES - RawOp::BYTES) / 8 - Params::WORDS;

/// What a guest is told so that it does a workload: the payloads of one message, or of several for a long trace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Messages {
    payloads: Vec<Vec<u64>>,
    /// By message and record: the line of the trace.
    lines: Vec<Vec<u32>>,
    /// The CPUs that are needed, and the lines that need them first.
    cpus: BTreeMap<u32, u32>,
}

impl Messages {
    /// One message, of parameters alone.
    pub(super) fn of(params: &Params) -> Self {
        Self { payloads: vec![params.encode().to_vec()], lines: Vec::new(), cpus: BTreeMap::new() }
    }

    /// The messages of a replay of the trace in a file. Without CPUs in `params` each record is for the CPU that it was
    /// recorded on; else the first of these CPUs stands in for the trace's CPU 0, and so on, around.
    ///
    /// # Errors
    /// In one line, with the number of the trace's line.
    pub(super) fn of_trace(params: &Params, path: &Path) -> Result<Self, String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        let trace = Trace::read(BufReader::new(file)).map_err(|error| error.to_string())?;
        Self::new(params, &trace)
    }

    fn new(params: &Params, trace: &Trace) -> Result<Self, String> {
        if trace.slots > MAX_IDS {
            return Err(format!("{} blocks are held at a time, more than {MAX_IDS}", trace.slots));
        }
        let mut cutter = Cutter {
            params: *params,
            last: vec![Use::default(); trace.slots as usize],
            waited: BTreeMap::new(),
            messages: Self { payloads: Vec::new(), lines: Vec::new(), cpus: BTreeMap::new() },
        };
        cutter.params.ids = trace.slots;
        trace.records.iter().try_for_each(|record| cutter.add(record))?;
        Ok(cutter.finish())
    }

    /// The payloads, in the order in which they are to be sent.
    pub fn payloads(&self) -> &[Vec<u64>] {
        &self.payloads
    }

    /// The line of the trace that a record of a message comes from.
    pub(crate) fn line(&self, message: usize, record: u64) -> Option<u32> {
        self.lines.get(message)?.get(usize::try_from(record).ok()?).copied()
    }

    /// The first line that needs a CPU which a machine of `cpus` CPUs has not, and the CPU.
    pub(crate) fn beyond(&self, cpus: usize) -> Option<(u32, u32)> {
        let beyond = self.cpus.iter().filter(|(cpu, _)| **cpu as usize >= cpus);
        beyond.map(|(cpu, line)| (*line, *cpu)).min()
    }
}

/// The last use of a slot: in which message, at which place there, and by whom.
#[derive(Clone, Copy, Default)]
struct Use {
    /// Number of the message, from 1; 0 for none.
    message: u32,
    record: u32,
    cpu: CpuId,
}

/// Cuts a trace into messages.
struct Cutter {
    params: Params,
    last: Vec<Use>,
    /// By who waits and who is waited for: up to which record of the message that was.
    waited: BTreeMap<(CpuId, CpuId), u32>,
    messages: Messages,
}

impl Cutter {
    fn add(&mut self, record: &trace::TraceRecord) -> Result<(), String> {
        let cpu = self.cpu(record.cpu).ok_or_else(|| {
            let (line, cpu, cpus) = (record.line, record.cpu, pagevisor_shared::NR_CPUS);
            format!("line {line}: CPU {cpu} is none of the {cpus} possible; cpus= says which stand in for the trace's")
        })?;
        self.messages.cpus.entry(cpu.index() as u32).or_insert(record.line);
        let (slot, record_for) = match record.action {
            // Nothing reclaims memory in the guest, so an allocation may fail whatever it was promised.
            Action::Alloc { slot, order, gfp } => {
                (slot, TraceRecord::Alloc { cpu, id: slot, order, gfp: gfp.without(Gfp::NOFAIL) })
            }
            Action::Free { slot } => (slot, TraceRecord::Free { cpu, id: slot }),
        };
        // With room for a wait.
        if self.messages.lines.last().is_none_or(|message| message.len() + 2 > MAX_RECORDS) {
            self.messages.lines.push(Vec::new());
            self.messages.payloads.push(vec![0; Params::WORDS]);
            self.waited.clear();
        }
        let message = self.messages.lines.len() as u32;
        let used = self.last.get(slot as usize).copied().unwrap_or_default();
        if used.message == message && used.cpu != cpu && !self.has_waited(cpu, used) {
            self.push(TraceRecord::Wait { cpu, peer: used.cpu, record: used.record }, record.line);
        }
        let at = self.push(record_for, record.line);
        if let Some(last) = self.last.get_mut(slot as usize) {
            *last = Use { message, record: at, cpu };
        }
        Ok(())
    }

    /// The CPU that does what the trace's CPU `cpu` did.
    fn cpu(&self, cpu: u32) -> Option<CpuId> {
        match self.params.cpus {
            CpuMask(0) => CpuId::new(cpu as usize),
            given => given.iter().nth((cpu % given.weight()) as usize),
        }
    }

    /// Whether `cpu` has waited for that, or something behind it, already; it is going to, if not.
    fn has_waited(&mut self, cpu: CpuId, used: Use) -> bool {
        let before = self.waited.insert((cpu, used.cpu), used.record);
        match before.filter(|record| *record >= used.record) {
            Some(record) => {
                self.waited.insert((cpu, used.cpu), record);
                true
            }
            None => false,
        }
    }

    /// Appends a record; gives its number in the message.
    fn push(&mut self, record: TraceRecord, line: u32) -> u32 {
        let Messages { payloads, lines, .. } = &mut self.messages;
        let at = lines.last().map_or(0, Vec::len);
        if let (Some(payload), Some(lines)) = (payloads.last_mut(), lines.last_mut()) {
            payload.push(record.encode());
            lines.push(line);
        }
        at as u32
    }

    fn finish(mut self) -> Messages {
        let numbers = self.messages.cpus.keys().filter_map(|cpu| CpuId::new(*cpu as usize));
        self.params.cpus = numbers.fold(CpuMask(0), CpuMask::with);
        let count = self.messages.payloads.len();
        for (payload, number) in self.messages.payloads.iter_mut().zip(1..) {
            let part = match number {
                1 if count == 1 => Part::Whole,
                1 => Part::First,
                number if number == count => Part::Last,
                _ => Part::Middle,
            };
            let records = (payload.len() - Params::WORDS) as u32;
            let head = Params { part, records, ..self.params }.encode();
            payload.iter_mut().zip(head).for_each(|(word, head)| *word = head);
        }
        self.messages
    }
}

#[cfg(test)]
mod tests {
    use pagevisor_shared::command::workload::Kind;
    use pagevisor_shared::units::Order;

    use super::*;

    /// `+PFN CPU` allocates, `-PFN CPU` frees; a line each.
    fn text(steps: &str) -> String {
        let line = |step: &str| {
            let (pfn, cpu) = step.split_at(1).1.split_once('@').unwrap();
            let head = format!(" x-1 [{cpu:0>3}] d..1. 1.5:");
            match step.starts_with('+') {
                true => format!("{head} mm_page_alloc: page=0 pfn={pfn} order=0 migratetype=0 gfp_flags=GFP_KERNEL\n"),
                false => format!("{head} mm_page_free: page=0 pfn={pfn} order=0\n"),
            }
        };
        steps.split_whitespace().map(line).collect()
    }

    fn messages(steps: &str, cpus: u64) -> Result<Messages, String> {
        let params = Params { cpus: CpuMask(cpus), ..Params::new(Kind::Replay) };
        Messages::new(&params, &Trace::read(text(steps).as_bytes()).unwrap())
    }

    fn params(payload: &[u64]) -> Params {
        Params::decode(payload.first_chunk().unwrap()).unwrap()
    }

    /// The records of a message, in brief.
    fn records(payload: &[u64]) -> Vec<String> {
        let brief = |word: &u64| match TraceRecord::decode(*word).unwrap() {
            TraceRecord::Alloc { cpu, id, order: Order::ZERO, .. } => format!("{}+{id}", cpu.index()),
            TraceRecord::Free { cpu, id } => format!("{}-{id}", cpu.index()),
            TraceRecord::Wait { cpu, peer, record } => format!("{}?{}:{record}", cpu.index(), peer.index()),
            TraceRecord::Alloc { .. } => "another order".to_owned(),
        };
        payload[Params::WORDS..].iter().map(brief).collect()
    }

    #[test]
    fn who_uses_what_another_has_used_waits_for_him() {
        let all = messages("+1@0 +2@0 -2@3 -1@3 +3@0 +4@3 -4@0 -3@3", 0).unwrap();
        let [payload] = all.payloads() else { panic!("{all:?}") };
        let head = params(payload);
        assert_eq!((head.part, head.records, head.ids, head.cpus), (Part::Whole, 11, 4, CpuMask(0b1001)));
        // Who has waited for record 1 has waited for record 0.
        let expected = ["0+0", "0+1", "3?0:1", "3-1", "3-0", "0+2", "3+3", "0?3:6", "0-3", "3?0:5", "3-2"];
        assert_eq!(records(payload), expected);
        assert_eq!([0, 2, 3, 10].map(|record| all.line(0, record)), [1, 3, 3, 8].map(Some));
        assert_eq!((all.line(0, 11), all.line(1, 0), all.line(0, u64::MAX)), (None, None, None));
        assert_eq!((all.beyond(4), all.beyond(3), all.beyond(0)), (None, Some((3, 3)), Some((1, 0))));
    }

    #[test]
    fn cpus_stand_in_for_the_trace_s() {
        let all = messages("+1@0 +2@1 +3@2 -3@7", 0b10100).unwrap();
        assert_eq!(records(&all.payloads()[0]), ["2+0", "4+1", "2+2", "4?2:2", "4-2"]);
        assert_eq!(params(&all.payloads()[0]).cpus, CpuMask(0b10100));
        assert_eq!(records(&messages("+1@0 +2@1 -1@200", 2).unwrap().payloads()[0]), ["1+0", "1+1", "1-0"]);
        let beyond = messages("+1@0 +2@64", 0).unwrap_err();
        assert_eq!(beyond, "line 2: CPU 64 is none of the 64 possible; cpus= says which stand in for the trace's");
    }

    #[test]
    fn a_long_trace_is_cut() {
        let steps: String = (0..10_000).map(|step| format!("+1@{} -1@{} ", step % 3, (step + 1) % 3)).collect();
        let all = messages(&steps, 0).unwrap();
        let parts: Vec<_> = all.payloads().iter().map(|payload| params(payload)).collect();
        assert!(all.payloads().iter().all(|payload| payload.len() <= MAX_RECORDS + Params::WORDS));
        assert_eq!(parts.iter().map(|params| params.part).collect::<Vec<_>>(), {
            [Part::First, Part::Middle, Part::Middle, Part::Last]
        });
        assert_eq!(parts.iter().map(|params| params.records as usize).collect::<Vec<_>>(), {
            all.payloads().iter().map(|payload| payload.len() - Params::WORDS).collect::<Vec<_>>()
        });
        // All of it, in order, and waits for records of the same message only.
        let mut done = 0;
        assert!(parts[0].ids < 2000);
        for payload in all.payloads() {
            for (word, at) in payload[Params::WORDS..].iter().zip(0..) {
                match TraceRecord::decode(*word).unwrap() {
                    TraceRecord::Wait { record, .. } => assert!(record < at),
                    TraceRecord::Alloc { cpu, .. } | TraceRecord::Free { cpu, .. } => {
                        assert_eq!(cpu.index(), (done / 2 + done % 2) % 3);
                        done += 1;
                    }
                }
            }
        }
        assert_eq!(done, 20_000);
    }
}
