//! What others write to the files of a directory.
//!
//! The files' own renewals do not show: they are written under another name, closed, and renamed. What is written to a
//! file in the very moment in which it is renewed goes to the old one, so that is kept open too until the next time.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::TEMPORARY;

/// Most bytes that are taken at a time, beside what the file had.
const MOST: usize = 4096;

/// A file that others may write to.
#[derive(Debug)]
struct Kept {
    file: File,
    /// What it held when it was last looked at.
    text: Vec<u8>,
}

/// Files of some directories, and what is written to them.
#[derive(Debug)]
pub(super) struct Inbox {
    inotify: Inotify,
    /// By path from the root.
    dirs: Vec<(PathBuf, Option<WatchDescriptor>)>,
    /// By path from the root; the newest file last, with the one before.
    kept: BTreeMap<PathBuf, Vec<Kept>>,
}

impl Inbox {
    /// Listens to what is written to the files in `dirs`, once these are there.
    ///
    /// # Errors
    /// When the kernel gives no descriptor for that.
    pub fn new(dirs: &[&str]) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let dirs = dirs.iter().map(|dir| (PathBuf::from(dir), None)).collect();
        Ok(Self { inotify, dirs, kept: BTreeMap::new() })
    }

    /// Readable when something was written.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Whether the file at `path` is in one of the directories.
    pub fn covers(&self, path: &Path) -> bool {
        self.dirs.iter().any(|(dir, _)| path.parent() == Some(dir))
    }

    /// Listens to the directories below `root` that are there, also to one that was made anew.
    pub fn watch(&mut self, root: &Path) {
        for (dir, watch) in &mut self.dirs {
            // For a directory that is listened to already this changes nothing. For one that is no directory writing
            // its files fails, and that is told.
            *watch = self.inotify.add_watch(&root.join(dir), AddWatchFlags::IN_CLOSE_WRITE).ok();
        }
    }

    /// Remembers that `file`, which is not open for writing, holds `text` and is at `path` from now on.
    pub fn renewed(&mut self, path: &Path, file: File, text: &str) {
        let kept = self.kept.entry(path.to_owned()).or_default();
        if kept.len() > 1 {
            kept.remove(0);
        }
        kept.push(Kept { file, text: text.as_bytes().to_vec() });
    }

    /// Files that were written to since the last time, and what.
    pub fn take(&mut self) -> BTreeMap<PathBuf, String> {
        let mut named = Vec::new();
        loop {
            match self.inotify.read_events() {
                Ok(events) => named.extend(events),
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        let mut written = BTreeMap::new();
        for event in named {
            let dir = self.dirs.iter().find(|(_, watch)| *watch == Some(event.wd));
            let paths = match (dir, event.name) {
                (Some((dir, _)), Some(name)) if !is_temporary(&name) => vec![dir.join(name)],
                // More has happened than the kernel would remember.
                _ if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) => self.kept.keys().cloned().collect(),
                _ => continue,
            };
            for path in paths {
                let text: String = self.kept.get_mut(&path).into_iter().flatten().filter_map(Kept::news).collect();
                *written.entry(path).or_default() += text.as_str();
            }
        }
        written
    }
}

fn is_temporary(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes())
}

impl Kept {
    /// What was written since the last look.
    fn news(&mut self) -> Option<String> {
        let mut bytes = vec![0; self.text.len() + MOST];
        let mut len = 0;
        while let Ok(more @ 1..) = self.file.read_at(bytes.get_mut(len..)?, len as u64) {
            len += more;
        }
        bytes.truncate(len);
        let old = std::mem::replace(&mut self.text, bytes);
        let new = added(&old, &self.text);
        (!new.is_empty()).then(|| String::from_utf8_lossy(new).into_owned())
    }
}

/// The part of `new` that somebody has written to a file that held `old`.
fn added<'n>(old: &[u8], new: &'n [u8]) -> &'n [u8] {
    match new.strip_prefix(old) {
        // Appended, if anything.
        Some(rest) if !old.is_empty() => rest,
        // Written over the start of what is still there.
        None if old.len() == new.len() => {
            let last = old.iter().zip(new).rposition(|(old, new)| old != new).unwrap_or(0);
            let end = new.iter().skip(last).position(|byte| *byte == b'\n').map_or(new.len(), |rest| last + rest + 1);
            new.get(..end).unwrap_or(new)
        }
        _ => new,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_was_added_is_told_from_what_was_there() {
        let added = |old: &str, new: &str| {
            let bytes = super::added(old.as_bytes(), new.as_bytes());
            String::from_utf8_lossy(bytes).into_owned()
        };
        for (old, new, expected) in [
            ("old\n", "old\n", ""),
            ("old\n", "", ""),
            ("", "new\n", "new\n"),
            ("old\n", "new\n", "new\n"),
            ("old\n", "old\nnew\n", "new\n"),
            ("a line\nand more\n", "x line\nand more\n", "x line\n"),
            ("1384\n", "8384\n", "8384\n"),
            ("1384\n", "12\n", "12\n"),
        ] {
            assert_eq!(added(old, new), expected, "{old:?} {new:?}");
        }
    }
}
