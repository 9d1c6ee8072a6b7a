//! The memory stack in a process: reserved address space stands for physical memory, threads stand for CPUs.
//!
//! ```
//! use pagevisor_mm::hosted::Topology;
//! use pagevisor_shared::gfp::Gfp;
//! use pagevisor_shared::units::Order;
//!
//! let machine = Topology::new().node(&[(0, 640 << 10), (1 << 20, 64 << 20)], 1).boot();
//! let page = machine.mm().alloc_pages(Gfp::KERNEL, Order::ZERO).expect("a page");
//! machine.mm().free_pages(page, Order::ZERO);
//! ```
//!
//! A test makes as many machines as it likes, one after the other or at once. The thread that boots a machine is its
//! CPU 0; other threads become CPUs with [`Machine::on_cpu`].

mod arena;
mod machine;
mod topology;
mod user;

pub use arena::{HostPlatform, UserFlush};
pub use machine::Machine;
pub use topology::Topology;
