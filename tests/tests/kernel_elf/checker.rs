//! What ring-0 code may contain: the rules, applied to a function's bytes.
//!
//! Emulated ring 0 executes the x86-64 baseline's integer instructions and little else, and interrupts use the
//! kernel's own stack, so nothing below RSP survives. Three rules follow: the instruction is of an allowed CPUID
//! feature, it is not one of the few that fail for other reasons, and memory below RSP is not touched.

use std::collections::BTreeMap;

use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, FlowControl, Formatter, Instruction, InstructionInfoFactory, Mnemonic,
    NasmFormatter, OpAccess, Register,
};

/// A broken rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    pub ip: u64,
    pub why: &'static str,
    pub text: String,
}

/// Features whose instructions ring 0 may use. `CLFSH`, `SSE` and `SSE2` appear for fences, `prefetch` and `movnti`
/// only: what touches a vector register is refused before this list is asked.
const ALLOWED_FEATURES: &[CpuidFeature] = &[
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL8086_ONLY,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CMOV,
    CpuidFeature::CPUID,
    CpuidFeature::CX8,
    CpuidFeature::MSR,
    CpuidFeature::TSC,
    CpuidFeature::FSGSBASE,
    CpuidFeature::SYSCALL,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::PAUSE,
    CpuidFeature::RDRAND,
    CpuidFeature::CLFSH,
    CpuidFeature::CLFLUSHOPT,
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
];

/// Instructions of allowed features that ring 0 must not use all the same.
const REFUSED: &[Mnemonic] = &[
    Mnemonic::Int,
    Mnemonic::Into,
    Mnemonic::Syscall,
    Mnemonic::Sysret,
    Mnemonic::Verr,
    Mnemonic::Verw,
    Mnemonic::Lar,
    Mnemonic::Lsl,
    Mnemonic::Ldmxcsr,
    Mnemonic::Stmxcsr,
    Mnemonic::Wait,
    Mnemonic::Maskmovq,
];

/// What saves and restores the user's floating-point state. Those that came with XSAVE are behind a choice: where ring 0 is
/// emulated, which the VMM tells, the kernel does without.
const STATE_CODES: &[Mnemonic] = &[
    Mnemonic::Fxsave,
    Mnemonic::Fxsave64,
    Mnemonic::Fxrstor,
    Mnemonic::Fxrstor64,
    Mnemonic::Fninit,
    Mnemonic::Xsave64,
    Mnemonic::Xrstor64,
    Mnemonic::Xsetbv,
    Mnemonic::Xgetbv,
];

/// Checks one function. `bits` is 64, or 32 for the code before long mode.
pub fn check(code: &[u8], ip: u64, bits: u32) -> Vec<Finding> {
    let mut findings = Vec::new();
    let instructions = decode(code, ip, bits);
    let fill = fill(&instructions);
    for instruction in instructions.values().filter(|i| fill.is_none_or(|start| i.ip() < start)) {
        if let Some(why) = refusal(instruction) {
            findings.push(finding(instruction, why));
        }
    }
    if bits == 64 {
        findings.extend(below_stack(&instructions, ip));
    }
    findings.sort_by_key(|f| f.ip);
    findings
}

/// Where the fill behind the function starts: `int3` to the end, which nothing runs into, since what is before it
/// leaves for good: a jump, a return, a trap, or a call of what does not return.
fn fill(instructions: &BTreeMap<u64, Instruction>) -> Option<u64> {
    let mut start = None;
    for instruction in instructions.values().rev() {
        if instruction.mnemonic() != Mnemonic::Int3 {
            let falls_through =
                matches!(instruction.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch);
            return start.filter(|_| !falls_through);
        }
        start = Some(instruction.ip());
    }
    None
}

/// LLVM writes `bsf` with a REP prefix wherever it makes no difference that a processor with BMI1 then reads `tzcnt`.
/// Without BMI1 in its flags it never means `tzcnt`, so the bytes are decoded as what was meant.
fn decode(code: &[u8], ip: u64, bits: u32) -> BTreeMap<u64, Instruction> {
    Decoder::with_ip(bits, code, ip, DecoderOptions::NO_MPFX_0FBC).iter().map(|i| (i.ip(), i)).collect()
}

fn finding(instruction: &Instruction, why: &'static str) -> Finding {
    let mut text = String::new();
    NasmFormatter::new().format(instruction, &mut text);
    Finding { ip: instruction.ip(), why, text }
}

fn refusal(instruction: &Instruction) -> Option<&'static str> {
    let mnemonic = instruction.mnemonic();
    if instruction.is_invalid() {
        return Some("not an instruction");
    }
    if STATE_CODES.contains(&mnemonic) {
        return None;
    }
    if mnemonic == Mnemonic::Int3 || REFUSED.contains(&mnemonic) {
        return Some("does not work in emulated ring 0");
    }
    if uses_vector(instruction) {
        return Some("vector, MMX or x87 register");
    }
    if instruction.cpuid_features().iter().any(|f| !ALLOWED_FEATURES.contains(f)) {
        return Some("beyond the baseline");
    }
    None
}

fn uses_vector(instruction: &Instruction) -> bool {
    let vector = |r: Register| r.is_vector_register() || r.is_mm() || r.is_st() || r.is_k() || r.is_tmm() || r.is_bnd();
    let mut factory = InstructionInfoFactory::new();
    factory.info(instruction).used_registers().iter().any(|used| vector(used.register()))
}

