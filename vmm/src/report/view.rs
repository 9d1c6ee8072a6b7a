//! The views by name.

use std::fmt;
use std::io::Write;
use std::str::FromStr;

use pagevisor_shared::layout::VMEMMAP_START;
use pagevisor_shared::region::RegionRef;
use pagevisor_shared::report as linux;
use pagevisor_shared::report::{ContigPageInfo, counters};
use pagevisor_shared::units::NodeId;
use pagevisor_shared::zone::ZoneIndex;
use serde_json::Value;

use super::error::ReportError;
use super::kmem::SlabSpec;
use super::process::ProcessView;
use super::{json, kmem, page_owner, slabinfo, vmallocinfo, vtop, zeroed};
use crate::state::StateView;

/// A file of a node's directory in sysfs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeFile {
    /// `meminfo`
    Meminfo,
    /// `numastat`
    Numastat,
    /// `vmstat`
    Vmstat,
    /// `distance`
    Distance,
    /// `cpulist`
    Cpulist,
    /// `cpumap`
    Cpumap,
}

impl NodeFile {
    /// All files, with their names.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Meminfo, "meminfo"),
        (Self::Numastat, "numastat"),
        (Self::Vmstat, "vmstat"),
        (Self::Distance, "distance"),
        (Self::Cpulist, "cpulist"),
        (Self::Cpumap, "cpumap"),
    ];

    fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(file, _)| *file == self).map_or("", |(_, name)| name)
    }
}

/// A page, as `kmem -p` takes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageSpec {
    /// By frame number.
    Pfn(u64),
    /// By the address of its metadata.
    Page(u64),
}

/// A view.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum View {
    /// `/proc/buddyinfo`
    Buddyinfo,
    /// `/proc/pagetypeinfo`
    Pagetypeinfo,
    /// `/proc/zoneinfo`
    Zoneinfo,
    /// `/proc/meminfo`
    Meminfo,
    /// `/proc/vmstat`
    Vmstat,
    /// `/proc/iomem`
    Iomem,
    /// `/proc/slabinfo`
    Slabinfo,
    /// `/proc/vmallocinfo`
    Vmallocinfo,
    /// `kmem -v`: areas of the kernel's address space
    KmemVmlist,
    /// `/sys/kernel/debug/extfrag/extfrag_index`
    ExtfragIndex,
    /// `/sys/kernel/debug/extfrag/unusable_index`
    UnusableIndex,
    /// `/sys/devices/system/node/nodeN/...`
    Node(NodeId, NodeFile),
    /// `numactl --hardware`
    Numa,
    /// `kmem -f`: free lists, walked and compared with the counters
    KmemFree,
    /// `kmem -n`: nodes, zones and sections
    KmemNodes,
    /// `kmem -p`: page metadata
    KmemPages(Option<PageSpec>),
    /// `kmem -V`: counters of the machine
    KmemVmstat,
    /// `kmem -z`: counters by zone
    KmemZones,
    /// `kmem -s`: slab caches
    KmemSlabs(SlabSpec),
    /// `kmem -S`: slab caches with their slabs and objects
    KmemSlabObjects(SlabSpec),
    /// `kmem -i`: memory by what it is used for
    KmemUsage,
    /// `kmem ADDRESS`: what an address is
    KmemAddress(u64),
    /// `vtop ADDRESS`: a walk through the page tables
    Vtop(u64),
    /// `kmem -g`: page flags
    KmemFlags(Option<u64>),
    /// `sysctl vm`
    Sysctl,
    /// `/sys/kernel/debug/fail_page_alloc`
    FailPageAlloc,
    /// `/sys/kernel/debug/failslab`
    Failslab,
    /// `/sys/kernel/debug/cma`
    Cma,
    /// `zeroed`: pages that were cleared, and free ones that are known to be zero
    Zeroed,
    /// `/sys/kernel/debug/page_owner`
    PageOwner,
    /// The same by the places that allocate
    PageOwnerSites,
    /// Tasks and programs
    Process(ProcessView),
}

/// A view that does not exist.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadView {
    name: String,
    reason: &'static str,
}

impl fmt::Display for BadView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} '{}'; views are {}", self.reason, self.name, View::KNOWN.join(", "))
    }
}

impl std::error::Error for BadView {}

