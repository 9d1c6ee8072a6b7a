//! CPUID: what KVM supports, with the leaves about topology made to agree with the firmware tables.
//!
//! Every vCPU is a package of its own, with one core of one thread. CPUs of a node need not have consecutive or
//! aligned numbers, and no other shape would agree with every SRAT a user can ask for: CPUID describes a package by
//! bits of the APIC id, and kernels complain of packages that span nodes.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf with KVM's signature; EAX is the highest hypervisor leaf.
const HYPERVISOR: u32 = 0x4000_0000;
/// Leaf with the frequencies of TSC and APIC timer, in kHz, as VMware defined it and others took over.
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
/// Frequency of the timer of KVM's local APIC in kHz: it counts nanoseconds.
const APIC_KHZ: u32 = 1_000_000;

/// What CPUID says of one CPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct CpuIdentity {
    /// Local APIC id.
    pub apic_id: u32,
    /// NUMA node.
    pub node: u32,
    /// Frequency of the TSC, if KVM knows it.
    pub tsc_khz: Option<u32>,
}

/// Adapts `supported`, which KVM gave, to one CPU.
pub(super) fn adapt(supported: &CpuId, cpu: CpuIdentity) -> Option<CpuId> {
    let kept = supported.as_slice().iter().filter(|entry| !matches!(entry.function, 0xb | 0x1f | HYPERVISOR_TIMING));
    let mut entries: Vec<kvm_cpuid_entry2> = kept.copied().collect();
    let highest = entries.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
    for entry in &mut entries {
        adapt_entry(entry, cpu);
    }
    for leaf in [0xb, 0x1f].into_iter().filter(|&leaf| leaf <= highest) {
        entries.extend(topology(leaf, cpu.apic_id));
    }
    if let Some(tsc_khz) = cpu.tsc_khz {
        entries.push(kvm_cpuid_entry2 {
            function: HYPERVISOR_TIMING,
            eax: tsc_khz,
            ebx: APIC_KHZ,
            ..Default::default()
        });
    }
    CpuId::from_entries(&entries).ok()
}

fn adapt_entry(entry: &mut kvm_cpuid_entry2, cpu: CpuIdentity) {
    match entry.function {
        0x1 => {
            // EBX: APIC id, one logical CPU in the package; EDX: no hyper-threading; ECX: there is a hypervisor.
            entry.ebx = entry.ebx & 0xffff | 1 << 16 | cpu.apic_id << 24;
            entry.edx &= !(1 << 28);
            entry.ecx |= 1 << 31;
        }
        // Intel's caches: each for one thread (bits 25:14) of one core (bits 31:26).
        0x4 => entry.eax &= 0x3fff,
        // AMD's caches, likewise.
        0x8000_001d => entry.eax &= 0x3fff,
        // AMD: no CmpLegacy.
        0x8000_0001 => entry.ecx &= !(1 << 1),
        // AMD: one core in the package, no bits of the APIC id for cores.
        0x8000_0008 => entry.ecx &= !0xf0ff,
        // AMD: extended APIC id; core 0 of this package, one thread; one node in the package.
        0x8000_001e => {
            entry.eax = cpu.apic_id;
            entry.ebx = 0;
            entry.ecx = cpu.node & 0xff;
        }
        HYPERVISOR if cpu.tsc_khz.is_some() => entry.eax = entry.eax.max(HYPERVISOR_TIMING),
        _ => {}
    }
}

/// The extended topology: levels "thread" and "core" of one each, and the end.
fn topology(leaf: u32, apic_id: u32) -> [kvm_cpuid_entry2; 3] {
    const THREAD: u32 = 1 << 8;
    const CORE: u32 = 2 << 8;
    let level = |index, count, kind| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        // EAX 0: the level takes no bits of the APIC id.
        ebx: count,
        ecx: kind | index,
        edx: apic_id,
        ..Default::default()
    };
    [level(0, 1, THREAD), level(1, 1, CORE), level(2, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, value: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, eax: value, ebx: value, ecx: value, edx: value, ..Default::default() }
    }

    #[test]
    fn a_cpu_is_a_package_of_its_own_in_every_leaf() {
        let mut entries = vec![entry(0, 0x1f), entry(HYPERVISOR, HYPERVISOR + 1)];
        entries
            .extend([1, 4, 0xb, 0x1f, 0x8000_0001, 0x8000_0008, 0x8000_001d, 0x8000_001e].map(|leaf| entry(leaf, !0)));
        let supported = CpuId::from_entries(&entries).unwrap();
        let cpu = CpuIdentity { apic_id: 37, node: 5, tsc_khz: Some(2_000_000) };
        let adapted = adapt(&supported, cpu).unwrap();
        let leaf = |function, index| {
            let mut found = adapted.as_slice().iter().filter(|e| e.function == function && e.index == index);
            let entry = *found.next().unwrap_or_else(|| panic!("leaf {function:#x}.{index} is missing"));
            assert!(found.next().is_none(), "leaf {function:#x}.{index} is there twice");
            entry
        };
        assert_eq!(leaf(1, 0).ebx, 37 << 24 | 1 << 16 | 0xffff);
        assert_eq!(leaf(1, 0).edx & 1 << 28, 0);
        assert_eq!(leaf(4, 0).eax >> 14, 0);
        for topology in [0xb, 0x1f] {
            assert_eq!((leaf(topology, 0).eax, leaf(topology, 0).ebx, leaf(topology, 0).ecx), (0, 1, 0x100));
            assert_eq!((leaf(topology, 1).eax, leaf(topology, 1).ebx, leaf(topology, 1).ecx), (0, 1, 0x201));
            assert_eq!((leaf(topology, 2).ebx, leaf(topology, 2).edx), (0, 37));
        }
        assert_eq!(leaf(0x8000_0008, 0).ecx & 0xf0ff, 0);
        assert_eq!((leaf(0x8000_001e, 0).eax, leaf(0x8000_001e, 0).ecx), (37, 5));
        assert_eq!((leaf(HYPERVISOR, 0).eax, leaf(HYPERVISOR_TIMING, 0).eax), (HYPERVISOR_TIMING, 2_000_000));
    }

    #[test]
    fn leaves_beyond_the_highest_are_not_added() {
        let supported = CpuId::from_entries(&[entry(0, 0xd), entry(1, 0)]).unwrap();
        let adapted = adapt(&supported, CpuIdentity { apic_id: 1, node: 0, tsc_khz: None }).unwrap();
        assert!(adapted.as_slice().iter().any(|entry| entry.function == 0xb));
        assert!(adapted.as_slice().iter().all(|entry| entry.function != 0x1f));
    }
}
