//! What PVH hands over: start info, memory map, command line, initial RAM disk; and the firmware tables.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use linux_loader::cmdline::Cmdline;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::load_cmdline;
use pagevisor_shared::device::cmdline;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::elf::{ElfError, KernelElf};
use crate::layout::{CMDLINE, CMDLINE_MAX, Layout, MONITOR, PVH_MEMORY_MAP, PVH_START_INFO};
use crate::topology::AddrRange;

/// `XEN_HVM_START_MAGIC_VALUE`.
const START_MAGIC: u32 = 0x336e_c578;
/// The version that has a memory map.
const START_VERSION: u32 = 1;
/// The list of modules, behind the start info in its page.
const MODULE_LIST: u64 = PVH_START_INFO + 0x100;

/// Why a machine's memory cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel.
    #[error("kernel {name}")]
    Kernel {
        /// Which one.
        name: String,
        /// What is wrong with it.
        source: ElfError,
    },
    /// The initial RAM disk cannot be read.
    #[error("initrd {path}")]
    Initrd {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The initial RAM disk is nothing that could be one.
    #[error("initrd {path} {what}")]
    BadInitrd {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// There is no room for the program.
    #[error("the program has {0} bytes, for which the boot node has no room below 4 GiB")]
    NoRoom(u64),
    /// The command line.
    #[error("the kernel command line cannot be passed on: {0}")]
    CommandLine(String),
    /// A table does not fit, which the layout should have seen to.
    #[error("the boot data do not fit in guest memory: {0}")]
    Data(String),
}

/// The kernel command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommandLine {
    /// Say that the host emulates ring 0.
    pub emulated: bool,
    /// Ask the kernel to power off once it is ready.
    pub exit: bool,
    /// The program to start (`rdinit=`).
    pub init: Option<String>,
    /// The user's words, which come last so that they win.
    pub append: String,
}

impl CommandLine {
    /// The line as a whole.
    pub fn build(&self) -> Result<Cmdline, BootError> {
        let bad = |error: linux_loader::cmdline::Error| BootError::CommandLine(error.to_string());
        let mut line = Cmdline::new(CMDLINE_MAX as usize).map_err(bad)?;
        line.add_virtio_mmio_device(MONITOR.size, GuestAddress(MONITOR.start), 0, None).map_err(bad)?;
        line.insert_str(cmdline::ZEROED).map_err(bad)?;
        if self.emulated {
            line.insert_str(cmdline::EMULATED).map_err(bad)?;
        }
        if self.exit {
            line.insert_str(cmdline::EXIT).map_err(bad)?;
        }
        if let Some(init) = &self.init {
            line.insert(cmdline::RDINIT, init).map_err(bad)?;
        }
        if !self.append.trim().is_empty() {
            line.insert_str(&self.append).map_err(bad)?;
        }
        Ok(line)
    }
}

/// All that goes into guest memory before the start.
#[derive(Debug)]
pub struct BootPlan<'a> {
    /// The machine's memory.
    pub layout: &'a Layout,
    /// The kernel.
    pub kernel: &'a [u8],
    /// What to call the kernel in messages.
    pub kernel_name: String,
    /// The initial RAM disk.
    pub initrd: Option<&'a Path>,
    /// What comes behind it in memory: another one, by which the guest goes on.
    pub archive: Vec<u8>,
    /// The command line.
    pub command_line: CommandLine,
    /// Firmware tables: the address of the RSDP, and where the bytes go.
    pub rsdp: u64,
    /// Firmware tables: where the bytes go.
    pub tables_at: u64,
    /// Firmware tables: the bytes.
    pub tables: &'a [u8],
}

