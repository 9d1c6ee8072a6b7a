//! An initial RAM disk with a program in it: a cpio archive in the `newc` format (Linux's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::io::Write;

use cpio::newc;
use object::Endianness;
use object::elf::{EM_X86_64, ET_DYN, ET_EXEC, FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader};
use pagevisor_shared::device::initrd::ARGUMENTS;

/// Type and rights of a directory.
const DIRECTORY: u32 = 0o040_755;
/// Type and rights of a program.
const PROGRAM: u32 = 0o100_755;
/// Type and rights of other files.
const FILE: u32 = 0o100_644;

/// The program that a guest is started for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Init {
    /// Where the guest has it.
    pub path: String,
    /// The file; `None` if it is in the initrd that the user gives.
    pub program: Option<Vec<u8>>,
    /// Its arguments, without its own name.
    pub arguments: Vec<Vec<u8>>,
}

/// Why a file is no program for the guest.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotAProgram {
    /// Anything else than an ELF file for x86-64.
    #[error("is no executable of x86-64 Linux")]
    NotElf,
    /// It wants a dynamic linker.
    #[error("is linked dynamically (it asks for {0}); the guest has no shared libraries: link it statically")]
    Dynamic(String),
}

/// Whether the guest can run `program`, as far as its headers tell.
///
/// # Errors
/// Why it cannot.
pub fn check_program(program: &[u8]) -> Result<(), NotAProgram> {
    let elf = |program| {
        let header = FileHeader64::<Endianness>::parse(program).ok()?;
        let endian = header.endian().ok()?;
        let kind = header.e_type(endian);
        let ours = header.e_machine(endian) == EM_X86_64 && matches!(kind, ET_EXEC | ET_DYN);
        ours.then_some((endian, header.program_headers(endian, program).ok()?))
    };
    let (endian, segments) = elf(program).ok_or(NotAProgram::NotElf)?;
    match segments.iter().find(|segment| segment.p_type(endian) == PT_INTERP) {
        None => Ok(()),
        Some(segment) => {
            let name = segment.data(endian, program).unwrap_or(b"a file that is not named");
            let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
            Err(NotAProgram::Dynamic(name))
        }
    }
}

impl Init {
    /// The initial RAM disk, to be put behind the user's own if there is one.
    pub fn archive(&self) -> Vec<u8> {
        let mut archive = Vec::new();
        for directory in ["dev", "proc", "tmp", "bin", ".pagevisor"] {
            add(&mut archive, directory, DIRECTORY, &[]);
        }
        if let Some(program) = &self.program {
            add(&mut archive, self.path.trim_start_matches('/'), PROGRAM, program);
        }
        let mut arguments = [self.path.as_bytes(), &[0]].concat();
        for argument in &self.arguments {
            arguments.extend_from_slice(argument);
            arguments.push(0);
        }
        add(&mut archive, ARGUMENTS, FILE, &arguments);
        // As above.
        let _ = newc::trailer(&mut archive);
        archive
    }
}

/// A file in the archive. Writing to a vector cannot fail.
fn add(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let links = if mode == DIRECTORY { 2 } else { 1 };
    let mut writer = newc::Builder::new(name).mode(mode).nlink(links).write(archive, content.len() as u32);
    let _ = writer.write_all(content).and_then(|()| writer.finish().map(drop));
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    fn init() -> Init {
        let arguments = vec![b"-c".to_vec(), b"echo \"a b\" 'c'".to_vec(), Vec::new()];
        Init { path: "/bin/sh".into(), program: Some(b"not really".to_vec()), arguments }
    }

    #[test]
    fn cpio_reads_the_archive() {
        let directory = tempfile::tempdir().unwrap();
        let mut cpio = Command::new("cpio")
            .args(["--quiet", "-idm", "--no-absolute-filenames"])
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        cpio.stdin.take().unwrap().write_all(&init().archive()).unwrap();
        assert!(cpio.wait().unwrap().success());
        assert_eq!(std::fs::read(directory.path().join("bin/sh")).unwrap(), b"not really");
        let arguments = std::fs::read(directory.path().join(ARGUMENTS)).unwrap();
        assert_eq!(arguments, b"/bin/sh\0-c\0echo \"a b\" 'c'\0\0");
        assert!(directory.path().join("proc").is_dir());
    }

    #[test]
    fn what_the_guest_cannot_run_is_told() {
        assert_eq!(check_program(b"#!/bin/sh\n"), Err(NotAProgram::NotElf));
        let this = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        // The tests are linked dynamically here, statically for the lab.
        let dynamic = matches!(check_program(&this), Err(NotAProgram::Dynamic(_)));
        assert_eq!(dynamic, cfg!(not(target_feature = "crt-static")));
    }
}
