//! The verifier: proves from raw guest memory that the allocator's structures are sound.
//!
//! It reads the guest as a stranger would, by the contract alone: page tables from the root, page metadata, the section
//! table, memblock's tables, the records of nodes, zones and pagesets, free lists link by link. Whatever the guest keeps
//! twice is compared, and what follows from something else is worked out anew. Every rule has a name ([`Rule`]); every
//! [`Finding`] says which rule does not hold, where, and what is there instead.
//!
//! ```text
//! tables     everything that is mapped              maps       direct map, kernel image, memory map, region
//! memory     memblock, sections, page blocks        free       free lists of zones
//! metadata   touched page metadata                  pagesets   per-CPU lists
//! pages      every page in exactly one state        zones      counters and sizes
//! settings   watermarks, reserves, pageset sizes    order      fallback order, zonelists
//! slabs      slab caches, slabs, objects, arrays    areas      vmalloc areas and what they map
//! percpu     chunks of per-CPU memory               page_tables   tables that were allocated
//! programs   address spaces, areas, what they map
//! ```
//!
//! The guest must not run meanwhile: its machine is paused ([`crate::machine::Machine::pause`],
//! [`crate::runtime::Connection::pause`]), or it is a dump ([`crate::dump`]). It may be hostile all the same: walks are
//! bounded by the memory there is, and findings are capped.
//!
//! The cost grows with the memory that the guest has touched, not with the memory it has: holes of its memory files are
//! known to be zero, and free blocks that nobody has touched are linked implicitly.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod areas;
mod free;
mod maps;
mod memory;
mod metadata;
mod order;
mod page_tables;
mod pages;
mod pagesets;
mod percpu;
mod programs;
mod report;
mod rule;
mod settings;
mod slabs;
mod spans;
mod tables;
#[cfg(test)]
mod tests;
mod zones;

use std::time::Instant;

use pagevisor_shared::layout::{VMALLOC_END, VMEMMAP_START};
use pagevisor_shared::page::PAGE_STRUCT_SIZE;
use pagevisor_shared::region::RegionRef;

pub use report::{Checked, Finding, MAX_FINDINGS, Place, Report};
pub use rule::Rule;

use crate::kvm::CpuRegisters;
use crate::state::{Roots, StateError, StateView};
use free::Block;
use memory::Memory;
use metadata::Metadata;
use pages::Usage;
use pagesets::Cached;
use percpu::Unit;
use programs::Programs;
use report::Findings;
use spans::Spans;
use tables::Tables;

/// First address behind the memory map's window: 2^32 records.
const VMEMMAP_END: u64 = VMEMMAP_START + (PAGE_STRUCT_SIZE << 32);
const _: () = assert!(VMEMMAP_START > VMALLOC_END);

/// A verification that is going on.
struct Verifier<'v> {
    view: &'v StateView,
    region: RegionRef<'v>,
    roots: Roots,
    findings: Findings,
    checked: Checked,
    tables: Tables,
    memory: Memory,
    metadata: Metadata,
    /// Free blocks, by zone and list.
    blocks: Vec<Block>,
    /// Blocks on pagesets.
    cached: Vec<Cached>,
    /// Frames of both.
    free: Spans,
    /// Frames of blocks in use.
    in_use: Spans,
    /// Frames of slabs.
    slab_frames: Spans,
    /// Pages of addresses in the vmalloc space where per-CPU memory is.
    percpu_pages: Spans,
    /// What programs map.
    programs: Programs,
    /// Where there are units of per-CPU memory in the vmalloc space.
    units: Vec<Unit>,
    /// By zone.
    usage: Vec<Usage>,
}

/// Verifies a guest that does not run. `registers` are those of its vCPUs, as far as they are known.
///
/// # Errors
/// When the host cannot read the guest's memory. Whatever is wrong with the guest is a finding.
pub fn verify(view: &StateView, registers: &[CpuRegisters]) -> Result<Report, StateError> {
    let started = Instant::now();
    let mut verifier = Verifier {
        view,
        region: view.region(),
        roots: view.roots(),
        findings: Findings::default(),
        checked: Checked::default(),
        tables: Tables::default(),
        memory: Memory::default(),
        metadata: Metadata::default(),
        blocks: Vec::new(),
        cached: Vec::new(),
        free: Spans::default(),
        in_use: Spans::default(),
        slab_frames: Spans::default(),
        percpu_pages: Spans::default(),
        programs: Programs::default(),
        units: Vec::new(),
        usage: Vec::new(),
    };
    verifier.run(registers)?;
    let Findings { list: findings, more } = verifier.findings;
    Ok(Report { findings, more, checked: verifier.checked, elapsed: started.elapsed() })
}

impl Verifier<'_> {
    fn run(&mut self, registers: &[CpuRegisters]) -> Result<(), StateError> {
        self.read_memory()?;
        self.walk_tables()?;
        self.check_roots(registers)?;
        self.read_metadata()?;
        self.check_free_lists();
        self.check_pagesets();
        self.check_programs()?;
        self.check_pages()?;
        self.check_program_references();
        self.check_maps();
        self.check_page_tables();
        // Ahead of those that go by it: a thousand arrays of the wrong node must not hide why they are.
        self.check_order();
        self.check_slabs()?;
        self.check_percpu()?;
        self.check_areas()?;
        self.check_zones();
        self.check_nodes();
        self.check_settings();
        Ok(())
    }

    /// Copies what is at a physical address; `false` when that is not memory.
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<bool, StateError> {
        match self.view.memory().read(gpa, buf) {
            Ok(()) => Ok(true),
            Err(error) if error.is_corrupt() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Copies the page metadata.
    fn read_metadata(&mut self) -> Result<(), StateError> {
        let mappings: Vec<_> =
            self.tables.mappings.iter().filter_map(|mapping| mapping.part(VMEMMAP_START, VMEMMAP_END)).collect();
        self.metadata = Metadata::copy(self.view, &mappings, &self.memory.sections)?;
        self.checked.touched = self.metadata.touched(&self.memory.sections).count() as u64;
        Ok(())
    }
}
