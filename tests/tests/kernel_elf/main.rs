//! The kernel's ELF, disassembled: nothing in it that emulated ring 0 cannot execute, and nothing below RSP.
//!
//! `compiler_builtins` is not part of the kernel's LTO, so its code is checked here like any other.

mod checker;

use std::collections::BTreeSet;

use checker::{Finding, check};
use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind, Register};
use object::{Object, ObjectSection, ObjectSymbol, SectionFlags, SymbolKind, elf};
use pagevisor_tests::command::kernel_elf;

/// Each stretch of code of the ELF: name, address, bytes.
fn functions(file: &object::File<'_>) -> Vec<(String, u64, Vec<u8>)> {
    let mut functions = Vec::new();
    for section in file.sections() {
        let SectionFlags::Elf { sh_flags } = section.flags() else { panic!("not an ELF section") };
        if sh_flags & u64::from(elf::SHF_EXECINSTR) == 0 {
            continue;
        }
        let data = section.data().expect("section data");
        let end = section.address() + section.size();
        let mut starts: Vec<(u64, String)> = file
            .symbols()
            .filter(|s| matches!(s.kind(), SymbolKind::Text) && (section.address()..end).contains(&s.address()))
            .map(|s| (s.address(), s.name().unwrap_or("?").to_owned()))
            .collect();
        starts.push((section.address(), section.name().unwrap_or("?").to_owned()));
        starts.sort();
        starts.dedup_by_key(|(address, _)| *address);
        let ends: Vec<u64> = starts.iter().skip(1).map(|(a, _)| *a).chain([end]).collect();
        for ((start, name), end) in starts.into_iter().zip(ends) {
            let range = (start - section.address()) as usize..(end - section.address()) as usize;
            functions.push((name, start, data[range].to_vec()));
        }
    }
    functions
}

/// An operation on a per-CPU variable is one instruction with the GS segment; without the lock prefix, as only the CPU
/// itself writes there.
#[test]
fn operations_on_per_cpu_variables_are_one_instruction() {
    let path = kernel_elf();
    let data = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = object::File::parse(&*data).expect("an ELF");
    let mut found = BTreeSet::new();
    for (_, address, code) in functions(&file) {
        for instruction in &mut Decoder::with_ip(64, &code, address, DecoderOptions::NONE) {
            if instruction.segment_prefix() == Register::GS && instruction.mnemonic() != Mnemonic::Nop {
                assert!(!instruction.has_lock_prefix(), "{:#x}: {instruction}", instruction.ip());
                if instruction.op0_kind() == OpKind::Memory {
                    found.insert((instruction.mnemonic(), instruction.memory_size().size()));
                }
            }
        }
    }
    use Mnemonic::{Add, And, Cmpxchg, Dec, Inc, Mov, Or, Sub, Xadd, Xchg};
    for mnemonic in [Add, And, Cmpxchg, Dec, Inc, Mov, Or, Sub, Xadd, Xchg] {
        for size in [4, 8] {
            assert!(found.contains(&(mnemonic, size)), "{mnemonic:?} of {size} bytes");
        }
    }
}

#[test]
fn the_kernel_has_only_what_emulated_ring_0_executes() {
    let path = kernel_elf();
    let bytes = std::fs::read(&path).expect("kernel ELF");
    let file = object::File::parse(&*bytes).expect("ELF");
    let functions = functions(&file);
    assert!(functions.len() > 50, "only {} functions found in {}", functions.len(), path.display());
    let mut report = String::new();
    let mut deliberate = 0;
    for (name, address, code) in &functions {
        // The way into long mode is named for what it is.
        let bits = if name.ends_with("32") { 32 } else { 64 };
        for Finding { ip, why, text } in check(code, *address, bits) {
            // pagevisor.test=bad-instruction executes one that fails, in a place of its own.
            if text == "emms" {
                deliberate += 1;
            } else {
                report += &format!("{ip:#x} {name}: {text}: {why}\n");
            }
        }
    }
    assert!(deliberate <= 1, "{deliberate} emms");
    assert!(report.is_empty(), "{report}");
}

