//! Dumps of live guests, and pausing them from another process. Needs /dev/kvm.

mod damage;
mod tiny;

use std::time::{Duration, Instant};

use damage::areas::AREAS;
use damage::mutations::{FREE_LISTS, MAPS, PAGES, ZONES};
use damage::percpu::PERCPU;
use damage::slabs::SLABS;
use damage::{Bench, used_guest};
use pagevisor::dump::{Dump, write};
use pagevisor::runtime::{Connection, ControlServer, Endpoint, Guest, Phase, RuntimeDir};
use pagevisor::verify::{Report, verify};
use pagevisor_shared::layout::PAGE_OFFSET;
use tiny::{Code, PATIENCE, start};
use vm_memory::{Bytes, GuestAddress};

#[test]
fn a_dump_shows_the_same_damage_as_the_guest() {
    let machine = used_guest();
    let paused = machine.pause().unwrap();
    let bench = Bench::new(&machine);
    let directory = tempfile::tempdir().unwrap();
    let core = directory.path().join("damaged.core");
    let told = |report: &Report| report.findings.clone();
    for (what, rule, damage) in [FREE_LISTS, PAGES, ZONES, MAPS, SLABS, AREAS, PERCPU].into_iter().flatten() {
        damage(&bench);
        write(&bench.view, paused.registers(), &core).unwrap();
        let live = verify(&bench.view, paused.registers()).unwrap();
        bench.restore();
        let dump = Dump::open(&core).unwrap();
        assert_eq!(dump.registers(), paused.registers());
        let dumped = verify(&dump.view, dump.registers()).unwrap();
        assert_eq!(told(&dumped), told(&live), "{what}");
        assert!(dumped.has(*rule), "{what}");
    }
}

#[test]
fn a_guest_runs_again_when_the_client_that_paused_it_vanishes() {
    let counter = 0x20_0000;
    let machine = start(tiny::config(Code::default().store(counter, 0).count(counter)));
    let value = || machine.memory().ram().read_obj::<u32>(GuestAddress(counter.into())).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let claim = |name| RuntimeDir::create(directory.path()).unwrap().claim(name).unwrap();
    let dir = RuntimeDir::create(directory.path()).unwrap();
    let name = "counting".parse().unwrap();
    let guest = Guest {
        abi: pagevisor_shared::ABI_VERSION,
        name: "counting".into(),
        pid: std::process::id(),
        started_unix_ms: 0,
        kernel: "tiny".into(),
        version: String::new(),
        append: String::new(),
        state: Phase::Ready,
        region_bytes: 0,
        cpus: 1,
        nodes: vec![],
        distances: vec![],
    };
    let endpoint = Endpoint {
        guest,
        memory: vec![],
        phase: Box::new(|| Phase::Ready),
        stop: Box::new(|| {}),
        pauser: Some(machine.pauser()),
        commander: Some(machine.commander()),
        sandbox: pagevisor::sandbox::Mode::Enforce,
    };
    let _server = ControlServer::start(claim(&name), endpoint).unwrap();
    let runs = |wanted: bool| {
        let (before, deadline) = (value(), Instant::now() + if wanted { PATIENCE } else { Duration::from_millis(20) });
        while value() == before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        (value() != before) == wanted
    };
    for vanishes in [false, true, true] {
        let connection = Connection::open(&dir, &name).unwrap();
        let paused = connection.pause().unwrap();
        assert_eq!(paused.registers().len(), 2);
        assert!(runs(false), "a paused guest ran");
        if vanishes {
            // As if the process had been killed: nothing is said, the connection just closes.
            std::mem::forget(paused);
            drop(connection);
        } else {
            drop(paused);
        }
        assert!(runs(true), "the guest stays paused");
    }
}

#[test]
fn a_damaged_dump_is_refused() {
    let machine = used_guest();
    let paused = machine.pause().unwrap();
    let bench = Bench::new(&machine);
    let directory = tempfile::tempdir().unwrap();
    let core = directory.path().join("cut.core");
    let dumped = write(&bench.view, paused.registers(), &core).unwrap();
    assert_eq!(std::fs::metadata(&core).unwrap().len(), dumped.size);
    let whole = Dump::open(&core).unwrap();
    let mut word = [0; 8];
    assert!(whole.view.read_virtual(PAGE_OFFSET + (16 << 20), &mut word).unwrap());
    let file = std::fs::File::options().write(true).open(&core).unwrap();
    for len in [dumped.size - 1, 1 << 20, 4096, 500, 63, 0] {
        file.set_len(len).unwrap();
        let error = Dump::open(&core).unwrap_err();
        assert!(error.is_corrupt(), "{len} bytes: {error}");
    }
}
