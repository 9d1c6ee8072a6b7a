//! Programs of the guest made by hand.
//!
//! ```text
//! task 1 "init", on CPU 1         mm at SPACE, page tables from USER_TABLES on
//! task 2 "kthreadd", of the kernel
//!   400000 -   402000  r-xp  /bin/init       a page mapped twice, and one that is not there
//!   600000 -   603000  rw-p  [heap]          two pages, one of them of node 1 and dirty; the zero page
//!   7ffffffde000 - 7ffffffff000  rw-p [stack]   the last page
//! ```

use std::mem::offset_of;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::mm_types::{AddressSpace, MappedFile, MappingId, MmStruct, VmArea, VmaFlags};
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::pgtable::Entry;
use pagevisor_shared::sched::{
    FilesStruct, FsStruct, RLIMIT_SIGPENDING, SighandStruct, SignalStruct, TaskState, TaskStruct,
};

use super::slabs::direct;
use super::{FakeGuest, MIB, PFN4G};

/// Where the records are.
pub(crate) const TASKS: u64 = 56 * MIB;
/// The address space.
pub(crate) const SPACE: u64 = TASKS + 0x1000;
/// Its areas, 256 bytes each.
pub(crate) const AREAS_OF: u64 = TASKS + 0x2000;
const FILE: u64 = TASKS + 0x3000;
/// What task 1 shares, 512 bytes each.
const SHARES: u64 = TASKS + 0x4000;
/// The program's page tables, the top one first.
pub(crate) const USER_TABLES: u64 = 57 * MIB;
/// Frames that the program has mapped: of the file, twice anonymous, the zero page, of the stack.
pub(crate) const FRAMES: [u32; 5] = [0x3a00, 0x3a01, PFN4G + 0x900, 0x3a02, 0x3a03];

const PRIVATE: u64 = VmaFlags::READ.0 | VmaFlags::MAYREAD.0 | VmaFlags::MAYWRITE.0 | VmaFlags::MAYEXEC.0;

impl FakeGuest {
    /// Makes the programs.
    pub fn with_programs(self) -> Self {
        let put = |at: u64, offset: usize, value: u64| self.memory.write_u64(at + offset as u64, value);
        let put32 = |at: u64, offset: usize, value: u32| self.memory.write_u32(at + offset as u64, value);
        self.task(0, [1, 1, 0], TaskState::Running, b"init");
        self.task(1, [2, 2, 0], TaskState::Interruptible, b"kthreadd");
        put(TASKS, offset_of!(TaskStruct, next), direct(TASKS + 256));
        put(TASKS + 256, offset_of!(TaskStruct, prev), direct(TASKS));
        put(TASKS, offset_of!(TaskStruct, mm), direct(SPACE));
        put32(TASKS, offset_of!(TaskStruct, cpu), 1);
        put32(TASKS, offset_of!(TaskStruct, on_cpu), 1);
        put(TASKS, offset_of!(TaskStruct, cpus_mask), 3);
        put(TASKS, offset_of!(TaskStruct, nvcsw), 7);
        put32(TASKS + 256, offset_of!(TaskStruct, flags), TaskStruct::KTHREAD);
        self.shares();
        self.memory.write(FILE + 128, b"/bin/init");
        put32(FILE, offset_of!(MappedFile, path_len), 9);
        put(FILE, offset_of!(MappedFile, path), direct(FILE + 128));
        put(FILE, offset_of!(MappedFile, mapping), direct(FILE + 256));
        put32(FILE + 256, offset_of!(AddressSpace, dev), 1);
        put(FILE + 256, offset_of!(AddressSpace, ino), 12);
        let rw = PRIVATE | VmaFlags::WRITE.0 | VmaFlags::ACCOUNT.0;
        self.area_of(0, [0x40_0000, 0x40_2000, PRIVATE | VmaFlags::EXEC.0, 0, direct(FILE)]);
        self.area_of(1, [0x60_0000, 0x60_3000, rw, 0x600, 0]);
        self.area_of(2, [0x7fff_fffd_e000, 0x7fff_ffff_f000, rw | VmaFlags::GROWSDOWN.0, 0x7_ffff_ffde, 0]);
        self.space();
        self.user_tables();
        let region = self.region();
        let roots = &region.header().roots;
        roots.tasks.store(direct(TASKS), Relaxed);
        roots.nr_tasks.store(2, Relaxed);
        roots.mms.store(direct(SPACE), Relaxed);
        roots.zero_pfn.store(FRAMES[3].into(), Relaxed);
        self
    }

    fn task(&self, number: u64, [pid, tgid, ppid]: [u32; 3], state: TaskState, comm: &[u8]) {
        let at = TASKS + number * 256;
        let words = [
            (offset_of!(TaskStruct, pid), pid),
            (offset_of!(TaskStruct, tgid), tgid),
            (offset_of!(TaskStruct, ppid), ppid),
            (offset_of!(TaskStruct, state), state as u32),
        ];
        words.iter().for_each(|(offset, value)| self.memory.write_u32(at + *offset as u64, *value));
        self.memory.write(at + offset_of!(TaskStruct, comm) as u64, comm);
    }

