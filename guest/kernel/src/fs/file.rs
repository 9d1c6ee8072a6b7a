//! Open files (`struct file`).

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_mm::filemap::MappingKind;
use pagevisor_mm::mmap::MappedFileRef;
use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::MappedFile;

use super::access::Written;
use super::inode::{Device, Inode, Kind};
use super::mode;
use super::path::path_of;
use super::pipe::Pipe;
use super::proc::Node;
use crate::arch::uaccess;
use crate::signal::{self, Info, SIGXFSZ};
use crate::sync::SpinLock;
use crate::{console, platform, random, task};

/// Open for reading.
pub const O_RDONLY: u32 = 0;
/// Open for writing.
pub const O_WRONLY: u32 = 1;
/// Open for both.
pub const O_RDWR: u32 = 2;
/// The bits of these.
pub const O_ACCMODE: u32 = 3;
/// Made if it is not there.
pub const O_CREAT: u32 = 0o100;
/// With [`O_CREAT`]: it must not be there.
pub const O_EXCL: u32 = 0o200;
/// Emptied.
pub const O_TRUNC: u32 = 0o1000;
/// What is written goes to the end.
pub const O_APPEND: u32 = 0o2000;
/// Nobody waits.
pub const O_NONBLOCK: u32 = 0o4000;
/// It must be a directory.
pub const O_DIRECTORY: u32 = 0o200_000;
/// One without a name, in a directory.
pub const O_TMPFILE: u32 = 0o20_000_000 | O_DIRECTORY;
/// It must not be a symbolic link.
pub const O_NOFOLLOW: u32 = 0o400_000;
/// Closed when another program is run.
pub const O_CLOEXEC: u32 = 0o2_000_000;

/// The resource that limits the size of files (`RLIMIT_FSIZE`).
const LIMIT_FILE_SIZE: usize = 1;
/// Bytes that are copied at a time between a program and a file.
const PIECE: usize = 4096;
/// Nanoseconds after which somebody whom the console had no room for tries again.
const CONSOLE_PAUSE: u64 = 1_000_000;

/// What an open file is called.
#[derive(Debug)]
pub enum Name {
    /// It has no name.
    None,
    /// It was found in a directory, by a name there.
    In(Arc<Inode>, String),
    /// It is called that, and nobody finds it.
    Fixed(String),
}

/// What is behind an open file beside the file itself.
#[derive(Debug)]
pub enum End {
    /// Nothing.
    None,
    /// One end of a pipe.
    Pipe(Arc<Pipe>),
    /// What a file of `/proc` said when it was last read from its beginning.
    Text(SpinLock<Vec<u8>>),
}

/// An open file.
#[derive(Debug)]
pub struct File {
    /// The file.
    pub inode: Arc<Inode>,
    /// `O_*`.
    pub flags: AtomicU32,
    /// Where reading and writing goes on.
    pub position: AtomicU64,
    end: End,
    name: Name,
    /// That it may be written to, if it is a regular file that was opened for that by a name.
    _written: Option<Written>,
    /// What areas that map it refer to; made when it is first mapped.
    mapped: SpinLock<Option<MappedFileRef>>,
}

impl Drop for File {
    fn drop(&mut self) {
        if let (Some(mapped), Some(mm)) = (self.mapped.lock().take(), platform::mm()) {
            mm.mapped_file_put(mapped);
        }
        if let End::Pipe(pipe) = &self.end {
            pipe.close(self.reads());
        }
    }
}

impl File {
    /// `inode`, open with `flags`.
    pub fn new(inode: Arc<Inode>, flags: u32, end: End, name: Name) -> Arc<Self> {
        Self::make(inode, flags, end, name, None)
    }

    fn make(inode: Arc<Inode>, flags: u32, end: End, name: Name, written: Option<Written>) -> Arc<Self> {
        let (flags, position) = (AtomicU32::new(flags & !O_CLOEXEC), AtomicU64::new(0));
        Arc::new(Self { inode, flags, position, end, name, _written: written, mapped: SpinLock::new(None) })
    }

