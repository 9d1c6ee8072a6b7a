//! Units are on their CPUs' nodes.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::pgtable::PMD_SIZE;
use pagevisor_shared::report::counters::sum_zone_numa_event;
use pagevisor_shared::units::{NodeId, PAGE_SHIFT, PAGEBLOCK_NR_PAGES};
use pagevisor_shared::vmstat::NumaStat;
use pagevisor_shared::zone::{MAX_DMA_PFN, MAX_NR_ZONES};

use super::Root;
use super::chunk::Chunk;
use crate::verify::Verifier;
use crate::verify::report::Place;
use crate::verify::rule::Rule;
use crate::verify::spans::Spans;

/// Why units may be elsewhere, by node: those of the first chunk, and those of others. Found out when it is asked for the
/// first time: it takes a look at all of a node's memory.
#[derive(Debug, Default)]
pub(super) struct Excuses(HashMap<(NodeId, bool), bool>);

impl Verifier<'_> {
    /// Frame `pfn`, which is mapped at `address` in CPU `cpu`'s unit, is of the CPU's node, or there is a reason why not.
    pub(super) fn check_unit_node(
        &mut self,
        (root, chunk): (&Root, &Chunk),
        cpu: usize,
        address: u64,
        pfn: u64,
        excuses: &mut Excuses,
    ) {
        let Some(record) = self.region.cpus().get(cpu) else { return };
        let Some(node) = NodeId::new(record.node.load(Relaxed) as usize) else { return };
        let found = self.memory.zone_of(pfn).map(|zone| zone.index() / MAX_NR_ZONES);
        if found == Some(node.index()) || record.mem_node.load(Relaxed) as usize != node.index() {
            return;
        }
        let excused = excuses.0.entry((node, chunk.immutable)).or_insert_with(|| {
            if chunk.immutable {
                !self.had_room_at_boot(node, root.largest_group)
            } else {
                sum_zone_numa_event(&self.region, node, NumaStat::NumaForeign) != 0
            }
        });
        if !*excused {
            let evidence = format_args!("frame {pfn:#x} of node {found:?} is mapped for CPU {cpu}, of node {node}");
            self.findings.add(Rule::PercpuNode, Place::Virtual(address), evidence);
        }
    }

    /// Whether memblock had `size` bytes of `node` in a row above ZONE_DMA when it placed the first chunk: then they, or as
    /// many where it has placed it, were given to the page allocator, and not as a contiguous memory area. Asks for some
    /// more, for alignment and for what was given back later.
    fn had_room_at_boot(&self, node: NodeId, size: u64) -> bool {
        let wanted = (size.saturating_mul(2).saturating_add(2 * PMD_SIZE)) >> PAGE_SHIFT;
        let parts = self.memory.parts.iter().filter(|part| part.zone.index() / MAX_NR_ZONES == node.index());
        let frames = parts.map(|part| part.frames.start.max(MAX_DMA_PFN)..part.frames.end);
        let memory = Spans::new(frames.filter(|frames| frames.start < frames.end));
        memory.iter().flat_map(|frames| self.memory.reserved.gaps(frames)).any(|free| {
            let mut run = 0;
            let mut pfn = free.start;
            while pfn < free.end && run < wanted {
                let next = free.end.min((pfn | (PAGEBLOCK_NR_PAGES - 1)) + 1);
                run = if self.memory.migratetype(pfn) == MigrateType::Cma { 0 } else { run + next - pfn };
                pfn = next;
            }
            run >= wanted
        })
    }
}
