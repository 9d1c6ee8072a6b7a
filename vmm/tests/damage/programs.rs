//! Damage to tasks and programs: their address spaces, areas, page tables, families and files.

use std::sync::atomic::Ordering::SeqCst;

use pagevisor::state::{AreaInfo, Patience, SpaceInfo, TaskInfo};
use pagevisor::verify::Rule;
use pagevisor_shared::mm_types::{AddressSpace, AnonVma, AnonVmaChain, MappedFile, MmCounter, MmStruct, VmArea};
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::sched::TaskStruct;
use pagevisor_shared::vmalloc::RB_BLACK;
use pagevisor_shared::vmstat::{NodeStat, ZoneStat};

use super::mutations::Mutation;
use super::program::{NONE, PRIVATE, READ_ONLY, SHARED, TEXT};
use super::{Bench, Field};
use crate::at;

const PAGE: u64 = 0x1000;
const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const NO_EXECUTE: u64 = 1 << 63;
const MLOCKED: u64 = 1 << 58;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

impl Bench<'_> {
    fn tasks(&self) -> Vec<TaskInfo> {
        self.view.tasks(Patience::default()).unwrap().list
    }

    /// The first program, and its child.
    fn programs(&self) -> [TaskInfo; 2] {
        let programs: Vec<_> = self.tasks().into_iter().filter(|task| task.mm != 0).collect();
        programs.try_into().expect("two programs")
    }

    fn space(&self) -> SpaceInfo {
        self.view.space(self.programs()[0].mm).unwrap()
    }

    /// The areas of the first program.
    fn user_areas(&self) -> Vec<AreaInfo> {
        let areas = self.view.user_areas(self.space().address, Patience::default()).unwrap();
        assert_eq!(areas.damage, None);
        areas.list
    }

    /// The first program's area at an address.
    fn area_at(&self, address: u64) -> u64 {
        let areas = self.user_areas();
        areas.iter().find(|area| (area.start..area.end).contains(&address)).expect("an area").address
    }

    fn set_space(&self, at: super::records::At, change: impl FnOnce(u64) -> u64) {
        self.change_field(self.space().address, at, change);
    }

    fn set_area(&self, address: u64, at: super::records::At, change: impl FnOnce(u64) -> u64) {
        self.change_field(self.area_at(address), at, change);
    }

    /// The entry of `level` for an address of the first program, and where it is.
    fn user_entry(&self, address: u64, level: u32) -> (u64, u64) {
        let mut table = self.space().pgd;
        for here in (level..4).rev() {
            let slot = table + (address >> (12 + 9 * here) & 511) * 8;
            let entry = self.peek_u64(slot);
            if here == level {
                return (slot, entry);
            }
            assert!(entry & PRESENT != 0, "{address:#x} ends at level {here}");
            table = entry & ADDRESS;
        }
        unreachable!("levels end at 0");
    }

    fn set_user_entry(&self, address: u64, change: impl FnOnce(u64) -> u64) {
        let (slot, entry) = self.user_entry(address, 0);
        self.poke(slot, &change(entry).to_le_bytes());
    }

    /// The frame that the first program has at an address.
    fn frame(&self, address: u64) -> u32 {
        let (_, entry) = self.user_entry(address, 0);
        assert!(entry & PRESENT != 0, "nothing at {address:#x}");
        ((entry & ADDRESS) >> 12) as u32
    }

    fn set_page(&self, address: u64, field: Field, change: impl FnOnce(u32) -> u32) {
        self.change_meta(self.frame(address), field, change);
    }

    /// The first link of the private area, and the family it leads to.
    fn link(&self) -> (u64, u64) {
        let link = self.field(self.area_at(PRIVATE), at!(VmArea, anon_vma_chain));
        (link, self.field(link, at!(AnonVmaChain, anon_vma)))
    }

    fn own_family(&self) -> u64 {
        self.field(self.area_at(PRIVATE), at!(VmArea, anon_vma))
    }

    /// The record of the shared memory's pages.
    fn shared_file(&self) -> u64 {
        let file = self.field(self.area_at(SHARED), at!(VmArea, vm_file));
        self.field(file, at!(MappedFile, mapping))
    }

    fn free_frame(&self) -> u64 {
        u64::from(self.free(1, |free| free.order > 0).pfn) << 12
    }
}

