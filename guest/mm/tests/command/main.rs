//! Commands on hosted machines: what each operation does, every misuse an error, and random messages.

mod misuse;
mod objects;
mod operations;
mod random;
mod replay;
mod workloads;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use pagevisor_mm::check::violations;
use pagevisor_mm::command::{Commands, Services, execute};
use pagevisor_mm::hosted::{Machine, Topology};
use pagevisor_shared::command::workload::Touch;
use pagevisor_shared::command::workload::{Params, Report};
use pagevisor_shared::command::{
    BUFFER_BYTES, CommandHeader, Op, OpError, OpResult, RawOp, ReplyHeader, STOP_ON_ERROR, Status,
};
use pagevisor_shared::units::{CpuId, CpuMask};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The machine around, with threads for CPUs.
struct Threads<'a> {
    machine: &'a Machine,
    cpus: u64,
    start: Instant,
}

impl Services for Threads<'_> {
    fn ticks(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn safe_point(&self) {}

    fn relax(&self) {
        std::thread::yield_now();
    }

    fn online(&self) -> CpuMask {
        CpuMask(self.cpus)
    }

    fn run_on(&self, cpus: CpuMask, part: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            for (number, cpu) in cpus.iter().enumerate() {
                scope.spawn(move || self.machine.on_cpu(cpu.index(), |_| part(number)));
            }
        });
    }

    fn barrier(&self) {}

    fn run_program(&self, touch: Touch, pages: u64) -> Option<u64> {
        // There is no user mode here.
        (touch != Touch::Stack).then_some(2 * pages)
    }

    fn shutdown(&self, _code: u16) {}
}

/// A machine that takes commands.
struct Guest {
    machine: Machine,
    commands: Commands,
    cpus: u64,
    reply: Vec<AtomicU64>,
}

/// What came back.
#[derive(Debug)]
struct Answer {
    head: ReplyHeader,
    results: Vec<OpResult>,
    payload: Vec<u8>,
}

impl Guest {
    fn new(topology: &Topology) -> Self {
        let machine = topology.boot();
        let cpus = u64::MAX >> (64 - machine.mm().region().nr_cpus());
        let reply = (0..BUFFER_BYTES / 8).map(|_| AtomicU64::new(u64::MAX)).collect();
        Self { machine, commands: Commands::new(), cpus, reply }
    }

    /// Executes a message as it is.
    fn raw(&self, message: &[u8]) -> Answer {
        let services = Threads { machine: &self.machine, cpus: self.cpus, start: Instant::now() };
        let len = execute(self.machine.mm(), &self.commands, &services, message, &self.reply);
        assert!(len <= BUFFER_BYTES);
        let bytes: Vec<u8> = self.reply.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
        let bytes = &bytes[..len];
        let head = ReplyHeader::from_bytes(bytes.first_chunk().expect("a head"), len).expect("a reply");
        assert_eq!(head.message_len(), len as u64);
        let results = bytes[ReplyHeader::BYTES..head.payload_offset()].as_chunks().0;
        let results = results.iter().map(|result| OpResult::from_bytes(result).expect("a result")).collect();
        Answer { head, results, payload: bytes[head.payload_offset()..].to_vec() }
    }

    fn send(&self, ops: &[Op], payload: &[u8], flags: u32) -> Answer {
        let raw: Vec<RawOp> = ops.iter().map(Op::encode).collect();
        self.raw(&message(&raw, payload, flags))
    }

    /// Executes one operation.
    fn one(&self, op: Op) -> OpResult {
        let answer = self.send(&[op], &[], STOP_ON_ERROR);
        assert_eq!((answer.head.tag, answer.results.len()), (7, 1));
        assert_eq!(answer.head.status, if answer.results[0].error.is_some() { Status::Stopped } else { Status::Done });
        answer.results[0]
    }

    /// Executes one operation that must succeed; gives its value.
    #[track_caller]
    fn ok(&self, op: Op) -> u64 {
        let result = self.one(op);
        assert_eq!(result.error, None, "{op:?}");
        result.value
    }

    #[track_caller]
    fn fails(&self, op: Op, error: OpError) {
        assert_eq!(self.one(op).error, Some(error), "{op:?}");
    }

    /// Runs a workload; gives its report.
    #[track_caller]
    fn run(&self, params: &Params, records: &[u64]) -> Vec<u64> {
        let words = params.encode();
        let payload: Vec<u8> = words.iter().chain(records).flat_map(|word| word.to_le_bytes()).collect();
        let answer = self.send(&[Op::Run { payload: 0, len: payload.len() as u32 }], &payload, 0);
        assert_eq!(answer.results[0].error, None, "{params:?}");
        let report: Vec<u64> = answer.payload.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        assert_eq!(report.len(), Report::words(self.machine.mm().region().nr_nodes()));
        report
    }

    /// Fails with what is wrong if anything is.
    #[track_caller]
    fn assert_sound(&self) {
        let found = violations(self.machine.mm());
        assert!(found.is_empty(), "{}", found.iter().map(|v| format!("{v}\n")).collect::<String>());
        let log = self.machine.log_text();
        assert!(!log.contains("BUG"), "{log}");
    }
}

/// A message of these operations.
fn message(ops: &[RawOp], payload: &[u8], flags: u32) -> Vec<u8> {
    let header = CommandHeader { tag: 7, cpu: 0, nr_ops: ops.len() as u32, flags, payload_len: payload.len() as u32 };
    let mut message = header.to_bytes().to_vec();
    ops.iter().for_each(|op| message.extend(op.to_bytes()));
    message.extend(payload);
    message
}

/// One node and CPU: 64 MiB of DMA32.
fn small() -> Guest {
    Guest::new(&Topology::pages_only().node(&[(16 * MIB, 80 * MIB)], 1))
}

/// Two nodes of two CPUs each, with slab caches, `vmalloc` and per-CPU memory.
fn complete() -> Guest {
    let topology = Topology::new().percpu(1500, 8 << 10, 28 << 10, 4096);
    Guest::new(&topology.node(&[(0, 640 << 10), (MIB, 128 * MIB)], 2).node(&[(4 * GIB, 4 * GIB + 128 * MIB)], 2))
}

/// Two nodes of two CPUs each, with all three zones.
fn two_nodes() -> Guest {
    Guest::new(
        &Topology::pages_only()
            .node(&[(0, 640 << 10), (MIB, 128 * MIB), (4 * GIB, 4 * GIB + 64 * MIB)], 2)
            .node(&[(4 * GIB + 64 * MIB, 4 * GIB + 192 * MIB)], 2),
    )
}

/// The CPUs numbered so.
fn cpus(numbers: &[usize]) -> CpuMask {
    numbers.iter().filter_map(|cpu| CpuId::new(*cpu)).fold(CpuMask(0), CpuMask::with)
}