    fn shares(&self) {
        let words = [
            offset_of!(TaskStruct, signal),
            offset_of!(TaskStruct, sighand),
            offset_of!(TaskStruct, fs),
            offset_of!(TaskStruct, files),
        ];
        let [signal, sighand, fs, files] = [0, 512, 1024, 1536].map(|offset| SHARES + offset);
        for (word, at) in words.into_iter().zip([signal, sighand, fs, files]) {
            self.memory.write_u64(TASKS + word as u64, direct(at));
        }
        self.memory.write_u64(TASKS + offset_of!(TaskStruct, pending) as u64, 0x100);
        self.memory.write_u64(TASKS + offset_of!(TaskStruct, blocked) as u64, 0x300);
        self.memory.write_u32(signal + offset_of!(SignalStruct, pgrp) as u64, 1);
        self.memory.write_u32(signal + offset_of!(SignalStruct, session) as u64, 4);
        self.memory.write_u64(signal + offset_of!(SignalStruct, shared_pending) as u64, 0x200);
        let limit = offset_of!(SignalStruct, rlim) + RLIMIT_SIGPENDING * 16;
        self.memory.write_u64(signal + limit as u64, 1000);
        self.memory.write_u64(sighand + offset_of!(SighandStruct, ignored) as u64, 0x1000);
        self.memory.write_u64(sighand + offset_of!(SighandStruct, caught) as u64, 0x1_0000);
        self.memory.write_u32(fs + offset_of!(FsStruct, umask) as u64, 0o22);
        self.memory.write_u32(files + offset_of!(FilesStruct, max_fds) as u64, 64);
    }

    fn area_of(&self, number: u64, [start, end, flags, pgoff, file]: [u64; 5]) {
        let at = AREAS_OF + number * 256;
        let words = [
            (offset_of!(VmArea, vm_start), start),
            (offset_of!(VmArea, vm_end), end),
            (offset_of!(VmArea, vm_flags), flags),
            (offset_of!(VmArea, vm_pgoff), pgoff),
            (offset_of!(VmArea, vm_mm), direct(SPACE)),
            (offset_of!(VmArea, vm_file), file),
            (offset_of!(VmArea, prev), if number == 0 { 0 } else { direct(at - 256) }),
            (offset_of!(VmArea, next), if number == 2 { 0 } else { direct(at + 256) }),
        ];
        words.iter().for_each(|(offset, value)| self.memory.write_u64(at + *offset as u64, *value));
    }

    fn space(&self) {
        let words = [
            (offset_of!(MmStruct, pgd), USER_TABLES),
            (offset_of!(MmStruct, mmap), direct(AREAS_OF)),
            (offset_of!(MmStruct, total_vm), 38),
            (offset_of!(MmStruct, data_vm), 3),
            (offset_of!(MmStruct, exec_vm), 2),
            (offset_of!(MmStruct, stack_vm), 33),
            (offset_of!(MmStruct, rss_stat), 1),
            (offset_of!(MmStruct, rss_stat) + 8, 3),
            (offset_of!(MmStruct, pgtables_bytes), 7 * 4096),
            (offset_of!(MmStruct, hiwater_vm), 40),
            (offset_of!(MmStruct, start_code), 0x40_0000),
            (offset_of!(MmStruct, end_code), 0x40_1234),
            (offset_of!(MmStruct, start_brk), 0x60_0000),
            (offset_of!(MmStruct, brk), 0x60_2ff0),
            (offset_of!(MmStruct, start_stack), 0x7fff_ffff_e000),
        ];
        words.iter().for_each(|(offset, value)| self.memory.write_u64(SPACE + *offset as u64, *value));
        self.memory.write_u32(SPACE + offset_of!(MmStruct, map_count) as u64, 3);
        self.memory.write_u32(SPACE + offset_of!(MmStruct, mm_users) as u64, 1);
    }

    fn user_tables(&self) {
        let table = |number: u64| USER_TABLES + number * 4096;
        let index = |address: u64, shift: u32| (address >> shift & 511) * 8;
        let low = [(0, 39, 1), (1, 30, 2)];
        low.iter().for_each(|(at, shift, to)| {
            self.memory.write_u64(table(*at) + index(0x40_0000, *shift), table(*to) | Entry::USER_TABLE);
        });
        self.memory.write_u64(table(2) + index(0x40_0000, 21), table(3) | Entry::USER_TABLE);
        self.memory.write_u64(table(2) + index(0x60_0000, 21), table(4) | Entry::USER_TABLE);
        let stack = 0x7fff_ffff_e000;
        for (at, shift, to) in [(0, 39, 5), (5, 30, 6), (6, 21, 7)] {
            self.memory.write_u64(table(at) + index(stack, shift), table(to) | Entry::USER_TABLE);
        }
        let user = Entry::PRESENT | Entry::USER | Entry::ACCESSED;
        let data = user | Entry::WRITABLE | Entry::DIRTY | Entry::NO_EXECUTE;
        let pages = [
            (3, 0x40_0000, user),
            (4, 0x60_0000, user | Entry::NO_EXECUTE),
            (4, 0x60_1000, data),
            (4, 0x60_2000, user | Entry::SPECIAL | Entry::NO_EXECUTE),
            (7, stack, data),
        ];
        for ((at, address, bits), pfn) in pages.into_iter().zip(FRAMES) {
            self.memory.write_u64(table(at) + index(address, 12), (u64::from(pfn) << 12) | bits);
        }
        let anon = MappingId::anon(5).word();
        let swap = PageFlag::Swapbacked.mask();
        self.user_page(FRAMES[0], [PageFlag::Uptodate.mask(), 3, 2, MappingId::file(9).word()]);
        self.user_page(FRAMES[1], [swap, 1, 1, anon]);
        self.user_page(FRAMES[2], [swap | PageFlag::Active.mask(), 1, 1, anon]);
        self.user_page(FRAMES[4], [swap, 1, 1, anon]);
    }

    fn user_page(&self, pfn: u32, [flags, refcount, mapcount, mapping]: [u32; 4]) {
        [(0, flags), (1, refcount), (2, mapcount), (6, mapping)]
            .into_iter()
            .for_each(|(word, value)| self.set_meta(pfn, word, value));
    }
}
