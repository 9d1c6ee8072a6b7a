//! The order in which an allocation tries nodes and zones (`build_all_zonelists`).

use pagevisor_shared::MAX_NUMNODES;
use pagevisor_shared::units::{NodeId, NodeMask};

/// `MAX_NUMNODES` of the kernel we follow (Debian's configuration): what a node's load is scaled against.
const LINUX_MAX_NUMNODES: u32 = 1024;
/// `PENALTY_FOR_NODE_WITH_CPUS`.
const PENALTY_FOR_NODE_WITH_CPUS: u32 = 1;

/// What the order depends on.
#[derive(Clone, Copy, Debug)]
pub struct NodeMap<D> {
    /// Nodes with memory (`N_MEMORY`).
    pub memory: NodeMask,
    /// Nodes with CPUs (`N_CPU`).
    pub cpus: NodeMask,
    /// `node_distance(from, to)`.
    pub distance: D,
}

/// How often each node came first in a group of equal distance (`node_load`). Shared by all nodes of one build, in
/// order of their numbers.
#[derive(Clone, Debug)]
pub struct NodeLoad([u32; MAX_NUMNODES]);

impl NodeLoad {
    /// No load.
    pub const fn new() -> Self {
        Self([0; MAX_NUMNODES])
    }
}

impl Default for NodeLoad {
    fn default() -> Self {
        Self::new()
    }
}

/// Nodes in fallback order.
#[derive(Clone, Debug)]
pub struct NodeOrder {
    nodes: [NodeId; MAX_NUMNODES],
    len: usize,
}

impl NodeOrder {
    /// The nodes, first choice first.
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes[..self.len]
    }
}

impl<D: Fn(NodeId, NodeId) -> u8> NodeMap<D> {
    /// `find_next_best_node`: the node to follow those in `used` on `node`'s list: the node itself, then by distance;
    /// among equals higher numbers than its own first, nodes without CPUs first, less loaded ones first.
    pub fn find_next_best_node(&self, node: NodeId, used: NodeMask, load: &NodeLoad) -> Option<NodeId> {
        if !used.contains(node) {
            return Some(node);
        }
        let mut best = None;
        let mut min_val = u32::MAX;
        for candidate in self.memory.iter().filter(|&n| !used.contains(n)) {
            let mut val = (self.distance)(node, candidate) as u32;
            // "Prefer the next node": nodes below this one come later.
            val += (candidate < node) as u32;
            if self.cpus.contains(candidate) {
                val += PENALTY_FOR_NODE_WITH_CPUS;
            }
            val = val * LINUX_MAX_NUMNODES + load.0[candidate.index()];
            if val < min_val {
                min_val = val;
                best = Some(candidate);
            }
        }
        best
    }

    /// The fallback order of `node` (`build_zonelists`). A node without memory heads its own list, as in Linux 6.1,
    /// and adds no zone to it.
    pub fn fallback_order(&self, node: NodeId, load: &mut NodeLoad) -> NodeOrder {
        let mut order = NodeOrder { nodes: [NodeId::default(); MAX_NUMNODES], len: 0 };
        let mut used = NodeMask::default();
        let mut previous = node;
        while let Some(next) = self.find_next_best_node(node, used, load) {
            // Do not always burden the same node of a group of equal distance.
            if (self.distance)(node, next) != (self.distance)(node, previous) {
                load.0[next.index()] += 1;
            }
            used = used.with(next);
            order.nodes[order.len] = next;
            order.len += 1;
            previous = next;
        }
        order
    }
}
