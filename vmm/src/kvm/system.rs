//! Opening KVM, and saying what to do when that fails.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kvm_ioctls::{Cap, Kvm};

/// Where KVM is.
pub const KVM_DEVICE: &str = "/dev/kvm";

/// The only version of KVM's interface there has been since 2007.
const API_VERSION: i32 = 12;

/// What this VMM uses of KVM beyond its oldest version.
const CAPABILITIES: [(Cap, &str); 8] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// What to do instead, at the end of each message.
const INSTEAD: &str = "`scripts/lab run ...` runs the same without it";

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no such device.
    #[error(
        "{path} does not exist: load the module kvm_intel or kvm_amd, or enable virtualization in the firmware or in \
         the virtual machine this is; {INSTEAD}"
    )]
    Absent {
        /// The device.
        path: PathBuf,
    },
    /// The user may not open it.
    #[error("no permission to use {path}: become a member of its group (usually `kvm`) and log in again; {INSTEAD}")]
    NoPermission {
        /// The device.
        path: PathBuf,
    },
    /// It cannot be opened for another reason.
    #[error("cannot use {path}; {INSTEAD}")]
    Open {
        /// The device.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is no KVM, or not one this VMM knows.
    #[error("{path} has version {found} of the KVM interface, this VMM needs {API_VERSION}; {INSTEAD}")]
    ApiVersion {
        /// The device.
        path: PathBuf,
        /// Its version; negative when it is no KVM at all.
        found: i32,
    },
    /// It lacks something.
    #[error("{path} lacks {capability}, which this VMM needs: use a newer kernel; {INSTEAD}")]
    Capability {
        /// The device.
        path: PathBuf,
        /// What it lacks.
        capability: &'static str,
    },
}

/// A KVM that can run machines.
#[derive(Debug)]
pub struct KvmSystem {
    kvm: Kvm,
}

impl KvmSystem {
    /// Opens the KVM device at `path`, usually [`KVM_DEVICE`].
    ///
    /// # Errors
    /// [`KvmError`] says why it cannot be used, and what to do.
    pub fn open(path: &Path) -> Result<Self, KvmError> {
        let owned = || path.to_owned();
        // Opened here rather than by kvm-ioctls, which takes the path as a C string.
        let file = fs::File::options().read(true).write(true).open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => KvmError::Absent { path: owned() },
            io::ErrorKind::PermissionDenied => KvmError::NoPermission { path: owned() },
            _ => match error.raw_os_error() {
                // The node exists but no driver answers.
                Some(libc::ENODEV | libc::ENXIO) => KvmError::Absent { path: owned() },
                _ => KvmError::Open { path: owned(), source: error },
            },
        })?;
        // SAFETY: `file` was opened above and is given away, so the descriptor is open and has one owner.
        let kvm = unsafe { <Kvm as std::os::fd::FromRawFd>::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(file)) };
        let found = kvm.get_api_version();
        if found != API_VERSION {
            return Err(KvmError::ApiVersion { path: owned(), found });
        }
        match CAPABILITIES.iter().find(|(capability, _)| !kvm.check_extension(*capability)) {
            Some((_, capability)) => Err(KvmError::Capability { path: owned(), capability }),
            None => Ok(Self { kvm }),
        }
    }

    pub(crate) fn kvm(&self) -> &Kvm {
        &self.kvm
    }
}

/// Whether the host's CPUs have VT-x or AMD-V. Where they have neither, KVM emulates what the guest does in ring 0,
/// and the guest must know (`pagevisor.emulated`).
pub fn has_hardware_virtualization() -> bool {
    let has = |line: &str| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    match fs::read_to_string("/proc/cpuinfo") {
        Ok(text) => text.lines().filter(|line| line.starts_with("flags")).any(has),
        // Without /proc, assume the usual.
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_apart_and_the_lab_is_named() {
        let absent = KvmSystem::open(Path::new("/nonexistent/kvm")).unwrap_err();
        assert!(matches!(absent, KvmError::Absent { .. }));
        let no_kvm = KvmSystem::open(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(no_kvm, KvmError::ApiVersion { found: ..0, .. }));
        let directory = KvmSystem::open(Path::new("/")).unwrap_err();
        assert!(matches!(directory, KvmError::Open { .. }));
        for error in [absent, no_kvm, directory] {
            assert!(error.to_string().contains("scripts/lab"), "{error}");
        }
    }
}
