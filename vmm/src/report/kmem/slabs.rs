//! `kmem -s` and `kmem -S`: slab caches, their slabs and objects, walked in guest memory.

use std::fmt::{self, Write as _};
use std::io::Write;
use std::str::FromStr;

use pagevisor_shared::layout::PAGE_OFFSET;
use pagevisor_shared::slab::NAME_BYTES;
use serde_json::{Value, json};

use super::hex;
use crate::report::error::ReportError;
use crate::report::view::write_json;
use crate::state::slab::{ObjectState, Slab, SlabCache, SlabCaches, SlabObjects, SlabWalk};
use crate::state::{Patience, StateView};

/// Most findings named in an error.
const DETAILS_MAX: usize = 8;

/// The name of a cache, as somebody has typed it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CacheName([u8; NAME_BYTES]);

impl CacheName {
    /// As text.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES);
        // It was made from text.
        self.0.get(..end).and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}

impl fmt::Debug for CacheName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Which caches to show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlabSpec {
    /// All.
    All,
    /// Those of that name.
    Name(CacheName),
    /// The one that has an object there.
    Address(u64),
}

/// As written behind `kmem -s`.
impl fmt::Display for SlabSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => Ok(()),
            Self::Name(name) => write!(f, " {}", name.as_str()),
            Self::Address(address) => write!(f, " {address:x}"),
        }
    }
}

impl FromStr for SlabSpec {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16);
        if let Some(address) = number.ok().filter(|address| *address >= PAGE_OFFSET) {
            return Ok(Self::Address(address));
        }
        let mut name = [0; NAME_BYTES];
        let fits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        name.get_mut(..text.len()).filter(|_| fits).ok_or(())?.copy_from_slice(text.as_bytes());
        Ok(Self::Name(CacheName(name)))
    }
}

/// The heading of rows of caches.
pub(super) const CACHES: &str = "CACHE             OBJSIZE  ALLOCATED     TOTAL  SLABS  SSIZE  NAME\n";
/// The heading of rows of slabs.
pub(super) const SLABS: &str = "SLAB              MEMORY            NODE  TOTAL  ALLOCATED  FREE\n";
/// The heading of objects.
pub(super) const OBJECTS: &str = "FREE / [ALLOCATED]\n";

/// Objects of the slabs found.
fn total(walk: &SlabWalk) -> u64 {
    walk.slabs().wrapping_mul(walk.cache.num.into())
}

/// The row of a cache.
pub(super) fn cache_row(walk: &SlabWalk, out: &mut String) {
    let cache = &walk.cache;
    let (kib, name) = (cache.slab_bytes() / 1024, &cache.name);
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "{:<16x} {:>8}  {:>9}  {:>8}  {:>5}  {kib:>4}k  {name}",
        cache.address,
        cache.size,
        walk.allocated(),
        total(walk),
        walk.slabs(),
    );
}

/// The row of a slab.
pub(super) fn slab_row(state: &StateView, node: usize, slab: &Slab, objects: &SlabObjects, out: &mut String) {
    let page = state.page_address(slab.pfn.into());
    let (total, allocated) = (objects.states.len() as u64, objects.allocated());
    let _ = writeln!(
        out,
        "  {page:<16x}  {:<16x}  {node:>4}  {total:>5}  {allocated:>9}  {:>4}",
        objects.s_mem,
        total - allocated
    );
}

/// The line of an object.
pub(super) fn object_line(address: u64, object: ObjectState, out: &mut String) {
    let _ = match object {
        ObjectState::InUse => writeln!(out, "  [{address:x}]"),
        ObjectState::Free => writeln!(out, "   {address:x}"),
        ObjectState::Held(holder) => writeln!(out, "   {address:x}  ({holder})"),
    };
}

/// What is wrong, collected over caches.
#[derive(Default)]
struct Details {
    places: Vec<String>,
    more: usize,
}

impl Details {
    fn add(&mut self, cache: &SlabCache, what: impl fmt::Display) {
        if self.places.len() < DETAILS_MAX {
            self.places.push(format!("\"{}\" cache: {what}", cache.name));
        } else {
            self.more += 1;
        }
    }

    fn walk(&mut self, walk: &SlabWalk) {
        let cache = &walk.cache;
        for node in walk.nodes.iter().filter(|node| !node.is_verified(cache.num)) {
            let (number, unstable) = (node.info.node, if node.stable { "" } else { " (it was changing)" });
            let (counted, found) = (&node.info, node);
            self.add(
                cache,
                format_args!(
                    "node {number}{unstable}: {} slabs counted, {} found; {} objects counted free, {} found",
                    counted.total_slabs,
                    found.total(),
                    counted.free_objects,
                    found.left(cache.num)
                ),
            );
            node.faults.iter().for_each(|fault| self.add(cache, format_args!("node {number}: {fault}")));
        }
        walk.arrays.faults.iter().for_each(|fault| self.add(cache, fault));
    }

    fn result(self) -> Result<(), ReportError> {
        if self.places.is_empty() {
            return Ok(());
        }
        let more = if self.more == 0 { String::new() } else { format!("; and {} more", self.more) };
        Err(ReportError::Slabs(self.places.join("; ") + &more))
    }
}

