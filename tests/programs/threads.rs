//! A static program with Rust's standard library: threads, channels, a hash map, files.

use std::collections::HashMap;
use std::io::Write;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, mpsc};
use std::{env, fs, thread};

const THREADS: u64 = 4;

fn main() -> ExitCode {
    let seen = Arc::new(Mutex::new(HashMap::new()));
    let (sender, receiver) = mpsc::channel();
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let (seen, sender) = (Arc::clone(&seen), sender.clone());
            thread::spawn(move || {
                for turn in 0..200 {
                    *seen.lock().unwrap().entry(turn).or_insert(0) += number;
                }
                sender.send(number).unwrap();
                vec![number; 50_000].iter().sum::<u64>()
            })
        })
        .collect();
    drop(sender);
    let sum: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    let sent: u64 = receiver.iter().sum();
    let all = seen.lock().unwrap().values().sum::<u64>();
    let path = env::temp_dir().join("numbers");
    let mut file = fs::File::create(&path).unwrap();
    writeln!(file, "{sum} {sent} {all}").unwrap();
    print!("{}", fs::read_to_string(&path).unwrap());
    let panicked = thread::spawn(|| panic!("on purpose")).join().is_err();
    ExitCode::from(if panicked && (sum, sent, all) == (300_000, 6, 1200) { 42 } else { 1 })
}
