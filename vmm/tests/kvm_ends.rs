//! Each way a machine can end, with guests of a few instructions. Needs /dev/kvm.

mod tiny;

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use pagevisor::machine::{Deadline, End, KernelImage, Machine, MachineConfig, PauseError, StopReason};
use tiny::{Code, KERNEL, PATIENCE, SYMBOL, config, run, start, stop_event, tap};

#[test]
fn a_guest_that_powers_off_ends_with_its_code() {
    assert_eq!(run(Code::default().power_off(0)), End::Shutdown { code: 0 });
    let end = run(Code::default().power_off(7));
    assert_eq!(end, End::Shutdown { code: 7 });
    assert_eq!(end.exit_status(), 10);
}

#[test]
fn a_guest_that_resets_ends() {
    assert_eq!(run(Code::default().out8(0x64, 0xfe).halt()), End::Reset);
}

#[test]
fn serial_output_arrives_whole() {
    let (console, output) = tap();
    let code = b"hello, host\n".iter().fold(Code::default(), |code, &byte| code.out8(0x3f8, byte));
    let machine = start(MachineConfig { console, ..config(code.power_off(0)) });
    assert_eq!(machine.wait(Deadline::after(PATIENCE), &stop_event()), End::Shutdown { code: 0 });
    drop(machine);
    assert_eq!(output.iter().collect::<Vec<u8>>(), b"hello, host\n");
}

#[test]
fn a_triple_fault_tells_where() {
    // ud2 with an interrupt table full of zeros.
    let end = run(Code::default().bytes(&[0x90, 0x0f, 0x0b]));
    assert_eq!(end.exit_status(), 5);
    let End::TripleFault(cpu) = &end else { panic!("{end:?}") };
    assert_eq!(cpu.cpu, 0);
    // AMD-V loses the registers; everyone else must have them.
    if let Some(registers) = cpu.registers {
        assert_eq!(registers.rip(), KERNEL + 1);
        let text = end.to_string();
        assert!(text.contains(&format!("RIP: 0008:{SYMBOL}+0x1/0x3 [<{:016x}>]", KERNEL + 1)), "{text}");
        assert!(text.contains("Code: 0f 0b    ud2"), "{text}");
        assert!(text.contains("RBX: 0000000000006000"), "{text}");
    }
}

#[test]
fn an_instruction_kvm_cannot_emulate_is_named() {
    if pagevisor::kvm::has_hardware_virtualization() {
        // The processor runs it; there is nothing that KVM could fail at.
        return;
    }
    // popcnt eax, ecx
    let end = run(Code::default().bytes(&[0xf3, 0x0f, 0xb8, 0xc1]).halt());
    assert_eq!(end.exit_status(), 6);
    let End::InternalError(report) = &end else { panic!("{end:?}") };
    assert_eq!((report.suberror, &report.cpu.instruction[..]), (1, &[0xf3, 0x0f, 0xb8, 0xc1][..]));
    let text = end.to_string();
    assert!(text.contains("popcnt eax,ecx") && text.contains(&format!("{SYMBOL}+0x0")), "{text}");
}

#[test]
fn a_panic_without_a_record_says_so() {
    let end = run(Code::default().power_off(1));
    assert_eq!(end.exit_status(), 4);
    assert!(end.to_string().contains("left no record"), "{end}");
}

#[test]
fn a_guest_that_never_ends_is_timed_out_and_can_be_stopped() {
    for code in [Code::default().halt(), Code::default().spin()] {
        let machine = start(config(code));
        let begin = Instant::now();
        let end = machine.wait(Deadline::after(Duration::from_millis(100)), &stop_event());
        assert!(matches!(end, End::TimedOut { .. }) && begin.elapsed() >= Duration::from_millis(100), "{end:?}");
        assert_eq!(end.exit_status(), 7);
        machine.stop(StopReason::Request);
        assert_eq!(machine.wait(Deadline::after(PATIENCE), &stop_event()), End::Stopped(StopReason::Request));
    }
}

/// A console that takes nothing until the other end of its channel is gone.
struct StuckConsole(Receiver<()>);

impl Write for StuckConsole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_vcpu_that_never_answers_is_named_and_does_not_hold_up_the_program() {
    let (release, stuck) = channel();
    let console = Box::new(StuckConsole(stuck));
    let machine = start(MachineConfig { console, ..config(Code::default().out8(0x3f8, b'x').halt()) });
    // Long enough for the guest to have written.
    let end = machine.wait(Deadline::after(Duration::from_millis(500)), &stop_event());
    assert!(matches!(end, End::TimedOut { .. }), "{end:?}");
    assert_eq!(machine.pause().unwrap_err(), PauseError::Stuck(0));
    machine.stop(StopReason::Request);
    let end = machine.wait(Deadline::after(Duration::from_millis(100)), &stop_event());
    assert!(matches!(end, End::TimedOut { .. }), "{end:?}");
    let begin = Instant::now();
    drop(machine);
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    drop(release);
}