fn counter(bench: &Bench<'_>, counter: MmCounter, change: i64) {
    let (offset, _) = at!(MmStruct, rss_stat);
    bench.change_field(bench.space().address, (offset + 8 * counter as usize, 8), |pages| {
        pages.wrapping_add_signed(change)
    });
}

/// Of tasks and address spaces.
pub const TASKS: &[Mutation] = &[
    ("a task that links back to elsewhere", Rule::TaskList, |bench| {
        bench.change_field(bench.programs()[1].address, at!(TaskStruct, prev), |prev| prev ^ 0x40);
    }),
    ("a list of tasks that leads nowhere", Rule::TaskList, |bench| {
        bench.set_field(bench.programs()[0].address, at!(TaskStruct, next), 0x1234);
    }),
    ("a task that is not counted", Rule::TaskList, |bench| {
        bench.change(&bench.region.header().roots.nr_tasks, |tasks| tasks - 1);
    }),
    ("a task that does nothing that tasks do", Rule::TaskList, |bench| {
        bench.set_field(bench.programs()[1].address, at!(TaskStruct, state), 0x7777);
    }),
    ("two tasks of one number", Rule::TaskList, |bench| {
        bench.set_field(bench.programs()[1].address, at!(TaskStruct, pid), bench.programs()[0].pid.into());
    }),
    ("a task on a CPU that is not there", Rule::TaskCpu, |bench| {
        bench.set_field(bench.programs()[1].address, at!(TaskStruct, cpu), 63);
    }),
    ("two tasks on a CPU", Rule::TaskCpu, |bench| {
        for task in bench.programs() {
            bench.set_field(task.address, at!(TaskStruct, on_cpu), 1);
            bench.set_field(task.address, at!(TaskStruct, cpu), 1);
        }
    }),
    ("a task whose address space is none", Rule::TaskSpace, |bench| {
        bench.change_field(bench.programs()[1].address, at!(TaskStruct, mm), |mm| mm + 0x40);
    }),
    ("a program that is the kernel's", Rule::TaskSpace, |bench| {
        let flags = u64::from(TaskStruct::KTHREAD);
        bench.change_field(bench.programs()[1].address, at!(TaskStruct, flags), |old| old | flags);
    }),
    ("an address space that nobody is said to use", Rule::SpaceUsers, |bench| {
        bench.set_space(at!(MmStruct, mm_users), |_| 0);
    }),
    ("a stack of a task that is not counted", Rule::TaskStacks, |bench| {
        let counter = &bench.region.nodes()[0].vm_stat[NodeStat::NrKernelStack.index()];
        bench.change(counter, |kib| kib - 16);
    }),
    ("an address space that links back to elsewhere", Rule::SpaceList, |bench| {
        let second = bench.view.spaces().unwrap()[1].address;
        bench.set_field(second, at!(MmStruct, prev), 0);
    }),
    ("more pages than there are", Rule::SpaceSizes, |bench| {
        bench.set_space(at!(MmStruct, total_vm), |pages| pages + 1)
    }),
    ("less data than there is", Rule::SpaceSizes, |bench| bench.set_space(at!(MmStruct, data_vm), |pages| pages - 1)),
    ("a stack that is not counted", Rule::SpaceSizes, |bench| bench.set_space(at!(MmStruct, stack_vm), |_| 0)),
    ("text that is not counted", Rule::SpaceSizes, |bench| bench.set_space(at!(MmStruct, exec_vm), |_| 0)),
    ("memory that nobody has locked", Rule::SpaceSizes, |bench| bench.set_space(at!(MmStruct, locked_vm), |_| 3)),
    ("an anonymous page too much", Rule::SpaceRss, |bench| counter(bench, MmCounter::Anon, 1)),
    ("a shared page too little", Rule::SpaceRss, |bench| counter(bench, MmCounter::Shmem, -1)),
    ("a page table too much", Rule::SpaceTables, |bench| {
        bench.set_space(at!(MmStruct, pgtables_bytes), |bytes| bytes + PAGE);
    }),
    ("a page that nobody promised", Rule::CommittedAs, |bench| {
        bench.change(&bench.region.header().roots.committed_as, |pages| pages + 1);
    }),
    ("anonymous pages that a node does not count", Rule::ProgramStat, |bench| {
        let counter = &bench.region.nodes()[0].vm_stat[NodeStat::NrAnonPages.index()];
        bench.change(counter, |pages| pages - 1);
    }),
    ("mapped pages that are none", Rule::ProgramStat, |bench| {
        let counter = &bench.region.nodes()[1].vm_stat[NodeStat::NrMapped.index()];
        bench.change(counter, |pages| pages + 1);
    }),
    ("locked pages that a zone does not count", Rule::MlockStat, |bench| {
        let zone = bench.region.zones().iter().find(|zone| zone.vm_stat[ZoneStat::NrMlock.index()].load(SeqCst) != 0);
        bench.change(&zone.expect("locked pages").vm_stat[ZoneStat::NrMlock.index()], |pages| pages - 1);
    }),
    ("a page that cannot be had back and is not locked", Rule::MlockStat, |bench| {
        bench.change(&bench.region.nodes()[1].vm_stat[NodeStat::NrUnevictable.index()], |pages| pages + 1);
    }),
];

