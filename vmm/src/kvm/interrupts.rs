//! KVM's interrupt routing table: the IOAPIC's pins, and one message of the guest's choice for the monitor.

use std::io;
use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;

use crate::devices::monitor::MsiRoute;

/// Pins of the in-kernel IOAPIC.
const IOAPIC_PINS: u32 = 24;
/// The number by which KVM knows the monitor's interrupt: the first that is no pin.
pub(super) const MONITOR_GSI: u32 = IOAPIC_PINS;

/// The routing table of a machine.
pub(super) struct Routing(pub(super) Arc<VmFd>);

impl MsiRoute for Routing {
    fn set(&self, address: u64, data: u32) -> io::Result<()> {
        // KVM replaces the whole table, so the pins are repeated.
        let mut entries: Vec<kvm_irq_routing_entry> = (0..IOAPIC_PINS).map(pin).collect();
        entries.push(message(address, data));
        let table = KvmIrqRouting::from_entries(&entries).map_err(|error| io::Error::other(format!("{error:?}")))?;
        self.0.set_gsi_routing(&table).map_err(Into::into)
    }
}

fn pin(pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi: pin, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin };
    entry
}

fn message(address: u64, data: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi: MONITOR_GSI, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: address as u32,
        address_hi: (address >> 32) as u32,
        data,
        ..Default::default()
    };
    entry
}
