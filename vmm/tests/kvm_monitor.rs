//! The monitor device as a guest sees it: over real MMIO exits, doorbells and messages. Needs /dev/kvm.

mod tiny;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use pagevisor::layout::STATE_REGION;
use pagevisor::machine::{Deadline, End, MachineConfig};
use pagevisor_shared::device::monitor;
use pagevisor_shared::region::GuestState;
use tiny::{Code, PATIENCE, config, start, stop_event};
use virtio_bindings::virtio_mmio as reg;

const CONFIG: u32 = reg::VIRTIO_MMIO_CONFIG;
const QUEUE_AT: u32 = 0x200_0000;
const VECTOR: u32 = 0x41;
const LAPIC_SVR: u32 = 0xfee0_00f0;
/// Interrupts that have arrived but not been taken, vectors 0x40 to 0x5f.
const LAPIC_IRR: u32 = 0xfee0_0220;

/// Brings the device up as the specification has it, both queues included; powers off with 2.. where it is not as
/// it should be.
fn handshake() -> Code {
    let features = Code::default()
        .check(reg::VIRTIO_MMIO_MAGIC_VALUE, u32::from_le_bytes(*b"virt"), 2)
        .check(reg::VIRTIO_MMIO_VERSION, 2, 3)
        .check(reg::VIRTIO_MMIO_DEVICE_ID, monitor::DEVICE_ID, 4)
        .check(reg::VIRTIO_MMIO_SHM_BASE_LOW, STATE_REGION as u32, 5)
        .set(reg::VIRTIO_MMIO_STATUS, 1)
        .set(reg::VIRTIO_MMIO_STATUS, 3)
        .set(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1)
        .check(reg::VIRTIO_MMIO_DEVICE_FEATURES, 1, 6)
        .set(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1)
        .set(reg::VIRTIO_MMIO_DRIVER_FEATURES, 1)
        .set(reg::VIRTIO_MMIO_STATUS, 11)
        .check(reg::VIRTIO_MMIO_STATUS, 11, 7);
    let queues = [0, 1].into_iter().fold(features, |code, queue| {
        let base = QUEUE_AT + queue * 0x1000;
        code.set(reg::VIRTIO_MMIO_QUEUE_SEL, queue)
            .check(reg::VIRTIO_MMIO_QUEUE_NUM_MAX, 256, 8)
            .set(reg::VIRTIO_MMIO_QUEUE_NUM, 8)
            .set(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, base)
            .set(reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, base + 0x800)
            .set(reg::VIRTIO_MMIO_QUEUE_USED_LOW, base + 0xc00)
            .set(reg::VIRTIO_MMIO_QUEUE_READY, 1)
            .check(reg::VIRTIO_MMIO_QUEUE_READY, 1, 9)
    });
    queues
        .store(LAPIC_SVR, 0x1ff)
        .set(CONFIG + monitor::CONFIG_MSI_ADDR, 0xfee0_0000)
        .set(CONFIG + monitor::CONFIG_MSI_ADDR + 4, 0)
        .set(CONFIG + monitor::CONFIG_MSI_DATA, VECTOR)
        .set(reg::VIRTIO_MMIO_STATUS, 15)
        .check(reg::VIRTIO_MMIO_STATUS, 15, 10)
}

fn with_log(code: Code) -> (MachineConfig, Arc<Mutex<Vec<String>>>) {
    let log = Arc::new(Mutex::new(Vec::new()));
    let lines = log.clone();
    let notice = Arc::new(move |line: &str| lines.lock().unwrap().push(line.to_owned()));
    (MachineConfig { notice, ..config(code) }, log)
}

