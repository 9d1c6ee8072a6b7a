//! Programs' memory, by the addresses that programs give (`arch/x86/lib/usercopy_64.c`).
//!
//! The instructions that use such an address are in a table (`__ex_table`), with where to go on: an address that is not
//! there, or that may not be used so, ends the access and not the kernel. First of all an address must be below
//! [`TASK_SIZE_MAX`] (`access_ok`).

use core::arch::global_asm;

use pagevisor_shared::errno::Errno;
use pagevisor_shared::layout::TASK_SIZE_MAX;

use super::traps::TrapFrame;

global_asm!(
    r#"
    .text
    // copy_user(to, from, len) -> bytes that were not copied
    .globl copy_user
    .type copy_user, @function
copy_user:
    movq %rdx, %rcx
    shrq $3, %rcx
    andl $7, %edx
1:  rep movsq
    movq %rdx, %rcx
2:  rep movsb
    xorl %eax, %eax
    ret
3:  leaq (%rdx,%rcx,8), %rcx
4:  movq %rcx, %rax
    ret

    // clear_user_memory(at, len) -> bytes that were not cleared
    .globl clear_user_memory
    .type clear_user_memory, @function
clear_user_memory:
    movq %rsi, %rcx
    shrq $3, %rcx
    andl $7, %esi
    xorl %eax, %eax
5:  rep stosq
    movq %rsi, %rcx
6:  rep stosb
    ret
7:  leaq (%rsi,%rcx,8), %rcx
8:  movq %rcx, %rax
    ret

    // copy_user_string(to, from, len) -> bytes that were copied before a zero byte, len if there is none, or -1
    .globl copy_user_string
    .type copy_user_string, @function
copy_user_string:
    xorl %eax, %eax
9:  cmpq %rdx, %rax
    jae 11f
10: movb (%rsi,%rax), %cl
    movb %cl, (%rdi,%rax)
    testb %cl, %cl
    jz 11f
    incq %rax
    jmp 9b
11: ret
12: movq $-1, %rax
    ret

    // exchange_user(at, old, new) -> 0 if `at` held `old` and holds `new` now, 1 if it holds something else, 2 if it is not there
    .globl exchange_user
    .type exchange_user, @function
exchange_user:
    movl %esi, %eax
13: lock cmpxchgl %edx, (%rdi)
    setne %al
    movzbl %al, %eax
    ret
14: movl $2, %eax
    ret

    .pushsection __ex_table, "a", @progbits
    .balign 8
    .quad 1b, 3b
    .quad 2b, 4b
    .quad 5b, 7b
    .quad 6b, 8b
    .quad 10b, 12b
    .quad 13b, 14b
    .popsection
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    fn copy_user(to: u64, from: u64, len: u64) -> u64;
    fn clear_user_memory(at: u64, len: u64) -> u64;
    fn copy_user_string(to: u64, from: u64, len: u64) -> u64;
    fn exchange_user(at: u64, old: u32, new: u32) -> u32;
    static __ex_table_start: [u64; 2];
    static __ex_table_end: [u64; 2];
}

/// Lets the kernel go on behind the instruction at `frame` if that may fail; whether it may (`fixup_exception`).
pub fn fix(frame: &mut TrapFrame) -> bool {
    let start = &raw const __ex_table_start;
    let entries = ((&raw const __ex_table_end).addr() - start.addr()) / size_of::<[u64; 2]>();
    // SAFETY: the linker script puts these symbols around the entries.
    let table = unsafe { core::slice::from_raw_parts(start, entries) };
    // There are few.
    match table.iter().find(|[instruction, _]| *instruction == frame.rip) {
        Some([_, on]) => {
            frame.rip = *on;
            true
        }
        None => false,
    }
}

/// Whether the instruction at `frame` may fail.
pub fn is_fixable(frame: &mut TrapFrame) -> bool {
    let rip = frame.rip;
    let found = fix(frame);
    frame.rip = rip;
    found
}

/// Whether `len` bytes at `addr` can be a program's (`access_ok`).
#[inline]
pub const fn is_user_range(addr: u64, len: u64) -> bool {
    len <= TASK_SIZE_MAX && addr <= TASK_SIZE_MAX - len
}

fn check(addr: u64, len: usize) -> Result<(), Errno> {
    if is_user_range(addr, len as u64) { Ok(()) } else { Err(Errno::EFAULT) }
}

fn address(bytes: *const u8) -> u64 {
    bytes.expose_provenance() as u64
}

