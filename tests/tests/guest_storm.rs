//! Sixty-four threads of a program that map, touch, protect and unmap in one address space: whenever the guest is stopped, all
//! that its memory stack keeps is sound; and when nothing is left of the program, every page it had is free again.

use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use pagevisor::boot::Init;
use pagevisor::guest::{ErrorKind as Kind, Guest};
use pagevisor::machine::{Machine, PauseError};
use pagevisor::state::Patience;
use pagevisor::topology::Topology;
use pagevisor_tests::guest::{COMMAND_TIMEOUT, guest_with, left};

const STORM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/storm"));
const TWO_NODES: &str = "[[node]]\nmem = \"128M\"\ncpus = 2\n[[node]]\nmem = \"128M\"\ncpus = 2\n";
const THREADS: usize = 64;
/// How often the guest is looked at in the middle of storms, at least.
const LOOKS: usize = 3;
/// Pages of a thread's stack in the kernel.
const STACK_PAGES: u64 = 4;

/// Lets the program storm once; gives how often the guest was found sound while most of the threads were there.
fn storm(guest: &Guest, console: &mut UnixStream) -> Result<usize, Box<dyn Error>> {
    let (mut looks, mut wait) = (0, Duration::from_millis(30));
    console.write_all(b"s")?;
    loop {
        // Ever longer, so that storms of any length are stopped some times, and none for most of its time.
        wait = wait * 3 / 2;
        console.set_read_timeout(Some(wait))?;
        match console.read_exact(&mut [0]) {
            Ok(()) => break,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
        match guest.verify() {
            Ok(report) if report.is_sound() => looks += usize::from(programs(guest)? > THREADS / 2),
            Ok(report) => return Err(format!("{}: {:#?}", report.summary(), report.findings).into()),
            // The host is busy with other things than this guest's CPUs.
            Err(error) if matches!(error.kind(), Kind::Pause(PauseError::Unsafe(_))) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(looks)
}

/// Threads of programs.
fn programs(guest: &Guest) -> Result<usize, Box<dyn Error>> {
    let tasks = guest.view().tasks(Patience::default())?;
    Ok(tasks.list.iter().filter(|task| !task.is_kernel()).count())
}

/// What is left when nothing is kept for later but what has a name.
#[derive(PartialEq, Eq, Debug)]
struct Rest {
    /// Pages that are free, of slabs, of threads' stacks, and of page tables. As in Linux, each CPU keeps two stacks of threads
    /// that have ended, and page tables of the kernel's areas stay when the areas go.
    pages: u64,
    /// Objects of slab caches in use, but for the two that each stack's area has.
    objects: Vec<(String, u64)>,
}

fn rest(guest: &Guest) -> Result<Rest, Box<dyn Error>> {
    // Every CPU has come to its idle loop: nobody is on the stack of a thread that has ended.
    guest.barrier()?;
    let (pages, mut objects) = left(guest)?;
    let report = guest.verify()?;
    assert!(report.is_sound(), "{}", report.summary());
    let areas = guest.show("vmallocinfo")?;
    let stacks = areas.lines().filter(|line| line.contains("task::stack::alloc")).count() as u64;
    objects.iter_mut().filter(|(cache, _)| cache == "vmap_area").for_each(|(_, active)| *active -= 2 * stacks);
    Ok(Rest { pages: pages + stacks * STACK_PAGES + report.checked.tables, objects })
}

/// Rounds of each thread. Where ring 0 is emulated, one takes all threads together a quarter of a minute.
fn rounds() -> &'static str {
    if std::env::var_os("PAGEVISOR_LAB").is_some() { "2" } else { "1" }
}

#[test]
fn whenever_a_storm_of_threads_is_stopped_it_is_sound_and_it_leaves_no_page_behind() {
    let (mut console, theirs) = UnixStream::pair().unwrap();
    let arguments = [THREADS.to_string().as_str(), rounds(), "4", "again"].map(|word| word.as_bytes().to_vec());
    let init = Init { path: "/bin/storm".to_owned(), program: Some(STORM.to_vec()), arguments: arguments.to_vec() };
    let builder = Machine::builder().init(init, theirs).command_timeout(COMMAND_TIMEOUT);
    guest_with(builder, &Topology::from_toml(TWO_NODES, "topology").unwrap(), |guest| {
        // The first one leaves behind what its parent has touched for it, and what the kernel makes once.
        let mut looks = storm(guest, &mut console)?;
        let before = rest(guest)?;
        looks += storm(guest, &mut console)?;
        assert_eq!(rest(guest)?, before);
        assert!(looks >= LOOKS, "the guest was stopped {looks} times only in the middle of a storm");
        Ok(())
    });
}
