//! Areas of chunks of per-CPU memory: by them the guest finds the chunk of a pointer.

use pagevisor_shared::vmalloc::VmFlags;

use super::Vm;
use crate::verify::Verifier;
use crate::verify::report::Place;
use crate::verify::rule::Rule;

impl Verifier<'_> {
    /// Every unit is in an area that names its chunk, and no area of units is without any.
    pub(super) fn check_unit_areas(&mut self, used: &[Vm]) {
        let mut areas: Vec<_> = used.iter().filter(|vm| vm.flags.contains(VmFlags::PERCPU)).map(|vm| (vm, 0)).collect();
        areas.sort_by_key(|(vm, _)| vm.start);
        for unit in &self.units {
            let behind = areas.partition_point(|(vm, _)| vm.start <= unit.addresses.start);
            let area = behind.checked_sub(1).and_then(|last| areas.get_mut(last));
            match area.filter(|(vm, _)| unit.addresses.end <= vm.behind) {
                Some((vm, units)) if vm.chunk == unit.chunk => *units += 1,
                found => {
                    let named = found.map(|(vm, _)| vm.chunk);
                    let evidence = format_args!("a unit of chunk {:#x}, whose area names {named:x?}", unit.chunk);
                    self.findings.add(Rule::PercpuArea, Place::Virtual(unit.addresses.start), evidence);
                }
            }
        }
        for (vm, _) in areas.iter().filter(|(_, units)| *units == 0) {
            let evidence = format_args!("an area for units of chunk {:#x}, which has none there", vm.chunk);
            self.findings.add(Rule::PercpuArea, Place::Virtual(vm.start), evidence);
        }
    }
}