    /// `inode`, which was found by a name, and is written to as `written` says.
    pub fn open(inode: Arc<Inode>, flags: u32, name: Name, written: Option<Written>) -> Arc<Self> {
        let end = if matches!(inode.kind, Kind::Proc(_)) { End::Text(SpinLock::new(Vec::new())) } else { End::None };
        Self::make(inode, flags, end, name, written)
    }

    fn has(&self, flag: u32) -> bool {
        self.flags.load(Relaxed) & flag != 0
    }

    /// Whether it may be read.
    pub fn reads(&self) -> bool {
        self.flags.load(Relaxed) & O_ACCMODE != O_WRONLY
    }

    /// Whether it may be written.
    pub fn writes(&self) -> bool {
        self.flags.load(Relaxed) & O_ACCMODE != O_RDONLY
    }

    /// Whether there is something that cannot have a position.
    pub fn is_stream(&self) -> bool {
        matches!(self.inode.kind, Kind::Pipe | Kind::Device(Device::Console))
    }

    /// The pipe, if it is one's end.
    pub const fn pipe(&self) -> Option<&Arc<Pipe>> {
        match &self.end {
            End::Pipe(pipe) => Some(pipe),
            End::None | End::Text(_) => None,
        }
    }

    /// Reads `len` bytes to the program's `addr`: from `at`, or from where the last one stopped.
    ///
    /// # Errors
    /// EBADF, EISDIR, EFAULT, and what the file gives.
    pub fn read(&self, addr: u64, len: usize, at: Option<u64>) -> Result<usize, Errno> {
        if !self.reads() {
            return Err(Errno::EBADF);
        }
        if let Kind::Device(Device::Zero | Device::Full) = self.inode.kind {
            return uaccess::clear(addr, len).map(|()| len);
        }
        if let Kind::Device(Device::Random | Device::Urandom) = self.inode.kind {
            return random::fill(addr, len);
        }
        let mut done = 0;
        let mut piece = buffer(len)?;
        while done < len {
            let wanted = (len - done).min(PIECE);
            let offset = at.unwrap_or_else(|| self.position.load(Relaxed));
            let offset = if at.is_some() { offset + done as u64 } else { offset };
            let got = match self.read_piece(&mut piece[..wanted], offset, done > 0) {
                Ok(0) => break,
                Ok(got) => got,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            };
            let copied = uaccess::write_some(addr.wrapping_add(done as u64), &piece[..got]);
            if at.is_none() && !self.is_stream() {
                self.position.store(offset + copied as u64, Relaxed);
            }
            done += copied;
            if copied < got {
                return if done == 0 { Err(Errno::EFAULT) } else { Ok(done) };
            }
            // Who reads a stream gets what is there; of the console that is a line.
            if got < wanted || self.is_stream() && self.pipe().is_none() {
                break;
            }
        }
        Ok(done)
    }

    /// Reads into the kernel's memory.
    ///
    /// # Errors
    /// What the file gives.
    pub fn read_to(&self, to: &mut [u8], offset: u64) -> Result<usize, Errno> {
        self.read_piece(to, offset, false)
    }

    /// Its path (`d_path`).
    pub fn path(&self) -> String {
        match &self.name {
            Name::In(directory, name) => named(directory, name, &self.inode),
            Name::Fixed(name) => name.clone(),
            Name::None if self.inode.mode.load(Relaxed) & mode::TYPE == mode::PIPE => {
                alloc::format!("pipe:[{}]", self.inode.number)
            }
            Name::None => alloc::format!("anon_inode:[{}]", self.inode.number),
        }
    }

