//! What a file says, while it is written.

use alloc::vec::Vec;
use core::fmt;

/// A text that fails to grow where there is no memory: a program decides how many areas it has, and so how long some are.
#[derive(Debug, Default)]
pub struct Text(Vec<u8>);

impl Text {
    /// Its bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.try_reserve(text.len()).map_err(|_| fmt::Error)?;
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}
