//! What a command looks at: a running guest by its name, or a dump in a file.

use std::path::Path;

use super::failure::Failure;
use super::notice;
use super::remote::connect;
use crate::dump::Dump;
use crate::error::exit_status;
use crate::kvm::CpuRegisters;
use crate::runtime::{Connection, GuestName, Phase, RemotePause};
use crate::state::StateView;

/// The guest or the dump.
pub(super) enum Target {
    /// A running guest, and the connection to its process.
    Guest(Box<Connection>, Box<StateView>),
    /// A dump.
    Dump(Box<Dump>),
}

impl Target {
    /// The guest of that name if one is running, else the dump in the file of that name.
    pub fn open(text: &str) -> Result<Self, Failure> {
        let name: Option<GuestName> = text.parse().ok();
        if let Some(name) = name {
            match connect(&name) {
                Ok(connection) => return Self::of_guest(connection, &name),
                Err(failure) if failure.status() != exit_status::NAME || !Path::new(text).exists() => {
                    return Err(failure);
                }
                Err(_) => {}
            }
        }
        Ok(Self::Dump(Box::new(Dump::open(Path::new(text))?)))
    }

    /// The running guest of that name, with the connection to its process.
    pub fn guest(name: &GuestName) -> Result<(Connection, StateView), Failure> {
        match Self::of_guest(connect(name)?, name)? {
            Self::Guest(connection, view) => Ok((*connection, *view)),
            // `of_guest` gives nothing else.
            Self::Dump(_) => Err(Failure::new(exit_status::NAME, format!("'{name}' is not a guest"))),
        }
    }

    fn of_guest(connection: Connection, name: &GuestName) -> Result<Self, Failure> {
        let attached = connection.attach()?;
        if attached.guest.state == Phase::Booting {
            return Err(Failure::new(exit_status::FAILURE, format!("guest '{name}' is still booting")));
        }
        let view = StateView::of_attached(attached)?;
        Ok(Self::Guest(Box::new(connection), Box::new(view)))
    }

    /// Its state.
    pub fn view(&self) -> &StateView {
        match self {
            Self::Guest(_, view) => view,
            Self::Dump(dump) => &dump.view,
        }
    }

    /// Keeps it from changing for as long as the guard lives.
    pub fn hold(&self) -> Result<Held<'_>, Failure> {
        match self {
            Self::Guest(connection, _) => Ok(Held::Guest(connection.pause()?)),
            Self::Dump(dump) => Ok(Held::Dump(dump)),
        }
    }

    /// As [`Self::hold`], but a guest that does not come to a safe point is held where it is.
    pub fn hold_anyhow(&self) -> Result<Held<'_>, Failure> {
        match (self.hold(), self) {
            (Err(failure), Self::Guest(connection, _)) => {
                let paused = connection.pause_anywhere()?;
                notice(format_args!("warning: {}; taken where it is", failure.message().unwrap_or_default()));
                Ok(Held::Guest(paused))
            }
            (held, _) => held,
        }
    }
}

/// A target that does not change.
pub(super) enum Held<'t> {
    /// A guest that is paused.
    Guest(RemotePause<'t>),
    /// A dump.
    Dump(&'t Dump),
}

impl Held<'_> {
    /// The vCPUs' registers, by CPU.
    pub fn registers(&self) -> &[CpuRegisters] {
        match self {
            Self::Guest(paused) => paused.registers(),
            Self::Dump(dump) => dump.registers(),
        }
    }
}