/// The rule that the code breaks, if any.
fn broken(code: &[u8]) -> Option<&'static str> {
    let mut code = code.to_vec();
    code.push(0xc3);
    check(&code, 0x1000, 64).first().map(|f| f.why)
}

#[test]
fn each_kind_of_forbidden_instruction_is_found() {
    let vector = Some("vector, MMX or x87 register");
    let beyond = Some("beyond the baseline");
    let refused = Some("does not work in emulated ring 0");
    let cases: &[(&str, &[u8], Option<&str>)] = &[
        ("addss xmm0,xmm1", &[0xf3, 0x0f, 0x58, 0xc1], vector),
        ("pxor xmm0,xmm0", &[0x66, 0x0f, 0xef, 0xc0], vector),
        ("movaps xmm0,[rax]", &[0x0f, 0x28, 0x00], vector),
        ("movq mm0,[rax]", &[0x0f, 0x6f, 0x00], vector),
        ("fld1", &[0xd9, 0xe8], beyond),
        ("fadd st0,st1", &[0xd8, 0xc1], vector),
        ("vpxor ymm0,ymm0,ymm0", &[0xc5, 0xfd, 0xef, 0xc0], vector),
        ("vzeroupper", &[0xc5, 0xf8, 0x77], vector),
        ("emms", &[0x0f, 0x77], beyond),
        ("ldmxcsr [rax]", &[0x0f, 0xae, 0x10], refused),
        ("popcnt eax,ebx", &[0xf3, 0x0f, 0xb8, 0xc3], beyond),
        ("lzcnt eax,ebx", &[0xf3, 0x0f, 0xbd, 0xc3], beyond),
        ("andn eax,ebx,ecx", &[0xc4, 0xe2, 0x60, 0xf2, 0xc1], beyond),
        ("shlx eax,ebx,ecx", &[0xc4, 0xe2, 0x71, 0xf7, 0xc3], beyond),
        ("adcx eax,ebx", &[0x66, 0x0f, 0x38, 0xf6, 0xc3], beyond),
        ("crc32 eax,bl", &[0xf2, 0x0f, 0x38, 0xf0, 0xc3], beyond),
        ("movbe eax,[rax]", &[0x0f, 0x38, 0xf0, 0x00], beyond),
        ("cmpxchg16b [rax]", &[0x48, 0x0f, 0xc7, 0x08], beyond),
        ("rdtscp", &[0x0f, 0x01, 0xf9], beyond),
        ("xsaveopt [rax]", &[0x0f, 0xae, 0x30], beyond),
        ("xsave [rax]", &[0x0f, 0xae, 0x20], beyond),
        ("rdpid rax", &[0xf3, 0x0f, 0xc7, 0xf8], beyond),
        ("clwb [rax]", &[0x66, 0x0f, 0xae, 0x30], beyond),
        ("stac", &[0x0f, 0x01, 0xcb], beyond),
        ("invpcid rax,[rax]", &[0x66, 0x0f, 0x38, 0x82, 0x00], beyond),
        ("mwait", &[0x0f, 0x01, 0xc9], beyond),
        ("vmmcall", &[0x0f, 0x01, 0xd9], beyond),
        ("vmcall", &[0x0f, 0x01, 0xc1], beyond),
        ("int 0x80", &[0xcd, 0x80], refused),
        ("int3 in the flow", &[0x90, 0xcc], refused),
        ("syscall", &[0x0f, 0x05], refused),
        ("verr ax", &[0x0f, 0x00, 0xe0], refused),
        ("lsl eax,eax", &[0x0f, 0x03, 0xc0], refused),
        ("push es, no such thing in 64 bits", &[0x06], Some("not an instruction")),
    ];
    for (text, code, why) in cases {
        assert_eq!(broken(code), *why, "{text}");
    }
}