/// The caches that `spec` asks for. A name may be that of several.
fn chosen(state: &StateView, spec: SlabSpec) -> Result<SlabCaches, ReportError> {
    let mut caches = state.slab_caches()?;
    match spec {
        SlabSpec::All => {}
        SlabSpec::Name(name) => {
            caches.caches.retain(|cache| cache.name == name.as_str());
            if caches.caches.is_empty() {
                caches.check()?;
                return Err(ReportError::NoCache { name: name.as_str().to_owned() });
            }
            // Others are not asked for.
            caches.damaged.clear();
        }
        SlabSpec::Address(_) => caches.caches.clear(),
    }
    Ok(caches)
}

/// `kmem -s`, and with `all_objects` `kmem -S`. What is written is written cache by cache.
///
/// # Errors
/// [`ReportError::Slabs`], after all was written, when lists and counters disagree.
pub fn slabs(
    state: &StateView,
    spec: SlabSpec,
    all_objects: bool,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<(), ReportError> {
    if let SlabSpec::Address(address) = spec {
        return super::address::slab_of_address(state, address, as_json, out);
    }
    let caches = chosen(state, spec)?;
    let mut details = Details::default();
    let mut budget = state.slab_budget();
    let mut rows = Vec::new();
    for (position, cache) in caches.caches.iter().enumerate() {
        let walk = state.walk_slabs(cache, Patience::default(), &mut budget)?;
        details.walk(&walk);
        if as_json {
            rows.push(to_json(state, &walk, all_objects, &mut details)?);
            continue;
        }
        let mut text = String::new();
        if position == 0 || all_objects {
            text += CACHES;
        }
        cache_row(&walk, &mut text);
        if all_objects {
            objects_text(state, &walk, &mut details, &mut text)?;
            text += if position + 1 == caches.caches.len() { "" } else { "\n" };
        }
        out.write_all(text.as_bytes()).map_err(ReportError::Write)?;
    }
    if as_json {
        write_json(&json!({ "caches": rows }), out)?;
    } else if caches.caches.is_empty() {
        out.write_all(CACHES.as_bytes()).map_err(ReportError::Write)?;
    }
    caches.check()?;
    details.result()
}

/// The nodes, slabs and objects of a cache.
fn objects_text(
    state: &StateView,
    walk: &SlabWalk,
    details: &mut Details,
    out: &mut String,
) -> Result<(), ReportError> {
    for node in &walk.nodes {
        let [partial, full, free] = node.slabs.each_ref().map(Vec::len);
        *out += "KMEM_CACHE_NODE   NODE  SLABS  PARTIAL   FULL   FREE\n";
        let (address, number, slabs) = (node.info.address, node.info.node, node.total());
        let _ = writeln!(out, "{address:<16x}  {number:>4}  {slabs:>5}  {partial:>7}  {full:>5}  {free:>5}");
        for slab in node.slabs() {
            let objects = state.slab_objects(&walk.cache, slab, &walk.arrays)?;
            let frame = format_args!("slab at frame {:#x}", slab.pfn);
            objects.faults.iter().for_each(|fault| details.add(&walk.cache, format_args!("{frame}: {fault}")));
            let _ = write!(out, "  {SLABS}");
            slab_row(state, number, slab, &objects, out);
            let _ = write!(out, "  {OBJECTS}");
            objects.iter().for_each(|(address, object)| object_line(address, object, out));
        }
    }
    Ok(())
}

fn to_json(state: &StateView, walk: &SlabWalk, all_objects: bool, details: &mut Details) -> Result<Value, ReportError> {
    let cache = &walk.cache;
    let mut row = json!({
        "cache": hex(cache.address),
        "objsize": cache.size,
        "allocated": walk.allocated(),
        "cached": walk.arrays.len(),
        "total": total(walk),
        "slabs": walk.slabs(),
        "ssize_bytes": cache.slab_bytes(),
        "name": cache.name,
        "verified": walk.is_verified(),
    });
    let mut nodes = Vec::new();
    for node in &walk.nodes {
        let [partial, full, free] = node.slabs.each_ref().map(Vec::len);
        let mut value = json!({
            "kmem_cache_node": hex(node.info.address),
            "node": node.info.node,
            "slabs": node.total(),
            "partial": partial,
            "full": full,
            "free": free,
            "stable": node.stable,
        });
        if all_objects {
            let slabs: Result<Vec<_>, _> =
                node.slabs().map(|slab| slab_json(state, walk, node.info.node, slab, details)).collect();
            value["slab_list"] = slabs?.into();
        }
        nodes.push(value);
    }
    row["nodes"] = nodes.into();
    Ok(row)
}

/// A slab with its objects.
fn slab_json(
    state: &StateView,
    walk: &SlabWalk,
    node: usize,
    slab: &Slab,
    details: &mut Details,
) -> Result<Value, ReportError> {
    let objects = state.slab_objects(&walk.cache, slab, &walk.arrays)?;
    let frame = format_args!("slab at frame {:#x}", slab.pfn);
    objects.faults.iter().for_each(|fault| details.add(&walk.cache, format_args!("{frame}: {fault}")));
    Ok(json!({
        "slab": hex(state.page_address(slab.pfn.into())),
        "pfn": slab.pfn,
        "memory": hex(objects.s_mem),
        "node": node,
        "total": objects.states.len(),
        "allocated": objects.allocated(),
        "objects": objects.iter().map(|(address, object)| object_json(address, object)).collect::<Vec<_>>(),
    }))
}

/// An object.
pub(super) fn object_json(address: u64, object: ObjectState) -> Value {
    let (state, holder) = match object {
        ObjectState::InUse => ("allocated", None),
        ObjectState::Free => ("free", None),
        ObjectState::Held(holder) => ("cached", Some(holder.to_string())),
    };
    json!({ "address": hex(address), "state": state, "holder": holder })
}