impl BootPlan<'_> {
    /// Writes everything and gives the address of the kernel's entry. The start info is at
    /// [`PVH_START_INFO`].
    pub fn write(&self, ram: &GuestMemoryMmap) -> Result<u64, BootError> {
        let bad_kernel = |source| BootError::Kernel { name: self.kernel_name.clone(), source };
        let kernel = KernelElf::parse(self.kernel).map_err(bad_kernel)?;
        let entry = kernel.load(ram).map_err(bad_kernel)?;
        let initrd = match self.initrd {
            Some(path) => Some(load_initrd(path, &self.archive, self.layout, &kernel, ram)?),
            None if self.archive.is_empty() => None,
            None => Some(load_archive(&self.archive, self.layout, &kernel, ram)?),
        };
        ram.write_slice(self.tables, GuestAddress(self.tables_at))
            .map_err(|error| BootError::Data(error.to_string()))?;
        load_cmdline(ram, GuestAddress(CMDLINE), &self.command_line.build()?)
            .map_err(|error| BootError::CommandLine(error.to_string()))?;
        self.write_start_info(ram, initrd)?;
        Ok(entry)
    }

    fn write_start_info(&self, ram: &GuestMemoryMmap, initrd: Option<AddrRange>) -> Result<(), BootError> {
        let map = self.layout.e820.iter();
        let map: Vec<hvm_memmap_table_entry> = map
            .map(|entry| hvm_memmap_table_entry {
                addr: entry.start,
                size: entry.size,
                type_: entry.kind as u32,
                reserved: 0,
            })
            .collect();
        let mut info = hvm_start_info {
            magic: START_MAGIC,
            version: START_VERSION,
            cmdline_paddr: CMDLINE,
            rsdp_paddr: self.rsdp,
            memmap_paddr: PVH_MEMORY_MAP,
            memmap_entries: map.len() as u32,
            ..Default::default()
        };
        if initrd.is_some() {
            info.nr_modules = 1;
            info.modlist_paddr = MODULE_LIST;
        }
        let mut params = BootParams::new(&info, GuestAddress(PVH_START_INFO));
        params.set_sections(&map, GuestAddress(PVH_MEMORY_MAP));
        if let Some(place) = initrd {
            let module = hvm_modlist_entry { paddr: place.start, size: place.size, ..Default::default() };
            params.set_modules(&[module], GuestAddress(MODULE_LIST));
        }
        PvhBootConfigurator::write_bootparams(&params, ram).map_err(|error| BootError::Data(error.to_string()))
    }
}

fn load_initrd(
    path: &Path,
    archive: &[u8],
    layout: &Layout,
    kernel: &KernelElf<'_>,
    ram: &GuestMemoryMmap,
) -> Result<AddrRange, BootError> {
    let failed = |source| BootError::Initrd { path: path.to_owned(), source };
    let bad = |what: String| BootError::BadInitrd { path: path.to_owned(), what };
    let mut file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(bad("is no regular file".into()));
    }
    let size = metadata.len();
    if size == 0 {
        return Err(bad("is empty".into()));
    }
    let no_room = || bad(format!("has {size} bytes, for which the boot node has no room below 4 GiB"));
    // Archives begin at multiples of four bytes.
    let start = size.checked_next_multiple_of(4).ok_or_else(no_room)?;
    let whole = if archive.is_empty() { Some(size) } else { start.checked_add(archive.len() as u64) };
    let place = whole.and_then(|whole| place_initrd(whole, layout, kernel)).ok_or_else(no_room)?;
    ram.read_exact_volatile_from(GuestAddress(place.start), &mut file, size as usize)
        .map_err(|error| bad(format!("cannot be read: {error}")))?;
    ram.write_slice(archive, GuestAddress(place.start + start)).map_err(|error| BootError::Data(error.to_string()))?;
    Ok(place)
}

/// Where an initial RAM disk of `size` bytes goes, if it fits.
fn place_initrd(size: u64, layout: &Layout, kernel: &KernelElf<'_>) -> Option<AddrRange> {
    let place = layout.initrd(size)?;
    let free = !kernel.segments().iter().any(|segment| segment.physical.overlaps(&place));
    free.then_some(place)
}

/// As [`load_initrd`], with nothing of the user's.
fn load_archive(
    archive: &[u8],
    layout: &Layout,
    kernel: &KernelElf<'_>,
    ram: &GuestMemoryMmap,
) -> Result<AddrRange, BootError> {
    let size = archive.len() as u64;
    let place = place_initrd(size, layout, kernel).ok_or(BootError::NoRoom(size))?;
    ram.write_slice(archive, GuestAddress(place.start)).map_err(|error| BootError::Data(error.to_string()))?;
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(emulated: bool, exit: bool, append: &str) -> Result<String, BootError> {
        let line = CommandLine { emulated, exit, init: None, append: append.into() }.build()?;
        Ok(line.as_cstring().unwrap().into_string().unwrap())
    }

    #[test]
    fn the_command_line_is_what_the_contract_says() {
        let start = "virtio_mmio.device=4K@0xd0000000:0 pagevisor.zeroed";
        assert_eq!(line(false, false, "").unwrap(), start);
        assert_eq!(line(true, true, " a=b  c ").unwrap(), format!("{start} pagevisor.emulated pagevisor.exit a=b  c"));
        let init = CommandLine { emulated: false, exit: false, init: Some("/bin/sh".into()), append: "a=b".into() };
        let whole = init.build().unwrap().as_cstring().unwrap().into_string().unwrap();
        assert_eq!(whole, format!("{start} rdinit=/bin/sh a=b"));
    }

    #[test]
    fn a_command_line_that_cannot_be_passed_on_is_refused() {
        for append in ["\u{1f600}".to_owned(), "x".repeat(CMDLINE_MAX as usize), "a\nb".to_owned()] {
            assert!(matches!(line(false, false, &append), Err(BootError::CommandLine(_))), "{append:.10}");
        }
    }
}
