//! Looks at processes through /proc.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Bytes of guest memory that exist: what the guest, or the VMM for it, has touched. Some of it may not be mapped in
/// the VMM, so its resident size does not tell.
pub fn guest_memory(pid: u32) -> u64 {
    let folder = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder}: {e}"));
    let guest = |path: &Path| path.to_string_lossy().starts_with("/memfd:pagevisor-");
    let files: Vec<_> = entries.flatten().filter(|e| fs::read_link(e.path()).is_ok_and(|link| guest(&link))).collect();
    assert!(!files.is_empty(), "process {pid} has no guest memory");
    // The same memory may be open more than once.
    let sizes: BTreeMap<u64, u64> = files
        .iter()
        .filter_map(|entry| fs::metadata(entry.path()).ok())
        .map(|metadata| (metadata.ino(), metadata.blocks() * 512))
        .collect();
    sizes.values().sum()
}

/// Bits of this processor's physical addresses.
pub fn address_bits() -> u32 {
    let text = fs::read_to_string("/proc/cpuinfo").expect("/proc/cpuinfo");
    let line = text.lines().find(|line| line.starts_with("address sizes")).expect("address sizes");
    line.split_whitespace().nth(3).and_then(|bits| bits.parse().ok()).expect("bits")
}

/// Bytes of a process that are resident, with what of guest memory is mapped in it.
pub fn resident(pid: u32) -> u64 {
    mappings(pid).iter().map(|(_, bytes)| bytes).sum()
}

/// Bytes of a process that are resident apart from guest memory, whose mappings are memfds.
pub fn resident_outside_guest(pid: u32) -> u64 {
    mappings(pid).iter().filter(|(name, _)| !name.starts_with("/memfd:")).map(|(_, bytes)| bytes).sum()
}

/// Name and resident bytes of each mapping.
fn mappings(pid: u32) -> Vec<(String, u64)> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut mappings: Vec<(String, u64)> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.first().is_some_and(|w| w.contains('-') && !w.ends_with(':')) {
            mappings.push((words.get(5..).unwrap_or_default().join(" "), 0));
        } else if let (Some(("Rss:", kib)), Some(last)) =
            (words.first().copied().zip(words.get(1)), mappings.last_mut())
        {
            last.1 = kib.parse::<u64>().unwrap_or_else(|_| panic!("{path}: '{line}'")) << 10;
        }
    }
    mappings
}

/// Processes with this word among their arguments.
pub fn named(name: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        // A process may end while we look.
        let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        if line.split(|b| *b == 0).any(|word| word == name.as_bytes()) {
            found.push(pid);
        }
    }
    found
}
