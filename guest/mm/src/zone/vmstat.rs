//! Counters: deltas per CPU that are folded into the zone's and node's when they grow beyond a threshold
//! (`mm/vmstat.c`).

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::region::records::{NodeCpuState, NodeState};
use pagevisor_shared::region::zone::ZoneState;
use pagevisor_shared::units::{CpuId, NodeId};
use pagevisor_shared::vmstat::{NodeStat, NumaStat, VmEvent, ZoneStat};
use pagevisor_shared::zone::ZoneIndex;

use crate::Mm;
use crate::cpu::CpuLocal;
use crate::platform::Platform;
use crate::sync::Plain;

/// Adds `delta` to what a CPU holds back of a node's counter, or to the counter.
#[inline(always)]
fn mod_node_state((state, pending): (&NodeState, &NodeCpuState), item: NodeStat, delta: i64) {
    let diff = &pending.vm_node_stat_diff[item.index()];
    let sum = diff.get() as i64 + delta;
    if sum.unsigned_abs() > pending.stat_threshold.get().max(0) as u64 {
        state.vm_stat[item.index()].fetch_add(sum, Relaxed);
        diff.set(0);
    } else {
        diff.set(sum as i32);
    }
}

impl<P: Platform> Mm<P> {
    /// Adds `delta` to a counter of zone `index` (`__mod_zone_page_state`). Interrupts are off, or nothing that
    /// interrupts this CPU changes the counter.
    #[inline]
    pub(crate) fn mod_zone_page_state_irqoff(&self, cpu: &CpuLocal, index: ZoneIndex, item: ZoneStat, delta: i64) {
        let (Some(zone), Some(pcp)) = (self.zones.get(index.index()), cpu.pcps.get(index.index())) else { return };
        let diff = &pcp.vm_stat_diff[item.index()];
        let sum = diff.get() as i64 + delta;
        if sum.unsigned_abs() > pcp.stat_threshold.get() as u64 {
            zone.vm_stat[item.index()].fetch_add(sum, Relaxed);
            diff.set(0);
        } else {
            diff.set(sum as i32);
        }
    }

    /// Adds `delta` to a counter of zone `index` (`mod_zone_page_state`).
    pub fn mod_zone_page_state(&self, index: ZoneIndex, item: ZoneStat, delta: i64) {
        let flags = self.platform.irq_save();
        self.mod_zone_page_state_irqoff(self.platform.this_cpu(), index, item, delta);
        self.platform.irq_restore(flags);
    }

    /// Adds `delta` to a counter of `node` (`mod_node_page_state`).
    pub fn mod_node_page_state(&self, node: NodeId, item: NodeStat, delta: i64) {
        let flags = self.platform.irq_save();
        let slot = self.platform.this_cpu().cpu.index() * self.nodes.len() + node.index();
        if let (Some(state), Some(pending)) = (self.nodes.get(node.index()), self.node_cpus.get(slot)) {
            mod_node_state((state, pending), item, delta);
        }
        self.platform.irq_restore(flags);
    }

    /// Adds `delta` to a counter of the nearest node with memory (`__mod_node_page_state`). Interrupts are off.
    #[inline(always)]
    pub(crate) fn mod_mem_node_state_irqoff(&self, item: NodeStat, delta: i64) {
        mod_node_state(self.platform.this_cpu().mem_node_state, item, delta);
    }

    /// A zone's counter without what CPUs hold back, never below 0 (`zone_page_state`).
    #[inline]
    pub fn zone_page_state(zone: &ZoneState, item: ZoneStat) -> u64 {
        zone.vm_stat[item.index()].get().max(0) as u64
    }

    /// A zone's counter with what CPUs hold back, never below 0 (`zone_page_state_snapshot`).
    pub fn zone_page_state_snapshot(&self, index: ZoneIndex, item: ZoneStat) -> u64 {
        let Some(zone) = self.zones.get(index.index()) else { return 0 };
        let pending: i64 = self.pagesets(index).map(|pcp| pcp.vm_stat_diff[item.index()].get() as i64).sum();
        (zone.vm_stat[item.index()].get() + pending).max(0) as u64
    }

    /// Counts `count` of an event on this CPU (`count_vm_events`).
    #[inline]
    pub fn count_vm_events(&self, event: VmEvent, count: u64) {
        self.platform.this_cpu().state.vm_events[event.index()].fetch_add(count, Relaxed);
    }

    /// The sum of an event over all CPUs (`all_vm_events`).
    pub fn vm_event(&self, event: VmEvent) -> u64 {
        self.cpus.iter().map(|cpu| cpu.vm_events[event.index()].get()).sum()
    }