#[test]
fn what_ring_0_needs_is_allowed() {
    let cases: &[(&str, &[u8])] = &[
        ("fxsave64 [rax]", &[0x48, 0x0f, 0xae, 0x00]),
        ("fxrstor64 [rax]", &[0x48, 0x0f, 0xae, 0x08]),
        ("fninit", &[0xdb, 0xe3]),
        ("xgetbv", &[0x0f, 0x01, 0xd0]),
        ("mfence", &[0x0f, 0xae, 0xf0]),
        ("lfence", &[0x0f, 0xae, 0xe8]),
        ("movnti [rax],rcx", &[0x48, 0x0f, 0xc3, 0x08]),
        ("prefetcht0 [rax]", &[0x0f, 0x18, 0x08]),
        ("pause", &[0xf3, 0x90]),
        ("rep bsf eax,ebx", &[0xf3, 0x0f, 0xbc, 0xc3]),
        ("bsf rax,rcx", &[0x48, 0x0f, 0xbc, 0xc1]),
        ("rdtsc", &[0x0f, 0x31]),
        ("rdrand rax", &[0x48, 0x0f, 0xc7, 0xf0]),
        ("lock cmpxchg8b [rax]", &[0xf0, 0x0f, 0xc7, 0x08]),
        ("swapgs", &[0x0f, 0x01, 0xf8]),
        ("wrgsbase rax", &[0xf3, 0x48, 0x0f, 0xae, 0xd8]),
        ("rep stosq", &[0xf3, 0x48, 0xab]),
        ("iretq", &[0x48, 0xcf]),
        ("long nop", &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00]),
    ];
    for (text, code) in cases {
        assert_eq!(broken(code), None, "{text}");
    }
}

#[test]
fn fill_behind_a_function_is_not_code() {
    // ud2, or a call that does not return, and int3 up to the next function.
    assert_eq!(check(&[0x0f, 0x0b, 0xcc, 0xcc, 0xcc], 0x1000, 64), []);
    assert_eq!(check(&[0xe8, 0, 0, 0, 0, 0xcc, 0xcc], 0x1000, 64), []);
    assert_eq!(check(&[0x90, 0xcc], 0x1000, 64).len(), 1, "code runs into this one");
    assert_eq!(check(&[0xc3, 0xcc, 0xc3], 0x1000, 64).len(), 1, "and this one is not at the end");
}

#[test]
fn an_access_below_the_stack_pointer_is_found() {
    let below = Some("access below RSP");
    let cases: &[(&str, &[u8], Option<&str>)] = &[
        ("mov [rsp-8],rax", &[0x48, 0x89, 0x44, 0x24, 0xf8], below),
        ("mov rax,[rsp-0x80]", &[0x48, 0x8b, 0x44, 0x24, 0x80], below),
        ("mov [rsp+8],rax", &[0x48, 0x89, 0x44, 0x24, 0x08], None),
        ("lea rax,[rsp-8]", &[0x48, 0x8d, 0x44, 0x24, 0xf8], None),
        // push rbp; mov rbp,rsp; mov [rbp-8],rax: no room was made.
        ("red zone through rbp", &[0x55, 0x48, 0x89, 0xe5, 0x48, 0x89, 0x45, 0xf8, 0x5d], below),
        // The same with sub rsp,16 before and add rsp,16 behind.
        (
            "frame through rbp",
            &[0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x10, 0x48, 0x89, 0x45, 0xf8, 0x48, 0x83, 0xc4, 0x10, 0x5d],
            None,
        ),
        // push rbp; mov rbp,rsp; push rbx; mov [rbp-8],rax; mov [rbp-16],rax
        (
            "one push, two words",
            &[0x55, 0x48, 0x89, 0xe5, 0x53, 0x48, 0x89, 0x45, 0xf8, 0x48, 0x89, 0x45, 0xf0, 0x5b, 0x5d],
            below,
        ),
        ("mov rax,[rsp+rcx*8-8] has an index", &[0x48, 0x8b, 0x44, 0xcc, 0xf8], None),
    ];
    for (text, code, why) in cases {
        assert_eq!(broken(code), *why, "{text}");
    }
}