/// Copies the program's bytes at `addr` (`copy_from_user`).
///
/// # Errors
/// EFAULT if they are not all there.
pub fn read(to: &mut [u8], addr: u64) -> Result<(), Errno> {
    check(addr, to.len())?;
    // SAFETY: what is written is the slice; what is read is below the kernel, and may fail.
    match unsafe { copy_user(address(to.as_mut_ptr()), addr, to.len() as u64) } {
        0 => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// Copies `from` to the program's `addr`, and gives how many bytes it could (`copy_to_user`).
pub fn write_some(addr: u64, from: &[u8]) -> usize {
    if check(addr, from.len()).is_err() {
        return 0;
    }
    // SAFETY: what is read is the slice; what is written is below the kernel, where only programs have something, and may
    // fail.
    from.len() - unsafe { copy_user(addr, address(from.as_ptr()), from.len() as u64) } as usize
}

/// Copies `from` to the program's `addr`.
///
/// # Errors
/// EFAULT if not all of it could be; some of it may have been.
pub fn write(addr: u64, from: &[u8]) -> Result<(), Errno> {
    if write_some(addr, from) == from.len() { Ok(()) } else { Err(Errno::EFAULT) }
}

/// Makes `len` bytes at `addr` zero (`clear_user`).
///
/// # Errors
/// EFAULT if not all could be.
pub fn clear(addr: u64, len: usize) -> Result<(), Errno> {
    check(addr, len)?;
    // SAFETY: below the kernel, where only programs have something, and it may fail.
    match unsafe { clear_user_memory(addr, len as u64) } {
        0 => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// Copies the program's zero-terminated string at `addr`, without the zero, and gives its length: that of `to` if no zero
/// came so far (`strncpy_from_user`).
///
/// # Errors
/// EFAULT if it is not all there.
pub fn read_string(to: &mut [u8], addr: u64) -> Result<usize, Errno> {
    if addr >= TASK_SIZE_MAX {
        return Err(Errno::EFAULT);
    }
    let most = (to.len() as u64).min(TASK_SIZE_MAX - addr);
    // SAFETY: what is written is the slice; what is read is below the kernel, and may fail.
    match unsafe { copy_user_string(address(to.as_mut_ptr()), addr, most) } {
        u64::MAX => Err(Errno::EFAULT),
        len if len == most && most < to.len() as u64 => Err(Errno::EFAULT),
        len => Ok(len as usize),
    }
}

/// The program's bytes at `addr`.
///
/// # Errors
/// EFAULT.
pub fn read_array<const N: usize>(addr: u64) -> Result<[u8; N], Errno> {
    let mut bytes = [0; N];
    read(&mut bytes, addr)?;
    Ok(bytes)
}

/// The program's words at `addr`.
///
/// # Errors
/// EFAULT.
pub fn read_words<const N: usize>(addr: u64) -> Result<[u64; N], Errno> {
    let mut words = [0; N];
    for (index, word) in words.iter_mut().enumerate() {
        *word = read_u64(addr.wrapping_add(8 * index as u64))?;
    }
    Ok(words)
}

/// The program's word at `addr` (`get_user`).
///
/// # Errors
/// EFAULT.
pub fn read_u64(addr: u64) -> Result<u64, Errno> {
    Ok(u64::from_le_bytes(read_array(addr)?))
}

/// The program's 32-bit word at `addr`.
///
/// # Errors
/// EFAULT.
pub fn read_u32(addr: u64) -> Result<u32, Errno> {
    Ok(u32::from_le_bytes(read_array(addr)?))
}

/// Writes the program's word at `addr` (`put_user`).
///
/// # Errors
/// EFAULT.
pub fn write_u64(addr: u64, value: u64) -> Result<(), Errno> {
    write(addr, &value.to_le_bytes())
}

/// Writes the program's 32-bit word at `addr`.
///
/// # Errors
/// EFAULT.
pub fn write_u32(addr: u64, value: u32) -> Result<(), Errno> {
    write(addr, &value.to_le_bytes())
}

/// Writes words to the program's `addr`.
///
/// # Errors
/// EFAULT.
pub fn write_words(addr: u64, values: &[u64]) -> Result<(), Errno> {
    for (index, value) in values.iter().enumerate() {
        write_u64(addr.wrapping_add(8 * index as u64), *value)?;
    }
    Ok(())
}

/// Puts `new` into the program's 32-bit word at `addr` if it holds `old`, in one step; whether it did
/// (`futex_atomic_cmpxchg_inatomic`).
///
/// # Errors
/// EFAULT.
pub fn exchange_u32(addr: u64, old: u32, new: u32) -> Result<bool, Errno> {
    check(addr, size_of::<u32>())?;
    // SAFETY: below the kernel, where only programs have something, and it may fail.
    match unsafe { exchange_user(addr, old, new) } {
        0 => Ok(true),
        1 => Ok(false),
        _ => Err(Errno::EFAULT),
    }
}
