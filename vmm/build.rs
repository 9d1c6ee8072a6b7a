//! Builds the guest kernel and hands its ELF to the crate as the environment variable `PAGEVISOR_KERNEL_ELF`.
//!
//! The kernel is compiled by a cargo of its own: its flags (guest/kernel/rustflags) and features must not mix with
//! those of the hosted crates, and a target directory of its own keeps the two cargos from waiting for each other's
//! lock. To embed a kernel that was built elsewhere, set `PAGEVISOR_KERNEL` to its path.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The bare-metal target, used where it is installed.
const BARE_TARGET: &str = "x86_64-unknown-none";
/// What does as well (guest/kernel/rustflags says why), and is there wherever this crate can be compiled.
const HOSTED_TARGET: &str = "x86_64-unknown-linux-gnu";
/// Stands for the absolute path of the linker script in guest/kernel/rustflags.
const LINKER_SCRIPT: &str = "@KERNEL_LD@";
/// What the kernel is made of, relative to the workspace. A directory is watched with all that is in it.
const SOURCES: [&str; 6] =
    ["Cargo.toml", "Cargo.lock", "guest/kernel", "guest/mm/Cargo.toml", "guest/mm/src", "shared"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-env-changed=PAGEVISOR_KERNEL");
    let elf = match env::var_os("PAGEVISOR_KERNEL") {
        Some(path) => {
            let elf = PathBuf::from(path).canonicalize()?;
            println!("cargo:rerun-if-changed={}", elf.display());
            elf
        }
        None => build_kernel()?,
    };
    println!("cargo:rustc-env=PAGEVISOR_KERNEL_ELF={}", elf.display());
    Ok(())
}

fn variable(name: &str) -> Result<PathBuf, Box<dyn Error>> {
    Ok(env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))?.into())
}

/// Compiles the kernel and gives the path of its ELF.
fn build_kernel() -> Result<PathBuf, Box<dyn Error>> {
    let manifest_dir = variable("CARGO_MANIFEST_DIR")?;
    let workspace = manifest_dir.parent().ok_or("the crate has no parent directory")?.canonicalize()?;
    for source in SOURCES {
        println!("cargo:rerun-if-changed={}", workspace.join(source).display());
    }
    let target = target(&variable("RUSTC")?)?;
    let target_dir = variable("OUT_DIR")?.join("kernel");
    let mut cargo = Command::new(variable("CARGO")?);
    cargo.current_dir(&workspace).args(["build", "-p", "pagevisor-kernel", "--profile", "kernel", "--target", target]);
    cargo.arg("--target-dir").arg(&target_dir);
    if workspace.join("Cargo.lock").exists() {
        cargo.arg("--locked");
    }
    clear_inherited(&mut cargo);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", rustflags(&workspace)?.join("\u{1f}"));
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("the guest kernel did not build: cargo ended with {status}").into());
    }
    Ok(target_dir.join(target).join("kernel/pagevisor-kernel"))
}

/// [`BARE_TARGET`] if this toolchain has it, else [`HOSTED_TARGET`].
fn target(rustc: &Path) -> Result<&'static str, Box<dyn Error>> {
    let output = Command::new(rustc).args(["--print", "target-libdir", "--target", BARE_TARGET]).output()?;
    let libdir = String::from_utf8(output.stdout)?;
    let installed = output.status.success() && Path::new(libdir.trim()).is_dir();
    Ok(if installed { BARE_TARGET } else { HOSTED_TARGET })
}

/// Takes away what the outer cargo, or its user, set for crates that run on the host.
fn clear_inherited(cargo: &mut Command) {
    let flags = |name: &str| name.starts_with("CARGO_TARGET_") && name != "CARGO_TARGET_TMPDIR";
    let package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_CFG_");
    let build = |name: &str| name.starts_with("CARGO_BUILD_") || name.starts_with("CARGO_FEATURE_");
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| flags(name) || package(name) || build(name)) {
            cargo.env_remove(&name);
        }
    }
    // Clippy and the like wrap the compiler of the workspace: they have no business with a kernel that is embedded.
    for name in ["RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "CARGO_PRIMARY_PACKAGE", "TARGET", "HOST", "PROFILE"] {
        cargo.env_remove(name);
    }
    for name in ["OPT_LEVEL", "DEBUG", "NUM_JOBS", "OUT_DIR"] {
        cargo.env_remove(name);
    }
}

/// The flags of guest/kernel/rustflags, and those that keep this machine's paths out of the ELF.
fn rustflags(workspace: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let kernel = workspace.join("guest/kernel");
    let script = kernel.join("kernel.ld");
    let script = script.to_str().ok_or("the path of the workspace is not UTF-8")?;
    let text = std::fs::read_to_string(kernel.join("rustflags"))?;
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let mut flags: Vec<String> =
        lines.filter(|line| !line.is_empty()).map(|line| line.replace(LINKER_SCRIPT, script)).collect();
    flags.push(format!("--remap-path-prefix={}=", workspace.display()));
    if let Some(home) = env::var_os("CARGO_HOME") {
        flags.push(format!("--remap-path-prefix={}=cargo", Path::new(&home).display()));
    } else if let Some(home) = env::home_dir() {
        flags.push(format!("--remap-path-prefix={}=cargo", home.join(".cargo").display()));
    }
    Ok(flags)
}
