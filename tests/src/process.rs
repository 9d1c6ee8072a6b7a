//! Looks at processes through /proc.

use std::fs;

/// Bytes of a process that are resident, guest memory and all.
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
