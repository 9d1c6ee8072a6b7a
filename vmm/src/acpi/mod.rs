//! The firmware tables by which the guest learns what machine it is in: bytes from a topology and its layout.
//!
//! The guest is told nothing about its machine in any other way, so the same kernel boots under any PVH boot loader
//! that makes such tables, and this VMM boots any kernel that reads them. The tables are: RSDP, XSDT, FADT (a
//! hardware-reduced machine), DSDT (the CPUs), MADT (their local APICs), SRAT and SLIT (the NUMA nodes), and HMAT (what
//! their memory costs) where the topology gives latencies or bandwidths.

mod hmat;
mod numa;
mod platform;
#[cfg(test)]
mod tests;

use acpi_tables::{Aml, rsdp::Rsdp, sdt::Sdt, xsdt::XSDT};

use crate::layout::{ACPI_TABLES, Layout};
use crate::topology::Topology;

/// OEM id in every table.
const OEM_ID: [u8; 6] = *b"PAGEVI";
/// OEM table id in every table.
const OEM_TABLE_ID: [u8; 8] = *b"PAGEVISR";
/// OEM revision of every table.
const OEM_REVISION: u32 = 1;

/// Alignment of a table. The RSDP has to be at a multiple of 16.
const TABLE_ALIGN: usize = 16;

/// The tables, ready to be copied into guest memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AcpiTables {
    /// Guest-physical address of the RSDP, for the PVH start info.
    pub rsdp_addr: u64,
    /// Guest-physical address of the first byte of [`Self::bytes`].
    pub base: u64,
    /// What to copy there.
    pub bytes: Vec<u8>,
}

/// More tables than there is room for. No topology that [`Topology::validate`] lets pass comes to this.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the ACPI tables of this machine take {size} bytes, more than the {max} at {start:#x}",
    max = ACPI_TABLES.size, start = ACPI_TABLES.start)]
pub struct TablesTooLarge {
    /// Bytes they take.
    pub size: usize,
}

/// The tables of `topology`, whose memory is where `layout` says.
pub fn build(topology: &Topology, layout: &Layout) -> Result<AcpiTables, TablesTooLarge> {
    let mut image = Image { bytes: vec![0; Rsdp::len()] };
    let dsdt = image.add(&platform::dsdt(topology));
    let fadt = image.add(&platform::fadt(dsdt));
    let madt = image.add(&platform::madt(topology));
    let srat = image.add(&numa::srat(topology, layout));
    let slit = image.add(&numa::slit(topology));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let hmat = hmat::hmat(topology).map(|hmat| image.add(&hmat));
    for table in [fadt, madt, srat, slit].into_iter().chain(hmat) {
        xsdt.add_entry(table);
    }
    let xsdt = image.add(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    image.bytes[..rsdp.len()].copy_from_slice(&rsdp);

    let size = image.bytes.len();
    if size as u64 > ACPI_TABLES.size {
        return Err(TablesTooLarge { size });
    }
    Ok(AcpiTables { rsdp_addr: ACPI_TABLES.start, base: ACPI_TABLES.start, bytes: image.bytes })
}

/// The tables placed so far, the first byte at the start of [`ACPI_TABLES`].
struct Image {
    bytes: Vec<u8>,
}

impl Image {
    /// Puts `table` behind the others; where it will be in guest memory.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(TABLE_ALIGN), 0);
        let address = ACPI_TABLES.start + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

/// A table of header and `body`. It gets its length and checksum here.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    const HEADER: u32 = 36;
    let mut table = Sdt::new(signature, HEADER, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table
}
