//! Events as lines: of `trace_pipe`, with the formats of Linux 6.1's tracepoints (`include/trace/events`), or of JSON.

use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::command::workload::Mark;
use pagevisor_shared::page::PAGE_STRUCT_SIZE;
use pagevisor_shared::region::RegionRef;
use pagevisor_shared::region::event::{Event, EventKind, NO_NODE};
use pagevisor_shared::region::fault::PageFault;
use pagevisor_shared::units::{CpuId, PAGEBLOCK_ORDER};
use serde_json::{Value, json};

use super::Item;
use crate::symbols::Symbols;

/// What is needed to tell about a guest's events.
#[derive(Debug)]
pub struct Renderer {
    tsc_entry: u64,
    tsc_khz: u64,
    vmemmap: u64,
    areas: Vec<String>,
    symbols: Option<Symbols>,
}

/// What a mark says of its workload.
pub(super) fn workload(mark: &Mark) -> String {
    let Mark { kind, phase, end: _, lane, gfp, order, ops, seed } = mark;
    let (kind, phase, order) = (kind.name(), phase.name(), order.raw());
    format!("workload={kind} phase={phase} lane={lane} ops={ops} order={order} seed={seed} gfp_flags={gfp}")
}

/// What `mm_shrink_slab_start` and `mm_shrink_slab_end` print behind the shrinker.
fn shrinker_words(event: &Event) -> String {
    let [first, second, third] = event.args;
    let (node, before) = (event.node, event.pfn);
    match event.kind {
        EventKind::MmShrinkSlabStart => format!(
            "nid: {node} objects to shrink {before} gfp_flags {} cache items {first} delta {second} total_scan {third} \
             priority {}",
            event.gfp, event.order,
        ),
        _ => format!(
            "nid: {node} unused scan count {before} new scan count {first} total_scan {second} \
             last shrinker return val {third}"
        ),
    }
}

/// The name of the cache that an event is about, as one word.
fn cache_name(event: &Event) -> String {
    let text = event.text();
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    let word = |c: char| if c.is_whitespace() || c.is_control() || c == '=' { '?' } else { c };
    String::from_utf8_lossy(&text[..end]).chars().map(word).collect()
}

impl Renderer {
    /// For the guest of that state region. Callers have names where there are `symbols`.
    pub fn new(region: &RegionRef<'_>, symbols: Option<Symbols>) -> Self {
        let header = region.header();
        let name = |bytes: &[u8]| {
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            String::from_utf8_lossy(&bytes[..end]).escape_default().to_string()
        };
        Self {
            tsc_entry: header.tsc_entry.load(Relaxed),
            tsc_khz: header.tsc_khz.load(Relaxed).max(1),
            vmemmap: header.roots.vmemmap.load(Relaxed),
            areas: region.cmas().iter().map(|area| name(&area.name_bytes())).collect(),
            symbols,
        }
    }

    /// Nanoseconds from the kernel's first instruction to the time stamp.
    pub(super) fn nanos(&self, tsc: u64) -> u64 {
        let ticks = u128::from(tsc.saturating_sub(self.tsc_entry));
        u64::try_from(ticks * 1_000_000 / u128::from(self.tsc_khz)).unwrap_or(u64::MAX)
    }

    /// `function+0x12/0x34` of whoever called the memory stack, or the address; `None` when it is not known. Of a shrinker
    /// its function.
    pub(super) fn caller(&self, event: &Event) -> Option<String> {
        let symbols = self.symbols.as_ref().filter(|_| event.caller != 0);
        match (symbols, event.caller) {
            (_, 0) => None,
            // Of a program, whose symbols nobody knows here.
            (_, address) if event.kind == EventKind::PageFaultUser => Some(format!("{address:#018x}")),
            (Some(symbols), address) if event.kind.is_of_shrinker() => Some(symbols.locate(address).to_string()),
            (Some(symbols), address) => Some(symbols.locate_return(address).to_string()),
            (None, address) => Some(format!("{address:#018x}")),
        }
    }

