//! Lists of pieces of programs' memory (`lib/iov_iter.c`).

use alloc::vec::Vec;

use pagevisor_shared::errno::Errno;

use crate::arch::uaccess;

/// Most bytes that are moved by a call.
pub const MAX_RW_COUNT: u64 = 0x7fff_f000;
/// Most pieces in a list.
const UIO_MAXIOV: u64 = 1024;

/// An address, and bytes there.
pub type Piece = [u64; 2];

/// The `count` pieces in the program's list at `list`, wherever they are (`iovec_from_user`).
///
/// # Errors
/// EINVAL for more pieces than a list may have and for a length below 0, EFAULT if the list is not there.
pub fn copy(list: u64, count: u64) -> Result<Vec<Piece>, Errno> {
    if count > UIO_MAXIOV {
        return Err(Errno::EINVAL);
    }
    let piece = |index: u64| -> Result<Piece, Errno> {
        let piece = uaccess::read_words(list.wrapping_add(16 * index))?;
        if piece[1].cast_signed() < 0 { Err(Errno::EINVAL) } else { Ok(piece) }
    };
    (0..count).map(piece).collect()
}

/// As [`copy`], of the program's own memory, and no more bytes in all than a call moves (`import_iovec`).
///
/// # Errors
/// As there; EFAULT for what cannot be a program's.
pub fn import(list: u64, count: u64) -> Result<Vec<Piece>, Errno> {
    let mut pieces = copy(list, count)?;
    let mut left = MAX_RW_COUNT;
    for [addr, len] in &mut pieces {
        if !uaccess::is_user_range(*addr, *len) {
            return Err(Errno::EFAULT);
        }
        *len = left.min(*len);
        left -= *len;
    }
    Ok(pieces)
}
