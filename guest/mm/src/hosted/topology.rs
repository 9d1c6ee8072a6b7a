//! What a machine consists of.
#![allow(unsafe_code, reason = "hands the arena's memory to the stack")]

use core::ops::Range;
use std::string::String;
use std::vec::Vec;

use pagevisor_shared::region::{RegionLayout, RegionRef};
use pagevisor_shared::units::{NodeId, PhysAddr};

use super::arena::{HostPlatform, PHYS_WINDOW};
use super::machine::Machine;
use crate::memblock::{Memblock, MemblockFlags, PhysWindow};
use crate::percpu::{FirstChunkConfig, setup_per_cpu_areas};
use crate::platform::Platform;
use crate::sync::Plain;
use crate::{BootConfig, BootError, Hooks, Mm};

/// Memory and CPUs of a node.
#[derive(Clone, Debug)]
struct Node {
    memory: Vec<Range<u64>>,
    cpus: usize,
}

/// A machine to be: nodes in order of their numbers.
#[derive(Clone, Debug)]
pub struct Topology {
    nodes: Vec<Node>,
    distances: Vec<(usize, usize, u8)>,
    reserved: Vec<Range<u64>>,
    fresh_is_zero: bool,
    command_line: String,
    slab: bool,
    /// Sizes of the first chunk of per-CPU memory: static, reserved, dynamic, atom.
    percpu: Option<[u64; 4]>,
}

impl Default for Topology {
    fn default() -> Self {
        Self::new()
    }
}

impl Topology {
    /// A machine without nodes.
    pub const fn new() -> Self {
        Self {
            nodes: Vec::new(),
            distances: Vec::new(),
            reserved: Vec::new(),
            fresh_is_zero: true,
            command_line: String::new(),
            slab: true,
            percpu: None,
        }
    }

    /// As [`Self::new`], of a machine that has the page allocator only: nothing has been allocated from it when it is
    /// up, and there are no slab caches.
    pub const fn pages_only() -> Self {
        let mut topology = Self::new();
        topology.slab = false;
        topology
    }

    /// Adds a node with memory ranges `(start, end)` in bytes and `cpus` CPUs. CPUs are numbered node by node.
    #[must_use]
    pub fn node(mut self, memory: &[(u64, u64)], cpus: usize) -> Self {
        self.nodes.push(Node { memory: memory.iter().map(|&(start, end)| start..end).collect(), cpus });
        self
    }

    /// Sets the distance between two nodes, both ways. 20 unless set.
    #[must_use]
    pub fn distance(mut self, a: usize, b: usize, distance: u8) -> Self {
        self.distances.push((a, b, distance));
        self.distances.push((b, a, distance));
        self
    }

    /// Sets the distance from one node to another.
    #[must_use]
    pub fn distance_one_way(mut self, from: usize, to: usize, distance: u8) -> Self {
        self.distances.push((from, to, distance));
        self
    }

    /// Reserves memory before boot.
    #[must_use]
    pub fn reserve(mut self, start: u64, end: u64) -> Self {
        self.reserved.push(start..end);
        self
    }

    /// Sets the kernel's command line.
    #[must_use]
    pub fn command_line(mut self, line: &str) -> Self {
        self.command_line = line.into();
        self
    }

    /// Gives the machine per-CPU memory, whose first chunk has so many bytes of static, reserved and dynamic memory and
    /// is taken in multiples of `atom`.
    #[must_use]
    pub fn percpu(mut self, fixed: u64, reserved: u64, dynamic: u64, atom: u64) -> Self {
        self.percpu = Some([fixed, reserved, dynamic, atom]);
        self
    }

    /// Says that fresh memory is not known to be zero.
    #[must_use]
    pub fn unknown_content(mut self) -> Self {
        self.fresh_is_zero = false;
        self
    }

    /// The early allocator as the kernel would have filled it. Frame 0 is reserved.
    fn memblock(&self, platform: &HostPlatform) -> Memblock {
        let end = PhysAddr::new(PHYS_WINDOW);
        // SAFETY: the whole window is mapped for ever and zero; nothing else uses this arena.
        let window = unsafe { PhysWindow::new(platform.direct_map(), end, true) };
        let mut memblock = Memblock::new(window);
        memblock.allow_resize();
        for (number, node) in self.nodes.iter().enumerate() {
            let id = NodeId::new(number).expect("at most 64 nodes");
            for range in &node.memory {
                assert!(range.end <= PHYS_WINDOW, "memory beyond the arena");
                // Linux trims the first page off.
                let (start, end) = (range.start.max(0x1000), range.end);
                let added = memblock.add_node(PhysAddr::new(start), end - start, id, MemblockFlags::NONE);
                added.expect("memblock has room for the test's ranges");
            }
        }
        for range in &self.reserved {
            let reserved = memblock.reserve(PhysAddr::new(range.start), range.end - range.start);
            reserved.expect("memblock has room for the test's ranges");
        }
        memblock
    }

    /// Fills in what the kernel knows from the firmware.
    fn fill(&self, region: &RegionRef<'static>) {
        let nodes = self.nodes.len();
        let numbers = self.nodes.iter().enumerate().flat_map(|(node, spec)| core::iter::repeat_n(node, spec.cpus));
        for (state, node) in region.cpus().iter().zip(numbers) {
            state.node.set(node as u32);
            state.online.set(1);
        }
        for (slot, distance) in region.distances().iter().enumerate() {
            distance.set(if slot / nodes == slot % nodes { 10 } else { 20 });
        }
        for &(from, to, distance) in &self.distances {
            region.distances()[from * nodes + to].set(distance);
        }
    }

    /// Boots the machine.
    ///
    /// # Errors
    /// [`BootError`] as [`Mm::boot`].
    pub fn try_boot(&self, hooks: Hooks<HostPlatform>) -> Result<Machine, BootError> {
        let cpus: usize = self.nodes.iter().map(|node| node.cpus).sum();
        let layout = RegionLayout::new(self.nodes.len() as u32, cpus as u32);
        let platform = HostPlatform::take();
        // SAFETY: the window is zero, aligned to a page, at least as large as any layout, and lives for ever.
        let region = unsafe { RegionRef::create(platform.region_base(), layout) };
        self.fill(&region);
        let mut memblock = self.memblock(platform);
        let initial: Vec<u8> = (0..self.percpu.map_or(0, |[fixed, ..]| fixed)).map(|at| at as u8).collect();
        let percpu = self.percpu.map(|[static_size, reserved_size, dyn_size, atom_size]| {
            let config = FirstChunkConfig { static_size, initial: &initial, reserved_size, dyn_size, atom_size };
            setup_per_cpu_areas(platform, &region, &mut memblock, &config)
        });
        let mm = percpu.transpose().map_err(BootError::Memory).and_then(|percpu| {
            Mm::boot(BootConfig {
                platform,
                region,
                memblock: &mut memblock,
                command_line: &self.command_line,
                fresh_is_zero: self.fresh_is_zero,
                hooks,
                percpu,
                // The window of page metadata is mapped already; its own memory stands in for the node's.
                map_memmap: &mut |_, _| Ok(()),
            })
        });
        match mm {
            Ok(mm) => Ok(Machine::new(platform, mm, self.slab)),
            Err(error) => {
                platform.give_back();
                Err(error)
            }
        }
    }

    /// Boots the machine without layers above the allocator.
    ///
    /// # Panics
    /// When it cannot boot.
    pub fn boot(&self) -> Machine {
        match self.try_boot(Hooks::none()) {
            Ok(machine) => machine,
            Err(error) => panic!("the machine does not boot: {error}"),
        }
    }
}
