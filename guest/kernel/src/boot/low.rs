//! What the loader and the firmware left below 4 GiB, read through the identity mapping that boot starts with.

use core::ptr::with_exposed_provenance;

/// End of the identity mapping of the early page tables.
const MAPPED: u64 = 4 << 30;

/// `len` bytes at physical address `addr`; `None` where nothing is mapped.
///
/// To be used during boot only, and only for what nobody writes any more: the start info and what it leads to, and
/// the ACPI tables.
pub fn bytes(addr: u64, len: u64) -> Option<&'static [u8]> {
    let end = addr.checked_add(len)?;
    if addr == 0 || end > MAPPED {
        return None;
    }
    // SAFETY: the first 4 GiB are mapped at their own addresses until `forget_low_memory`, after which nothing of
    // boot's data is used; what lies there was written before the kernel started, and any bytes are valid.
    Some(unsafe { core::slice::from_raw_parts(with_exposed_provenance(addr as usize), len as usize) })
}

/// The bytes of the zero-terminated string at `addr`, at most `max` of them.
pub fn string(addr: u64, max: u64) -> &'static [u8] {
    let bytes = bytes(addr, max).unwrap_or(&[]);
    let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    &bytes[..len]
}

/// Numbers in a structure of the firmware's, by offset, little-endian and of any alignment; 0 beyond its end.
#[derive(Clone, Copy, Debug)]
pub struct Fields(pub &'static [u8]);

macro_rules! field {
    ($name:ident, $ty:ty) => {
        /// The number of this size at `offset`.
        pub fn $name(self, offset: usize) -> $ty {
            let bytes = self.0.get(offset..).and_then(|rest| rest.first_chunk());
            bytes.map_or(0, |bytes| <$ty>::from_le_bytes(*bytes))
        }
    };
}

impl Fields {
    field!(u8, u8);
    field!(u32, u32);
    field!(u64, u64);

    /// The structure of `len` bytes at `addr`.
    pub fn at(addr: u64, len: u64) -> Option<Self> {
        bytes(addr, len).map(Self)
    }
}
