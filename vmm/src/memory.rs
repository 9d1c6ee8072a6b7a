//! Guest memory: a memfd per node, mapped sparsely and never touched before the guest does.
//!
//! ```text
//! 0            RAM or, when no node has memory there, a page range that only the boot data use
//! 0xE_0000     firmware area: ACPI tables (its own memfd)
//! 0x10_0000    RAM of the nodes (a memfd per node)
//! 0xE000_0000  state region (its own memfd, so that other processes can map it)
//! ```
//!
//! Guest memory is hostile and shared: it is reached through `vm-memory`'s volatile accessors, or as atomics
//! ([`RegionRef`]), never through references to plain data.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use pagevisor_shared::region::{Corrupt, Header, RegionRef};
use vm_memory::mmap::{GuestRegionMmap, MmapRegion};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::layout::Layout;
use crate::topology::AddrRange;

/// Flags of every mapping of guest memory: shared, because other processes read it; no reservation, because a
/// machine may be larger than its host.
const MAP_FLAGS: i32 = libc::MAP_SHARED | libc::MAP_NORESERVE;
const MAP_PROT: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Why guest memory could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A memfd could not be made.
    #[error("cannot create {size} bytes of memory for {what}")]
    Create {
        /// What it was for.
        what: String,
        /// How large it was to be.
        size: u64,
        /// Why not.
        source: io::Error,
    },
    /// A mapping could not be made.
    #[error("cannot map guest memory {start:#x}-{end:#x}")]
    Map {
        /// First byte.
        start: u64,
        /// Last byte.
        end: u64,
        /// Why not.
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The layout's ranges overlap.
    #[error("the ranges of guest memory contradict each other")]
    Ranges(#[source] vm_memory::GuestRegionCollectionError),
}

/// A range of guest memory and what is behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackedRange {
    /// Node whose memfd is behind it; `None` for the firmware areas.
    pub node: Option<usize>,
    /// Guest-physical address of the first byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Offset of the first byte in the memfd.
    pub offset: u64,
}

/// A KVM memory slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slot {
    pub guest_addr: u64,
    pub size: u64,
    pub host_addr: u64,
}

/// All memory of a machine. Nothing of it is left when this is dropped, unless a memfd was given away.
#[derive(Debug)]
pub struct GuestMemory {
    ram: GuestMemoryMmap,
    ranges: Vec<BackedRange>,
    nodes: Vec<(usize, Arc<File>)>,
    state: StateRegion,
}

impl GuestMemory {
    /// Makes the memory that `layout` describes.
    ///
    /// # Errors
    /// When the kernel refuses a memfd or a mapping, or when ranges overlap.
    pub fn new(layout: &Layout) -> Result<Self, MemoryError> {
        let state = StateRegion::new(layout.state)?;
        let mut nodes: Vec<(usize, Arc<File>)> = Vec::new();
        let mut ranges: Vec<BackedRange> = Vec::new();
        let mut regions = Vec::new();
        for ram in &layout.ram {
            let file = match nodes.iter().find(|(node, _)| *node == ram.node) {
                Some((_, file)) => file.clone(),
                None => {
                    let file = memfd(&format!("node{}", ram.node), layout.backing_size(ram.node))?;
                    nodes.push((ram.node, file.clone()));
                    file
                }
            };
            let range =
                BackedRange { node: Some(ram.node), start: ram.start, size: ram.size, offset: ram.backing_offset };
            regions.push(map(&range, file)?);
            ranges.push(range);
        }
        for area in &layout.firmware {
            let range = BackedRange { node: None, start: area.start, size: area.size, offset: 0 };
            regions.push(map(&range, memfd("firmware", area.size)?)?);
            ranges.push(range);
        }
        nodes.sort_by_key(|(node, _)| *node);
        ranges.sort_by_key(|range| range.start);
        regions.sort_by_key(|region| region.start_addr());
        let ram = GuestMemoryMmap::from_regions(regions).map_err(MemoryError::Ranges)?;
        Ok(Self { ram, ranges, nodes, state })
    }

