//! `--init`: the program that a guest is started for.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::args::RunArgs;
use super::failure::{Context, Failure};
use crate::boot::{Init, check_program};
use crate::error::exit_status;

/// The program that `args` ask for: a file of the host's, found as a shell finds it, which the guest gets as
/// `/bin/NAME`; or, if there is none and an initrd is given, a path in that.
pub(super) fn resolve(args: &RunArgs) -> Result<Option<Init>, Failure> {
    let Some(program) = &args.init else { return Ok(None) };
    let arguments = args.arguments.iter().map(|argument| argument.as_bytes().to_vec()).collect();
    let Some(file) = find(program) else {
        return match (&args.initrd, program.to_str()) {
            (Some(_), Some(path)) if path.starts_with('/') => {
                Ok(Some(Init { path: path.to_owned(), program: None, arguments }))
            }
            (Some(_), _) => Err(usage(program, "is no file here, and no absolute path of one in the initrd")),
            (None, _) => Err(usage(program, "is neither a file nor a program in $PATH")),
        };
    };
    let unreadable = |error| Failure::new(exit_status::USAGE, Context("--init", InitFile(file.clone(), error)));
    let bytes = fs::read(&file).map_err(unreadable)?;
    check_program(&bytes).map_err(|error| usage(&file, &error.to_string()))?;
    let name = file.file_name().and_then(|name| name.to_str()).ok_or_else(|| usage(&file, "has no name in UTF-8"))?;
    // It goes to the guest as a word of the kernel's command line.
    if name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"') || !name.is_ascii() {
        return Err(usage(&file, "has a name that cannot be a word of the kernel's command line"));
    }
    Ok(Some(Init { path: format!("/bin/{name}"), program: Some(bytes), arguments }))
}

fn usage(path: &Path, what: &str) -> Failure {
    Failure::new(exit_status::USAGE, format!("--init {} {what}", path.display()))
}

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.display())]
struct InitFile(PathBuf, #[source] std::io::Error);

/// The file that a shell would run for `program`, in the current directory too.
fn find(program: &Path) -> Option<PathBuf> {
    if program.is_file() {
        return Some(program.to_owned());
    }
    if program.components().count() != 1 {
        return None;
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}
