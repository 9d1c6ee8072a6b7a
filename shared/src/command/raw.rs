//! An operation as it lies in a message.

/// An operation, 32 bytes. What a field means is the operation's matter ([`super::Op`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RawOp {
    /// A [`super::OpCode`].
    pub code: u16,
    /// An order, or 0.
    pub order: u8,
    /// Small argument, by operation.
    pub small: u8,
    /// GFP flags, or another 32-bit argument.
    pub gfp: u32,
    /// A handle.
    pub handle: u32,
    /// How many.
    pub count: u32,
    /// First large argument.
    pub a: u64,
    /// Second large argument.
    pub b: u64,
}

impl RawOp {
    /// Bytes of an operation.
    pub const BYTES: usize = 32;

    /// As bytes.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..2].copy_from_slice(&self.code.to_le_bytes());
        bytes[2] = self.order;
        bytes[3] = self.small;
        bytes[4..8].copy_from_slice(&self.gfp.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.handle.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.count.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.a.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.b.to_le_bytes());
        bytes
    }

    /// From bytes.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        Self {
            code: u16::from_le_bytes([bytes[0], bytes[1]]),
            order: bytes[2],
            small: bytes[3],
            gfp: word(bytes, 4),
            handle: word(bytes, 8),
            count: word(bytes, 12),
            a: long(bytes, 16),
            b: long(bytes, 24),
        }
    }
}

/// The 32-bit number at `at`, which lies in `bytes`.
pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

/// The 64-bit number at `at`, which lies in `bytes`.
pub(super) fn long(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}
