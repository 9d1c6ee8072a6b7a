//! Builds the program that guests run in the tests: it needs nothing but the processor and system calls, so the C compiler
//! that links everything else will do.

use std::path::Path;
use std::process::Command;

fn main() {
    let source = "programs/user.c";
    println!("cargo:rerun-if-changed={source}");
    println!("cargo:rerun-if-changed=build.rs");
    let out = std::env::var_os("OUT_DIR").expect("cargo names a directory");
    let status = Command::new("cc")
        .args([
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-std=gnu11",
            "-ffreestanding",
            "-fno-stack-protector",
            "-fno-builtin",
        ])
        .args(["-fno-pie", "-no-pie", "-nostdlib", "-static", "-mno-avx", "-fcf-protection=none", "-Wno-array-bounds"])
        .arg("-o")
        .arg(Path::new(&out).join("user"))
        .arg(source)
        .status()
        .expect("cc can be run");
    assert!(status.success(), "cc could not build {source}");
}
