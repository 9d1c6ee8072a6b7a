//! Names of files (`fs/namei.c`).

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pagevisor_shared::errno::Errno;

use super::inode::{Inode, Kind};
use super::proc::Target;
use super::root;

/// Longest path, its final zero included (`PATH_MAX`).
pub const PATH_MAX: usize = 4096;
/// Longest name (`NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// Most symbolic links on the way (`MAXSYMLINKS`).
const MAX_LINKS: u32 = 40;

/// Where a path leads: the directory of its last name, that name, and what it names if that is there. The name is empty for
/// the root and for directories that are named by dots.
#[derive(Debug)]
pub struct Place {
    /// The directory.
    pub directory: Arc<Inode>,
    /// The last name.
    pub name: String,
    /// The file.
    pub file: Option<Arc<Inode>>,
    /// Only a directory may be there: the path ends in a slash.
    pub wants_directory: bool,
}

/// Finds where `path`, counted from `start`, leads; a symbolic link as the last name is followed if `follow`.
///
/// # Errors
/// ENOENT for an empty path or when a directory on the way is not there, ENOTDIR, ELOOP, ENAMETOOLONG.
pub fn find(start: &Arc<Inode>, path: &str, follow: bool) -> Result<Place, Errno> {
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    let mut links = 0;
    // What is still to be gone, the next name last.
    let mut names: Vec<String> = Vec::new();
    let push = |names: &mut Vec<String>, path: &str| {
        names.extend(path.split('/').rev().filter(|name| !name.is_empty()).map(ToOwned::to_owned));
    };
    push(&mut names, path);
    let mut directory = Arc::clone(if path.starts_with('/') { root() } else { start });
    let wants_directory = path.ends_with('/');
    loop {
        let Some(name) = names.pop() else {
            let file = Some(Arc::clone(&directory));
            return Ok(Place { directory, name: String::new(), file, wants_directory: true });
        };
        if !directory.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        match name.as_str() {
            "." => continue,
            ".." => {
                directory = directory.parent();
                continue;
            }
            _ if name.len() > NAME_MAX => return Err(Errno::ENAMETOOLONG),
            _ => {}
        }
        let last = names.is_empty();
        let file = match directory.find(&name) {
            Ok(file) => file,
            Err(Errno::ENOENT) if last => return Ok(Place { directory, name, file: None, wants_directory }),
            Err(error) => return Err(error),
        };
        let target = match &file.kind {
            Kind::Link(to) if !last || follow || wants_directory => Some(Target::Path(to.clone())),
            Kind::Proc(node) if !last || follow || wants_directory => node.target().transpose()?,
            _ => None,
        };
        if let Some(Target::File(to, _)) = target {
            if last {
                return Ok(Place { directory, name, file: Some(to), wants_directory });
            }
            directory = to;
            continue;
        }
        if let Some(Target::Path(to)) = target {
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::ELOOP);
            }
            if to.starts_with('/') {
                directory = Arc::clone(root());
            }
            push(&mut names, &to);
            continue;
        }
        if last {
            if wants_directory && !file.is_directory() {
                return Err(Errno::ENOTDIR);
            }
            return Ok(Place { directory, name, file: Some(file), wants_directory });
        }
        directory = file;
    }
}

/// The file at `path`, counted from `start`.
///
/// # Errors
/// As [`find`], and ENOENT.
pub fn lookup(start: &Arc<Inode>, path: &str, follow: bool) -> Result<Arc<Inode>, Errno> {
    find(start, path, follow)?.file.ok_or(Errno::ENOENT)
}

/// The path from the root, without links, of the file at `path`, counted from `start`.
///
/// # Errors
/// As [`find`]; ENOENT if it is found by a link of `/proc`, which leads to a file whatever its path.
pub fn full_path(start: &Arc<Inode>, path: &str) -> Result<String, Errno> {
    let place = find(start, path, true)?;
    if matches!(place.directory.kind, Kind::Proc(_)) {
        return Err(Errno::ENOENT);
    }
    let directory = path_of(&place.directory)?;
    Ok(alloc::format!("{}/{}", directory.trim_end_matches('/'), place.name))
}

/// The directory at `path` below `start`, made where it is missing.
///
/// # Errors
/// ENOTDIR.
pub fn make_directories(start: &Arc<Inode>, path: &str) -> Result<Arc<Inode>, Errno> {
    let mut directory = Arc::clone(start);
    for name in path.split('/').filter(|name| !name.is_empty() && *name != ".") {
        directory = match directory.find(name) {
            Ok(found) => found,
            Err(Errno::ENOENT) => directory.insert(name, Inode::directory(directory.system, 0o755))?,
            Err(error) => return Err(error),
        };
    }
    Ok(directory)
}

/// The path of `directory` from the root.
///
/// # Errors
/// ENOENT if it has none any more.
pub fn path_of(directory: &Arc<Inode>) -> Result<String, Errno> {
    let (mut names, mut at) = (Vec::new(), Arc::clone(directory));
    while !Arc::ptr_eq(&at, root()) {
        let parent = at.parent();
        if Arc::ptr_eq(&parent, &at) {
            return Err(Errno::ENOENT);
        }
        names.push(parent.name_of(&at).ok_or(Errno::ENOENT)?);
        at = parent;
    }
    names.reverse();
    Ok(String::from("/") + &names.join("/"))
}
