//! Drivers without manners: random accesses to the device's registers, and queues full of nonsense.

use std::io;
use std::sync::Arc;

use pagevisor_shared::command::{CommandHeader, RawOp};
use virtio_bindings::virtio_mmio as reg;
use vm_memory::{Bytes, GuestAddress};

use super::{Random, cases};
use crate::devices::Device;
use crate::devices::monitor::{Monitor, MonitorHooks, MsiRoute};
use crate::layout::Layout;
use crate::memory::GuestMemory;
use crate::topology::Topology;

/// Where the queues are, a page each.
const QUEUES_AT: u64 = 0x10_0000;
const AVAILABLE: u64 = 0x800;
const USED: u64 = 0xc00;
const QUEUE_SIZE: u32 = 8;

struct Nowhere;

impl MsiRoute for Nowhere {
    fn set(&self, _: u64, _: u32) -> io::Result<()> {
        Ok(())
    }
}

fn monitor() -> (Arc<GuestMemory>, Monitor) {
    let layout = Layout::place(&Topology::default()).unwrap();
    let memory = Arc::new(GuestMemory::new(&layout).unwrap());
    let hooks = MonitorHooks {
        state: Box::new(|_| {}),
        notice: Arc::new(|_| {}),
        mailbox: Arc::default(),
        tty: Arc::default(),
        input: Arc::default(),
    };
    (memory.clone(), Monitor::new(memory, Box::new(Nowhere), hooks).unwrap())
}

fn set(device: &Monitor, register: u32, value: u32) {
    device.write(register.into(), &value.to_le_bytes());
}

/// What a driver does before it is up.
fn set_up(device: &Monitor) {
    for status in [0, 1, 3] {
        set(device, reg::VIRTIO_MMIO_STATUS, status);
    }
    set(device, reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    set(device, reg::VIRTIO_MMIO_DRIVER_FEATURES, 1);
    set(device, reg::VIRTIO_MMIO_STATUS, 11);
    for queue in 0..4 {
        let base = QUEUES_AT as u32 + queue * 0x1000;
        set(device, reg::VIRTIO_MMIO_QUEUE_SEL, queue);
        set(device, reg::VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE);
        set(device, reg::VIRTIO_MMIO_QUEUE_DESC_LOW, base);
        set(device, reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, base + AVAILABLE as u32);
        set(device, reg::VIRTIO_MMIO_QUEUE_USED_LOW, base + USED as u32);
        set(device, reg::VIRTIO_MMIO_QUEUE_READY, 1);
    }
    set(device, reg::VIRTIO_MMIO_STATUS, 15);
}

/// Fills a queue: descriptors that may point anywhere, a ring with any heads, an index somewhat ahead.
fn scribble(random: &mut Random, memory: &GuestMemory) {
    let base = QUEUES_AT + random.below(4) * 0x1000;
    let ram = memory.ram();
    for index in 0..u64::from(QUEUE_SIZE) {
        let address = random.edge(0x20_0000);
        let len = random.edge(64) as u32;
        let flags_next = random.below(8) | random.below(10) << 16;
        ram.write_obj(address, GuestAddress(base + index * 16)).unwrap();
        ram.write_obj(u64::from(len) | flags_next << 32, GuestAddress(base + index * 16 + 8)).unwrap();
        ram.write_obj(random.below(9) as u16, GuestAddress(base + AVAILABLE + 4 + index * 2)).unwrap();
    }
    ram.write_obj(random.below(12) as u16, GuestAddress(base + AVAILABLE + 2)).unwrap();
}

#[test]
fn drivers_without_manners() {
    let (memory, device) = monitor();
    cases("drivers without manners", |random| {
        set_up(&device);
        for _ in 0..random.below(12) {
            match random.below(6) {
                // Nobody waits for the answer; whatever the guest makes of it, the device goes on.
                5 => {
                    drop(device.submit(CommandHeader { tag: 1, ..CommandHeader::default() }, &[RawOp::default()], &[]))
                }
                0 => scribble(random, &memory),
                1 => set(&device, reg::VIRTIO_MMIO_QUEUE_NOTIFY, random.below(3) as u32),
                2 => set(&device, random.below(0x130 / 4) as u32 * 4, random.edge(1) as u32),
                3 => device.read(random.below(0x1000), &mut [0; 8][..random.below(9) as usize]),
                _ => device.write(random.below(0x1000), &random.next().to_le_bytes()[..random.below(9) as usize]),
            }
        }
    });
    // It serves a driver that starts over.
    set_up(&device);
    let mut status = [0; 4];
    device.read(reg::VIRTIO_MMIO_STATUS.into(), &mut status);
    assert_eq!(u32::from_le_bytes(status), 15);
}