impl View {
    /// What views there are, as a user may write them.
    pub const KNOWN: [&'static str; 35] = [
        "buddyinfo",
        "pagetypeinfo",
        "zoneinfo",
        "meminfo",
        "vmstat",
        "iomem",
        "slabinfo",
        "vmallocinfo",
        "extfrag_index",
        "unusable_index",
        "node/N/{meminfo,numastat,vmstat,distance,cpulist,cpumap}",
        "numa",
        "kmem -f",
        "kmem -n",
        "kmem -p [PFN|PAGE]",
        "kmem -V",
        "kmem -z",
        "kmem -g [FLAGS]",
        "kmem -i",
        "kmem -s [CACHE|ADDRESS]",
        "kmem -S [CACHE|ADDRESS]",
        "kmem -v",
        "kmem ADDRESS",
        "vtop ADDRESS",
        "sysctl",
        "fail_page_alloc",
        "failslab",
        "cma",
        "zeroed",
        "page_owner [sites]",
        "pid/PID/{maps,smaps,smaps_rollup,status,statm,numa_maps,pagemap}",
        "ps",
        "vm PID",
        "vm -p PID",
        "vtop PID ADDRESS",
    ];

    /// Writes the view.
    ///
    /// # Errors
    /// [`ReportError`]; [`ReportError::Unverified`] comes after the whole view was written.
    pub fn render(&self, state: &StateView, json: bool, out: &mut dyn Write) -> Result<(), ReportError> {
        let region = state.region();
        let mut whole = |text: &dyn Fn(&mut String) -> fmt::Result, value: &dyn Fn() -> Value| {
            if json { write_json(&value(), out) } else { write_text(text, out) }
        };
        match self {
            Self::Buddyinfo => whole(&|text| linux::buddyinfo(&region, text), &|| json::buddyinfo(&region)),
            Self::Pagetypeinfo => {
                let blocks = block_counts(state)?;
                let counts = |zone: ZoneIndex| blocks.get(zone.index()).copied().unwrap_or_default();
                let value = || json::pagetypeinfo(&region, &blocks);
                whole(&|text| linux::pagetypeinfo(&region, &counts, text), &value)
            }
            Self::Zoneinfo => whole(&|text| linux::zoneinfo(&region, text), &|| json::zoneinfo(&region)),
            Self::Meminfo => whole(&|text| linux::meminfo(&region, text), &|| json::meminfo(&region)),
            Self::Vmstat => whole(&|text| linux::vmstat(&region, text), &|| json::vmstat(&region)),
            Self::Iomem => whole(&|text| linux::iomem(&region, text), &|| json::iomem(&region)),
            Self::ExtfragIndex => {
                let value = || json::extfrag(&region, ContigPageInfo::fragmentation_index);
                whole(&|text| linux::extfrag_index(&region, text), &value)
            }
            Self::UnusableIndex => {
                let value = || json::extfrag(&region, ContigPageInfo::unusable_free_index);
                whole(&|text| linux::unusable_index(&region, text), &value)
            }
            Self::Node(node, file) => {
                check_node(state, *node)?;
                whole(&|text| node_file(&region, *node, *file, text), &|| json::node(&region, *node, *file))
            }
            Self::Sysctl => whole(&|text| linux::sysctl(&region, text), &|| json::sysctl(&region)),
            Self::FailPageAlloc => {
                whole(&|text| linux::fail_page_alloc(&region, text), &|| json::fail_page_alloc(&region))
            }
            Self::Failslab => whole(&|text| linux::failslab(&region, text), &|| json::failslab(&region)),
            Self::Cma => whole(&|text| linux::cma(&region, text), &|| json::cma(&region)),
            Self::Numa => whole(&|text| linux::numa_hardware(&region, text), &|| json::numa(&region)),
            Self::KmemVmstat => whole(&|text| kmem::vmstat(state, text), &|| kmem::vmstat_json(state)),
            Self::KmemZones => whole(&|text| kmem::zones(state, text), &|| kmem::zones_json(state)),
            Self::KmemFlags(flags) => whole(&|text| kmem::flags(*flags, text), &|| kmem::flags_json(*flags)),
            Self::KmemUsage => whole(&|text| kmem::usage(state, text), &|| kmem::usage_json(state)),
            Self::KmemNodes => {
                let sections = state.sections()?;
                whole(&|text| kmem::nodes(state, &sections, text), &|| kmem::nodes_json(state, &sections))
            }
            Self::KmemFree => kmem::free(state, json, out),
            Self::KmemPages(page) => kmem::pages(state, *page, json, out),
            Self::KmemSlabs(spec) => kmem::slabs(state, *spec, false, json, out),
            Self::KmemSlabObjects(spec) => kmem::slabs(state, *spec, true, json, out),
            Self::KmemAddress(address) => kmem::address(state, *address, json, out),
            Self::Slabinfo => slabinfo::slabinfo(state, json, out),
            Self::Vmallocinfo => vmallocinfo::vmallocinfo(state, json, out),
            Self::KmemVmlist => vmallocinfo::vmlist(state, json, out),
            Self::Vtop(address) => vtop::vtop(state, *address, json, out),
            Self::Zeroed => zeroed::zeroed(state, json, out),
            Self::PageOwner => page_owner::blocks(state, json, out),
            Self::PageOwnerSites => page_owner::sites(state, json, out),
            Self::Process(view) => view.render(state, json, out),
        }
    }
}

