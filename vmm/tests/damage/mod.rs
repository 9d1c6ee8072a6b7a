//! Damaging a paused guest's memory, word by word, and taking it back.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod areas;
pub mod mutations;
pub mod percpu;
pub mod program;
pub mod programs;
pub mod records;
pub mod slabs;

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

use pagevisor::machine::{Deadline, Machine, MachineConfig};
use pagevisor::state::{PageMeta, StateView};
use pagevisor::topology::Topology;
use pagevisor_shared::command::{ANY_CPU, CommandHeader, ObjectOp, Objects, Op};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page::{PG_BUDDY, encode_next, encode_prev};
use pagevisor_shared::page_flags::{PG_ORDER_MASK, PG_ORDER_SHIFT};
use pagevisor_shared::region::RegionRef;
use pagevisor_shared::region::log::{LOG_LINE_MAX, LogRead};
use pagevisor_shared::region::records::ResourceKind;
use pagevisor_shared::region::zone::{FreeArea, ListHead, PcpState, ZoneState};
use vm_memory::{Bytes, GuestAddress};

use super::tiny::{PATIENCE, start, stop_event};

/// A guest that is ready and whose memory has seen some use.
pub fn used_guest() -> Machine {
    let mut config = MachineConfig::new(Topology::default()).unwrap();
    config.append = "pagevisor.test=layers cma=16M".into();
    let machine = start(config);
    machine.wait_ready(Deadline::after(PATIENCE), &stop_event()).unwrap_or_else(|end| panic!("{end}"));
    let deadline = Instant::now() + PATIENCE;
    while !logged(&machine, "selftest: layers ok") {
        assert!(Instant::now() < deadline, "the guest does not get ready");
        std::thread::sleep(Duration::from_millis(10));
    }
    machine
}

/// As [`used_guest`], with so much per-CPU memory that it has added chunks for it.
pub fn guest_with_added_chunks() -> Machine {
    let machine = used_guest();
    let objects = Objects { gfp: Gfp::KERNEL, node: None, handle: 1, count: 16 };
    let op = Op::Object(ObjectOp::AllocPercpu { size: 30_000, align: 8, objects });
    let header = CommandHeader { cpu: ANY_CPU, ..CommandHeader::default() };
    let reply = machine.submit(header, &[op.encode()], &[]).unwrap().poll(PATIENCE).unwrap().unwrap();
    assert_eq!(reply.results[0].error, None);
    machine
}

/// Whether the guest has logged a line that starts with `text`.
fn logged(machine: &Machine, text: &str) -> bool {
    let region = machine.memory().state().open().unwrap();
    let (log, mut buffer) = (region.log(), [0; LOG_LINE_MAX]);
    let mut position = log.oldest();
    while let LogRead::Record(record, next) = log.read(position, &mut buffer) {
        if record.text.starts_with(text.as_bytes()) {
            return true;
        }
        position = next;
    }
    false
}

/// Index of a field of the page metadata.
#[derive(Clone, Copy)]
pub enum Field {
    Flags = 0,
    Refcount = 1,
    Mapcount = 2,
    Private = 3,
    Next = 4,
    Prev = 5,
    Mapping = 6,
    Index = 7,
}

/// A word of the state region.
pub trait Word {
    type Value: Copy + 'static;
    fn swap_value(&self, value: Self::Value) -> Self::Value;
    fn value(&self) -> Self::Value;
}

macro_rules! words {
    ($($word:ty: $value:ty),+) => {
        $(impl Word for $word {
            type Value = $value;
            fn swap_value(&self, value: $value) -> $value {
                self.swap(value, SeqCst)
            }
            fn value(&self) -> $value {
                self.load(SeqCst)
            }
        })+
    };
}

words!(AtomicU8: u8, AtomicU16: u16, AtomicU32: u32, AtomicU64: u64, AtomicI32: i32, AtomicI64: i64);

/// A free block.
#[derive(Clone, Copy, Debug)]
pub struct Free {
    pub zone: usize,
    pub order: usize,
    pub kind: MigrateType,
    pub pfn: u32,
}

/// A guest whose memory can be written, and what was written so far.
pub struct Bench<'m> {
    machine: &'m Machine,
    pub region: RegionRef<'m>,
    pub view: StateView,
    undo: RefCell<Vec<Box<dyn FnOnce() + 'm>>>,
}

impl<'m> Bench<'m> {
    pub fn new(machine: &'m Machine) -> Self {
        let region = machine.memory().state().open().unwrap();
        Self { machine, region, view: StateView::of_machine(machine).unwrap(), undo: RefCell::default() }
    }

