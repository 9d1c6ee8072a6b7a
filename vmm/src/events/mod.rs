//! Events: following the rings that a guest's CPUs write ([`pagevisor_shared::region::event`]), and telling what was
//! found in the words of Linux's `trace_pipe`, as JSON, or as a Perfetto trace.
//!
//! The rings are the guest's, so they may hold anything at any time. A reader goes through at most so many records per
//! look as the rings have, and everything that it could not read counts as lost.

mod faults;
mod perfetto;
mod text;

use pagevisor_shared::region::RegionRef;
use pagevisor_shared::region::event::{EVENT_SLOTS, Event, EventKind, EventRead};
use pagevisor_shared::units::CpuId;

pub use faults::FaultRenderer;
pub use perfetto::Perfetto;
pub use text::Renderer;

/// A set of kinds, as the guest has it in [`pagevisor_shared::region::Header::event_mask`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kinds(pub u64);

impl Kinds {
    /// All there are.
    pub const ALL: Self = Self((1 << EventKind::ALL.len()) - 1);

    /// Those of page faults.
    pub const FAULTS: Self = Self(EventKind::PageFaultUser.bit() | EventKind::PageFaultKernel.bit());

    /// Whether `kind` is one of them.
    pub const fn has(self, kind: EventKind) -> bool {
        self.0 & kind.bit() != 0
    }
}

/// A name that is no event's.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no event '{0}'; there are {list}", list = names())]
pub struct UnknownKind(String);

/// The names of all kinds.
fn names() -> String {
    EventKind::ALL.map(EventKind::name).join(", ")
}

impl std::str::FromStr for Kinds {
    type Err = UnknownKind;

    /// `mm_page_alloc,kmem:mm_page_free`: names with commas between them, each with its group or without.
    fn from_str(list: &str) -> Result<Self, UnknownKind> {
        list.split(',').map(str::trim).try_fold(Self(0), |Self(mask), name| {
            let bare = name.rsplit_once(':').map_or(name, |(_, bare)| bare);
            let kind = EventKind::named(bare).ok_or_else(|| UnknownKind(name.to_owned()))?;
            Ok(Self(mask | kind.bit()))
        })
    }
}

/// What a reader comes across.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Item {
    /// An event, in the ring of this CPU.
    Event(CpuId, Event),
    /// So many events of this CPU were overwritten, or damaged, before they were read.
    Lost(CpuId, u64),
}

/// Where a reader is in a CPU's ring.
#[derive(Clone, Copy, Default, Debug)]
struct Cursor {
    next: u64,
    lost: u64,
}

/// Follows the rings of all CPUs.
#[derive(Clone, Debug)]
pub struct EventReader {
    kinds: Kinds,
    cursors: Vec<Cursor>,
}

impl EventReader {
    /// A reader of events of `kinds` that starts with the oldest there is; what was overwritten before that is not
    /// counted as lost.
    pub fn from_oldest(region: &RegionRef<'_>, kinds: Kinds) -> Self {
        Self::starting(region, kinds, true)
    }

    /// A reader of events of `kinds` from now on.
    pub fn from_now(region: &RegionRef<'_>, kinds: Kinds) -> Self {
        Self::starting(region, kinds, false)
    }

    fn starting(region: &RegionRef<'_>, kinds: Kinds, oldest: bool) -> Self {
        let cpus = (0..region.nr_cpus()).map_while(CpuId::new);
        let rings = cpus.map_while(|cpu| region.events(cpu));
        let start = |ring: pagevisor_shared::region::event::EventRing<'_>| match oldest {
            true => ring.oldest(),
            false => ring.head(),
        };
        Self { kinds, cursors: rings.map(|ring| Cursor { next: start(ring), lost: 0 }).collect() }
    }

    /// How many events of `cpu` were lost so far.
    pub fn lost(&self, cpu: CpuId) -> u64 {
        self.cursors.get(cpu.index()).map_or(0, |cursor| cursor.lost)
    }

    /// What has been recorded since the last call, in order of time; at most a ring of each CPU. Losses come first.
    pub fn read(&mut self, region: &RegionRef<'_>) -> Vec<Item> {
        let (mut items, mut events) = (Vec::new(), Vec::new());
        for (cpu, cursor) in (0..).map_while(CpuId::new).zip(&mut self.cursors) {
            let Some(ring) = region.events(cpu) else { continue };
            let mut lost = 0u64;
            for _ in 0..EVENT_SLOTS {
                match ring.read(cursor.next) {
                    EventRead::Event(event) => {
                        cursor.next = cursor.next.saturating_add(1);
                        if self.kinds.has(event.kind) {
                            events.push((cpu, event));
                        }
                    }
                    EventRead::End => break,
                    EventRead::Lost(oldest) => {
                        lost = lost.saturating_add(oldest.saturating_sub(cursor.next));
                        cursor.next = oldest.max(cursor.next);
                    }
                    EventRead::Corrupt => {
                        lost = lost.saturating_add(1);
                        cursor.next = cursor.next.saturating_add(1);
                    }
                }
            }
            if lost != 0 {
                cursor.lost = cursor.lost.saturating_add(lost);
                items.push(Item::Lost(cpu, lost));
            }
        }
        // Stable, so that a CPU's own events stay in order.
        events.sort_by_key(|(_, event)| event.tsc);
        items.extend(events.into_iter().map(|(cpu, event)| Item::Event(cpu, event)));
        items
    }
}

#[cfg(test)]
mod tests;
