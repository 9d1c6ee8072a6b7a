//! Damaging a paused guest's memory, word by word, and taking it back.
#![allow(dead_code, reason = "each test file uses a part")]

use std::cell::RefCell;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use pagevisor::machine::Machine;
use pagevisor::state::{PageMeta, StateView};
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::region::RegionRef;
use pagevisor_shared::region::zone::{FreeArea, ListHead, ZoneState};
use vm_memory::{Bytes, GuestAddress};

/// Index of a field of the page metadata.
#[derive(Clone, Copy)]
pub enum Field {
    Flags = 0,
    Refcount = 1,
    Mapcount = 2,
    Private = 3,
    Next = 4,
    Prev = 5,
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
}
