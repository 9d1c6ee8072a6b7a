//! Builds the programs that guests run in the tests. Most need nothing but the processor and system calls, so the C compiler
//! that links everything else will do; two have a C library and Rust's, linked statically.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=programs/bare.h");
    println!("cargo:rerun-if-changed=programs/flags");
    let out = std::env::var_os("OUT_DIR").expect("cargo names a directory");
    let out = Path::new(&out);
    let names = [
        "user",
        "files",
        "mapped",
        "jobs",
        "signals",
        "bench",
        "touch",
        "cow",
        "flip",
        "stale",
        "storm",
        "errors",
        "calls",
        "registers",
        "shortage",
        "rseq",
    ];
    for name in names {
        freestanding(name, &[], out);
    }
    freestanding("packed", &["-Wl,-z,noseparate-code,-z,max-page-size=64,-z,common-page-size=64"], out);
    build("threads.c", Command::new("cc").args(["-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread"]), out);
    // Warnings are the linker's: of a stack that is executed.
    let anywhere =
        ["-O2", "-Wall", "-Wextra", "-Werror", "-fpie", "-static-pie", "-z", "execstack", "-Wl,--no-warn-execstack"];
    build("pie.c", Command::new("cc").args(anywhere), out);
    let rustc = std::env::var_os("RUSTC").expect("cargo names the compiler");
    let target = ["--edition", "2024", "--target", "x86_64-unknown-linux-gnu", "-C", "target-feature=+crt-static"];
    build("threads.rs", Command::new(rustc).arg("-O").args(target), out);
}

/// Builds `programs/NAME.c`, without a C library, with `more` flags; `scripts/programs` does it for use by hand.
fn freestanding(name: &str, more: &[&str], out: &Path) {
    let flags = std::fs::read_to_string("programs/flags").expect("the flags can be read");
    let mut compiler = Command::new("cc");
    let compiler = compiler.args(flags.split_whitespace()).args(more);
    build(&format!("{name}.c"), compiler, out);
}

/// Has `compiler` make a program of `programs/NAME`; it is called as that, but for the dot.
fn build(name: &str, compiler: &mut Command, out: &Path) {
    let source = format!("programs/{name}");
    println!("cargo:rerun-if-changed={source}");
    let status = compiler.arg("-o").arg(out.join(name.trim_end_matches(".c").replace('.', "-"))).arg(&source).status();
    assert!(status.is_ok_and(|status| status.success()), "{source} could not be built");
}
