//! A fresh guest for each test, and what there is to know about it when the test fails.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use pagevisor::guest::{Builder, Fault, Gfp, Guest};
use pagevisor::machine::Machine;
use pagevisor::topology::Topology;
use pagevisor_shared::region::event::EventKind;

/// What a test gives: `?` takes every error.
pub type Outcome = Result<(), Box<dyn Error>>;

/// How long a guest may take over a command. Where ring 0 is emulated and the machine busy, thousands of allocations
/// take ten seconds.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// Events that each guest records, for what a test that fails prints. Those that are rare: none of them is looked for
/// where an allocation is fast, and so no test is slower, or different, for it. A test that wants others has them with
/// [`guest_appended`] and `trace_event=mm_page_alloc`, or with [`Guest::events`].
pub const RECORDED: [EventKind; 9] = [
    EventKind::MmPageAllocExtfrag,
    EventKind::MmVmscanWakeupKswapd,
    EventKind::TestPagesIsolated,
    EventKind::CmaAllocStart,
    EventKind::CmaAllocFinish,
    EventKind::CmaRelease,
    EventKind::FailPageAlloc,
    EventKind::Failslab,
    EventKind::WorkloadMark,
];

/// Every allocation fails, for ever: what tests of single attributes begin with.
pub const ALWAYS: Fault = Fault {
    probability: 100,
    interval: 0,
    times: -1,
    space: 0,
    min_order: 0,
    ignore_gfp_wait: false,
    ignore_gfp_highmem: false,
    cache_filter: false,
    gfp: Gfp::NONE,
    seed: 1,
};

/// Boots a guest of this topology (TOML, as in the files of `vmm/topologies`), lets `test` have it, and verifies it
/// afterwards.
///
/// # Panics
/// When the guest does not boot, `test` fails or panics, or the guest does not verify in the end. Then the topology, the
/// guest's state, its last events and its log have been printed.
pub fn guest(topology: &str, test: impl FnOnce(&Guest) -> Outcome) {
    guest_appended(topology, "", test);
}

/// As [`guest()`], with more words for the kernel's command line.
///
/// # Panics
/// As there.
pub fn guest_appended(topology: &str, append: &str, test: impl FnOnce(&Guest) -> Outcome) {
    let machine = Topology::from_toml(topology, "topology").unwrap_or_else(|error| panic!("{error}"));
    guest_with(Machine::builder().append(append).command_timeout(COMMAND_TIMEOUT), &machine, test);
}

/// As [`guest()`], of a machine that has been described further.
///
/// # Panics
/// As there.
pub fn guest_with(builder: Builder, topology: &Topology, test: impl FnOnce(&Guest) -> Outcome) {
    // By the command line, so that a guest whose commands are counted has had none.
    let events = format!("trace_event={}", RECORDED.map(EventKind::name).join(","));
    let builder = builder.topology(topology.clone()).append(events);
    let guest = builder.boot().unwrap_or_else(|error| panic!("{error}\n{}", topology.to_toml()));
    let outcome = catch_unwind(AssertUnwindSafe(|| test(&guest)));
    let failure = match outcome {
        Ok(Ok(())) => match sound(&guest) {
            Ok(()) => return,
            Err(error) => error,
        },
        Ok(Err(error)) => error.to_string(),
        Err(panic) => {
            eprintln!("{}", guest.describe());
            resume_unwind(panic);
        }
    };
    eprintln!("{}", guest.describe());
    panic!("{failure}");
}

/// Whether all that the guest's allocator keeps is as it should be.
///
/// # Errors
/// What is not, or why that cannot be told.
pub fn sound(guest: &Guest) -> Result<(), String> {
    if guest.end().is_some() {
        return Ok(());
    }
    let report = guest.verify().map_err(|error| error.to_string())?;
    let findings = report.findings.iter().map(|finding| format!("\n{finding}"));
    if report.is_sound() { Ok(()) } else { Err(findings.fold(report.summary(), |text, finding| text + &finding)) }
}

/// What there is once nothing is kept for later: how many pages are free or in slabs, and the objects in use of each cache.
/// Those of areas are never all free, as the kernel's stacks are areas: on how many slabs they lie is a matter of chance.
///
/// # Errors
/// As commands.
///
/// # Panics
/// When slabinfo does not read as Linux's does.
pub fn left(guest: &Guest) -> Result<(u64, Vec<(String, u64)>), pagevisor::guest::Error> {
    guest.shrink_caches()?;
    guest.drain_pages()?;
    let slabinfo = guest.show("slabinfo")?;
    let caches = slabinfo.lines().skip(2).map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |index: usize| words[index].parse::<u64>().expect("a number");
        // name active_objs num_objs objsize objperslab pagesperslab : tunables 3 : slabdata active_slabs num_slabs
        (words[0].to_owned(), number(1), number(14) * number(5))
    });
    let caches: Vec<_> = caches.collect();
    let slabs: u64 = caches.iter().map(|(.., pages)| pages).sum();
    let objects = caches.into_iter().map(|(name, active, _)| (name, active)).collect();
    Ok((guest.state().free_pages() + slabs, objects))
}
