//! Files' pages on hosted machines: reading, writing, cutting, mapping.

mod allocate;
mod faults;
mod model;
mod refused;
mod seals;
mod storm;

use pagevisor_mm::Mm;
use pagevisor_mm::check::{area_violations, file_violations, space_violations, user_violations, violations};
use pagevisor_mm::filemap::{FileMapping, MappingKind};
use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};
use pagevisor_mm::memory::{FaultKind, FaultResult};
use pagevisor_mm::mmap::{Limits, MappedFileRef, MmapRequest, Space};
use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::MappedFile;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};

const LIMITS: Limits = Limits::DEFAULT;
const READ_WRITE: u32 = MappedFile::READ | MappedFile::WRITE;

/// The memory stack of a test.
type Stack = Mm<HostPlatform>;

/// A machine of 64 MiB and `cpus` CPUs.
fn machine(cpus: usize) -> Machine {
    Topology::new().node(&[(0, 640 << 10), (1 << 20, 64 << 20)], cpus).boot()
}

/// An empty file of shared memory, open for reading and writing. The caller has a reference to each.
#[track_caller]
fn file(mm: &Stack) -> (FileMapping, MappedFileRef) {
    let mapping = mm.mapping_create(MappingKind::Shmem, 1, 7).expect("a file");
    (mapping, mm.mapped_file_new(mapping, b"/a/file", READ_WRITE).expect("an open file"))
}

fn close(mm: &Stack, (mapping, file): (FileMapping, MappedFileRef)) {
    mm.mapped_file_put(file);
    mm.mapping_put(mapping);
}

/// Maps `pages` of `file` from page `pgoff` on, anywhere.
fn try_map(
    mm: &Stack,
    space: Space,
    file: Option<MappedFileRef>,
    pgoff: u64,
    pages: u64,
    prot: u32,
    flags: u32,
) -> Result<u64, Errno> {
    let addr = VirtAddr::new(0);
    let request = MmapRequest { addr, len: pages * PAGE_SIZE, prot, flags, file, pgoff };
    mm.do_mmap(space, &request, &LIMITS).map(VirtAddr::raw)
}

#[track_caller]
fn map(mm: &Stack, space: Space, file: MappedFileRef, pgoff: u64, pages: u64, prot: u32, flags: u32) -> u64 {
    try_map(mm, space, Some(file), pgoff, pages, prot, flags).expect("there is room")
}

#[track_caller]
fn load(mm: &Stack, space: Space, addr: u64) -> (u8, Option<FaultKind>) {
    mm.user_load(space, VirtAddr::new(addr), &LIMITS).expect("it may be read")
}

#[track_caller]
fn store(mm: &Stack, space: Space, addr: u64, byte: u8) -> Option<FaultKind> {
    mm.user_store(space, VirtAddr::new(addr), byte, &LIMITS).expect("it may be written")
}

fn try_load(mm: &Stack, space: Space, addr: u64) -> Result<u8, FaultResult> {
    mm.user_load(space, VirtAddr::new(addr), &LIMITS).map(|(byte, _)| byte)
}

/// Fails with what is wrong if anything is; `mappings` are all files there are.
#[track_caller]
fn assert_sound(mm: &Stack, mappings: &[FileMapping]) {
    let user = user_violations(mm).into_iter().chain(file_violations(mm, mappings));
    let found: Vec<String> = user
        .map(|v| v.to_string())
        .chain(violations(mm).iter().map(ToString::to_string))
        .chain(space_violations(mm).iter().map(ToString::to_string))
        .chain(area_violations(mm).iter().map(ToString::to_string))
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}
