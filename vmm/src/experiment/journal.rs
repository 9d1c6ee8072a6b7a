//! `runs.jsonl`: the finished runs, each a line of JSON that is on the disk before the run counts as finished.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::error::ExperimentError;
use super::record::Record;

/// The finished runs of an experiment. It is one process's as long as it is open.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    /// Bytes that are whole lines.
    len: u64,
    records: HashMap<String, Record>,
    /// Lines that are no record, such as those of another version.
    ignored: Vec<usize>,
}

impl Journal {
    /// Opens the journal in the directory `dir`, which is made if need be, and reads it. A line that was being written
    /// when everything stopped is cut off.
    ///
    /// # Errors
    /// When another process has it, or it cannot be read or written.
    pub fn open(dir: &Path) -> Result<Self, ExperimentError> {
        let path = dir.join("runs.jsonl");
        let fail = |what: &'static str| {
            let path = path.clone();
            move |source: io::Error| ExperimentError::Results { what, path, source }
        };
        fs::create_dir_all(dir).map_err(fail("make the directory of"))?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(fail("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ExperimentError::Busy { path }),
            Err(TryLockError::Error(error)) => return Err(fail("lock")(error)),
        }
        let mut journal = Self { file, path: path.clone(), len: 0, records: HashMap::new(), ignored: Vec::new() };
        journal.load().map_err(fail("read"))?;
        Ok(journal)
    }

    fn load(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        for (line, number) in bytes.get(..whole).unwrap_or(&[]).split(|&byte| byte == b'\n').zip(1..) {
            if line.is_empty() {
                continue;
            }
            match serde_json::from_slice::<Record>(line) {
                Ok(record) => drop(self.records.insert(record.key.clone(), record)),
                Err(_) => self.ignored.push(number),
            }
        }
        self.len = whole as u64;
        if whole < bytes.len() {
            self.file.set_len(self.len)?;
        }
        Ok(())
    }

    /// Adds a finished run, for good.
    ///
    /// # Errors
    /// When it cannot be written, as on a full disk; what was there before is still there then.
    pub fn add(&mut self, record: Record) -> Result<(), ExperimentError> {
        if let Err(source) = self.write(&record) {
            // Take back what there was room for. If that fails too, the next one to open the journal does it.
            let _ = self.file.set_len(self.len);
            return Err(ExperimentError::Results { what: "write", path: self.path.clone(), source });
        }
        self.records.insert(record.key.clone(), record);
        Ok(())
    }

    fn write(&mut self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.file.seek(SeekFrom::Start(self.len))?;
        self.file.write_all(&line)?;
        self.file.sync_data()?;
        self.len += line.len() as u64;
        Ok(())
    }

    /// The latest record of the run with this key.
    pub fn get(&self, key: &str) -> Option<&Record> {
        self.records.get(key)
    }

    /// Numbers of the lines that are no record.
    pub fn ignored(&self) -> &[usize] {
        &self.ignored
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A journal that writes to `file`.
    #[cfg(test)]
    pub(super) fn of(file: File) -> Self {
        Self { file, path: "runs.jsonl".into(), len: 0, records: HashMap::new(), ignored: Vec::new() }
    }
}