    /// RAM and firmware areas, by guest-physical address. The state region is not in it: no device may be pointed
    /// there.
    pub fn ram(&self) -> &GuestMemoryMmap {
        &self.ram
    }

    /// What is behind each range, in order of address.
    pub fn ranges(&self) -> &[BackedRange] {
        &self.ranges
    }

    /// The memfds of the nodes that have memory, in order of node.
    pub fn node_files(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        self.nodes.iter().map(|(node, file)| (*node, file.as_fd()))
    }

    /// Files through which the nodes' memory can be mapped, but not for writing; in order of node.
    ///
    /// # Errors
    /// When /proc is not mounted or the process has no descriptor left.
    pub fn read_only_nodes(&self) -> io::Result<Vec<(usize, File)>> {
        self.nodes.iter().map(|(node, file)| Ok((*node, read_only(file)?))).collect()
    }

    /// The state region.
    pub fn state(&self) -> &StateRegion {
        &self.state
    }

    /// All slots for KVM, the state region's included.
    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> {
        let state = (self.state.start, self.state.size(), self.state.map.as_ptr() as u64);
        let ram = self.ram.iter().map(|region| (region.start_addr().0, region.len(), region.as_ptr() as u64));
        ram.chain([state]).map(|(guest_addr, size, host_addr)| Slot { guest_addr, size, host_addr })
    }
}

/// The state region: memory that host and guest share, and any process that is given its memfd.
#[derive(Debug)]
pub struct StateRegion {
    start: u64,
    file: Arc<File>,
    map: MmapRegion,
}

impl StateRegion {
    fn new(place: AddrRange) -> Result<Self, MemoryError> {
        let file = memfd("state", place.size)?;
        let offset = FileOffset::from_arc(file.clone(), 0);
        let map = MmapRegion::build(Some(offset), place.size as usize, MAP_PROT, MAP_FLAGS)
            .map_err(|source| MemoryError::Map { start: place.start, end: place.end() - 1, source })?;
        Ok(Self { start: place.start, file, map })
    }

    /// Guest-physical address of the first byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Bytes of the region, a multiple of the page size.
    pub fn size(&self) -> u64 {
        self.map.size() as u64
    }

    /// The memfd. Whoever has it may write the region; give away [`Self::read_only`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// A file through which the region can be mapped, but not for writing.
    ///
    /// # Errors
    /// When /proc is not mounted or the process has no descriptor left.
    pub fn read_only(&self) -> io::Result<File> {
        read_only(&self.file)
    }

    fn base(&self) -> Option<NonNull<u8>> {
        NonNull::new(self.map.as_ptr())
    }

    /// The header, which may hold anything.
    pub fn header(&self) -> Option<&Header> {
        // SAFETY: the mapping is page-aligned, at least a page long, lives as long as `self`, and nothing in this
        // process accesses it other than through atomics.
        self.base().map(|base| unsafe { RegionRef::header_at(base) })
    }

    /// The region as the guest laid it out.
    ///
    /// # Errors
    /// [`Corrupt`] says what in the header is not as the contract has it; before the guest is up, that is the magic.
    pub fn open(&self) -> Result<RegionRef<'_>, Corrupt> {
        let base = self.base().ok_or(Corrupt { what: "mapping", found: 0, expected: 1 })?;
        // SAFETY: as in `header`, for `size` bytes.
        unsafe { RegionRef::open(base, self.size()) }
    }
}

