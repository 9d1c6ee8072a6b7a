//! Nothing to generate; the linker script is named here so that a change of it relinks the kernel.

fn main() {
    println!("cargo:rerun-if-changed=kernel.ld");
    println!("cargo:rerun-if-changed=build.rs");
}
