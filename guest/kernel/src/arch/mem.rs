//! The memory routines that compiled code calls: no C library is linked.
//!
//! By 8-byte string instructions with byte tails. Where ring 0 is emulated each iteration costs a microsecond
//! whatever its width, so a byte-wise `rep movsb` would be eight times slower; on hardware `rep movsq` is close to
//! the best there is without vector registers. Written in assembly, because the compiler would turn loops into calls
//! of these very functions.

use core::arch::naked_asm;

/// Copies `n` bytes that don't overlap.
///
/// # Safety
/// C's `memcpy`.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(dest: *mut u8, src: *const u8, n: usize) -> *mut u8 {
    naked_asm!(
        "mov rax, rdi",
        "mov rcx, rdx",
        "shr rcx, 3",
        "rep movsq",
        "and edx, 7",
        "mov ecx, edx",
        "rep movsb",
        "ret"
    )
}

/// Copies `n` bytes that may overlap.
///
/// # Safety
/// C's `memmove`.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(dest: *mut u8, src: *const u8, n: usize) -> *mut u8 {
    naked_asm!(
        "mov rax, rdi",
        "sub rax, rsi",
        "cmp rax, rdx",
        "jae memcpy", // the destination does not start inside the source: forwards is fine
        "mov rax, rdi",
        "std",
        "lea rdi, [rdi + rdx - 1]",
        "lea rsi, [rsi + rdx - 1]",
        "mov ecx, edx",
        "and ecx, 7",
        "rep movsb",
        "sub rdi, 7",
        "sub rsi, 7",
        "mov rcx, rdx",
        "shr rcx, 3",
        "rep movsq",
        "cld",
        "ret"
    )
}

/// Fills `n` bytes with `byte`.
///
/// # Safety
/// C's `memset`.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(dest: *mut u8, byte: i32, n: usize) -> *mut u8 {
    naked_asm!(
        "mov r8, rdi",
        "movzx eax, sil",
        "mov rcx, 0x0101010101010101",
        "imul rax, rcx",
        "mov rcx, rdx",
        "shr rcx, 3",
        "rep stosq",
        "and edx, 7",
        "mov ecx, edx",
        "rep stosb",
        "mov rax, r8",
        "ret"
    )
}

/// Compares `n` bytes: below, equal to or above zero as the first difference has it.
///
/// # Safety
/// C's `memcmp`.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    naked_asm!(
        "xor eax, eax",
        "mov rcx, rdx",
        "cmp rax, rax", // equal when there is nothing to compare
        "repe cmpsb",
        "je 2f",
        "movzx eax, byte ptr [rdi - 1]",
        "movzx ecx, byte ptr [rsi - 1]",
        "sub eax, ecx",
        "2:",
        "ret"
    )
}

/// Compares `n` bytes: zero when they are equal.
///
/// # Safety
/// C's `bcmp`.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    naked_asm!("jmp memcmp")
}

/// Named by precompiled parts of the standard library for unwinding, which this kernel never does.
#[unsafe(no_mangle)]
pub extern "C" fn rust_eh_personality() {}
