//! Damaged core files.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use super::cases;
use super::region::look;
use crate::dump::{self, Dump};
use crate::state::fake::FakeGuest;

/// Bytes at the start that are damaged: headers and notes.
const HEADERS: u64 = 8192;

fn word_at(file: &File, at: u64) -> u64 {
    let mut word = [0; 8];
    file.read_exact_at(&mut word, at).unwrap();
    u64::from_le_bytes(word)
}

#[test]
fn damaged_core_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("core");
    dump::write(&FakeGuest::used().view(), &[], &path).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    cases("damaged core files", |random| {
        let damage: Vec<_> = (0..=random.below(4))
            .map(|_| {
                let at = random.below(HEADERS / 8) * 8;
                let old = word_at(&file, at);
                file.write_all_at(&random.edge(old).to_le_bytes(), at).unwrap();
                (at, old)
            })
            .collect();
        if let Ok(dump) = Dump::open(&path) {
            look(random, &dump.view);
        }
        for (at, old) in damage.into_iter().rev() {
            file.write_all_at(&old.to_le_bytes(), at).unwrap();
        }
    });
    assert!(Dump::open(&path).is_ok(), "the damage was not mended");
}

#[test]
fn core_files_cut_short() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("core");
    dump::write(&FakeGuest::used().view(), &[], &path).unwrap();
    let mut headers = vec![0; HEADERS as usize];
    File::open(&path).unwrap().read_exact_at(&mut headers, 0).unwrap();
    for len in (0..HEADERS as usize).step_by(61) {
        fs::write(&path, &headers[..len]).unwrap();
        assert!(Dump::open(&path).is_err(), "{len} bytes of a core file pass for one");
    }
}