    /// `page=... pfn=0x...`
    fn page(&self, event: &Event) -> String {
        let page = match event.pfn {
            0 => 0,
            pfn => self.vmemmap.wrapping_add(pfn.wrapping_mul(PAGE_STRUCT_SIZE)),
        };
        format!("page={page:016x} pfn={:#x}", event.pfn)
    }

    fn area(&self, number: u64) -> &str {
        let area = usize::try_from(number).ok().and_then(|number| self.areas.get(number));
        area.map_or("?", String::as_str)
    }

    /// `call_site=...`, as `%pS`.
    fn call_site(&self, event: &Event) -> String {
        format!("call_site={}", self.caller(event).unwrap_or_else(|| "0x0".to_owned()))
    }

    /// What the tracepoint prints.
    pub fn fields(&self, event: &Event) -> String {
        let named = self.named_fields(event);
        match event.kind {
            EventKind::Kmalloc
            | EventKind::Kfree
            | EventKind::KmemCacheAlloc
            | EventKind::KmemCacheFree
            | EventKind::PercpuAllocPercpu => format!("{} {named}", self.call_site(event)),
            kind if kind.is_of_shrinker() => {
                let function = self.caller(event).unwrap_or_else(|| "0x0".to_owned());
                format!("{function} {:016x}: {}", event.migratetype, shrinker_words(event))
            }
            _ => named,
        }
    }

    /// What the tracepoint prints but for who called, a word `name=value` for each field.
    pub(super) fn named_fields(&self, event: &Event) -> String {
        let (page, order, kind, gfp) = (self.page(event), event.order, event.migratetype, event.gfp);
        let [first, second, third] = event.args;
        match event.kind {
            EventKind::MmPageAlloc => format!("{page} order={order} migratetype={kind} gfp_flags={gfp}"),
            EventKind::MmPageFree => format!("{page} order={order}"),
            EventKind::MmPageFreeBatched => format!("{page} order=0"),
            EventKind::MmPageAllocZoneLocked => {
                format!("{page} order={order} migratetype={kind} percpu_refill={first}")
            }
            EventKind::MmPagePcpuDrain => format!("{page} order={order} migratetype={kind}"),
            EventKind::MmPageAllocExtfrag => format!(
                "{page} alloc_order={order} fallback_order={first} pageblock_order={PAGEBLOCK_ORDER} \
                 alloc_migratetype={kind} fallback_migratetype={second} fragmenting={} change_ownership={third}",
                u8::from(first < u64::from(PAGEBLOCK_ORDER)),
            ),
            EventKind::MmVmscanWakeupKswapd => format!("nid={} order={order} gfp_flags={gfp}", event.node),
            EventKind::TestPagesIsolated => format!(
                "start_pfn={first:#x} end_pfn={second:#x} fin_pfn={third:#x} ret={}",
                if second <= third { "success" } else { "fail" },
            ),
            EventKind::CmaAllocStart => format!("name={} count={first} align={second}", self.area(third)),
            EventKind::CmaAllocFinish => {
                let (pfn, page) = (event.pfn, page.split(' ').next().unwrap_or_default().to_owned());
                format!("name={} pfn={pfn:#x} {page} count={first} align={second}", self.area(third))
            }
            EventKind::CmaRelease => {
                let (pfn, page) = (event.pfn, page.split(' ').next().unwrap_or_default().to_owned());
                format!("name={} pfn={pfn:#x} {page} count={first}", self.area(third))
            }
            EventKind::FailPageAlloc => format!("order={order} gfp_flags={gfp}"),
            EventKind::Kmalloc | EventKind::KmemCacheAlloc => {
                let node = if event.node == NO_NODE { -1 } else { i32::from(event.node) };
                format!(
                    "ptr={first:016x} bytes_req={second} bytes_alloc={third} gfp_flags={gfp} node={node} accounted=false"
                )
            }
            EventKind::Kfree => format!("ptr={first:016x}"),
            EventKind::KmemCacheFree => format!("ptr={first:016x} name={}", cache_name(event)),
            EventKind::PercpuAllocPercpu => format!(
                "reserved={} is_atomic={} size={} align={} base_addr={:016x} off={} ptr={first:016x} \
                 bytes_alloc={third} gfp_flags={gfp}",
                event.zone & 1,
                event.zone >> 1 & 1,
                second as u32,
                1u64 << (order & 63),
                event.pfn,
                second >> 32,
            ),
            EventKind::PercpuFreePercpu => {
                format!("base_addr={:016x} off={second} ptr={first:016x}", event.pfn)
            }
            EventKind::MmShrinkSlabStart => format!(
                "shrinker={kind} nid={} nr_objects_to_shrink={} gfp_flags={gfp} cache_items={first} delta={second} \
                 total_scan={third} priority={order}",
                event.node, event.pfn,
            ),
            EventKind::MmShrinkSlabEnd => format!(
                "shrinker={kind} nid={} unused_scan={} new_scan={first} total_scan={second} retval={third}",
                event.node, event.pfn,
            ),
            EventKind::Failslab => format!("size={first} gfp_flags={gfp}"),
            EventKind::PageFaultUser | EventKind::PageFaultKernel => match PageFault::decode(event) {
                // Linux has the first three; addresses of programs have no names.
                Some(PageFault { address, ip, error, pid, resolution, major, ticks, user: _ }) => format!(
                    "address={address:#x} ip={ip:#x} error_code={:#x} pid={pid} kind={} major={} ticks={ticks}",
                    error.0,
                    resolution.name(),
                    u8::from(major),
                ),
                None => format!("{first:#x} {second:#x} {third:#x}"),
            },
            EventKind::WorkloadMark => match Mark::decode(event) {
                Some(mark) => format!("mark={} {}", if mark.end { "end" } else { "begin" }, workload(&mark)),
                None => format!("{first:#x} {second:#x} {third:#x}"),
            },
        }
    }

