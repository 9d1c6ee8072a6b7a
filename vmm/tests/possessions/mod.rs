//! What a process has: for tests that look for what machines leave behind.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use pagevisor::runtime::RuntimeDir;

/// How long a thread that has been joined may be listed yet, and memory be mapped that it had.
const PATIENCE: Duration = Duration::from_secs(5);

/// Threads, descriptors, mappings of what is no program, processes, and files of the runtime directory, each in a line
/// of its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Possessions(BTreeSet<String>);

impl Possessions {
    /// What this process has now.
    pub fn now() -> Self {
        let parts = [threads(), descriptors(), mappings(), processes(), files()];
        Self(parts.into_iter().flatten().collect())
    }

    /// What is there that was not `before`.
    pub fn beyond(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }

    /// How many of a kind there are: of `thread`, `descriptor`, `mapping`, `process`, `file`.
    pub fn count(&self, kind: &str) -> usize {
        self.0.iter().filter(|line| line.starts_with(kind)).count()
    }

    /// Nothing may be there that was not there then, in a moment at the latest.
    #[track_caller]
    pub fn assert_nothing_left(&self, after: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = Self::now().beyond(self);
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind, {after}:\n{}", left.join("\n"));
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Names in a directory; none if it is not there.
fn names(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// One that ends meanwhile is none.
fn threads() -> Vec<String> {
    let name = |id: &String| Some((id.clone(), fs::read_to_string(format!("/proc/self/task/{id}/comm")).ok()?));
    let ids = names("/proc/self/task");
    ids.iter().filter_map(name).map(|(id, name)| format!("thread {id} {}", name.trim())).collect()
}

/// That of the listing itself is closed when its target is asked for.
fn descriptors() -> Vec<String> {
    let target = |number: &String| Some((number.clone(), fs::read_link(format!("/proc/self/fd/{number}")).ok()?));
    let open = names("/proc/self/fd");
    open.iter().filter_map(target).map(|(number, to)| format!("descriptor {number} {}", to.display())).collect()
}

/// Guest memory and state regions, KVM's, devices', and whatever else has a name that is no program's. Memory without a
/// name is the allocator's and the C library's, which keep what they are given back.
fn mappings() -> Vec<String> {
    let maps = fs::read_to_string("/proc/self/maps").expect("mappings");
    let special = |line: &&str| ["/memfd:", "anon_inode:", "/dev/"].iter().any(|start| line.contains(start));
    maps.lines().filter(special).map(|line| format!("mapping {line}")).collect()
}

/// Children of this process, also those that have ended and not been waited for.
fn processes() -> Vec<String> {
    let children = |task: &String| fs::read_to_string(format!("/proc/self/task/{task}/children")).unwrap_or_default();
    let all: Vec<String> = names("/proc/self/task").iter().map(children).collect();
    all.iter().flat_map(|list| list.split_whitespace()).map(|id| format!("process {id}")).collect()
}

fn files() -> Vec<String> {
    let directory = RuntimeDir::locate();
    names(&directory.to_string_lossy()).into_iter().map(|name| format!("file {name}")).collect()
}
