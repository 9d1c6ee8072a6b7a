//! The machine's description: ACPI tables.
//!
//! Read by hand and not by a crate: it happens before there is an allocator, through the identity mapping of boot, and
//! needs five tables of fixed layout; the maintained crates (`acpi`) want an allocator and a mapping object per table.
//! Everything is bounds-checked: a table that lies about its length ends early, one with a bad checksum is ignored.

mod fadt;
mod madt;
mod srat;

use pagevisor_shared::units::NodeId;
use pagevisor_shared::{MAX_NUMNODES, NR_CPUS};

use crate::boot::low::{self, Fields};
use crate::log::pr_warn;

pub use fadt::Power;

/// Distance of a node from itself (`LOCAL_DISTANCE`).
const LOCAL_DISTANCE: u8 = 10;
/// Distance from any other, as far as nobody says (`REMOTE_DISTANCE`).
const REMOTE_DISTANCE: u8 = 20;
/// Bytes of the header that every table has.
const HEADER: usize = 36;
/// Longest table that is believed.
const MAX_TABLE: u32 = 1 << 20;
/// Where the root pointer is looked for when the loader gives none.
const BIOS: core::ops::Range<u64> = 0xe_0000..0x10_0000;

/// A CPU of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// Its local APIC's id.
    pub apic_id: u32,
    /// Its node.
    pub node: NodeId,
}

/// What the tables say, in a form of fixed size.
#[derive(Debug)]
pub struct Machine {
    cpus: [Cpu; NR_CPUS],
    nr_cpus: usize,
    /// Proximity domain of each node, ascending.
    domains: [u32; MAX_NUMNODES],
    nr_nodes: usize,
    slit: Option<Fields>,
    srat: Option<Fields>,
    /// Local APIC.
    pub lapic: u64,
    /// I/O APIC, 0 for none.
    pub ioapic: u64,
    /// Registers of power management.
    pub power: Power,
}

impl Machine {
    /// Reads the tables. `rsdp` is where the loader says the root pointer is, or 0; `boot_apic_id` is the id of the
    /// CPU that runs, which becomes CPU 0.
    pub fn read(rsdp: u64, boot_apic_id: u32) -> Self {
        let boot = Cpu { apic_id: boot_apic_id, node: NodeId::default() };
        let mut machine = Self {
            cpus: [boot; NR_CPUS],
            nr_cpus: 1,
            domains: [0; MAX_NUMNODES],
            nr_nodes: 0,
            slit: None,
            srat: None,
            lapic: 0xfee0_0000,
            ioapic: 0,
            power: Power::default(),
        };
        let mut madt = None;
        for table in root_tables(rsdp) {
            match &table.0[..4] {
                b"APIC" => madt = Some(table),
                b"SRAT" => machine.srat = Some(table),
                b"SLIT" if slit_valid(table) => machine.slit = Some(table),
                b"SLIT" => pr_warn!("ACPI: SLIT table looks invalid. Not used."),
                b"FACP" => machine.power = Power::read(table),
                _ => {}
            }
        }
        if let Some(madt) = madt {
            machine.read_madt(madt);
        }
        if let Some(srat) = machine.srat {
            machine.read_srat(srat);
        }
        machine.nr_nodes = machine.nr_nodes.max(1);
        machine
    }

    /// The CPUs, the running one first, then as the firmware lists them.
    pub fn cpus(&self) -> &[Cpu] {
        &self.cpus[..self.nr_cpus]
    }

    /// Number of nodes.
    pub const fn nr_nodes(&self) -> usize {
        self.nr_nodes
    }

    /// The proximity domain that `node` stands for.
    pub fn domain(&self, node: usize) -> u32 {
        self.domains[node]
    }

    /// Notes that there is a node for `domain`.
    ///
    /// Nodes are numbered by ascending proximity domain. Linux numbers them as they appear in the SRAT, processors
    /// before memory (`acpi_map_pxm_to_node`), which is the same unless a node without processors has a lower domain
    /// than one with some. There, keeping the firmware's order leaves each node the number its owner gave it.
    fn add_domain(&mut self, domain: u32) {
        let known = &self.domains[..self.nr_nodes];
        let at = known.iter().position(|&known| known >= domain).unwrap_or(self.nr_nodes);
        if known.get(at) == Some(&domain) {
            return;
        }
        if self.nr_nodes == MAX_NUMNODES {
            pr_warn!("SRAT: Too many proximity domains; {domain} ignored");
            return;
        }
        self.domains[at..=self.nr_nodes].rotate_right(1);
        self.domains[at] = domain;
        self.nr_nodes += 1;
    }

    /// The node that stands for `domain`.
    fn node_of(&self, domain: u32) -> Option<NodeId> {
        NodeId::new(self.domains[..self.nr_nodes].iter().position(|&known| known == domain)?)
    }

