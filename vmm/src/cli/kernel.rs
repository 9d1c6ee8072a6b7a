//! `pagevisor kernel`: the guest kernel that is built in.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::args::KernelArgs;
use super::failure::{Context, Failure};
use crate::error::exit_status;

/// The SHA-256 of `elf` in hexadecimal.
pub(super) fn sha256(elf: &[u8]) -> String {
    Sha256::digest(elf).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Prints where the kernel's ELF is, having put it there if need be.
pub(super) fn kernel(args: &KernelArgs, elf: &[u8], out: &mut impl Write) -> Result<(), Failure> {
    let hash = sha256(elf);
    let path = cached(&cache_dir()?, &hash, elf)
        .map_err(|error| Failure::new(exit_status::FAILURE, Context("cannot put the kernel into the cache", error)))?;
    let text = match args.path {
        true => format!("{}\n", path.display()),
        false => format!("path    {}\nbytes   {}\nsha256  {hash}\n", path.display(), elf.len()),
    };
    out.write_all(text.as_bytes()).map_err(Failure::stdout)
}

fn cache_dir() -> Result<PathBuf, Failure> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let none = || Failure::new(exit_status::FAILURE, "neither XDG_CACHE_HOME nor HOME says where a cache may be");
    Ok(base.ok_or_else(none)?.join("pagevisor"))
}

/// The path of a file in `dir` that holds `elf`. Its name tells its content, so two versions do not meet there; it
/// appears as a whole; and one that was damaged is replaced.
fn cached(dir: &Path, hash: &str, elf: &[u8]) -> io::Result<PathBuf> {
    let path = dir.join(format!("kernel-{}.elf", &hash[..16]));
    if fs::read(&path).is_ok_and(|content| content == elf) {
        return Ok(path);
    }
    fs::create_dir_all(dir)?;
    let mut file = tempfile::Builder::new().prefix(".kernel-").tempfile_in(dir)?;
    file.write_all(elf)?;
    file.persist(&path).map_err(|error| error.error)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_holds_exactly_the_kernel() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("cache/pagevisor");
        let hash = sha256(b"kernel");
        let path = cached(&dir, &hash, b"kernel").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"kernel");
        assert_eq!(path.file_name().unwrap().to_str().unwrap(), format!("kernel-{}.elf", &hash[..16]));
        fs::write(&path, "damaged").unwrap();
        assert_eq!(cached(&dir, &hash, b"kernel").unwrap(), path);
        assert_eq!(fs::read(&path).unwrap(), b"kernel");
        assert_ne!(cached(&dir, &sha256(b"other"), b"other").unwrap(), path);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "no temporary file may stay");
    }

    #[test]
    fn the_hash_is_sha256() {
        assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