/// A node's file as text.
fn node_file(region: &RegionRef<'_>, node: NodeId, file: NodeFile, text: &mut String) -> fmt::Result {
    match file {
        NodeFile::Meminfo => linux::node_meminfo(region, node, text),
        NodeFile::Numastat => linux::node_numastat(region, node, text),
        NodeFile::Vmstat => linux::node_vmstat(region, node, text),
        NodeFile::Distance => linux::node_distance(region, node, text),
        NodeFile::Cpulist => linux::node_cpulist(region, node, text),
        NodeFile::Cpumap => linux::node_cpumap(region, node, text),
    }
}

/// Writes what `text` makes.
fn write_text(text: &dyn Fn(&mut String) -> fmt::Result, out: &mut dyn Write) -> Result<(), ReportError> {
    let mut buffer = String::new();
    // Writing to a string cannot fail.
    let _ = text(&mut buffer);
    out.write_all(buffer.as_bytes()).map_err(ReportError::Write)
}

/// Writes `value` with a line end.
pub(super) fn write_json(value: &Value, out: &mut dyn Write) -> Result<(), ReportError> {
    serde_json::to_writer_pretty(&mut *out, value).map_err(|error| ReportError::Write(error.into()))?;
    out.write_all(b"\n").map_err(ReportError::Write)
}

/// Page blocks of every zone by migrate type.
fn block_counts(state: &StateView) -> Result<Vec<[u64; 6]>, ReportError> {
    let sections = state.sections()?;
    let zones = counters::all_zones(&state.region());
    Ok(zones.map(|zone| state.block_counts(&sections, zone)).collect::<Result<_, _>>()?)
}

fn check_node(state: &StateView, node: NodeId) -> Result<(), ReportError> {
    let online = counters::online_nodes(&state.region());
    if online.contains(node) {
        return Ok(());
    }
    Err(ReportError::NoNode { node: node.index(), online: online.to_string() })
}

/// A number as a user writes it: hexadecimal after `0x` or when it has letters, decimal otherwise.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok().or_else(|| u64::from_str_radix(text, 16).ok()),
    }
}

fn page_spec(text: &str) -> Option<PageSpec> {
    let number = number(text)?;
    Some(if number >= VMEMMAP_START { PageSpec::Page(number) } else { PageSpec::Pfn(number) })
}

/// Nothing, or one cache.
fn slab_spec(words: &[&str]) -> Option<SlabSpec> {
    match words {
        [] => Some(SlabSpec::All),
        [word] => word.parse().ok(),
        _ => None,
    }
}