    /// Forgets the nodes: there is one, with everything.
    pub fn make_uniform(&mut self) {
        self.nr_nodes = 1;
        self.srat = None;
        self.slit = None;
        for cpu in &mut self.cpus {
            cpu.node = NodeId::default();
        }
    }

    /// The distance between two nodes: the SLIT's, without one 10 and 20.
    pub fn distance(&self, from: usize, to: usize) -> u8 {
        let Some(slit) = self.slit else { return if from == to { LOCAL_DISTANCE } else { REMOTE_DISTANCE } };
        let localities = slit.u64(HEADER);
        let (from, to) = (self.domains[from] as u64, self.domains[to] as u64);
        if from >= localities || to >= localities {
            return if from == to { LOCAL_DISTANCE } else { REMOTE_DISTANCE };
        }
        slit.u8(HEADER + 8 + (from * localities + to) as usize)
    }

    fn cpu_with(&mut self, apic_id: u32) -> Option<&mut Cpu> {
        self.cpus[..self.nr_cpus].iter_mut().find(|cpu| cpu.apic_id == apic_id)
    }

    fn add_cpu(&mut self, apic_id: u32) {
        if self.cpu_with(apic_id).is_some() {
            return;
        }
        if let Some(slot) = self.cpus.get_mut(self.nr_cpus) {
            slot.apic_id = apic_id;
            self.nr_cpus += 1;
        } else {
            pr_warn!("ACPI: NR_CPUS limit of {NR_CPUS} reached; CPU with APIC id {apic_id:#x} ignored");
        }
    }
}

/// Whether a SLIT can be true: 10 on the diagonal, more elsewhere (`slit_valid`).
fn slit_valid(slit: Fields) -> bool {
    let localities = slit.u64(HEADER) as usize;
    let rows = slit.0.get(HEADER + 8..).unwrap_or(&[]);
    localities <= MAX_NUMNODES
        && rows.len() >= localities * localities
        && rows[..localities * localities].iter().enumerate().all(|(index, &distance)| {
            if index / localities == index % localities {
                distance == LOCAL_DISTANCE
            } else {
                distance > LOCAL_DISTANCE
            }
        })
}

/// Whether the bytes add up to zero, which every table's do.
fn adds_up(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)) == 0
}

/// The table at `addr`, if it is one.
fn table_at(addr: u64) -> Option<Fields> {
    let header = Fields::at(addr, HEADER as u64)?;
    let len = header.u32(4);
    if len < HEADER as u32 || len > MAX_TABLE {
        return None;
    }
    Fields::at(addr, len as u64)
}

/// Whether a table is one that the kernel reads.
fn wanted(table: &Fields) -> bool {
    matches!(&table.0[..4], b"APIC" | b"SRAT" | b"SLIT" | b"FACP")
}

/// The tables that the root pointer leads to, those that the kernel reads and that are sound.
fn root_tables(rsdp: u64) -> impl Iterator<Item = Fields> {
    let rsdp = root_pointer(rsdp);
    let root = rsdp.and_then(|rsdp| {
        let xsdt = if rsdp.u8(15) >= 2 { rsdp.u64(24) } else { 0 };
        if xsdt != 0 { table_at(xsdt).map(|table| (table, 8)) } else { table_at(rsdp.u32(16) as u64).map(|t| (t, 4)) }
    });
    let (entries, width) = root.map_or((&[][..], 8), |(table, width)| (&table.0[HEADER..], width));
    entries
        .chunks_exact(width)
        .map(move |entry| if width == 8 { Fields(entry).u64(0) } else { Fields(entry).u32(0) as u64 })
        .filter_map(table_at)
        .filter(wanted)
        .filter(|table| {
            let sound = adds_up(table.0);
            if !sound {
                pr_warn!("ACPI: bad checksum in {}", table.0[..4].escape_ascii());
            }
            sound
        })
}

/// The root pointer: where the loader says, else where a BIOS puts it.
fn root_pointer(told: u64) -> Option<Fields> {
    const SIZE: u64 = 36;
    let sound = |table: &Fields| table.0.starts_with(b"RSD PTR ") && adds_up(&table.0[..20]);
    if told != 0 {
        return Fields::at(told, SIZE).filter(sound);
    }
    let bios = low::bytes(BIOS.start, BIOS.end - BIOS.start)?;
    let candidates = bios.chunks_exact(16).zip((BIOS.start..).step_by(16));
    let mut found = candidates.filter(|(bytes, _)| bytes.starts_with(b"RSD PTR "));
    found.find_map(|(_, addr)| Fields::at(addr, SIZE).filter(sound))
}

/// The structures behind a table's fixed part: each begins with its type and its length.
fn entries(table: Fields, fixed: usize) -> impl Iterator<Item = Fields> {
    let mut rest = table.0.get(fixed..).unwrap_or(&[]);
    core::iter::from_fn(move || {
        let len = *rest.get(1)? as usize;
        if len < 2 {
            return None;
        }
        let (entry, behind) = rest.split_at_checked(len)?;
        rest = behind;
        Some(Fields(entry))
    })
}
