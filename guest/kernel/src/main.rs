//! Kernel.
#![no_std]
#![no_main]

mod arch;
mod boot;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    arch::cpu::stop()
}

#[unsafe(no_mangle)]
extern "C" fn kernel_main(_tsc: u64, _start_info: u64) -> ! {
    for byte in *b"hello\r\n" {
        arch::port::write(0x3f8, byte);
    }
    arch::port::write(0x604, 0x2000u16);
    arch::cpu::stop()
}