    /// A line of `trace_pipe`, with its end.
    pub fn line(&self, item: &Item) -> String {
        match item {
            Item::Lost(cpu, count) => format!("CPU:{} [LOST {count} EVENTS]\n", cpu.index()),
            Item::Event(cpu, event) => {
                let micros = self.nanos(event.tsc) / 1000;
                format!(
                    "{:>16}-{:<7} [{:03}] ..... {:5}.{:06}: {}: {}\n",
                    "<idle>",
                    0,
                    cpu.index(),
                    micros / 1_000_000,
                    micros % 1_000_000,
                    event.kind.name(),
                    self.fields(event),
                )
            }
        }
    }

    /// A line of JSON, with its end.
    pub fn json_line(&self, item: &Item) -> String {
        let value = match item {
            Item::Lost(cpu, count) => json!({ "cpu": cpu.index(), "lost": count }),
            Item::Event(cpu, event) => self.json(*cpu, event),
        };
        let mut line = value.to_string();
        line.push('\n');
        line
    }

    fn json(&self, cpu: CpuId, event: &Event) -> Value {
        let mut value = json!({
            "time_ns": self.nanos(event.tsc),
            "cpu": cpu.index(),
            "event": event.kind.name(),
            "caller": self.caller(event),
        });
        let Value::Object(map) = &mut value else { return value };
        for field in self.named_fields(event).split(' ') {
            // What a damaged mark says has no names; its words go by their places.
            let (name, text) = match field.split_once('=') {
                Some((name, text)) => (name.to_owned(), text),
                None => (format!("arg{}", map.len().saturating_sub(4)), field),
            };
            let number = match text.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16).ok(),
                // Addresses, and names that may be all digits.
                None if ["page", "ptr", "base_addr", "name"].contains(&name.as_str()) => None,
                None => text.parse().ok(),
            };
            let signed = || text.parse::<i64>().ok().filter(|number| *number < 0).map(Value::from);
            let value = number.map(Value::from).or_else(signed).unwrap_or_else(|| text.into());
            map.insert(name, value);
        }
        value
    }
}

/// Writes a whole batch of lines.
impl Renderer {
    /// The lines of all `items`.
    pub fn lines(&self, items: &[Item], json: bool) -> String {
        items.iter().fold(String::new(), |mut text, item| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{}", if json { self.json_line(item) } else { self.line(item) });
            text
        })
    }
}
