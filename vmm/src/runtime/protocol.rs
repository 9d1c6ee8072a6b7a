//! What is said on a control socket.
//!
//! The socket is a `SOCK_SEQPACKET` one: a message is a packet, so there are no lengths to trust and no halves to
//! wait for. A request and its reply are one JSON object each; the reply to `attach` carries descriptors
//! (`SCM_RIGHTS`): first the state region's, then one for each node that has memory, in order of node, all read-only.

use std::fmt;

use serde::{Deserialize, Serialize};

use pagevisor_shared::command::BUFFER_BYTES;

use crate::kvm::CpuRegisters;

/// Version of this protocol; a client and a guest of different versions do not talk.
pub const PROTOCOL_VERSION: u32 = 1;

/// Longest request in bytes: a command in hexadecimal digits, and what is around it.
pub(super) const MAX_REQUEST: usize = 2 * BUFFER_BYTES + 4096;
/// Longest reply in bytes; a machine of 64 nodes in a thousand ranges needs half of it.
pub(super) const MAX_REPLY: usize = 192 << 10;
/// Most descriptors with a reply: the state region's and each node's.
pub(super) const MAX_FDS: usize = 1 + pagevisor_shared::MAX_NUMNODES;

/// What a client asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verb {
    /// The machine's description and its memory.
    Attach,
    /// How the guest is.
    Status,
    /// The guest's end.
    Stop,
    /// All vCPUs out of the guest, until [`Verb::Resume`] or the end of the connection.
    Pause,
    /// As [`Verb::Pause`], wherever the vCPUs are.
    PauseAnywhere,
    /// The vCPUs back into the guest.
    Resume,
    /// A command for the guest, which is in the request.
    Command,
    /// Events of these kinds recorded, beside those that are recorded without this connection, until the next such
    /// request or the end of the connection.
    Events(u64),
}

/// A request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Request {
    /// [`PROTOCOL_VERSION`] of the client.
    pub version: u32,
    /// What is asked for.
    pub request: Verb,
    /// With [`Verb::Command`]: the message ([`pagevisor_shared::command`]), its tag left open, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub command: String,
}

/// A reply.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Reply {
    /// To [`Verb::Attach`]; the descriptors come with it.
    Guest(Guest),
    /// To [`Verb::Status`].
    Status(Status),
    /// To [`Verb::Stop`]: it has begun; the connection closes when the guest is gone.
    Stopping,
    /// To [`Verb::Pause`]: the vCPUs' registers, by CPU.
    Paused(Vec<CpuRegisters>),
    /// To [`Verb::Resume`].
    Running,
    /// To [`Verb::Command`]: the guest's message, in hexadecimal digits.
    Executed(String),
    /// To [`Verb::Events`]: the kinds that are recorded now.
    Recording(u64),
    /// The request cannot be served, and why.
    Error(String),
}

/// How far a guest has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It is not ready yet.
    Booting,
    /// Its memory can be looked at.
    Ready,
    /// It has powered off.
    Off,
    /// It has panicked.
    Panicked,
    /// It says something that is no phase.
    Corrupt,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::Off => "off",
            Self::Panicked => "panicked",
            Self::Corrupt => "corrupt",
        })
    }
}

/// How a guest is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The process that runs it.
    pub pid: u32,
    /// How far the guest has come.
    pub state: Phase,
    /// Milliseconds since the machine was started.
    pub uptime_ms: u64,
    /// Number of NUMA nodes.
    pub nodes: usize,
    /// Number of vCPUs.
    pub cpus: usize,
    /// RAM of all nodes in bytes.
    pub memory: u64,
}

/// What a client must know of a guest to look into its memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Guest {
    /// Version of the contract between host and guest ([`pagevisor_shared::ABI_VERSION`]).
    pub abi: u32,
    /// The guest's name.
    pub name: String,
    /// The process that runs it.
    pub pid: u32,
    /// When the machine was started, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// The kernel: its file, or `embedded`.
    pub kernel: String,
    /// Version of the program that runs it.
    pub version: String,
    /// What was appended to the kernel's command line.
    pub append: String,
    /// How far it has come.
    pub state: Phase,
    /// Bytes of the state region's descriptor.
    pub region_bytes: u64,
    /// Number of vCPUs.
    pub cpus: usize,
    /// The nodes, by number.
    pub nodes: Vec<GuestNode>,
    /// Distances, by row (from), then column (to).
    pub distances: Vec<Vec<u8>>,
}

/// A NUMA node of a guest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GuestNode {
    /// Its vCPUs.
    pub cpus: Vec<u32>,
    /// Its memory in order of address; a node without any has no descriptor.
    pub ranges: Vec<GuestRange>,
}

/// A range of guest-physical memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GuestRange {
    /// Guest-physical address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// Where it lies in the node's descriptor.
    pub offset: u64,
}

/// Bytes as hexadecimal digits.
pub(super) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of hexadecimal digits.
pub(super) fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    if rest.is_empty() { bytes } else { None }
}
