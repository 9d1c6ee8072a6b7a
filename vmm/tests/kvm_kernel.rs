//! The guest kernel under this crate's machine: that it comes up, and that its ends are told by name. Needs /dev/kvm.

mod tiny;

use pagevisor::machine::{Deadline, End, MachineConfig};
use pagevisor::symbols::Location;
use pagevisor::topology::Topology;
use pagevisor_shared::region::GuestState;
use tiny::{PATIENCE, start, stop_event};

fn kernel(append: &str) -> MachineConfig {
    let mut config = MachineConfig::new(Topology::default()).expect("the default topology can be placed");
    config.append = append.into();
    config.exit_when_ready = true;
    config.notice = std::sync::Arc::new(|line: &str| panic!("the kernel's driver misbehaves: {line}"));
    config
}

fn end_of(test: &str) -> End {
    start(kernel(&format!("pagevisor.test={test}"))).wait(Deadline::after(PATIENCE), &stop_event())
}

#[track_caller]
fn assert_names(backtrace: &[Location], function: &str) {
    let named = |location: &Location| location.symbol.as_ref().is_some_and(|symbol| symbol.name == function);
    assert!(backtrace.iter().any(named), "{function} is not in {backtrace:?}");
}

#[test]
fn the_kernel_comes_up_and_powers_off() {
    let machine = start(kernel(""));
    let stop = stop_event();
    machine.wait_ready(Deadline::after(PATIENCE), &stop).unwrap_or_else(|end| panic!("{end}"));
    assert_eq!(machine.wait(Deadline::after(PATIENCE), &stop), End::Shutdown { code: 0 });
    let region = machine.memory().state().open().unwrap();
    assert!(matches!(region.state(), Some(GuestState::Ready | GuestState::Off)), "{:?}", region.state());
    assert_eq!((region.nr_nodes(), region.nr_cpus()), (2, 2));
}

#[test]
fn a_panic_comes_with_its_message_and_its_callers() {
    let end = end_of("panic");
    let End::Panic(report) = &end else { panic!("{end}") };
    assert!(report.message.starts_with("requested on the command line"), "{end}");
    assert_eq!(report.exception, None);
    assert_names(&report.backtrace, "pagevisor_kernel::ready");
}

#[test]
fn an_exception_comes_with_its_registers() {
    let end = end_of("page-fault");
    let End::Panic(report) = &end else { panic!("{end}") };
    assert_eq!(report.exception.map(|exception| exception.vector), Some(14));
    assert!(end.to_string().contains("CR2: ffffc900deadb000"), "{end}");
    assert_names(&report.backtrace, "pagevisor_kernel::ready");
}

#[test]
fn a_triple_fault_comes_with_its_callers_if_the_host_has_the_registers() {
    let end = end_of("triple-fault");
    let End::TripleFault(report) = &end else { panic!("{end}") };
    if report.registers.is_some() {
        assert!(report.rip.as_ref().is_some_and(|rip| rip.symbol.is_some()), "{end}");
        assert_names(&report.backtrace, "pagevisor_kernel::ready");
    }
}

#[test]
fn an_unsupported_instruction_is_disassembled_or_runs() {
    let end = end_of("bad-instruction");
    if pagevisor::kvm::has_hardware_virtualization() {
        assert_eq!(end, End::Shutdown { code: 0 });
        return;
    }
    let End::InternalError(report) = &end else { panic!("{end}") };
    assert_eq!(report.cpu.disassembly.as_deref(), Some("emms"));
    assert_names(&report.cpu.backtrace, "pagevisor_kernel::ready");
}
