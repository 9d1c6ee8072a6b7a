//! `kmem ADDRESS`: what an address is.

use std::fmt::Write as _;
use std::io::Write;

use pagevisor_shared::layout::{PAGE_OFFSET, VMEMMAP_START};
use pagevisor_shared::page::{PAGE_STRUCT_SIZE, PG_BUDDY};
use pagevisor_shared::units::{MAX_ORDER, MAX_PHYSMEM_BITS, Order, PAGE_SHIFT, PAGE_SIZE};
use pagevisor_shared::zone::ZoneIndex;
use serde_json::{Value, json};

use super::just::{self, Just};
use super::slabs::{CACHES, OBJECTS, SLABS, cache_row, object_json, object_line, slab_row};
use super::{free, free_area_address, hex, pages, percpu};
use crate::report::error::ReportError;
use crate::report::view::{PageSpec, write_json};
use crate::report::vmallocinfo;
use crate::state::slab::{ObjectState, Slab, SlabObjects, SlabWalk};
use crate::state::{Patience, PercpuAddress, Sections, StateView};

/// The frame that `address` means: that of a page's metadata, of a kernel address, or of a physical one.
fn frame_of(state: &StateView, address: u64) -> Result<Option<u64>, ReportError> {
    let frames = 1 << (MAX_PHYSMEM_BITS - PAGE_SHIFT);
    if let Some(pfn) = address.checked_sub(VMEMMAP_START).map(|offset| offset / PAGE_STRUCT_SIZE)
        && pfn < frames
    {
        return Ok(Some(pfn));
    }
    if address < PAGE_OFFSET {
        return Ok(Some(address >> PAGE_SHIFT).filter(|pfn| *pfn < frames));
    }
    let physical = match state.translate(address)? {
        Some(page) => Some(page.gpa),
        // The guest maps memory directly when it first touches it.
        None => address.checked_sub(state.direct_address(0)).filter(|offset| *offset < 1 << MAX_PHYSMEM_BITS),
    };
    Ok(physical.map(|physical| physical >> PAGE_SHIFT))
}

/// The address in the direct map that stands for `address`.
fn direct(state: &StateView, address: u64, pfn: u64) -> u64 {
    let is_page =
        (VMEMMAP_START..VMEMMAP_START + (PAGE_STRUCT_SIZE << (MAX_PHYSMEM_BITS - PAGE_SHIFT))).contains(&address);
    state.direct_address(pfn) + if is_page { 0 } else { address & (PAGE_SIZE - 1) }
}

/// The slab that has an address, and what lies there.
struct Found {
    walk: SlabWalk,
    node: usize,
    slab: Slab,
    objects: SlabObjects,
    address: u64,
}

impl Found {
    fn of(state: &StateView, pfn: u64, address: u64) -> Result<Option<Self>, ReportError> {
        let Some((cache, slab)) = state.slab_of(pfn)? else { return Ok(None) };
        let walk = state.walk_slabs(&cache, Patience::default(), &mut state.slab_budget())?;
        let objects = state.slab_objects(&cache, &slab, &walk.arrays)?;
        let on = |node: &&crate::state::slab::NodeWalk| node.slabs().any(|other| other.pfn == slab.pfn);
        let node = walk.nodes.iter().find(on).map_or(0, |node| node.info.node);
        Ok(Some(Self { walk, node, slab, objects, address: direct(state, address, pfn) }))
    }

    /// The object that the address is in.
    fn object(&self) -> Option<(u64, ObjectState)> {
        self.objects.object_at(self.address)
    }

    fn text(&self, state: &StateView, out: &mut String) {
        *out += CACHES;
        cache_row(&self.walk, out);
        let _ = write!(out, "  {SLABS}");
        slab_row(state, self.node, &self.slab, &self.objects, out);
        match self.object() {
            Some((address, object)) => {
                let _ = write!(out, "  {OBJECTS}");
                object_line(address, object, out);
            }
            None => {
                let _ = writeln!(out, "   {:x} (unused part of slab)", self.address);
            }
        }
    }

    fn json(&self, state: &StateView) -> Value {
        json!({
            "cache": hex(self.walk.cache.address),
            "name": self.walk.cache.name,
            "objsize": self.walk.cache.size,
            "slab": hex(state.page_address(self.slab.pfn.into())),
            "memory": hex(self.objects.s_mem),
            "node": self.node,
            "object": self.object().map(|(address, object)| object_json(address, object)),
        })
    }
}