    /// What areas that map it refer to; who has it open has it, too (`vm_file`).
    ///
    /// # Errors
    /// ENODEV if it cannot be mapped, ENOMEM.
    pub fn mapped(&self) -> Result<MappedFileRef, Errno> {
        if let Some(mapped) = *self.mapped.lock() {
            return Ok(mapped);
        }
        let mm = platform::mm().ok_or(Errno::ENODEV)?;
        let right = |has: bool, right: u32| if has { right } else { 0 };
        let mode = right(self.reads(), MappedFile::READ) | right(self.writes(), MappedFile::WRITE) | MappedFile::EXEC;
        let open = |mapping, mode| mm.mapped_file_new(mapping, self.path().as_bytes(), mode).ok_or(Errno::ENOMEM);
        let made = if let Kind::Device(Device::Zero) = self.inode.kind {
            let (system, number) = (self.inode.system, self.inode.number);
            let empty = mm.mapping_create(MappingKind::Ram, system.device(), number).ok_or(Errno::ENOMEM)?;
            let made = open(empty, mode | MappedFile::ANON);
            // The record has a reference of its own, if there is one.
            mm.mapping_put(empty);
            made?
        } else {
            open(self.inode.mapping().ok_or(Errno::ENODEV)?, mode)?
        };
        let mapped = *self.mapped.lock().get_or_insert(made);
        if mapped != made {
            // Another thread was faster.
            mm.mapped_file_put(made);
        }
        Ok(mapped)
    }

    /// Reads at `offset`; waits for a stream, if it may be waited for, unless there is enough already.
    fn read_piece(&self, to: &mut [u8], offset: u64, enough: bool) -> Result<usize, Errno> {
        match (&self.inode.kind, &self.end) {
            (Kind::Directory(..), _) => Err(Errno::EISDIR),
            (Kind::Proc(node), _) if node.is_directory() => Err(Errno::EISDIR),
            (Kind::Proc(node), End::Text(text)) => read_text(*node, text, to, offset),
            (Kind::Regular(_), _) => Ok(self.inode.read(offset, to)),
            (Kind::Device(Device::Console), _) => console::read(to, self.has(O_NONBLOCK)),
            // Zeros and random numbers come another way.
            (Kind::Device(_), _) => Ok(0),
            (_, End::Pipe(pipe)) => pipe.read(to, enough || self.has(O_NONBLOCK)),
            (Kind::Link(_) | Kind::Pipe | Kind::Proc(_), _) => Err(Errno::EINVAL),
        }
    }

