//! Where running guests are found: a directory with one control socket per guest.
//!
//! ```text
//! guest process                         a client (`pagevisor show`, a test, ...)
//! RuntimeDir::claim(name)  NAME.sock
//! ControlServer            <- Request    Connection::open
//!                          -> Reply      + read-only descriptors of the guest's memory on `attach`
//! ```
//!
//! A name is taken for as long as something listens on its socket: the kernel ends that with the process, however
//! the process ends, so a socket that refuses connections is stale and whoever meets it removes it. Looking and
//! acting happen under a lock on the directory; of two guests that want one name exactly one gets it.
//!
//! A client that is attached maps the guest's memory itself and needs nothing more of the VMM. Its connection stays
//! open only so that it sees the guest end.

mod client;
mod dir;
mod name;
mod protocol;
mod region;
mod relay;
mod server;
#[cfg(test)]
mod tests;

pub use client::{Attached, ClientError, Connection, RemotePause};
pub use dir::{Claim, RuntimeDir, RuntimeDirError};
pub use name::{BadName, GuestName};
pub use protocol::{Guest, GuestNode, GuestRange, PROTOCOL_VERSION, Phase, Status};
pub use region::RegionMap;
pub use server::{ControlServer, Endpoint};