#[test]
fn a_waiting_thread_is_woken_by_the_stop_event() {
    let machine = Arc::new(start(config(Code::default().halt())));
    let stop = stop_event();
    let waiter = thread::spawn({
        let (machine, stop) = (machine.clone(), stop.clone());
        move || machine.wait_ready(Deadline::NEVER, &stop)
    });
    stop.stop(StopReason::Interrupt);
    let end = waiter.join().unwrap().unwrap_err();
    assert_eq!((end.exit_status(), &end), (130, &End::Stopped(StopReason::Interrupt)));
    // The event only woke the waiter; the machine has not ended.
    assert_eq!(machine.end(), None);
}

#[test]
fn two_machines_do_not_notice_each_other() {
    let other = start(config(Code::default().halt()));
    assert_eq!(run(Code::default().power_off(3)), End::Shutdown { code: 3 });
    assert_eq!(other.end(), None);
}

#[test]
fn a_waiting_cpu_costs_nothing_and_starts_by_init_and_sipi() {
    // At 0x8000, in real mode: mov eax, MAGIC | 9; mov dx, 0x604; out dx, eax; hlt
    let boot = [0x66, 0xb8, 9, 0, 0x47, 0x50, 0xba, 0x04, 0x06, 0x66, 0xef, 0xf4];
    const SVR: u32 = 0xfee0_00f0;
    const ICR_LOW: u32 = 0xfee0_0300;
    const ICR_HIGH: u32 = 0xfee0_0310;
    // A local APIC that is not enabled sends nothing.
    let enabled = Code::default().store(SVR, 0x1ff);
    let copied = boot.chunks(4).zip(0..).fold(enabled, |code, (word, index)| {
        code.store(0x8000 + 4 * index, u32::from_le_bytes(word.try_into().unwrap()))
    });
    let code = copied.store(ICR_HIGH, 1 << 24).store(ICR_LOW, 0x4500).store(ICR_HIGH, 1 << 24).store(ICR_LOW, 0x4608);
    assert_eq!(run(code.halt()), End::Shutdown { code: 9 });

    let machine = start(config(Code::default().halt()));
    let before = cpu_time();
    let _ = machine.wait(Deadline::after(Duration::from_millis(500)), &stop_event());
    let used = cpu_time() - before;
    assert!(used < Duration::from_millis(250), "two halted CPUs took {used:?} of half a second");
}

/// CPU time of this process, its other tests included.
fn cpu_time() -> Duration {
    // SAFETY: `getrusage` fills the structure, whose bytes may be anything before.
    let usage = unsafe {
        let mut usage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

#[test]
fn what_cannot_be_booted_is_refused_with_the_reason() {
    let code = Code::default().power_off(0).0;
    let good = Code(code.clone()).elf();
    let mut not_x86 = good.clone();
    not_x86[18] = 183;
    let cases = [
        (b"#!/bin/sh\n".to_vec(), "not an ELF"),
        (Vec::new(), "not an ELF"),
        (good[..100].to_vec(), "damaged"),
        (not_x86, "not an ELF for x86-64"),
        (tiny::elf(&code, KERNEL, None), "no PVH entry"),
        (tiny::elf(&code, 0x8_0000, Some(0x8_0000)), "no RAM"),
        (tiny::elf(&code, 0xd000_0000, Some(0xd000_0000)), "no RAM"),
        (tiny::elf(&code, u64::MAX - 5, Some(0x100_0000)), "larger in the file"),
        (tiny::elf(&code, KERNEL, Some(0x200_0000)), "not in what the ELF loads"),
    ];
    for (bytes, reason) in cases {
        let mut config = config(Code::default());
        config.kernel = KernelImage::Bytes(bytes.into());
        let error = Machine::start(config).unwrap_err();
        assert_eq!(error.exit_status(), 2);
        let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
        assert!(text.contains(reason), "{text} does not mention {reason}");
    }
    let mut absent = config(Code::default());
    absent.kernel = KernelImage::File("/nonexistent/kernel".into());
    let error = Machine::start(absent).unwrap_err();
    assert_eq!((error.exit_status(), error.to_string()), (2, "kernel /nonexistent/kernel".into()));
}

#[test]
fn an_initrd_is_where_the_start_info_says() {
    let file = std::env::temp_dir().join(format!("pagevisor-initrd-{}", std::process::id()));
    std::fs::write(&file, b"0707").unwrap();
    // mov eax, [ebx + 16] (list of modules); mov eax, [eax]; cmp dword [eax], "0707"; jne +; (power off with 0)
    let code = Code::default().bytes(&[0x8b, 0x43, 0x10, 0x8b, 0x00, 0x81, 0x38]).bytes(b"0707");
    let off = Code::default().power_off(0).0;
    let code = code.bytes(&[0x75, off.len() as u8]).bytes(&off).power_off(3);
    let mut with = config(code.clone());
    with.initrd = Some(file.clone());
    let end = start(with).wait(Deadline::after(PATIENCE), &stop_event());
    std::fs::write(&file, b"").unwrap();
    let mut empty = config(code);
    empty.initrd = Some(file.clone());
    let error = Machine::start(empty).unwrap_err();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(end, End::Shutdown { code: 0 });
    assert!(error.to_string().ends_with("is empty"), "{error}");
}
