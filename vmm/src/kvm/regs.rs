//! Registers: those a vCPU starts with, and those it is found with at the end.

use std::fmt;

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs};
use pagevisor_shared::region::PanicRecord;
use serde::{Deserialize, Serialize};

/// Number of registers in a report.
pub const REGISTERS: usize = PanicRecord::REGISTER_NAMES.len();

/// Registers of a CPU, in the order of [`PanicRecord::REGISTER_NAMES`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registers(pub [u64; REGISTERS]);

impl Registers {
    /// From what KVM tells.
    pub(crate) fn new(regs: &kvm_regs, sregs: &kvm_sregs) -> Self {
        Self([
            regs.rip,
            regs.rsp,
            regs.rflags,
            sregs.cs.selector.into(),
            sregs.ss.selector.into(),
            sregs.cr0,
            sregs.cr2,
            sregs.cr3,
            sregs.cr4,
            regs.rax,
            regs.rbx,
            regs.rcx,
            regs.rdx,
            regs.rsi,
            regs.rdi,
            regs.rbp,
            regs.r8,
            regs.r9,
            regs.r10,
            regs.r11,
            regs.r12,
            regs.r13,
            regs.r14,
            regs.r15,
        ])
    }

    /// The instruction pointer.
    pub const fn rip(&self) -> u64 {
        self.0[0]
    }

    /// Whether these are the registers of a CPU that was just reset, at the reset vector in real mode.
    pub fn are_of_reset(&self) -> bool {
        let [rip, _, _, cs, ..] = self.0;
        rip == 0xfff0 && cs == 0xf000
    }
}

/// As an oops of Linux prints them, RIP left out: three to a line.
impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [_, rsp, rflags, _, ss, cr0, cr2, cr3, cr4, general @ ..] = self.0;
        write!(f, "RSP: {ss:04x}:{rsp:016x} EFLAGS: {rflags:08x}")?;
        let names = PanicRecord::REGISTER_NAMES.iter().skip(REGISTERS - general.len());
        for (index, (name, value)) in names.zip(general).enumerate() {
            f.write_str(if index % 3 == 0 { "\n" } else { " " })?;
            write!(f, "{name:>3}: {value:016x}")?;
        }
        write!(f, "\nCR0: {cr0:016x} CR2: {cr2:016x}\nCR3: {cr3:016x} CR4: {cr4:016x}")
    }
}

/// General registers and segments, as many as `struct user_regs_struct` has.
pub const USER_REGISTERS: usize = 27;

/// Registers of a vCPU that is paused, as a debugger asks for them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CpuRegisters {
    /// In the order of Linux's `struct user_regs_struct`: R15 R14 R13 R12 RBP RBX R11 R10 R9 R8 RAX RCX RDX RSI RDI
    /// ORIG_RAX RIP CS RFLAGS RSP SS FS_BASE GS_BASE DS ES FS GS.
    pub user: [u64; USER_REGISTERS],
    /// CR0, CR2, CR3, CR4.
    pub control: [u64; 4],
    /// Whether the CPU waits for an interrupt, or to be started.
    pub waits: bool,
}

impl CpuRegisters {
    /// From what KVM tells.
    pub(crate) fn new(regs: &kvm_regs, sregs: &kvm_sregs, state: kvm_mp_state) -> Self {
        let selector = |segment: &kvm_segment| u64::from(segment.selector);
        Self {
            user: [
                regs.r15,
                regs.r14,
                regs.r13,
                regs.r12,
                regs.rbp,
                regs.rbx,
                regs.r11,
                regs.r10,
                regs.r9,
                regs.r8,
                regs.rax,
                regs.rcx,
                regs.rdx,
                regs.rsi,
                regs.rdi,
                u64::MAX,
                regs.rip,
                selector(&sregs.cs),
                regs.rflags,
                regs.rsp,
                selector(&sregs.ss),
                sregs.fs.base,
                sregs.gs.base,
                selector(&sregs.ds),
                selector(&sregs.es),
                selector(&sregs.fs),
                selector(&sregs.gs),
            ],
            control: [sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4],
            waits: state.mp_state != KVM_MP_STATE_RUNNABLE,
        }
    }

    /// The instruction pointer.
    pub const fn rip(&self) -> u64 {
        self.user[16]
    }

    /// The page-table root.
    pub const fn cr3(&self) -> u64 {
        self.control[2]
    }

    /// Whether the CPU executes a program (CPL 3).
    pub const fn in_user_mode(&self) -> bool {
        self.user[17] & 3 == 3
    }

    /// Whether the CPU translates addresses: one that waits to be started does not.
    pub const fn has_paging(&self) -> bool {
        self.control[0] >> 31 & 1 != 0
    }
}

/// Protection enabled, and a math coprocessor that is there.
const CR0_PE_ET: u64 = 0x11;
/// The bit that is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

fn flat_segment(selector: u16, kind: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// The state in which PVH hands over: 32-bit protected mode, flat segments, no paging, no interrupts. PVH promises no
/// descriptor table, so the selectors are only names.
pub(crate) fn set_pvh_entry(sregs: &mut kvm_sregs) {
    let data = flat_segment(0x10, 0x3);
    sregs.cs = flat_segment(0x8, 0xb);
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    sregs.tr = kvm_segment { limit: 0x67, db: 0, s: 0, g: 0, ..flat_segment(0x18, 0xb) };
    sregs.cr0 = CR0_PE_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
}

/// The general registers of PVH: where to begin, and the start info in EBX.
pub(crate) fn pvh_regs(entry: u64, start_info: u64) -> kvm_regs {
    kvm_regs { rip: entry, rbx: start_info, rflags: RFLAGS_RESERVED, ..Default::default() }
}