    /// Writes `len` bytes from the program's `addr`: to `at`, or to where the last one stopped.
    ///
    /// # Errors
    /// EBADF, EFAULT, and what the file gives.
    pub fn write(&self, addr: u64, len: usize, at: Option<u64>) -> Result<usize, Errno> {
        if !self.writes() {
            return Err(Errno::EBADF);
        }
        if let Kind::Device(Device::Null | Device::Zero) = self.inode.kind {
            // Nobody looks at it.
            return Ok(len);
        }
        let mut done = 0;
        let mut piece = buffer(len)?;
        while done < len {
            let wanted = (len - done).min(PIECE);
            let copied = uaccess::read(&mut piece[..wanted], addr.wrapping_add(done as u64));
            let offset = at.map(|at| at + done as u64);
            match copied.and_then(|()| self.write_piece(&piece[..wanted], offset)) {
                Ok(0) => break,
                Ok(written) => {
                    done += written;
                    // A file takes what it has room for; a pipe has room again.
                    if written < wanted && !self.is_stream() {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Writes what the kernel has, to where the last one stopped.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_from(&self, from: &[u8]) -> Result<usize, Errno> {
        self.write_piece(from, None)
    }

    fn write_piece(&self, from: &[u8], at: Option<u64>) -> Result<usize, Errno> {
        match (&self.inode.kind, &self.end) {
            (Kind::Regular(_), _) => {
                let here = at.or_else(|| (!self.has(O_APPEND)).then(|| self.position.load(Relaxed)));
                let room = room_below_limit(here.unwrap_or_else(|| self.inode.size()), from.len())?;
                let (end, written) = self.inode.write(here, &from[..room])?;
                if at.is_none() {
                    self.position.store(end, Relaxed);
                }
                Ok(written)
            }
            (Kind::Device(Device::Null | Device::Zero | Device::Random | Device::Urandom), _) => Ok(from.len()),
            (Kind::Device(Device::Full), _) => Err(Errno::ENOSPC),
            (Kind::Device(Device::Console), _) => print(from),
            (_, End::Pipe(pipe)) => pipe.write(from, self.has(O_NONBLOCK)),
            (Kind::Directory(..), _) => Err(Errno::EISDIR),
            (Kind::Proc(node), _) => node.write(from).map(|()| from.len()),
            (Kind::Link(_) | Kind::Pipe, _) => Err(Errno::EINVAL),
        }
    }
}

/// How many of `len` bytes from `offset` on the current task may write to a file (`generic_write_check_limits`).
///
/// # Errors
/// EFBIG, with a signal, if it is none.
pub fn room_below_limit(offset: u64, len: usize) -> Result<usize, Errno> {
    let task = task::current();
    let limit = task.process().map_or(task::NO_LIMIT, |process| process.record.rlim[LIMIT_FILE_SIZE][0].load(Relaxed));
    if limit == task::NO_LIMIT || len == 0 {
        return Ok(len);
    }
    if offset >= limit {
        let words = [u64::from(task.tgid()), 0, 0];
        signal::send_to_thread(&task, Info { number: SIGXFSZ, code: signal::SI_USER, words });
        return Err(Errno::EFBIG);
    }
    Ok((limit - offset).min(len as u64) as usize)
}

/// The path of `file`, which was found in `directory` as `name`; deleted if it is not there any more.
fn named(directory: &Arc<Inode>, name: &str, file: &Arc<Inode>) -> String {
    let is_there = directory.find(name).is_ok_and(|found| found.number == file.number);
    let deleted = if is_there || file.is_directory() { "" } else { " (deleted)" };
    match path_of(directory) {
        Ok(above) if name.is_empty() => above,
        Ok(above) => alloc::format!("{}/{name}{deleted}", above.trim_end_matches('/')),
        Err(_) => alloc::format!("/{name} (deleted)"),
    }
}

/// Reads what `node` says; at the beginning it is asked again, and `text` is what it said.
fn read_text(node: Node, text: &SpinLock<Vec<u8>>, to: &mut [u8], offset: u64) -> Result<usize, Errno> {
    if let Some(read) = node.read_words(offset, to) {
        return read;
    }
    if offset == 0 {
        // It may sleep, which nobody does who holds a lock.
        let now = node.text()?;
        let old = core::mem::replace(&mut *text.lock(), now);
        drop(old);
    }
    let text = text.lock();
    let rest = usize::try_from(offset).ok().and_then(|offset| text.get(offset..)).unwrap_or(&[]);
    let len = rest.len().min(to.len());
    to[..len].copy_from_slice(&rest[..len]);
    Ok(len)
}

/// `len` bytes of zeros, if there is memory for them.
///
/// # Errors
/// ENOMEM.
pub fn zeros(len: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
    bytes.resize(len, 0);
    Ok(bytes)
}

/// Room for a piece of `len` bytes.
fn buffer(len: usize) -> Result<Vec<u8>, Errno> {
    zeros(PIECE.min(len))
}

/// Prints all of `text`.
fn print(text: &[u8]) -> Result<usize, Errno> {
    let mut done = 0;
    while done < text.len() {
        match console::write(&text[done..]) {
            0 => task::sleep(CONSOLE_PAUSE, true).or(if done == 0 { Err(Errno::EINTR) } else { Ok(()) })?,
            written => done += written,
        }
    }
    Ok(done)
}

/// What is in the small regular file at `path`.
pub fn read_all(path: &str) -> Option<Vec<u8>> {
    let inode = super::path::lookup(super::root(), path, true).ok()?;
    let mut bytes = zeros(inode.size() as usize).ok()?;
    let len = inode.read(0, &mut bytes);
    bytes.truncate(len);
    Some(bytes)
}

/// A name for the file that messages and `/proc` can show.
pub fn display_name(path: &str) -> String {
    String::from(path.rsplit('/').next().unwrap_or(path))
}
