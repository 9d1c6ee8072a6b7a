//! Holds a virtual machine with a virtual CPU for as long as the lab runs.
//!
//! KVM patches the scheduler's code when its first virtual machine appears and when the last one goes
//! (`preempt_notifier_key`), and its own when the first local APIC is switched off and the last one on. QEMU before
//! 8.1 translates code without a lock on its page: a processor that meets the patch's breakpoint while it is being
//! taken away may keep a translation of it for ever, and with interrupts off that processor hangs. With this program
//! neither of the two ever happens while tests run.
//!
//! Compiled by `rustc` alone. Prints a line when the machine is there.

use std::ffi::{c_int, c_ulong};
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, RawFd};
use std::thread::park;

unsafe extern "C" {
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
}

const KVM_CREATE_VM: c_ulong = 0xae01;
const KVM_CREATE_IRQCHIP: c_ulong = 0xae60;
const KVM_CREATE_VCPU: c_ulong = 0xae41;

fn kvm(fd: RawFd, request: c_ulong) -> Result<RawFd> {
    // SAFETY: each of the three requests takes a number, here 0, and no pointer.
    match unsafe { ioctl(fd, request, 0 as c_ulong) } {
        -1 => Err(Error::last_os_error()),
        result => Ok(result),
    }
}

fn main() -> Result<()> {
    let device = File::options().read(true).write(true).open("/dev/kvm")?;
    // These descriptors are meant to stay open.
    let machine = kvm(device.as_raw_fd(), KVM_CREATE_VM)?;
    kvm(machine, KVM_CREATE_IRQCHIP)?;
    kvm(machine, KVM_CREATE_VCPU)?;
    println!("held");
    loop {
        park();
    }
}