/// Of areas and what they belong to.
pub const USER_AREAS: &[Mutation] = &[
    ("an area that overlaps the next", Rule::AreaOrder, |bench| {
        bench.set_area(PRIVATE, at!(VmArea, vm_end), |_| NONE + PAGE);
    }),
    ("an area below the one before it", Rule::AreaOrder, |bench| {
        bench.set_area(NONE, at!(VmArea, vm_start), |_| PAGE);
    }),
    ("an area of half a page", Rule::AreaOrder, |bench| bench.set_area(SHARED, at!(VmArea, vm_end), |end| end - 0x800)),
    ("an area that links back to elsewhere", Rule::AreaOrder, |bench| {
        let first = bench.user_areas()[0].address;
        bench.set_area(SHARED, at!(VmArea, prev), |_| first);
    }),
    ("a list that leaves an area out", Rule::AreaOrder, |bench| {
        let next = bench.area_at(NONE);
        let behind = bench.field(next, at!(VmArea, next));
        bench.set_area(PRIVATE, at!(VmArea, next), |_| behind);
    }),
    ("an area that is not counted", Rule::AreaOrder, |bench| {
        bench.set_space(at!(MmStruct, map_count), |areas| areas - 1)
    }),
    ("an area of another address space", Rule::AreaOrder, |bench| {
        let other = bench.programs()[1].mm;
        bench.set_area(PRIVATE, at!(VmArea, vm_mm), |_| other);
    }),
    ("a tree without its root", Rule::AreaTree, |bench| bench.set_space(at!(MmStruct, mm_rb), |_| 0)),
    ("a tree that goes round", Rule::AreaTree, |bench| {
        let (root, area) = (bench.space().mm_rb, bench.user_areas()[0].address);
        bench.set_field(area, at!(VmArea, left), root);
    }),
    ("an area of the other colour", Rule::AreaTree, |bench| {
        bench.set_field(bench.space().mm_rb, at!(VmArea, parent), 0);
    }),
    ("an area with another parent", Rule::AreaTree, |bench| {
        bench.change_field(bench.user_areas()[0].address, at!(VmArea, parent), |parent| parent ^ 0x40 | RB_BLACK);
    }),
    ("an area that hides a gap", Rule::AreaGap, |bench| {
        bench.set_field(bench.space().mm_rb, at!(VmArea, subtree_gap), PAGE);
    }),
    ("an end that is not the highest area's", Rule::AreaGap, |bench| {
        bench.set_space(at!(MmStruct, highest_vm_end), |end| end - PAGE);
    }),
    ("an area that may be written but could not become so", Rule::AreaFlags, |bench| {
        bench.set_area(PRIVATE, at!(VmArea, vm_flags), |flags| flags & !0x20);
    }),
    ("a link of another area", Rule::FamilyLinks, |bench| {
        bench.change_field(bench.link().0, at!(AnonVmaChain, vma), |vma| vma + 0xc0);
    }),
    ("an area without links", Rule::FamilyLinks, |bench| bench.set_area(PRIVATE, at!(VmArea, anon_vma_chain), |_| 0)),
    ("a link to nowhere", Rule::FamilyLinks, |bench| {
        bench.set_field(bench.link().0, at!(AnonVmaChain, anon_vma), 0x77)
    }),
    ("a family that links back to elsewhere", Rule::FamilyLinks, |bench| {
        let first = bench.field(bench.own_family(), at!(AnonVma, chain));
        bench.set_field(first, at!(AnonVmaChain, prev), first);
    }),
    ("a family that has forgotten its links", Rule::FamilyLinks, |bench| {
        bench.set_field(bench.own_family(), at!(AnonVma, chain), 0);
    }),
    ("a family with a child too much", Rule::FamilyCounts, |bench| {
        bench.change_field(bench.own_family(), at!(AnonVma, num_children), |children| children + 1);
    }),
    ("a family with an area too little", Rule::FamilyCounts, |bench| {
        bench.change_field(bench.own_family(), at!(AnonVma, num_active_vmas), |areas| areas - 1);
    }),
    ("a family that somebody holds", Rule::FamilyCounts, |bench| {
        bench.change_field(bench.own_family(), at!(AnonVma, refcount), |count| count + 1);
    }),
    ("a family of another number", Rule::MappingNumbers, |bench| {
        bench.change_field(bench.own_family(), at!(AnonVma, id), |id| id + 1);
    }),
    ("a file of another number", Rule::MappingNumbers, |bench| {
        bench.change_field(bench.shared_file(), at!(AddressSpace, id), |id| id + 1);
    }),
    ("a file that has forgotten its areas", Rule::FileAreas, |bench| {
        bench.set_field(bench.shared_file(), at!(AddressSpace, i_mmap), 0);
    }),
    ("a file that nobody writes to", Rule::FileAreas, |bench| {
        bench.set_field(bench.shared_file(), at!(AddressSpace, i_mmap_writable), 0);
    }),
    ("an area that does not know its file", Rule::FileAreas, |bench| {
        bench.set_area(SHARED, at!(VmArea, vm_file), |_| 0)
    }),
    ("an area whose file is nowhere", Rule::AreaOrder, |bench| {
        bench.set_field(bench.field(bench.area_at(SHARED), at!(VmArea, vm_file)), at!(MappedFile, mapping), 0x40);
    }),
    ("a file with a page too much", Rule::FilePages, |bench| {
        bench.change_field(bench.shared_file(), at!(AddressSpace, nrpages), |pages| pages + 1);
    }),
    ("a file without its tree", Rule::FilePages, |bench| {
        bench.set_field(bench.shared_file(), at!(AddressSpace, i_pages), 0);
    }),
    ("a tree of a hundred levels", Rule::FilePages, |bench| {
        bench.change_field(bench.shared_file(), at!(AddressSpace, i_pages), |tree| tree | AddressSpace::HEIGHT);
    }),
    ("a page of a file at another place", Rule::FilePages, |bench| {
        bench.set_page(SHARED, Field::Index, |index| index + 5);
    }),
];