    /// Takes back all that was written, the last first.
    pub fn restore(&self) {
        for undo in self.undo.take().into_iter().rev() {
            undo();
        }
    }

    /// Writes a word of the state region.
    pub fn set<W: Word>(&self, word: &'m W, value: W::Value) {
        let old = word.swap_value(value);
        self.undo.borrow_mut().push(Box::new(move || {
            word.swap_value(old);
        }));
    }

    /// Changes a word of the state region.
    pub fn change<W: Word>(&self, word: &'m W, change: impl FnOnce(W::Value) -> W::Value) {
        self.set(word, change(word.value()));
    }

    /// Writes physical memory.
    pub fn poke(&self, gpa: u64, bytes: &[u8]) {
        let ram = self.machine.memory().ram();
        let mut old = vec![0; bytes.len()];
        ram.read_slice(&mut old, GuestAddress(gpa)).unwrap();
        ram.write_slice(bytes, GuestAddress(gpa)).unwrap();
        self.undo.borrow_mut().push(Box::new(move || ram.write_slice(&old, GuestAddress(gpa)).unwrap()));
    }

    pub fn peek_u64(&self, gpa: u64) -> u64 {
        self.machine.memory().ram().read_obj(GuestAddress(gpa)).unwrap()
    }

    pub fn meta(&self, pfn: u32) -> PageMeta {
        self.view.memmap().get(pfn.into()).unwrap().unwrap()
    }

    /// Writes a field of a frame's metadata.
    pub fn set_meta(&self, pfn: u32, field: Field, value: u32) {
        let at = self.view.translate(self.view.page_address(pfn.into())).unwrap().unwrap().gpa;
        self.poke(at + field as u64 * 4, &value.to_le_bytes());
    }

