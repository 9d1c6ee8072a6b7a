//! Tasks: their list, and who uses an address space.

use std::collections::{HashMap, HashSet};

use pagevisor_shared::report::counters;
use pagevisor_shared::sched::THREAD_SIZE;
use pagevisor_shared::units::NodeId;
use pagevisor_shared::vmstat::NodeStat;

use crate::state::{Patience, SpaceInfo, StateError};
use crate::verify::Verifier;
use crate::verify::report::Place;
use crate::verify::rule::Rule;

impl Verifier<'_> {
    /// The list of tasks, what they say of their CPUs and address spaces, and their stacks.
    pub(super) fn check_tasks(&mut self, spaces: &[SpaceInfo]) -> Result<(), StateError> {
        let tasks = self.view.tasks(Patience { tries: 1, ..Patience::default() })?;
        if let Some(damage) = tasks.damage {
            self.findings.add(Rule::TaskList, Place::Virtual(damage.at), format_args!("{damage}"));
            return Ok(());
        }
        let (mut users, mut running, mut pids) = (HashMap::<u64, u32>::new(), HashSet::new(), HashSet::new());
        let cpus = counters::online_cpus(&self.region).0;
        for task in &tasks.list {
            let place = Place::Virtual(task.address);
            if !pids.insert(task.pid) {
                self.findings.add(Rule::TaskList, place, format_args!("a second task has the number {}", task.pid));
            }
            if 1u64.checked_shl(task.cpu).is_none_or(|cpu| cpus & cpu == 0) || task.on_cpu && !running.insert(task.cpu)
            {
                let evidence = format_args!("task {} is on CPU {}, which is none or has another", task.pid, task.cpu);
                self.findings.add(Rule::TaskCpu, place, evidence);
            }
            if task.mm == 0 {
                continue;
            }
            *users.entry(task.mm).or_default() += 1;
            if task.is_kernel() || !spaces.iter().any(|space| space.address == task.mm) {
                let evidence = format_args!("task {} has the address space {:#x}", task.pid, task.mm);
                self.findings.add(Rule::TaskSpace, place, evidence);
            }
        }
        for space in spaces {
            // Who looks into a program from outside uses its address space, too.
            let tasks = users.get(&space.address).copied().unwrap_or(0);
            if space.mm_users < tasks {
                let evidence = format_args!("mm_users is {}, {tasks} tasks have it", space.mm_users);
                self.findings.add(Rule::SpaceUsers, Place::Virtual(space.address), evidence);
            }
        }
        let stacks = tasks.list.iter().filter(|task| task.stack != 0).count() as u64;
        let nodes = (0..self.region.nr_nodes()).filter_map(NodeId::new);
        let counted: u64 = nodes
            .map(|node| counters::node_page_state_snapshot(&self.region, node, NodeStat::NrKernelStack))
            .fold(0, u64::saturating_add);
        self.findings.equal(Rule::TaskStacks, Place::Machine, "nr_kernel_stack", counted, stacks * (THREAD_SIZE >> 10));
        Ok(())
    }
}
