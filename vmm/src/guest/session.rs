//! A guest that runs, and the way of a command to it and back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pagevisor_shared::command::{
    ANY_CPU, CommandHeader, Fault, Faulty, Op, OpResult, RawOp, STOP_ON_ERROR, Setting, Status,
};
use pagevisor_shared::units::NodeId;
use pagevisor_shared::zone::{MAX_NR_ZONES, ZoneType};

use super::cpu::CpuHandle;
use super::error::{Error, ErrorKind, op_name};
use super::estate::{Book, Claim};
use super::prepared::PreparedWorkload;
use super::snapshot::Snapshot;
use super::state::State;
use super::text::{self, Tail, last_words};
use crate::devices::monitor::{NoReply, Reply, Waiting};
use crate::machine::{Deadline, End, Machine, Paused, StopEvent};
use crate::memory::GuestMemory;
use crate::report::{View, proc_tree};
use crate::state::StateView;
use crate::topology::Topology;
use crate::verify;
use crate::workload::{Workload, WorkloadReport};

/// How often [`Guest::wait_until`] looks.
const LOOK: Duration = Duration::from_millis(1);
/// How often who waits looks whether it is to stop.
const LISTEN: Duration = Duration::from_millis(20);
/// Most events that [`Guest::describe`] tells.
const DESCRIBED_EVENTS: usize = 40;

/// A guest of this process that is ready for commands. Dropping it ends it.
#[derive(Debug)]
pub struct Guest {
    machine: Machine,
    topology: Topology,
    view: StateView,
    console: Tail,
    book: Arc<Book>,
    command_timeout: Duration,
    run_timeout: Duration,
}

/// What a command of one operation gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Executed {
    /// The operation's value.
    pub value: u64,
    /// Its second value; where in the payload something is, if anything.
    pub aux: u32,
    /// The reply's payload.
    pub payload: Vec<u8>,
    /// The CPU that executed it.
    pub cpu: u32,
    /// Ticks of the time stamp counter from before the first operation to after the last one.
    pub ticks: u64,
}

/// A command on its way to a guest.
pub(super) struct Call<'c> {
    pub cpu: u32,
    pub flags: u32,
    pub ops: &'c [Op],
    pub payload: &'c [u8],
    pub timeout: Duration,
    /// Whether to wait no longer.
    pub stop: Option<&'c dyn Fn() -> bool>,
    /// What it does to handles. If nobody waits for the reply in the end, they are not the caller's any more.
    pub claims: &'c [Claim],
}

impl<'c> Call<'c> {
    /// Operations for a CPU.
    pub(super) fn new(cpu: u32, ops: &'c [Op]) -> Self {
        Self { cpu, flags: 0, ops, payload: &[], timeout: Duration::ZERO, stop: None, claims: &[] }
    }
}

impl Guest {
    pub(super) fn new(
        machine: Machine,
        topology: Topology,
        console: Tail,
        command_timeout: Duration,
        run_timeout: Duration,
    ) -> Result<Self, Error> {
        let view =
            StateView::of_machine(&machine).map_err(|error| Error::new(error, last_words(Some(&machine), &console)))?;
        Ok(Self { machine, topology, view, console, book: Arc::default(), command_timeout, run_timeout })
    }