    pub fn zone(&self, zone: usize) -> &'m ZoneState {
        &self.region.zones()[zone]
    }

    pub fn area(&self, free: Free) -> &'m FreeArea {
        &self.zone(free.zone).free_area[free.order]
    }

    pub fn list(&self, free: Free) -> &'m ListHead {
        &self.area(free).free_list[free.kind.index()]
    }

    /// All lists with at least `blocks` blocks, by their first block.
    pub fn lists(&self, blocks: u64) -> Vec<Free> {
        let mut found = Vec::new();
        for (zone, record) in self.region.zones().iter().enumerate() {
            for (order, area) in record.free_area.iter().enumerate() {
                for kind in MigrateType::ALL {
                    if area.nr_free[kind.index()].load(SeqCst) >= blocks.max(1) {
                        let pfn = area.free_list[kind.index()].first.load(SeqCst);
                        found.push(Free { zone, order, kind, pfn });
                    }
                }
            }
        }
        found
    }

    /// A free block that `wanted` accepts.
    pub fn free(&self, blocks: u64, wanted: impl Fn(&Free) -> bool) -> Free {
        self.lists(blocks).into_iter().find(wanted).expect("no such list in this guest")
    }

    /// The block behind `pfn` on its list.
    pub fn next(&self, pfn: u32) -> u32 {
        self.meta(pfn).next_of(pfn)
    }

    /// Whether the list has just one block.
    pub fn one_block(&self, free: Free) -> bool {
        self.list(free).first.value() == self.list(free).last.value()
    }

    /// Empties a list of one block.
    pub fn unlist(&self, free: Free) {
        self.set(&self.list(free).first, 0);
        self.set(&self.list(free).last, 0);
        self.change(&self.area(free).nr_free[free.kind.index()], |count| count - 1);
    }

    /// Puts a marked block first on a list, in front of all others.
    pub fn list_alone(&self, free: Free, pfn: u32) {
        let first = self.list(free).first.value();
        self.mark(free, pfn);
        self.set_meta(pfn, Field::Prev, encode_prev(pfn, 0));
        self.set_meta(pfn, Field::Next, encode_next(pfn, first));
        match first {
            0 => self.set(&self.list(free).last, pfn),
            first => self.set_meta(first, Field::Prev, encode_prev(first, pfn)),
        }
        self.set(&self.list(free).first, pfn);
    }

    /// Puts a marked block at the end of a list that is not empty.
    pub fn append(&self, free: Free, pfn: u32) {
        let last = self.list(free).last.value();
        self.mark(free, pfn);
        self.set_meta(pfn, Field::Prev, encode_prev(pfn, last));
        self.set_meta(pfn, Field::Next, encode_next(pfn, 0));
        self.set_meta(last, Field::Next, encode_next(last, pfn));
        self.set(&self.list(free).last, pfn);
    }

    fn mark(&self, free: Free, pfn: u32) {
        self.set_meta(pfn, Field::Mapcount, PG_BUDDY);
        self.set_meta(pfn, Field::Private, free.order as u32);
        self.set_meta(pfn, Field::Flags, pagevisor_shared::page_flags::PG_NOTZERO);
        self.set_meta(pfn, Field::Refcount, 0);
        self.set_meta(pfn, Field::Index, free.kind.block_byte().into());
        self.change(&self.area(free).nr_free[free.kind.index()], |count| count + 1);
    }

    /// A pageset of CPU 0 with a list of at least two blocks of order 0, and the list's number.
    pub fn cached(&self) -> (&'m PcpState, usize) {
        let pagesets = self.region.pcps().iter().take(self.region.zones().len());
        let mut lists = pagesets.flat_map(|pcp| (0..3).map(move |list| (pcp, list)));
        let found = lists.find(|(pcp, list)| {
            let list = &pcp.lists[*list];
            list.first.value() != 0 && list.first.value() != list.last.value()
        });
        found.expect("no pageset with pages in this guest")
    }

    /// The zone of that pageset.
    pub fn used_zone_index(&self) -> usize {
        let pcp = self.cached().0;
        self.region.pcps().iter().position(|other| std::ptr::eq(other, pcp)).unwrap()
    }

    pub fn used_zone(&self) -> &'m ZoneState {
        self.zone(self.used_zone_index())
    }

    /// The first page in use that `wanted` accepts, with its metadata.
    pub fn find_in_use(&self, wanted: impl Fn(&PageMeta) -> bool) -> (u32, PageMeta) {
        let mut memmap = self.view.memmap();
        for range in self.region.memory() {
            let (start, size) = (range.base.value() >> 12, range.size.value() >> 12);
            let mut pfn = start;
            let mut pages = Vec::new();
            while pfn < start + size {
                assert!(memmap.get_chunk(pfn, &mut pages).unwrap());
                for page in &pages {
                    if page.refcount != 0 && wanted(page) && pfn < start + size {
                        return (pfn as u32, *page);
                    }
                    pfn += 1;
                }
            }
        }
        panic!("no such page in use");
    }

    /// A block in use of more than one page.
    pub fn in_use(&self) -> (u32, PageMeta) {
        self.find_in_use(|page| page.flags & PG_ORDER_MASK != 0)
    }

    pub fn in_use_of(&self, order: u32) -> (u32, PageMeta) {
        self.find_in_use(|page| page.flags & PG_ORDER_MASK == order << PG_ORDER_SHIFT)
    }

    /// Where the byte of a frame's page block is.
    pub fn block_gpa(&self, pfn: u32) -> u64 {
        self.region.header().roots.pageblocks.value() + u64::from(pfn / 512)
    }

    /// The entry that decides about `address` at `level` (3: the top), and where it is.
    pub fn entry(&self, address: u64, level: u32) -> (u64, u64) {
        let mut table = self.region.header().roots.pgd.value();
        let mut at = level;
        for here in (level..4).rev() {
            at = here;
            let slot = table + (address >> (12 + 9 * here) & 0x1ff) * 8;
            let entry = self.peek_u64(slot);
            if here == level {
                return (slot, entry);
            }
            assert!(entry & 1 != 0 && (entry & 0x80 == 0 || here == 3), "{address:#x} ends at level {here}");
            table = entry & 0x000f_ffff_ffff_f000;
        }
        panic!("level {at}");
    }

    /// The entry that maps `address`, and where it is.
    pub fn leaf(&self, address: u64) -> (u64, u64) {
        let (slot, entry) = self.entry(address, 1);
        if entry & 0x80 != 0 { (slot, entry) } else { self.entry(address, 0) }
    }

    /// A resource as `/proc/iomem` has it.
    pub fn resource(&self, kind: ResourceKind) -> Range<u64> {
        let mut resources = self.region.resources().iter();
        let found = resources.find(|resource| resource.kind.value() == kind as u32).expect("no such resource");
        found.start.value()..found.end.value() + 1
    }

    /// End of the first stretch of RAM that goes beyond 64 MiB, aligned to 2 MiB.
    pub fn last_below_4g(&self) -> u64 {
        let mut ranges = self.region.memory().iter().map(|range| range.base.value() + range.size.value());
        let end = ranges.rfind(|end| *end < 1 << 30).expect("memory in the first GiB");
        end.next_multiple_of(2 << 20)
    }

    /// The last frame of memory.
    pub fn last_frame(&self) -> u64 {
        self.region.header().roots.max_pfn.value() - 1
    }
}
