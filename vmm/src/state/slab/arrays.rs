//! The arrays of a cache: those of its CPUs, its nodes' shared ones, and those of objects of other nodes.

use std::collections::HashMap;
use std::fmt;

use pagevisor_shared::slab::ArrayCache;

use super::cache::{ArrayInfo, SlabCache};
use crate::state::StateView;
use crate::state::error::StateError;

/// Who holds a free object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holder {
    /// The array of a CPU.
    Cpu(u16),
    /// The shared array of a node.
    Shared(u16),
    /// A node's array of another node's objects.
    Alien {
        /// The node that has freed them.
        on: u16,
        /// The node that they are of.
        of: u16,
    },
}

/// As crash puts it, which does not know the last kind.
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(cpu) => write!(f, "cpu {cpu} cache"),
            Self::Shared(_) => f.write_str("shared cache"),
            Self::Alien { on, .. } => write!(f, "node {on} alien cache"),
        }
    }
}

/// What is wrong with an array.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArrayFaultKind {
    /// It has more objects than it may have.
    Overfull {
        /// How many.
        avail: u32,
        /// How many it may have.
        limit: u32,
    },
    /// All arrays together have more objects than all slabs.
    TooMany,
    /// The array is not in memory.
    Unmapped {
        /// Where it should be.
        address: u64,
    },
    /// An object is in two arrays, or twice in one.
    Twice {
        /// Its address.
        object: u64,
        /// Where else it is.
        other: Holder,
    },
}

/// A damaged array.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArrayFault {
    /// Which array.
    pub holder: Holder,
    /// What is wrong.
    pub kind: ArrayFaultKind,
}

impl fmt::Display for ArrayFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let holder = self.holder;
        match self.kind {
            ArrayFaultKind::Overfull { avail, limit } => write!(f, "{holder}: {avail} objects where {limit} may be"),
            ArrayFaultKind::TooMany => write!(f, "{holder}: more objects than slabs have"),
            ArrayFaultKind::Unmapped { address } => write!(f, "{holder}: no memory at {address:#x}"),
            ArrayFaultKind::Twice { object, other } => {
                write!(f, "object {object:x} on both {other} and {holder} lists")
            }
        }
    }
}

/// The objects in all arrays of a cache.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Arrays {
    holders: HashMap<u64, Holder>,
    /// What is wrong with the arrays.
    pub faults: Vec<ArrayFault>,
}

impl Arrays {
    /// Objects in them.
    pub fn len(&self) -> u64 {
        self.holders.len() as u64
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    /// Who holds the object in the buffer at `address`.
    pub fn holder(&self, address: u64) -> Option<Holder> {
        self.holders.get(&address).copied()
    }

    /// The objects' addresses, with who holds them, in no order.
    pub fn objects(&self) -> impl Iterator<Item = (u64, Holder)> {
        self.holders.iter().map(|(address, holder)| (*address, *holder))
    }

    /// Reads them; `objects` is how many the slabs have, which is more than arrays can hold.
    pub(super) fn read(view: &StateView, cache: &SlabCache, objects: u64) -> Result<Self, StateError> {
        let mut arrays = Self::default();
        for (cpu, array) in (0u16..).zip(&cache.cpus) {
            arrays.add(view, cache, Holder::Cpu(cpu), array, objects)?;
        }
        for (on, node) in (0u16..).zip(&cache.nodes) {
            arrays.add(view, cache, Holder::Shared(on), &node.shared, objects)?;
            if node.alien == 0 {
                continue;
            }
            let mut bytes = vec![0; size_of::<ArrayCache>() * cache.nodes.len()];
            if !view.read_virtual(node.alien, &mut bytes)? {
                let kind = ArrayFaultKind::Unmapped { address: node.alien };
                arrays.faults.push(ArrayFault { holder: Holder::Alien { on, of: 0 }, kind });
                continue;
            }
            for (of, record) in (0u16..).zip(bytes.chunks_exact(size_of::<ArrayCache>())) {
                arrays.add(view, cache, Holder::Alien { on, of }, &ArrayInfo::of_bytes(record), objects)?;
            }
        }
        Ok(arrays)
    }

    fn add(
        &mut self,
        view: &StateView,
        cache: &SlabCache,
        holder: Holder,
        array: &ArrayInfo,
        objects: u64,
    ) -> Result<(), StateError> {
        let ArrayInfo { avail, limit, entry, .. } = *array;
        if avail == 0 {
            return Ok(());
        }
        if avail > limit {
            self.faults.push(ArrayFault { holder, kind: ArrayFaultKind::Overfull { avail, limit } });
            return Ok(());
        }
        if self.len().saturating_add(avail.into()) > objects {
            self.faults.push(ArrayFault { holder, kind: ArrayFaultKind::TooMany });
            return Ok(());
        }
        let mut bytes = vec![0; avail as usize * 8];
        if !view.read_virtual(entry, &mut bytes)? {
            self.faults.push(ArrayFault { holder, kind: ArrayFaultKind::Unmapped { address: entry } });
            return Ok(());
        }
        for word in bytes.as_chunks().0 {
            // Where something lies before the object, the buffer starts sooner.
            let object = u64::from_le_bytes(*word).wrapping_sub(cache.obj_offset.into());
            if let Some(other) = self.holders.insert(object, holder) {
                self.faults.push(ArrayFault { holder, kind: ArrayFaultKind::Twice { object, other } });
            }
        }
        Ok(())
    }
}