    /// Counts where `count` allocations went (`zone_statistics`).
    #[inline]
    pub(crate) fn zone_statistics(&self, cpu: &CpuLocal, preferred: ZoneIndex, index: ZoneIndex, count: u64) {
        let node_of = |zone: ZoneIndex| self.zones.get(zone.index()).map_or(u32::MAX, |zone| zone.node.get());
        let event = |zone: ZoneIndex, item: NumaStat| {
            if let Some(pcp) = cpu.pcps.get(zone.index()) {
                pcp.vm_numa_event[item.index()].fetch_add(count, Relaxed);
            }
        };
        let node = node_of(index);
        if node == node_of(preferred) {
            event(index, NumaStat::NumaHit);
        } else {
            event(index, NumaStat::NumaMiss);
            event(preferred, NumaStat::NumaForeign);
        }
        let local = node as usize == cpu.node.index();
        event(index, if local { NumaStat::NumaLocal } else { NumaStat::NumaOther });
    }

    /// Counts an allocation that an interleaving policy placed on the node of zone `index` (`numa_interleave`).
    pub fn count_numa_interleave(&self, index: ZoneIndex) {
        if let Some(pcp) = self.platform.this_cpu().pcps.get(index.index()) {
            pcp.vm_numa_event[NumaStat::NumaInterleave.index()].fetch_add(1, Relaxed);
        }
    }

    /// Folds what this CPU holds back into the zones' and nodes' counters; tells how many it folded
    /// (`refresh_cpu_vm_stats`).
    pub fn refresh_cpu_vm_stats(&self) -> usize {
        let flags = self.platform.irq_save();
        let cpu = self.platform.this_cpu();
        let mut folded = 0;
        for (index, zone) in self.populated_zones() {
            let Some(pcp) = cpu.pcps.get(index.index()) else { continue };
            for (total, diff) in zone.vm_stat.iter().zip(&pcp.vm_stat_diff) {
                let delta = diff.get();
                if delta != 0 {
                    diff.set(0);
                    total.fetch_add(delta as i64, Relaxed);
                    folded += 1;
                }
            }
        }
        let pending = self.node_cpus.iter().skip(cpu.cpu.index() * self.nodes.len());
        for (node, pending) in self.nodes.iter().zip(pending) {
            for (total, diff) in node.vm_stat.iter().zip(&pending.vm_node_stat_diff) {
                let delta = diff.get();
                if delta != 0 {
                    diff.set(0);
                    total.fetch_add(delta as i64, Relaxed);
                    folded += 1;
                }
            }
        }
        self.platform.irq_restore(flags);
        folded
    }

    /// Folds the NUMA events of all CPUs into the zones' (`fold_vm_numa_events`).
    pub fn fold_vm_numa_events(&self) {
        for (index, zone) in self.populated_zones() {
            for pcp in self.pagesets(index) {
                for (total, pending) in zone.vm_numa_event.iter().zip(&pcp.vm_numa_event) {
                    let count = pending.swap(0, Relaxed);
                    if count != 0 {
                        total.fetch_add(count, Relaxed);
                    }
                }
            }
        }
    }

    /// Called by a CPU that goes idle: leaves nothing pending, so that nobody need wake it for that
    /// (`quiet_vmstat`).
    pub fn quiet_vmstat(&self) {
        self.refresh_cpu_vm_stats();
    }

    /// Adds what `cpu`, which no longer runs, held back and counted to the totals (`cpu_vm_stats_fold`,
    /// `vm_events_fold_cpu`).
    pub fn cpu_vm_stats_fold(&self, cpu: CpuId) {
        for (index, zone) in self.populated_zones() {
            let Some(pcp) = self.region.pcps_of(cpu).get(index.index()) else { continue };
            for (total, diff) in zone.vm_stat.iter().zip(&pcp.vm_stat_diff) {
                total.fetch_add(diff.swap(0, Relaxed) as i64, Relaxed);
            }
        }
        let pending = self.node_cpus.iter().skip(cpu.index() * self.nodes.len());
        for (node, pending) in self.nodes.iter().zip(pending) {
            for (total, diff) in node.vm_stat.iter().zip(&pending.vm_node_stat_diff) {
                total.fetch_add(diff.swap(0, Relaxed) as i64, Relaxed);
            }
        }
        let Some(dead) = self.cpus.get(cpu.index()) else { return };
        for (total, count) in self.platform.this_cpu().state.vm_events.iter().zip(&dead.vm_events) {
            total.fetch_add(count.swap(0, Relaxed), Relaxed);
        }
    }
}
