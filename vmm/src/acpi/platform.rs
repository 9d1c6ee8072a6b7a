//! FADT, DSDT and MADT: what kind of machine it is, and its processors.

use acpi_tables::aml::{Device, Name, Path, Scope};
use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::{Aml, sdt::Sdt};
use pagevisor_shared::NR_CPUS;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, table};
use crate::layout::{IOAPIC, LAPIC};
use crate::topology::Topology;

/// `IAPC_BOOT_ARCH`: there is no VGA adapter to be probed.
const NO_VGA: u16 = 1 << 2;
/// `IAPC_BOOT_ARCH`: there is no CMOS clock to be probed.
const NO_CMOS_RTC: u16 = 1 << 5;

/// Revision from which on AML integers have 64 bits.
const DSDT_REVISION: u8 = 2;

// 255 is the broadcast id: with it, and above, a CPU would need a local x2APIC structure.
const _: () = assert!(NR_CPUS < 255);

/// The FADT: hardware-reduced, since the machine has none of the fixed power-management hardware (it ends by
/// [`pagevisor_shared::device::SHUTDOWN_PORT`]).
pub(super) fn fadt(dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_RTC).into();
    fadt.finalize()
}

/// The DSDT: a processor device for each entry of the MADT, which is how ACPI 6 names processors. Serial console,
/// shutdown port and monitor device are found as their drivers always find them: by port, and by command line.
pub(super) fn dsdt(topology: &Topology) -> Sdt {
    let processors: Vec<Processor> = cpus(topology).map(Processor).collect();
    let processors = processors.iter().map(|processor| processor as &dyn Aml).collect();
    let mut body = Vec::new();
    Scope::new(Path::new("_SB_"), processors).to_aml_bytes(&mut body);
    table(*b"DSDT", DSDT_REVISION, &body)
}

/// The processor device of a CPU.
struct Processor(u8);

impl Aml for Processor {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let hid = Name::new(Path::new("_HID"), &"ACPI0007");
        let uid = Name::new(Path::new("_UID"), &self.0);
        Device::new(Path::new(&format!("C{:03}", self.0)), vec![&hid, &uid]).to_aml_bytes(sink);
    }
}

/// The MADT: a local APIC for each CPU, whose APIC id and processor UID are its number, and the I/O APIC.
pub(super) fn madt(topology: &Topology) -> MADT {
    let lapic = LocalInterruptController::Address(LAPIC as u32);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, lapic);
    for cpu in cpus(topology) {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IOAPIC as u32, 0));
    madt
}

/// The CPU numbers, ascending; there are no gaps in them.
fn cpus(topology: &Topology) -> impl Iterator<Item = u8> {
    (0..topology.nr_cpus().min(NR_CPUS)).map(|cpu| cpu as u8)
}
