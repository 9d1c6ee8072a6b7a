//! A guest's state of one moment.

use std::fs::File;
use std::path::Path;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::error::ErrorKind;
use super::state::State;
use crate::dump::{self, Dump};
use crate::kvm::CpuRegisters;
use crate::machine::Paused;
use crate::state::StateView;

/// What [`dump::DumpError`]s call the copy.
const NAME: &str = "snapshot";

/// A copy of a guest's state region, of what it has touched of its memory, and of its CPUs' registers.
#[derive(Debug)]
pub struct Snapshot(Dump);

impl Snapshot {
    /// The copy is a dump in memory: what can be done with dumps can be done with it.
    pub(super) fn take(view: &StateView, paused: &Paused) -> Result<Self, ErrorKind> {
        let fd = memfd_create("pagevisor-snapshot", MFdFlags::MFD_CLOEXEC)
            .map_err(|errno| ErrorKind::Host { what: "make a file in memory", source: errno.into() })?;
        let file = File::from(fd);
        dump::write_to(view, paused.registers(), &file, Path::new(NAME))?;
        Ok(Self(Dump::of_file(file, Path::new(NAME))?))
    }

    /// The state and the memory, for the tools of [`crate::state`], [`crate::report`] and [`crate::verify`].
    pub fn view(&self) -> &StateView {
        &self.0.view
    }

    /// The counters.
    pub fn state(&self) -> State {
        State::read(&self.0.view.region())
    }

    /// The vCPUs' registers, by CPU.
    pub fn registers(&self) -> &[CpuRegisters] {
        self.0.registers()
    }
}