/// Of what page tables map.
pub const USER_PAGES: &[Mutation] = &[
    ("a program with a free page", Rule::ProgramMapping, |bench| {
        let free = bench.free_frame();
        bench.set_user_entry(PRIVATE, |entry| entry & !ADDRESS | free);
    }),
    ("a program with a frame without memory", Rule::ProgramMapping, |bench| {
        let beyond = (bench.region.header().roots.max_pfn.load(SeqCst) + 9) << 12;
        bench.set_user_entry(PRIVATE, |entry| entry & !ADDRESS | beyond);
    }),
    ("a page where there is no area", Rule::ProgramMapping, |bench| {
        let (slot, entry) = bench.user_entry(SHARED, 0);
        bench.poke(slot + 2 * 8, &entry.to_le_bytes());
    }),
    ("memory that can be written and must not", Rule::ProgramMapping, |bench| {
        bench.set_user_entry(READ_ONLY, |entry| entry | WRITABLE);
    }),
    ("data that can be executed", Rule::ProgramMapping, |bench| {
        bench.set_user_entry(PRIVATE, |entry| entry & !NO_EXECUTE);
    }),
    ("memory that nobody may come to, and can", Rule::ProgramMapping, |bench| {
        let (_, entry) = bench.user_entry(PRIVATE, 0);
        bench.set_user_entry(NONE, |_| entry & !WRITABLE);
    }),
    ("a program's page that is the kernel's", Rule::ProgramMapping, |bench| {
        bench.set_user_entry(PRIVATE, |entry| entry & !4);
    }),
    ("a page that is mapped less often than it says", Rule::PageMapcount, |bench| {
        bench.set_page(PRIVATE, Field::Mapcount, |count| count + 1);
    }),
    ("a page that two programs have and one is counted", Rule::PageMapcount, |bench| {
        bench.set_page(PRIVATE + PAGE, Field::Mapcount, |count| count - 1);
    }),
    ("a page of which a program has no reference", Rule::ProgramReferences, |bench| {
        bench.set_page(PRIVATE + PAGE, Field::Refcount, |count| count - 1);
    }),
    ("an entry that does not lock what its area does", Rule::ProgramLocked, |bench| {
        bench.set_user_entry(SHARED, |entry| entry & !MLOCKED);
    }),
    ("an entry that locks what its area does not", Rule::ProgramLocked, |bench| {
        bench.set_user_entry(PRIVATE, |entry| entry | MLOCKED);
    }),
    ("a locked page that is not marked", Rule::ProgramLocked, |bench| {
        bench.set_page(SHARED, Field::Flags, |flags| flags & !PageFlag::Mlocked.mask());
    }),
    ("a page that is locked more often than it says", Rule::ProgramLocked, |bench| {
        bench.set_page(SHARED + PAGE, Field::Prev, |count| count + 1);
    }),
    ("a page of nobody's", Rule::ProgramPage, |bench| bench.set_page(PRIVATE, Field::Mapping, |_| 0)),
    ("a page of another family", Rule::ProgramPage, |bench| bench.set_page(PRIVATE, Field::Mapping, |id| id + 2)),
    ("a page of another place", Rule::ProgramPage, |bench| bench.set_page(PRIVATE + PAGE, Field::Index, |at| at + 1)),
    ("a shared page in place of another", Rule::ProgramPage, |bench| {
        let other = u64::from(bench.frame(SHARED + PAGE)) << 12;
        bench.set_user_entry(SHARED, |entry| entry & !ADDRESS | other);
    }),
    ("a page that two programs have for themselves", Rule::ProgramExclusive, |bench| {
        bench.set_page(PRIVATE + PAGE, Field::Flags, |flags| flags | PageFlag::ANON_EXCLUSIVE.mask());
    }),
    ("a page that a program writes to for others", Rule::ProgramExclusive, |bench| {
        bench.set_user_entry(PRIVATE + PAGE, |entry| entry | WRITABLE);
    }),
    ("a program's table that says it is none", Rule::PageTableType, |bench| {
        let table = bench.user_entry(PRIVATE, 1).1 & ADDRESS;
        bench.set_meta((table >> 12) as u32, Field::Mapcount, 0);
    }),
    ("a program's table that somebody holds", Rule::PageTableType, |bench| {
        let table = bench.user_entry(PRIVATE, 2).1 & ADDRESS;
        bench.change_meta((table >> 12) as u32, Field::Refcount, |count| count + 1);
    }),
    ("a table in two places", Rule::ProgramTables, |bench| {
        let (_, table) = bench.user_entry(PRIVATE, 1);
        let (slot, _) = bench.user_entry(SHARED, 1);
        bench.poke(slot, &table.to_le_bytes());
    }),
    ("a table where no memory is", Rule::ProgramTables, |bench| {
        let (slot, table) = bench.user_entry(TEXT, 1);
        bench.poke(slot, &(table | 0x000f_0000_0000_0000).to_le_bytes());
    }),
    ("tables that lead back to their top", Rule::ProgramTables, |bench| {
        let (slot, table) = bench.user_entry(TEXT, 2);
        bench.poke(slot, &(table & !ADDRESS | bench.space().pgd).to_le_bytes());
    }),
];