#[test]
fn the_host_learns_that_the_guest_is_ready_and_both_see_the_region() {
    let region = STATE_REGION as u32;
    let state = std::mem::offset_of!(pagevisor_shared::region::Header, state) as u32;
    let code = handshake()
        .store(region + state, GuestState::Ready as u32)
        .set(CONFIG + monitor::CONFIG_STATE, GuestState::Ready as u32)
        .halt();
    let (config, log) = with_log(code);
    let machine = start(config);
    let ready = machine.wait_ready(Deadline::after(PATIENCE), &stop_event()).unwrap();
    assert_eq!(machine.times().start_to_ready, Some(ready));
    let header = machine.memory().state().header().unwrap();
    assert_eq!(header.state.load(Ordering::Relaxed), GuestState::Ready as u32);
    // Another process gets the same memory through a descriptor that cannot write.
    let shared = machine.memory().state().read_only().unwrap();
    let mut bytes = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(&shared, &mut bytes, state.into()).unwrap();
    assert_eq!(u32::from_le_bytes(bytes), GuestState::Ready as u32);
    assert!(std::os::unix::fs::FileExt::write_at(&shared, &bytes, 0).is_err());
    assert_eq!(*log.lock().unwrap(), [""; 0]);
}

#[test]
fn a_guest_that_ends_before_it_is_ready_is_not_waited_for() {
    let machine = start(config(Code::default().power_off(0)));
    assert_eq!(machine.wait_ready(Deadline::after(PATIENCE), &stop_event()), Err(End::Shutdown { code: 0 }));
}

#[test]
fn readiness_counts_although_the_guest_has_ended_since() {
    let machine = start(config(handshake().set(CONFIG + monitor::CONFIG_STATE, 3).power_off(0)));
    assert_eq!(machine.wait(Deadline::after(PATIENCE), &stop_event()), End::Shutdown { code: 0 });
    machine.wait_ready(Deadline::after(PATIENCE), &stop_event()).unwrap();
}

#[test]
fn a_doorbell_reaches_the_device_and_the_used_buffer_interrupts() {
    let available = QUEUE_AT + 0x1000 + 0x800;
    let used = QUEUE_AT + 0x1000 + 0xc00;
    // One reply, descriptor 2; then wait for the message, and look.
    let code = handshake()
        .store(available + 4, 2)
        .store(available, 1 << 16)
        .set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, monitor::QUEUE_REPLY)
        .wait_for(LAPIC_IRR, 1 << (VECTOR % 32))
        .check(reg::VIRTIO_MMIO_INTERRUPT_STATUS, 1, 11)
        .set(reg::VIRTIO_MMIO_INTERRUPT_ACK, 1)
        .check(reg::VIRTIO_MMIO_INTERRUPT_STATUS, 0, 12)
        .expect(used, 1 << 16, 13)
        .expect(used + 4, 2, 14);
    let (config, log) = with_log(code.power_off(0));
    assert_eq!(start(config).wait(Deadline::after(PATIENCE), &stop_event()), End::Shutdown { code: 0 });
    // No command was sent that it could answer; the device says so and goes on.
    assert_eq!(*log.lock().unwrap(), ["monitor device: a reply to no command, or one that makes no sense"]);
}

#[test]
fn a_driver_that_breaks_the_rules_is_told_by_status_interrupt_and_log() {
    let code = handshake()
        .set(reg::VIRTIO_MMIO_DRIVER_FEATURES, 1)
        .wait_for(LAPIC_IRR, 1 << (VECTOR % 32))
        .check(reg::VIRTIO_MMIO_STATUS, 15 | 64, 11)
        .check(reg::VIRTIO_MMIO_INTERRUPT_STATUS, 2, 12)
        .set(reg::VIRTIO_MMIO_STATUS, 0)
        .check(reg::VIRTIO_MMIO_STATUS, 0, 13);
    let (config, log) = with_log(code.power_off(0));
    assert_eq!(start(config).wait(Deadline::after(PATIENCE), &stop_event()), End::Shutdown { code: 0 });
    let log = log.lock().unwrap();
    assert!(matches!(&log[..], [line] if line.contains("wrote features in status 0xf")), "{log:?}");
}
