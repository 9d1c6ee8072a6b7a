//! `/proc/slabinfo`, version 2.1.
//!
//! Descriptors are in guest memory, not in the region, so who wants the text says what is in them.

use core::fmt::{self, Write};

/// A line of the file (`struct slabinfo`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SlabInfo<'n> {
    /// The cache's name.
    pub name: &'n str,
    /// Objects that slabs have handed out, those in arrays among them.
    pub active_objs: u64,
    /// Objects of all slabs.
    pub num_objs: u64,
    /// Bytes from one object to the next.
    pub objsize: u32,
    /// Objects of a slab.
    pub objperslab: u32,
    /// Pages of a slab.
    pub pagesperslab: u32,
    /// Most objects in a CPU's array.
    pub limit: u32,
    /// Objects that move at a time.
    pub batchcount: u32,
    /// A node's shared array has room for so many batches.
    pub sharedfactor: u32,
    /// Slabs with objects handed out.
    pub active_slabs: u64,
    /// Slabs.
    pub num_slabs: u64,
    /// Objects in nodes' shared arrays.
    pub sharedavail: u64,
}

/// The two lines above all others (`print_slabinfo_header`).
///
/// # Errors
/// Those of `out`.
pub fn header(out: &mut dyn Write) -> fmt::Result {
    out.write_str("slabinfo - version: 2.1\n")?;
    out.write_str("# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>")?;
    out.write_str(" : tunables <limit> <batchcount> <sharedfactor>")?;
    out.write_str(" : slabdata <active_slabs> <num_slabs> <sharedavail>\n")
}

impl SlabInfo<'_> {
    /// The line (`cache_show`).
    ///
    /// # Errors
    /// Those of `out`.
    pub fn line(&self, out: &mut dyn Write) -> fmt::Result {
        write!(
            out,
            "{:<17} {:>6} {:>6} {:>6} {:>4} {:>4}",
            self.name, self.active_objs, self.num_objs, self.objsize, self.objperslab, self.pagesperslab
        )?;
        write!(out, " : tunables {:>4} {:>4} {:>4}", self.limit, self.batchcount, self.sharedfactor)?;
        writeln!(out, " : slabdata {:>6} {:>6} {:>6}", self.active_slabs, self.num_slabs, self.sharedavail)
    }
}