/// `kmem -s ADDRESS`.
pub(super) fn slab_of_address(
    state: &StateView,
    address: u64,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<(), ReportError> {
    let found = match frame_of(state, address)? {
        Some(pfn) => Found::of(state, pfn, address)?,
        None => None,
    };
    let found = found.ok_or(ReportError::NoSlab { address })?;
    if as_json {
        return write_json(&found.json(state), out);
    }
    let mut text = String::new();
    found.text(state, &mut text);
    out.write_all(text.as_bytes()).map_err(ReportError::Write)
}

/// A free block.
#[derive(Clone, Copy)]
struct FreeBlock {
    pfn: u64,
    order: Order,
    zone: ZoneIndex,
}

impl FreeBlock {
    /// The free block that frame `pfn` lies in.
    fn of(state: &StateView, sections: &Sections, pfn: u64) -> Result<Option<Self>, ReportError> {
        let mut memmap = state.memmap();
        for order in (0..MAX_ORDER as u32).filter_map(|order| Order::new(order).ok()) {
            let head = pfn & !(order.pages() - 1);
            let Some(page) = memmap.get(head)? else { continue };
            let Some(zone) = sections.zone_of(head) else { continue };
            // Blocks that nobody has touched are of the largest order and have no mark.
            let unmarked = page.mapcount != PG_BUDDY && page.is_free_head(order);
            if page.is_free_head(order) && (!unmarked || state.is_on_free_list(zone, order, head)?) {
                return Ok(Some(Self { pfn: head, order, zone }));
            }
        }
        Ok(None)
    }

    fn text(&self, state: &StateView, sections: &Sections, pfn: u64, out: &mut String) -> std::fmt::Result {
        free::zone_heading(state, sections, self.zone, out)?;
        writeln!(out, "AREA    SIZE  FREE_AREA_STRUCT")?;
        let (order, head) = (self.order.raw(), state.page_address(self.pfn));
        let area = just::hex(free_area_address(state, self.zone, self.order), 16, Just::Center);
        writeln!(out, "{order:>3}  {:>7}  {area}", format!("{}k", (PAGE_SIZE << order) / 1024))?;
        let (place, pages) = (ordinal(pfn - self.pfn + 1), self.order.pages());
        let of = if pages == 1 { String::new() } else { format!("{place} of {pages} pages") };
        let page = state.page_address(pfn);
        writeln!(out, "{head:x}{}", if of.is_empty() { of } else { format!("  ({page:x} is {of})") })
    }

    fn json(&self, state: &StateView) -> Value {
        json!({
            "page": hex(state.page_address(self.pfn)),
            "pfn": self.pfn,
            "order": self.order.raw(),
            "zone": self.zone.index(),
            "free_area_struct": hex(free_area_address(state, self.zone, self.order)),
        })
    }
}

/// `1st`, `2nd`, `3rd`, `4th`, ...
fn ordinal(number: u64) -> String {
    let ending = match (number % 100, number % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

/// What has an address beside the page: an area of vmalloc, and what of per-CPU memory.
struct Places {
    area: Option<String>,
    percpu: Option<PercpuAddress>,
}

impl Places {
    fn of(state: &StateView, address: u64) -> Result<Self, ReportError> {
        Ok(Self { area: vmallocinfo::area_of(state, address)?, percpu: state.percpu_at(address)? })
    }

    /// Each with an empty line behind it.
    fn text(&self, state: &StateView) -> String {
        let percpu = self.percpu.as_ref().map(|found| percpu::text(state, found));
        self.area.iter().chain(&percpu).map(|text| format!("{text}\n")).collect()
    }

    fn percpu_json(&self, state: &StateView) -> Option<Value> {
        self.percpu.as_ref().map(|found| percpu::to_json(state, found))
    }
}

/// An address that no page is behind: of a device, or of nothing.
fn not_memory(
    state: &StateView,
    places: &Places,
    address: u64,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<(), ReportError> {
    if places.area.is_none() && places.percpu.is_none() {
        return Err(ReportError::NoAddress { address });
    }
    if as_json {
        let value = json!({
            "address": hex(address),
            "vmalloc": places.area.is_some(),
            "percpu": places.percpu_json(state),
            "page": null,
        });
        return write_json(&value, out);
    }
    let text = places.text(state);
    out.write_all(text.strip_suffix('\n').unwrap_or(&text).as_bytes()).map_err(ReportError::Write)
}

/// `kmem ADDRESS`: the vmalloc area, the unit of per-CPU memory, the slab, the free block and the page that an address is
/// in. It is the address of memory, of a page's metadata, or a physical one.
///
/// # Errors
/// [`ReportError::NoAddress`] when there is no memory.
pub fn address(state: &StateView, address: u64, as_json: bool, out: &mut dyn Write) -> Result<(), ReportError> {
    let sections = state.sections()?;
    let places = Places::of(state, address)?;
    let pfn = frame_of(state, address)?.filter(|pfn| sections.is_present(*pfn));
    let Some(pfn) = pfn else { return not_memory(state, &places, address, as_json, out) };
    let slab = Found::of(state, pfn, address)?;
    let block = if slab.is_some() { None } else { FreeBlock::of(state, &sections, pfn)? };
    if as_json {
        let mut page = Vec::new();
        pages(state, Some(PageSpec::Pfn(pfn)), true, &mut page)?;
        let page: Value = serde_json::from_slice(&page).unwrap_or_default();
        let value = json!({
            "address": hex(address),
            "vmalloc": places.area.is_some(),
            "percpu": places.percpu_json(state),
            "slab": slab.map(|slab| slab.json(state)),
            "free": block.map(|block| block.json(state)),
            "page": page["pages"][0],
        });
        return write_json(&value, out);
    }
    let mut text = places.text(state);
    if let Some(slab) = slab {
        slab.text(state, &mut text);
        text += "\n";
    }
    if let Some(block) = block {
        // Writing to a string cannot fail.
        let _ = block.text(state, &sections, pfn, &mut text);
        text += "\n";
    }
    out.write_all(text.as_bytes()).map_err(ReportError::Write)?;
    pages(state, Some(PageSpec::Pfn(pfn)), false, out)
}
