//! The machine as KVM knows it: memory slots, interrupt controllers, doorbells.

use std::sync::{Arc, Weak};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_msi, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, VmFd};
use pagevisor_shared::device::PARK_VECTOR;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vmm_sys_util::errno;

use super::cpuid::{self, CpuIdentity};
use super::interrupts::{MONITOR_GSI, Routing};
use super::regs;
use super::system::KvmSystem;
use super::vcpu::Vcpu;
use crate::devices::monitor::{Monitor, MsiRoute};
use crate::layout;
use crate::memory::GuestMemory;

/// Three pages that Intel's KVM needs for real mode, in the device hole where nothing else is.
const TSS: usize = 0xfffb_d000;

/// Why KVM does not make a machine.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// It refused a step.
    #[error("KVM cannot {what}")]
    Refused {
        /// What was asked of it.
        what: &'static str,
        /// What it says.
        source: std::io::Error,
    },
    /// The guest's addresses are too large for the host.
    #[error("this machine has memory up to {end:#x}, but physical addresses have only {bits} bits on this host")]
    BeyondHost {
        /// First address above the guest's memory.
        end: u64,
        /// Bits of a physical address.
        bits: u32,
    },
}

fn refused(what: &'static str) -> impl Fn(errno::Error) -> VmError {
    move |error| VmError::Refused { what, source: error.into() }
}

/// Bits of a guest-physical address on this host, by leaf 0x80000008; 36 where a CPU is too old to say.
fn address_bits(cpuid: &CpuId) -> u32 {
    let leaf = cpuid.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
    leaf.map_or(36, |entry| entry.eax & 0xff)
}

/// Makes vCPUs look whether they are to stay at a safe point, as long as the machine lives.
#[derive(Clone, Debug)]
pub(crate) struct Interrupter(Weak<VmFd>);

impl Interrupter {
    /// Interrupts vCPU `id`. A host that cannot do that is no worse off: the vCPU comes to a safe point later.
    pub(crate) fn interrupt(&self, id: u32) {
        /// Where messages to local APICs go, the APIC's number above (`MSI_ADDR_BASE_LO`).
        const ADDRESS: u32 = 0xfee0_0000;
        let Some(fd) = self.0.upgrade() else { return };
        let message = kvm_msi { address_lo: ADDRESS | id << 12, data: PARK_VECTOR.into(), ..kvm_msi::default() };
        let _ = fd.signal_msi(message);
    }
}

/// A virtual machine without its CPUs.
#[derive(Debug)]
pub(crate) struct Vm {
    fd: Arc<VmFd>,
    memory: Arc<GuestMemory>,
    cpuid: CpuId,
}

impl Vm {
    /// Makes a machine with `memory` and interrupt controllers.
    pub(crate) fn new(system: &KvmSystem, memory: Arc<GuestMemory>) -> Result<Self, VmError> {
        let fd = system.kvm().create_vm().map_err(refused("create a virtual machine"))?;
        fd.set_tss_address(TSS).map_err(refused("place the TSS"))?;
        fd.create_irq_chip().map_err(refused("create interrupt controllers"))?;
        let cpuid =
            system.kvm().get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(refused("tell what CPUs it has"))?;
        for (number, slot) in (0..).zip(memory.slots()) {
            let region = kvm_userspace_memory_region {
                slot: number,
                flags: 0,
                guest_phys_addr: slot.guest_addr,
                memory_size: slot.size,
                userspace_addr: slot.host_addr,
            };
            // SAFETY: the slot is a whole mapping of `memory`, which this structure and every `Vcpu` keep alive; the
            // guest may do with it as it likes, which all of this process's accesses to it allow for.
            unsafe { fd.set_user_memory_region(region) }.map_err(|error| {
                let (end, bits) = (slot.guest_addr + slot.size, address_bits(&cpuid));
                let beyond = end.checked_shr(bits).is_some_and(|above| above > 0);
                if beyond { VmError::BeyondHost { end, bits } } else { refused("take the guest's memory")(error) }
            })?;
        }
        Ok(Self { fd: Arc::new(fd), memory, cpuid })
    }

    /// What routes the monitor's interrupt.
    pub(crate) fn msi_route(&self) -> Box<dyn MsiRoute> {
        Box::new(Routing(self.fd.clone()))
    }

    /// What interrupts vCPUs.
    pub(crate) fn interrupter(&self) -> Interrupter {
        Interrupter(Arc::downgrade(&self.fd))
    }

    /// Connects the monitor's doorbells and its interrupt.
    pub(crate) fn connect(&self, monitor: &Monitor) -> Result<(), VmError> {
        let notify = IoEventAddress::Mmio(layout::MONITOR.start + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY));
        for (queue, doorbell) in monitor.doorbells() {
            self.fd.register_ioevent(doorbell, &notify, queue).map_err(refused("connect a doorbell"))?;
        }
        self.fd.register_irqfd(monitor.interrupt_fd(), MONITOR_GSI).map_err(refused("connect an interrupt"))
    }

    /// Makes vCPU `id`, which waits for INIT and SIPI unless it is 0.
    pub(crate) fn create_vcpu(&self, id: u32, node: u32) -> Result<Vcpu, VmError> {
        let fd = self.fd.create_vcpu(id.into()).map_err(refused("create a vCPU"))?;
        let tsc_khz = fd.get_tsc_khz().ok();
        let cpuid = cpuid::adapt(&self.cpuid, CpuIdentity { apic_id: id, node, tsc_khz })
            .ok_or_else(|| refused("take so many CPUID leaves")(errno::Error::new(libc::E2BIG)))?;
        fd.set_cpuid2(&cpuid).map_err(refused("set a vCPU's CPUID"))?;
        Ok(Vcpu::new(fd, id, self.memory.clone()))
    }

    /// Makes vCPU 0 begin at `entry` as PVH has it.
    pub(crate) fn set_entry(vcpu: &Vcpu, entry: u64, start_info: u64) -> Result<(), VmError> {
        let mut sregs = vcpu.fd().get_sregs().map_err(refused("tell a vCPU's registers"))?;
        regs::set_pvh_entry(&mut sregs);
        vcpu.fd().set_sregs(&sregs).map_err(refused("set a vCPU's segments"))?;
        vcpu.fd().set_regs(&regs::pvh_regs(entry, start_info)).map_err(refused("set a vCPU's registers"))
    }
}
