//! What the user may say about the machine, in a file and in flags, and how it becomes a [`Topology`].
//!
//! [`Topology`]: crate::topology::Topology

mod error;
pub mod value;

pub use error::ConfigError;
pub use value::Size;
