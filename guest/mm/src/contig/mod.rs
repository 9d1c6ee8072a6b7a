//! Contiguous memory: taking a range of frames out of use, whatever its size.
//!
//! - `isolation`: page blocks of which nothing is given out any more (`mm/page_isolation.c`);
//! - `range`: allocating a range of frames, or one of a given size (`alloc_contig_range`);
//! - `cma`: areas that are lent to movable pages (`mm/cma.c`);
//! - `dma`: memory for devices, from an area or not;
//! - `create`: areas made while the machine runs;
//! - `reserve`: the area that the command line asks for.
//!
//! Pages in use cannot be moved elsewhere yet, so a range that holds any is busy.

mod cma;
mod create;
mod dma;
mod isolation;
mod range;
mod reserve;

use core::fmt;

pub(crate) use cma::CmaAreas;
pub use cma::{CMA_MIN_ALIGNMENT, CmaArea, CmaRequest, MAX_CMA_AREAS, cma_declare_contiguous};
pub(crate) use reserve::dma_contiguous_reserve;

/// Why a range cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContigError {
    /// Some of it is in use, is isolated already, or is no usable memory (`EBUSY`).
    Busy,
    /// It is empty, or does not lie in one zone (`EINVAL`).
    Invalid,
}

impl fmt::Display for ContigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "part of the range is in use",
            Self::Invalid => "the range is empty or not in one zone",
        })
    }
}

impl core::error::Error for ContigError {}