/// Page flags and addresses are hexadecimal, as crash takes them.
fn flags(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

impl FromStr for View {
    type Err = BadView;

    fn from_str(text: &str) -> Result<Self, BadView> {
        let bad = |reason| BadView { name: text.to_owned(), reason };
        // `kmem -f` and `kmem-f` are the same: the latter needs no quotes in a list.
        let joined = text.trim().replacen("kmem-", "kmem -", 1);
        let words: Vec<&str> = joined.split_whitespace().collect();
        match *words.as_slice() {
            ["buddyinfo"] => Ok(Self::Buddyinfo),
            ["pagetypeinfo"] => Ok(Self::Pagetypeinfo),
            ["zoneinfo"] => Ok(Self::Zoneinfo),
            ["meminfo"] => Ok(Self::Meminfo),
            ["vmstat"] => Ok(Self::Vmstat),
            ["iomem"] => Ok(Self::Iomem),
            ["slabinfo"] => Ok(Self::Slabinfo),
            ["vmallocinfo"] => Ok(Self::Vmallocinfo),
            ["kmem", "-v"] | ["vmlist"] => Ok(Self::KmemVmlist),
            ["extfrag_index"] => Ok(Self::ExtfragIndex),
            ["unusable_index"] => Ok(Self::UnusableIndex),
            ["numa"] => Ok(Self::Numa),
            ["kmem", "-f"] => Ok(Self::KmemFree),
            ["kmem", "-n"] => Ok(Self::KmemNodes),
            ["kmem", "-V"] => Ok(Self::KmemVmstat),
            ["kmem", "-z"] => Ok(Self::KmemZones),
            ["kmem", "-p"] => Ok(Self::KmemPages(None)),
            ["kmem", "-p", page] => {
                let page = page_spec(page).ok_or_else(|| bad("not a frame number or page address in"))?;
                Ok(Self::KmemPages(Some(page)))
            }
            ["kmem", "-g"] => Ok(Self::KmemFlags(None)),
            ["kmem", "-g", bits] => {
                Ok(Self::KmemFlags(Some(flags(bits).ok_or_else(|| bad("not a hexadecimal number in"))?)))
            }
            ["kmem", "-i"] => Ok(Self::KmemUsage),
            ["kmem", option @ ("-s" | "-S"), ref spec @ ..] => {
                let spec = slab_spec(spec).ok_or_else(|| bad("not a cache's name or an address in"))?;
                Ok(if option == "-s" { Self::KmemSlabs(spec) } else { Self::KmemSlabObjects(spec) })
            }
            ["kmem", address] if !address.starts_with('-') => {
                Ok(Self::KmemAddress(flags(address).ok_or_else(|| bad("not a hexadecimal number in"))?))
            }
            ["vtop", address] => Ok(Self::Vtop(flags(address).ok_or_else(|| bad("not a hexadecimal number in"))?)),
            ["sysctl"] => Ok(Self::Sysctl),
            ["fail_page_alloc"] => Ok(Self::FailPageAlloc),
            ["failslab"] => Ok(Self::Failslab),
            ["cma"] => Ok(Self::Cma),
            ["zeroed"] => Ok(Self::Zeroed),
            ["page_owner"] => Ok(Self::PageOwner),
            ["page_owner", "sites"] => Ok(Self::PageOwnerSites),
            [path] if path.starts_with("node/") => node_view(path).ok_or_else(|| bad("unknown view")),
            _ => joined.parse().map(Self::Process).map_err(|()| bad("unknown view")),
        }
    }
}

/// `node/N/FILE`
fn node_view(path: &str) -> Option<View> {
    let (node, name) = path.strip_prefix("node/")?.split_once('/')?;
    let (file, _) = NodeFile::ALL.into_iter().find(|(_, known)| *known == name)?;
    let digits = !node.is_empty() && node.bytes().all(|byte| byte.is_ascii_digit());
    Some(View::Node(NodeId::new(node.parse().ok().filter(|_| digits)?)?, file))
}

/// The name, as [`FromStr`] takes it.
impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Buddyinfo => f.write_str("buddyinfo"),
            Self::Pagetypeinfo => f.write_str("pagetypeinfo"),
            Self::Zoneinfo => f.write_str("zoneinfo"),
            Self::Meminfo => f.write_str("meminfo"),
            Self::Vmstat => f.write_str("vmstat"),
            Self::Iomem => f.write_str("iomem"),
            Self::Slabinfo => f.write_str("slabinfo"),
            Self::Vmallocinfo => f.write_str("vmallocinfo"),
            Self::KmemVmlist => f.write_str("kmem -v"),
            Self::KmemSlabs(spec) => write!(f, "kmem -s{spec}"),
            Self::KmemSlabObjects(spec) => write!(f, "kmem -S{spec}"),
            Self::KmemUsage => f.write_str("kmem -i"),
            Self::KmemAddress(address) => write!(f, "kmem {address:x}"),
            Self::Vtop(address) => write!(f, "vtop {address:x}"),
            Self::ExtfragIndex => f.write_str("extfrag_index"),
            Self::UnusableIndex => f.write_str("unusable_index"),
            Self::Node(node, file) => write!(f, "node/{}/{}", node.index(), file.name()),
            Self::Numa => f.write_str("numa"),
            Self::KmemFree => f.write_str("kmem -f"),
            Self::KmemNodes => f.write_str("kmem -n"),
            Self::KmemPages(None) => f.write_str("kmem -p"),
            Self::KmemPages(Some(PageSpec::Pfn(pfn))) => write!(f, "kmem -p {pfn:#x}"),
            Self::KmemPages(Some(PageSpec::Page(page))) => write!(f, "kmem -p {page:#x}"),
            Self::KmemVmstat => f.write_str("kmem -V"),
            Self::KmemZones => f.write_str("kmem -z"),
            Self::Sysctl => f.write_str("sysctl"),
            Self::FailPageAlloc => f.write_str("fail_page_alloc"),
            Self::Failslab => f.write_str("failslab"),
            Self::Cma => f.write_str("cma"),
            Self::Zeroed => f.write_str("zeroed"),
            Self::PageOwner => f.write_str("page_owner"),
            Self::PageOwnerSites => f.write_str("page_owner sites"),
            Self::Process(view) => write!(f, "{view}"),
            Self::KmemFlags(None) => f.write_str("kmem -g"),
            Self::KmemFlags(Some(flags)) => write!(f, "kmem -g {flags:x}"),
        }
    }
}
