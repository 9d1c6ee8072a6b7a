//! Mappings of files that Linux refuses.

use pagevisor_mm::mmap::{Limits, MmapRequest};
use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::uapi::*;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};

use crate::{assert_sound, close, file, machine, try_map};

const RW: u32 = PROT_READ | PROT_WRITE;
/// Pages of the largest file (`s_maxbytes`).
const MOST: u64 = 1 << 32;

#[test]
fn mmap_of_a_file_refuses_what_linux_refuses() {
    let machine = machine(1);
    let mm = machine.mm();
    let open = file(mm);
    let (mapping, of) = open;
    let space = mm.mm_alloc().expect("a space");
    let last = try_map(mm, space, Some(of), MOST - 1, 1, RW, MAP_SHARED).expect("the last page that a file can have");
    for (pgoff, pages) in [(MOST - 1, 2), (MOST, 1), (1 << 51, 1)] {
        for kind in [MAP_SHARED, MAP_PRIVATE] {
            assert_eq!(try_map(mm, space, Some(of), pgoff, pages, RW, kind), Err(Errno::EOVERFLOW), "{pgoff} {pages}");
        }
    }
    let validated = |flags: u32| {
        let addr = VirtAddr::new(0x1000_0000);
        let flags = MAP_SHARED_VALIDATE | flags;
        let request = MmapRequest { addr, len: PAGE_SIZE, prot: RW, flags, file: Some(of), pgoff: 0 };
        mm.do_mmap(space, &request, &Limits::DEFAULT).map(VirtAddr::raw)
    };
    assert_eq!(validated(MAP_POPULATE), Ok(0x1000_0000));
    for flag in [MAP_FIXED_NOREPLACE, MAP_SYNC] {
        mm.do_munmap(space, VirtAddr::new(0x1000_0000), PAGE_SIZE).expect("a range");
        assert_eq!(validated(flag), Err(Errno::EOPNOTSUPP), "a flag that was not there before the kind was");
    }
    for size in [0, 21] {
        let flags = MAP_PRIVATE | MAP_HUGETLB | size << MAP_HUGE_SHIFT;
        assert_eq!(try_map(mm, space, Some(of), 0, 1, RW, flags), Err(Errno::EINVAL), "it has no huge pages");
    }
    mm.do_munmap(space, VirtAddr::new(last), PAGE_SIZE).expect("a range");
    assert_eq!(space.total_vm.load(std::sync::atomic::Ordering::Relaxed), 0);
    mm.mmput(space);
    close(mm, (mapping, of));
    assert_sound(mm, &[]);
}
