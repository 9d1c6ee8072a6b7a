//! The system calls that threads may make.

use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::Role;

/// A system call, who may make it, and how.
pub(super) struct Call {
    pub number: i64,
    /// Bits of [`Role`].
    pub roles: u8,
    pub only: Only,
}

/// What a call's arguments have to be like.
#[derive(Clone, Copy)]
pub(super) enum Only {
    /// Anything.
    Any,
    /// The argument of this index, which is memory protection, is without `PROT_EXEC`.
    NotExecutable(u8),
    /// `ioctl` of KVM, whatever its descriptor.
    Kvm,
    /// As `Kvm`, or a question about a terminal.
    KvmOrTerminal,
    /// The first argument is this process.
    OwnProcess,
    /// The argument of this index is one of these.
    OneOf(u8, &'static [u64]),
}

const M: u8 = Role::Main as u8;
const V: u8 = Role::Vcpu as u8;
const Q: u8 = Role::Monitor as u8;
const C: u8 = Role::Control as u8;
const ALL: u8 = M | V | Q | C;

const fn any(number: i64, roles: u8) -> Call {
    Call { number, roles, only: Only::Any }
}

const fn only(number: i64, roles: u8, only: Only) -> Call {
    Call { number, roles, only }
}

/// Requests of KVM have this in their second byte.
const KVM_IOCTLS: u64 = 0xae00;

/// `prctl` of threads that are starting, of `malloc`, and of a thread that confines itself further.
const PRCTLS: &[u64] = &[
    libc::PR_SET_NAME as u64,
    libc::PR_GET_NAME as u64,
    libc::PR_SET_VMA as u64,
    libc::PR_SET_NO_NEW_PRIVS as u64,
    libc::PR_SET_SECCOMP as u64,
];

/// All calls, by what they are for. Main's list includes that of every other role, since threads inherit its filter
/// (there is a test for that): a line for V, Q or C says M too.
#[rustfmt::skip]
pub(super) const CALLS: &[Call] = &[
    // Memory
    any(libc::SYS_brk,               ALL),
    any(libc::SYS_madvise,           ALL),
    any(libc::SYS_mremap,            ALL),
    any(libc::SYS_munmap,            ALL),
    only(libc::SYS_mmap,             ALL, Only::NotExecutable(2)),
    only(libc::SYS_mprotect,         ALL, Only::NotExecutable(2)),
    any(libc::SYS_memfd_create,      M),
    any(libc::SYS_mincore,           M),
    any(libc::SYS_msync,             M),

    // Threads: starting (by main only), waiting, ending
    any(libc::SYS_clone,             M),
    any(libc::SYS_clone3,            M),
    any(libc::SYS_exit,              ALL),
    any(libc::SYS_exit_group,        ALL),
    any(libc::SYS_futex,             ALL),
    any(libc::SYS_getpid,            ALL),
    any(libc::SYS_gettid,            ALL),
    any(libc::SYS_membarrier,        ALL),
    any(libc::SYS_prlimit64,         M),
    any(libc::SYS_rseq,              ALL),
    any(libc::SYS_sched_getaffinity, ALL),
    any(libc::SYS_sched_yield,       ALL),
    any(libc::SYS_set_robust_list,   ALL),
    any(libc::SYS_seccomp,           M),
    only(libc::SYS_prctl,            ALL, Only::OneOf(0, PRCTLS)),
    any(libc::SYS_setsid,            M),

    // Signals: each thread may kick the others of this process
    any(libc::SYS_restart_syscall,   ALL),
    any(libc::SYS_rt_sigaction,      ALL),
    any(libc::SYS_rt_sigprocmask,    ALL),
    any(libc::SYS_rt_sigreturn,      ALL),
    any(libc::SYS_sigaltstack,       ALL),
    any(libc::SYS_signalfd4,         M),
    only(libc::SYS_tgkill,           ALL, Only::OwnProcess),

    // Time and chance
    any(libc::SYS_clock_getres,      ALL),
    any(libc::SYS_clock_gettime,     ALL),
    any(libc::SYS_clock_nanosleep,   ALL),
    any(libc::SYS_getrandom,         ALL),
    any(libc::SYS_getrusage,         M),
    any(libc::SYS_gettimeofday,      ALL),
    any(libc::SYS_nanosleep,         ALL),
    any(libc::SYS_time,              ALL),

    // Descriptors that are open
    any(libc::SYS_close,             ALL),
    any(libc::SYS_dup,               M),
    any(libc::SYS_dup2,              M),
    any(libc::SYS_dup3,              M),
    any(libc::SYS_eventfd2,          M),
    any(libc::SYS_fcntl,             ALL),
    any(libc::SYS_fstat,             ALL),
    any(libc::SYS_lseek,             M),
    any(libc::SYS_pipe2,             M),
    any(libc::SYS_poll,              ALL),
    any(libc::SYS_ppoll,             ALL),
    any(libc::SYS_pread64,           M | C),
    any(libc::SYS_pwrite64,          M),
    any(libc::SYS_read,              ALL),
    any(libc::SYS_readv,             ALL),
    any(libc::SYS_write,             ALL),
    any(libc::SYS_writev,            ALL),
    only(libc::SYS_ioctl,            V | Q | C, Only::Kvm),
    only(libc::SYS_ioctl,            M, Only::KvmOrTerminal),

    // The control socket, which listens before anybody is confined
    any(libc::SYS_accept4,           M | C),
    any(libc::SYS_geteuid,           M | C),
    any(libc::SYS_getsockopt,        M | C),
    any(libc::SYS_recvfrom,          M | C),
    any(libc::SYS_recvmsg,           M | C),
    any(libc::SYS_sendmsg,           M | C),
    any(libc::SYS_sendto,            M | C),
    any(libc::SYS_shutdown,          M | C),

    // Files, which Landlock has a word about too
    any(libc::SYS_access,            M),
    any(libc::SYS_chdir,             M),
    any(libc::SYS_faccessat2,        M),
    any(libc::SYS_fallocate,         M),
    any(libc::SYS_fchmod,            M),
    any(libc::SYS_fdatasync,         M),
    any(libc::SYS_flock,             M),
    any(libc::SYS_fstatfs,           M),
    any(libc::SYS_fsync,             M),
    any(libc::SYS_ftruncate,         M),
    any(libc::SYS_getcwd,            M),
    any(libc::SYS_getdents64,        M),
    any(libc::SYS_inotify_add_watch, M),
    any(libc::SYS_mkdir,             M),
    any(libc::SYS_mkdirat,           M),
    any(libc::SYS_newfstatat,        M | C),
    any(libc::SYS_openat,            M),
    any(libc::SYS_readlink,          M),
    any(libc::SYS_readlinkat,        M),
    any(libc::SYS_rename,            M),
    any(libc::SYS_renameat,          M),
    any(libc::SYS_renameat2,         M),
    any(libc::SYS_rmdir,             M),
    any(libc::SYS_stat,              M),
    any(libc::SYS_statfs,            M),
    any(libc::SYS_statx,             M),
    any(libc::SYS_unlink,            M),
    any(libc::SYS_unlinkat,          M | C),
];

impl Only {
    /// Any one of the rules is enough; without a rule the call is allowed as it is.
    pub(super) fn rules(self) -> Result<Vec<SeccompRule>, BackendError> {
        use SeccompCmpOp::{Eq, MaskedEq};
        let one =
            |arg, op, value| SeccompRule::new(vec![SeccompCondition::new(arg, SeccompCmpArgLen::Dword, op, value)?]);
        let kvm = || one(1, MaskedEq(0xff00), KVM_IOCTLS);
        match self {
            Self::Any => Ok(Vec::new()),
            Self::NotExecutable(arg) => Ok(vec![one(arg, MaskedEq(libc::PROT_EXEC as u64), 0)?]),
            Self::Kvm => Ok(vec![kvm()?]),
            Self::KvmOrTerminal => Ok(vec![kvm()?, one(1, Eq, libc::TCGETS)?, one(1, Eq, libc::TIOCGWINSZ)?]),
            Self::OwnProcess => Ok(vec![one(0, Eq, u64::from(std::process::id()))?]),
            Self::OneOf(arg, values) => values.iter().map(|&value| one(arg, Eq, value)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `role` may do, with who else may.
    fn of(role: u8) -> Vec<i64> {
        CALLS.iter().filter(|call| call.roles & role != 0).map(|call| call.number).collect()
    }

    #[test]
    fn main_may_do_what_anybody_may() {
        let main = of(M);
        assert!(of(ALL).iter().all(|call| main.contains(call)));
    }

    #[test]
    fn a_role_has_one_line_for_a_call() {
        for role in [M, V, Q, C] {
            let mut calls = of(role);
            calls.sort_unstable();
            assert!(calls.windows(2).all(|pair| pair[0] != pair[1]));
        }
    }

    #[test]
    fn nobody_may_start_programs_or_open_connections() {
        let all = of(ALL);
        for call in [libc::SYS_execve, libc::SYS_socket, libc::SYS_connect, libc::SYS_ptrace, libc::SYS_bpf] {
            assert!(!all.contains(&call));
        }
        assert!(!of(V | Q | C).contains(&libc::SYS_openat));
    }
}