/// RSP and RBP as offsets from RSP at the function's entry, where they are known.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Frame {
    rsp: Option<i64>,
    rbp: Option<i64>,
}

/// Follows the stack pointer along every path from the entry, and reports what is accessed below it.
fn below_stack(instructions: &BTreeMap<u64, Instruction>, entry: u64) -> Vec<Finding> {
    let mut seen: BTreeMap<u64, Frame> = BTreeMap::new();
    let mut work = vec![(entry, Frame { rsp: Some(0), rbp: None })];
    let mut found = BTreeMap::new();
    while let Some((ip, frame)) = work.pop() {
        let Some(instruction) = instructions.get(&ip) else { continue };
        let merged = match seen.get(&ip) {
            Some(old) if *old == frame => continue,
            Some(old) => Frame { rsp: agreed(old.rsp, frame.rsp), rbp: agreed(old.rbp, frame.rbp) },
            None => frame,
        };
        if seen.insert(ip, merged) == Some(merged) {
            continue;
        }
        if accesses_below(instruction, merged) {
            found.insert(ip, finding(instruction, "access below RSP"));
        }
        let next = step(instruction, merged);
        match instruction.flow_control() {
            FlowControl::UnconditionalBranch => work.push((instruction.near_branch_target(), next)),
            FlowControl::ConditionalBranch => {
                work.push((instruction.near_branch_target(), next));
                work.push((instruction.next_ip(), next));
            }
            FlowControl::Return | FlowControl::IndirectBranch | FlowControl::Exception => {}
            _ => work.push((instruction.next_ip(), next)),
        }
    }
    // What only an indirect branch reaches has no known frame; the plain form is visible there too.
    for (ip, instruction) in instructions {
        if !seen.contains_key(ip) && accesses_below(instruction, Frame { rsp: None, rbp: None }) {
            found.insert(*ip, finding(instruction, "access below RSP"));
        }
    }
    found.into_values().collect()
}

fn agreed(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    if a == b { a } else { None }
}

fn accesses_below(instruction: &Instruction, frame: Frame) -> bool {
    let mut factory = InstructionInfoFactory::new();
    let explicit = (0..instruction.op_count()).any(|op| instruction.op_kind(op) == iced_x86::OpKind::Memory);
    if !explicit || instruction.memory_index() != Register::None {
        return false;
    }
    let displacement = instruction.memory_displacement64().cast_signed();
    let touches = factory.info(instruction).used_memory().iter().any(|used| {
        used.base() == instruction.memory_base()
            && used.displacement() == instruction.memory_displacement64()
            && !matches!(used.access(), OpAccess::None | OpAccess::NoMemAccess)
    });
    if !touches {
        return false;
    }
    match (instruction.memory_base(), frame) {
        (Register::RSP, _) => displacement < 0,
        (Register::RBP, Frame { rsp: Some(rsp), rbp: Some(rbp) }) => rbp.saturating_add(displacement) < rsp,
        _ => false,
    }
}

fn step(instruction: &Instruction, frame: Frame) -> Frame {
    let mut next = frame;
    let to_rsp = instruction.op_count() > 0 && instruction.op0_register() == Register::RSP;
    match instruction.code() {
        Code::Mov_r64_rm64 | Code::Mov_rm64_r64
            if instruction.op0_register() == Register::RBP && instruction.op1_register() == Register::RSP =>
        {
            next.rbp = frame.rsp;
        }
        Code::Mov_r64_rm64 | Code::Mov_rm64_r64 if to_rsp && instruction.op1_register() == Register::RBP => {
            next.rsp = frame.rbp;
        }
        Code::Lea_r64_m if to_rsp && instruction.memory_base() == Register::RBP => {
            next.rsp = frame.rbp.map(|rbp| rbp + instruction.memory_displacement64().cast_signed());
        }
        Code::Lea_r64_m if to_rsp && instruction.memory_base() == Register::RSP => {
            next.rsp = frame.rsp.map(|rsp| rsp + instruction.memory_displacement64().cast_signed());
        }
        Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 if to_rsp => {
            next.rsp = frame.rsp.map(|rsp| rsp - instruction.immediate(1).cast_signed());
        }
        Code::Add_rm64_imm8 | Code::Add_rm64_imm32 if to_rsp => {
            next.rsp = frame.rsp.map(|rsp| rsp + instruction.immediate(1).cast_signed());
        }
        Code::Leaveq => next = Frame { rsp: frame.rbp.map(|rbp| rbp + 8), rbp: None },
        _ if instruction.flow_control() == FlowControl::Call
            || instruction.flow_control() == FlowControl::IndirectCall =>
        {
            // The callee returns what it took and keeps RBP.
        }
        _ => {
            let change = i64::from(instruction.stack_pointer_increment());
            if instruction.is_stack_instruction() && !to_rsp {
                next.rsp = frame.rsp.map(|rsp| rsp + change);
            } else if writes(instruction, Register::RSP) {
                next.rsp = None;
            }
            if writes(instruction, Register::RBP) {
                next.rbp = None;
            }
        }
    }
    next
}

fn writes(instruction: &Instruction, register: Register) -> bool {
    InstructionInfoFactory::new().info(instruction).used_registers().iter().any(|used| {
        used.register().full_register() == register
            && matches!(
                used.access(),
                OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
            )
    })
}