    /// CPU `number`.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchCpu`].
    pub fn cpu(&self, number: u32) -> Result<CpuHandle<'_>, Error> {
        let cpus = self.topology.nr_cpus();
        if number as usize >= cpus {
            return Err(self.error(ErrorKind::NoSuchCpu { cpu: number, cpus }));
        }
        Ok(CpuHandle::new(self, number))
    }

    /// Whichever CPU the guest gives a command to.
    pub fn any_cpu(&self) -> CpuHandle<'_> {
        CpuHandle::new(self, ANY_CPU)
    }

    /// The machine's description.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The machine that the guest runs in.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        self.machine.memory()
    }

    /// The guest's live state: its tables and memory, to be read with the tools of [`crate::state`].
    pub fn view(&self) -> &StateView {
        &self.view
    }

    /// The allocator's counters as they are now, each by itself: the guest runs on.
    pub fn state(&self) -> State {
        State::read(&self.view.region())
    }

    /// What a view shows, such as `buddyinfo`.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] for a view that there is not; [`ErrorKind::View`].
    pub fn show(&self, view: &str) -> Result<String, Error> {
        let view: View = view.parse().map_err(|_| self.error(ErrorKind::Argument("there is no such view")))?;
        let mut text = Vec::new();
        view.render(&self.view, false, &mut text).map_err(|error| self.error(error))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// What the guest says over its serial line, the last 64 KiB, and what the VMM complained of.
    pub fn console(&self) -> String {
        self.console.text()
    }

    /// The guest's log, line by line.
    pub fn log(&self) -> Vec<String> {
        text::log(&self.machine)
    }

    /// How the guest ended, if it has.
    pub fn end(&self) -> Option<End> {
        self.machine.end()
    }

    /// Pauses the guest at a safe point, until the result is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::Pause`].
    pub fn pause(&self) -> Result<Paused, Error> {
        self.machine.pause().map_err(|error| self.error(error))
    }

    /// A copy of the guest's state and memory of one moment: every view of it is consistent.
    ///
    /// # Errors
    /// [`ErrorKind::Pause`] and [`ErrorKind::Copy`].
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        let paused = self.pause()?;
        Snapshot::take(&self.view, &paused).map_err(|error| self.error(error))
    }

    /// Checks all that the allocator keeps, while the guest is paused.
    ///
    /// # Errors
    /// [`ErrorKind::Pause`] and [`ErrorKind::State`]; what is wrong in the guest is in the report.
    pub fn verify(&self) -> Result<verify::Report, Error> {
        let paused = self.pause()?;
        verify::verify(&self.view, paused.registers()).map_err(|error| self.error(error))
    }

    /// Does a workload and gives its report.
    ///
    /// # Errors
    /// [`ErrorKind::Workload`] for one that is none, [`ErrorKind::Report`] for a report that is none, and as every
    /// command.
    pub fn run(&self, workload: &Workload) -> Result<WorkloadReport, Error> {
        let deadline = Deadline::after(self.run_timeout);
        let report = PreparedWorkload::new(workload).and_then(|work| work.run(&self.machine, deadline, None));
        report.map_err(|kind| self.error(kind))
    }

    /// Frees what workloads have kept.
    ///
    /// # Errors
    /// As every command.
    pub fn release_workload(&self) -> Result<(), Error> {
        self.any_cpu().execute(Op::ReleaseWorkload).map(drop)
    }

    /// Empties the pagesets of all CPUs (`drain_all_pages`).
    ///
    /// # Errors
    /// As every command.
    pub fn drain_pages(&self) -> Result<(), Error> {
        self.any_cpu().execute(Op::DrainPages { all: true }).map(drop)
    }

    /// Writes a setting (`/proc/sys/vm/*`); `index` is the zone type of [`Setting::LowmemReserveRatio`], else 0.
    ///
    /// # Errors
    /// [`pagevisor_shared::command::OpError::Invalid`] for what Linux would refuse, and as every command.
    pub fn set(&self, setting: Setting, index: u8, value: u64) -> Result<(), Error> {
        self.any_cpu().execute(Op::Set { setting, index, value }).map(drop)
    }

    /// Switches on exactly these events: bits by [`pagevisor_shared::region::event::EventKind`].
    ///
    /// # Errors
    /// As every command.
    pub fn set_events(&self, mask: u64) -> Result<(), Error> {
        self.any_cpu().execute(Op::SetEvents { mask }).map(drop)
    }

    /// Makes allocations fail, as Linux's `fail_page_alloc`; the default of [`Fault`] ends that.
    ///
    /// # Errors
    /// As every command.
    pub fn fail_page_alloc(&self, fault: Fault) -> Result<(), Error> {
        self.any_cpu().execute(Op::FailPageAlloc(fault)).map(drop)
    }

    /// Makes the `nth` allocation of the machine from now on fail; 0 takes it back.
    ///
    /// # Errors
    /// As every command.
    pub fn fail_nth(&self, nth: u64) -> Result<(), Error> {
        self.any_cpu().execute(Op::FailNth { of: Faulty::Pages, nth, this_cpu: false }).map(drop)
    }

    /// Makes allocations of objects from slab caches fail, as Linux's `failslab`; the default of [`Fault`] ends that.
    ///
    /// # Errors
    /// As every command.
    pub fn failslab(&self, fault: Fault) -> Result<(), Error> {
        self.any_cpu().execute(Op::Failslab(fault)).map(drop)
    }

    /// Makes the `nth` allocation of an object from now on fail; 0 takes it back.
    ///
    /// # Errors
    /// As every command.
    pub fn failslab_nth(&self, nth: u64) -> Result<(), Error> {
        self.any_cpu().execute(Op::FailNth { of: Faulty::Objects, nth, this_cpu: false }).map(drop)
    }

    /// Waits until every CPU has been between two operations.
    ///
    /// # Errors
    /// As every command.
    pub fn barrier(&self) -> Result<(), Error> {
        self.any_cpu().execute(Op::Barrier).map(drop)
    }

    /// Sets `pages` aside for contiguous allocations and gives the area's number.
    ///
    /// # Errors
    /// As every command.
    pub fn reserve_cma(&self, pages: u64, node: Option<NodeId>) -> Result<u8, Error> {
        let area = self.any_cpu().execute(Op::ReserveCma { pages, node })?;
        u8::try_from(area.value)
            .map_err(|_| self.error(ErrorKind::BadReply { cpu: area.cpu, what: "the number of the area" }))
    }

    /// Waits until `ready` says so.
    ///
    /// # Errors
    /// [`ErrorKind::NotHappened`], or how the guest ended meanwhile.
    pub fn wait_until(&self, timeout: Duration, mut ready: impl FnMut(&State) -> bool) -> Result<(), Error> {
        let begin = Instant::now();
        loop {
            if ready(&self.state()) {
                return Ok(());
            }
            if let Some(end) = self.end() {
                return Err(self.error(ErrorKind::Ended(Box::new(end))));
            }
            if begin.elapsed() >= timeout {
                return Err(self.error(ErrorKind::NotHappened(timeout)));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Asks the guest to power off with `code` and waits until it has.
    ///
    /// # Errors
    /// As every command; [`ErrorKind::TimedOut`] if it does not.
    pub fn shutdown(self, code: u16) -> Result<End, Error> {
        let ops = [Op::Shutdown { code }];
        match self.call(&Call { timeout: self.command_timeout, ..Call::new(ANY_CPU, &ops) }) {
            // A guest that powers off does not say so first.
            Err(error) if !matches!(error.kind(), ErrorKind::Ended(_)) => return Err(error),
            _ => {}
        }
        let stop =
            StopEvent::new().map_err(|source| self.error(ErrorKind::Host { what: "make an eventfd", source }))?;
        match self.machine.wait(Deadline::after(self.command_timeout), &stop) {
            End::TimedOut { .. } => Err(self.error(ErrorKind::TimedOut { cpu: ANY_CPU, after: self.command_timeout })),
            end => Ok(end),
        }
    }

    /// The topology, the views that tell most about memory, the last events and the guest's log: for who wonders what
    /// happened.
    pub fn describe(&self) -> String {
        let mut text = format!("Topology:\n{}\nState:\n", self.topology.to_toml());
        let files = proc_tree(&self.view).unwrap_or_default();
        for (path, content) in
            files.iter().filter(|(path, _)| path.ends_with("buddyinfo") || path.ends_with("numastat"))
        {
            text += &format!("{path}:\n{content}\n");
        }
        let events = self.last_events(DESCRIBED_EVENTS);
        text += &format!("{}\nLast events:\n{events}\nLog:\n", self.state());
        self.log().iter().for_each(|line| text += &format!("{line}\n"));
        text
    }

    pub(super) fn command_timeout(&self) -> Duration {
        self.command_timeout
    }

    /// `kind` with the guest's last words.
    pub(super) fn error(&self, kind: impl Into<ErrorKind>) -> Error {
        Error::new(kind, last_words(Some(&self.machine), &self.console))
    }

    pub(super) fn take_handles(&self, count: u32) -> Result<u32, Error> {
        self.book.take(count).ok_or_else(|| self.error(ErrorKind::NoHandles(count)))
    }

    pub(super) fn give_handles(&self, start: u32, count: u32) {
        self.book.give(start, count);
    }

    /// Whether handles that are dropped need not be freed by a command that is waited for: the guest has ended, or it
    /// owes an answer, and they are freed when it has given one.
    pub(super) fn takes_over(&self, start: u32, count: u32) -> bool {
        self.machine.end().is_some() || self.book.owe_if_silent(start, count)
    }

    /// The node and the type of the zone that frame `pfn` is in.
    pub(super) fn zone_of(&self, pfn: u64) -> Result<(NodeId, ZoneType), Error> {
        let sections = self.view.sections().map_err(|error| self.error(error))?;
        let zone = sections.zone_of(pfn).map(pagevisor_shared::zone::ZoneIndex::index);
        zone.and_then(|zone| Some((NodeId::new(zone / MAX_NR_ZONES)?, ZoneType::new(zone % MAX_NR_ZONES)?)))
            .ok_or_else(|| self.error(ErrorKind::BadReply { cpu: ANY_CPU, what: "a frame outside of all zones" }))
    }

    /// Sends a command and waits for its reply, which has a result for each operation, or up to the first that failed
    /// if it was to stop then.
    pub(super) fn call(&self, call: &Call<'_>) -> Result<Reply, Error> {
        let reply = exchange(&self.machine, call, Some(&self.book)).map_err(|kind| self.error(kind))?;
        if let Some(bequest) = self.book.settle(reply.header.cpu) {
            self.machine.bequeath(bequest);
        }
        Ok(reply)
    }
}

/// Waits for a reply, which a guest that hangs does not give; the error is why no longer.
fn wait(waiting: &Waiting, call: &Call<'_>) -> Result<Result<Reply, NoReply>, ErrorKind> {
    let begin = Instant::now();
    loop {
        let left = call.timeout.saturating_sub(begin.elapsed());
        let slice = call.stop.map_or(left, |_| left.min(LISTEN));
        if let Some(answer) = waiting.poll(slice) {
            return Ok(answer);
        }
        if call.stop.is_some_and(|stop| stop()) {
            return Err(ErrorKind::Stopped);
        }
        if left <= slice {
            return Err(ErrorKind::TimedOut { cpu: call.cpu, after: call.timeout });
        }
    }
}

/// [`Guest::call`] for a machine. Who gives up leaves what the call claims to `book`.
pub(super) fn exchange(machine: &Machine, call: &Call<'_>, book: Option<&Arc<Book>>) -> Result<Reply, ErrorKind> {
    let cpu = call.cpu;
    let no_reply = |why| match (why, machine.end()) {
        (NoReply::Ended, Some(end)) => ErrorKind::Ended(Box::new(end)),
        (why, _) => ErrorKind::NoReply { cpu, why },
    };
    let ops: Vec<RawOp> = call.ops.iter().map(Op::encode).collect();
    let header = CommandHeader { cpu, flags: call.flags, ..CommandHeader::default() };
    let waiting = machine.submit(header, &ops, call.payload).map_err(no_reply)?;
    let answer = wait(&waiting, call).or_else(|kind| {
        // The reply may come at this very moment.
        book.and_then(|book| waiting.leave(book.heir(cpu, call.claims))).ok_or(kind)
    });
    let reply = answer?.map_err(no_reply)?;
    let results = reply.results.len();
    let complete = match reply.header.status {
        Status::Done => results == ops.len(),
        Status::Stopped => call.flags & STOP_ON_ERROR != 0 && (1..=ops.len()).contains(&results),
        status => return Err(ErrorKind::Refused { cpu, status }),
    };
    if complete { Ok(reply) } else { Err(ErrorKind::BadReply { cpu, what: "the number of results" }) }
}

/// The result of the only operation.
pub(super) fn single(reply: &Reply) -> Result<OpResult, ErrorKind> {
    let cpu = reply.header.cpu;
    reply.results.first().copied().ok_or(ErrorKind::BadReply { cpu, what: "the number of results" })
}

/// The error in a result, if there is one.
pub(super) fn single_error(op: &Op, result: &OpResult, cpu: u32) -> Result<(), ErrorKind> {
    match result.error {
        None => Ok(()),
        Some(error) => Err(ErrorKind::Op { op: op_name(op), cpu, error, value: result.value }),
    }
}
