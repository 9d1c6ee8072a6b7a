//! The archive that the loader gave: cpio in the `newc` format (`Documentation/driver-api/early-userspace/buffer-format.rst`),
//! several archives one behind the other.

use alloc::string::String;
use alloc::sync::Arc;

use pagevisor_shared::errno::Errno;

use super::inode::{Device, Inode, Kind};
use super::{mode, path};
use crate::log::pr_warn;

/// Bytes of a header, and the magic numbers that begin one, without and with a checksum.
const HEADER: usize = 110;
const MAGIC: [&[u8]; 2] = [b"070701", b"070702"];
/// The name of what ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An entry of an archive.
#[derive(Clone, Copy, Debug)]
struct Entry<'a> {
    name: &'a str,
    mode: u32,
    device: (u32, u32),
    content: &'a [u8],
}

/// The entry at the start of `archive`, and what is behind it.
fn next(archive: &[u8]) -> Option<(Entry<'_>, &[u8])> {
    let header = archive.get(..HEADER).filter(|header| MAGIC.contains(&&header[..6]))?;
    let field = |index: usize| {
        let digits = core::str::from_utf8(&header[6 + 8 * index..14 + 8 * index]).ok()?;
        u32::from_str_radix(digits, 16).ok()
    };
    let (size, name_size) = (field(6)? as usize, field(11)? as usize);
    let name = archive.get(HEADER..HEADER.checked_add(name_size)?)?;
    let name = core::str::from_utf8(name.strip_suffix(&[0])?).ok()?;
    let start = (HEADER + name_size).next_multiple_of(4);
    let end = start.checked_add(size)?;
    let content = archive.get(start..end)?;
    let entry = Entry { name, mode: field(1)?, device: (field(9)?, field(10)?), content };
    Some((entry, archive.get(end.next_multiple_of(4)..).unwrap_or(&[])))
}

/// Puts what is in `archive` into the tree at `root`, the contents of files into pages of theirs. What comes later takes
/// the place of what came before.
pub fn unpack(root: &Arc<Inode>, archive: &[u8]) {
    let mut rest = archive;
    loop {
        // Archives begin at multiples of four bytes, with zeros before them.
        let zeros = rest.iter().take_while(|byte| **byte == 0).count();
        rest = rest.get(zeros..).unwrap_or(&[]);
        if rest.is_empty() {
            return;
        }
        let Some((entry, behind)) = next(rest) else {
            pr_warn!("Initramfs unpacking failed: invalid magic at offset {}", archive.len() - rest.len());
            return;
        };
        rest = behind;
        if entry.name != TRAILER {
            enter(root, &entry);
        }
    }
}

/// A file for `directory` with `content` in it.
fn filled(directory: &Inode, rights: u32, content: &[u8]) -> Result<Arc<Inode>, Errno> {
    let file = Inode::regular(directory.system, rights)?;
    if !content.is_empty() && file.write(Some(0), content)?.1 < content.len() {
        return Err(Errno::ENOSPC);
    }
    Ok(file)
}

fn enter(root: &Arc<Inode>, entry: &Entry<'_>) {
    let name = entry.name.trim_matches('/');
    let name = name.strip_prefix("./").unwrap_or(name);
    if name.is_empty() || name == "." {
        return;
    }
    let (directory, last) = name.rsplit_once('/').unwrap_or(("", name));
    let Ok(directory) = path::make_directories(root, directory) else { return };
    let (kind, rights) = (entry.mode & mode::TYPE, entry.mode & 0o7777);
    let file = match kind {
        mode::DIRECTORY if directory.find(last).is_ok_and(|found| found.is_directory()) => return,
        mode::DIRECTORY => Inode::directory(directory.system, rights),
        mode::REGULAR => match filled(&directory, rights, entry.content) {
            Ok(file) => file,
            Err(error) => {
                pr_warn!("initramfs: {}: {}", entry.name, error.name());
                return;
            }
        },
        mode::LINK => {
            let to = String::from_utf8_lossy(entry.content).into_owned();
            Inode::new(directory.system, mode::LINK | 0o777, Kind::Link(to))
        }
        mode::CHARACTER => match Device::of_number(entry.device.0, entry.device.1) {
            Some(device) => Inode::new(directory.system, mode::CHARACTER | rights, Kind::Device(device)),
            None => return,
        },
        _ => return,
    };
    let _ = directory.remove(last, false);
    if let Err(error) = directory.insert(last, file) {
        pr_warn!("initramfs: {}: {}", entry.name, error.name());
    }
}
