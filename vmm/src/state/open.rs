//! Where a guest's state comes from: a machine of this process, or a guest of another one.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::{Backing, MemfdMemory, StateError, StateView};
use crate::machine::Machine;
use crate::runtime::Attached;

impl StateView {
    /// The state of a guest of another process.
    ///
    /// # Errors
    /// As [`StateView::open`].
    pub fn of_attached(attached: Attached) -> Result<Self, StateError> {
        let mut backings = Vec::new();
        for (node, fd) in attached.guest.nodes.iter().zip(attached.nodes) {
            let Some(fd) = fd else { continue };
            let file = Arc::new(File::from(fd));
            backings.extend(node.ranges.iter().map(|range| Backing {
                start: range.base,
                size: range.size,
                file: file.clone(),
                offset: range.offset,
            }));
        }
        Self::open(&File::from(attached.region), Box::new(MemfdMemory::new(backings)))
    }

    /// The state of a machine of this process.
    ///
    /// # Errors
    /// As [`StateView::open`], and when the process has no descriptor left.
    pub fn of_machine(machine: &Machine) -> Result<Self, StateError> {
        let memory = machine.memory();
        let open = || -> io::Result<_> { Ok((memory.state().read_only()?, memory.read_only_nodes()?)) };
        let (region, files) = open().map_err(StateError::Map)?;
        let mut backings = Vec::new();
        for (node, file) in files {
            let file = Arc::new(file);
            backings.extend(memory.ranges().iter().filter(|range| range.node == Some(node)).map(|range| Backing {
                start: range.start,
                size: range.size,
                file: file.clone(),
                offset: range.offset,
            }));
        }
        Self::open(&region, Box::new(MemfdMemory::new(backings)))
    }
}
