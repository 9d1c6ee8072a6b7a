//! Builds the programs that guests run in the tests: they need nothing but the processor and system calls, so the C compiler
//! that links everything else will do.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=programs/freestanding.h");
    let out = std::env::var_os("OUT_DIR").expect("cargo names a directory");
    for name in ["user", "files", "mapped"] {
        freestanding(name, Path::new(&out));
    }
}

/// Builds `programs/NAME.c`, without a C library.
fn freestanding(name: &str, out: &Path) {
    let source = format!("programs/{name}.c");
    println!("cargo:rerun-if-changed={source}");
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
        .arg(out.join(name))
        .arg(&source)
        .status()
        .expect("cc can be run");
    assert!(status.success(), "cc could not build {source}");
}