/// A sealed memfd of `size` bytes: nobody who is given it can make it smaller under its users.
fn memfd(what: &str, size: u64) -> Result<Arc<File>, MemoryError> {
    let make = || -> io::Result<File> {
        let name = format!("pagevisor-{what}");
        let fd = memfd_create(name.as_str(), MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let file = File::from(fd);
        file.set_len(size)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(file)
    };
    make().map(Arc::new).map_err(|source| MemoryError::Create { what: what.to_owned(), size, source })
}

/// A second open file for the same memory, which cannot be written through.
fn read_only(file: &File) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn map(range: &BackedRange, file: Arc<File>) -> Result<GuestRegionMmap, MemoryError> {
    let error = |source| MemoryError::Map { start: range.start, end: range.start + (range.size - 1), source };
    let offset = FileOffset::from_arc(file, range.offset);
    let region = MmapRegion::build(Some(offset), range.size as usize, MAP_PROT, MAP_FLAGS).map_err(error)?;
    // SAFETY: the range was mapped by the line above and is owned by `region`; the advice changes no contents. A core
    // dump of the VMM would otherwise try to write all of guest memory; if the advice is refused, it does.
    unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_DONTDUMP) };
    GuestRegionMmap::new(region, GuestAddress(range.start))
        .ok_or_else(|| error(vm_memory::mmap::MmapRegionError::InvalidOffsetLength))
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::topology::{Memory, Node, Topology, ZoneAmounts, uniform_distances};

    fn memory(amounts: &[[u64; 3]]) -> (Layout, GuestMemory) {
        let node = |(id, &[dma, dma32, normal]): (u32, &[u64; 3])| Node {
            memory: Memory::Zones(ZoneAmounts { dma: dma << 20, dma32: dma32 << 20, normal: normal << 20 }),
            cpus: vec![id],
        };
        let nodes = (0..).zip(amounts).map(node).collect();
        let topology = Topology::new(nodes, uniform_distances(amounts.len())).unwrap();
        let layout = Layout::place(&topology).unwrap();
        let memory = GuestMemory::new(&layout).unwrap();
        (layout, memory)
    }

    #[test]
    fn each_address_is_in_its_nodes_file_at_the_place_told() {
        use std::os::unix::fs::FileExt;
        let (layout, memory) = memory(&[[16, 16, 0], [0, 32, 64]]);
        assert_eq!(memory.ranges().iter().filter(|range| range.node.is_some()).count(), layout.ram.len());
        let files = memory.read_only_nodes().unwrap();
        assert_eq!(files.iter().map(|(node, _)| *node).collect::<Vec<_>>(), [0, 1]);
        for range in memory.ranges() {
            let last = range.start + range.size - 8;
            for address in [range.start, last] {
                memory.ram().write_obj(address, GuestAddress(address)).unwrap();
                let Some(node) = range.node else { continue };
                let mut bytes = [0; 8];
                files[node].1.read_exact_at(&mut bytes, range.offset + (address - range.start)).unwrap();
                assert_eq!(u64::from_le_bytes(bytes), address);
            }
        }
    }

    #[test]
    fn boot_data_and_tables_have_memory_even_without_zone_dma() {
        for amounts in [&[[16, 16, 0]][..], &[[0, 64, 0]]] {
            let (_, memory) = memory(amounts);
            for address in [0, 0x6000, 0x8000, 0x9_fff8, 0xe_0000, 0xf_fff8] {
                memory.ram().write_obj(1u64, GuestAddress(address)).unwrap();
            }
            assert!(memory.ram().write_obj(1u64, GuestAddress(0xa_0000)).is_err());
        }
    }

    #[test]
    fn slots_cover_all_memory_once_and_the_state_region_apart() {
        let (layout, memory) = memory(&[[16, 64, 0], [0, 0, 64]]);
        let mut slots: Vec<Slot> = memory.slots().collect();
        slots.sort_by_key(|slot| slot.guest_addr);
        assert!(slots.windows(2).all(|pair| pair[0].guest_addr + pair[0].size <= pair[1].guest_addr));
        let firmware: u64 = layout.firmware.iter().map(|area| area.size).sum();
        let total: u64 = slots.iter().map(|slot| slot.size).sum();
        assert_eq!(total, layout.ram_bytes() + firmware + layout.state.size);
        assert!(memory.ram().write_obj(1u64, GuestAddress(layout.state.start)).is_err(), "the state region is no RAM");
    }

    #[test]
    fn shared_files_can_neither_shrink_nor_be_written() {
        use std::os::unix::fs::FileExt;
        let (_, memory) = memory(&[[16, 64, 0]]);
        assert!(memory.state().read_only().unwrap().write_at(b"x", 0).is_err());
        assert!(memory.read_only_nodes().unwrap()[0].1.write_at(b"x", 0).is_err());
        assert!(memory.nodes[0].1.set_len(0).is_err());
        assert!(memory.state().open().is_err(), "an empty region is no region");
    }
}
