//! Events as a Perfetto trace (`perfetto.protos.Trace`): a track per CPU with a slice for each part of a workload and an
//! instant for each other event, and a counter track per zone with its free pages.
//!
//! The slices of a track are nested and each one ends, whatever a guest's marks say and however many of them were lost:
//! see [`Slices`].
//!
//! A trace is a sequence of packets, each a length-delimited field 1, so that one can be appended as it comes. Only
//! what is used of `TracePacket`, `TrackDescriptor` and `TrackEvent` is encoded; the numbers are those of Perfetto's
//! `protos/perfetto/trace`.

use std::collections::BTreeMap;

use pagevisor_shared::command::workload::{Kind, Mark, Phase};
use pagevisor_shared::region::RegionRef;
use pagevisor_shared::region::event::EventKind;
use pagevisor_shared::units::CpuId;
use pagevisor_shared::vmstat::ZoneStat;
use pagevisor_shared::zone::{MAX_NR_ZONES, ZoneType};

use super::text::workload;
use super::{Item, Renderer};

/// `Trace.packet`.
const PACKET: u32 = 1;
/// `TracePacket`: `timestamp`, `trusted_packet_sequence_id`, `track_event`, `timestamp_clock_id`, `track_descriptor`.
const TIMESTAMP: u32 = 8;
const SEQUENCE: u32 = 10;
const TRACK_EVENT: u32 = 11;
const TRACK_DESCRIPTOR: u32 = 60;
/// `TrackDescriptor`: `uuid`, `name`, `parent_uuid`, `counter`.
const UUID: u32 = 1;
const NAME: u32 = 2;
const COUNTER: u32 = 8;
/// `TrackEvent`: `debug_annotations`, `type`, `track_uuid`, `name`, `counter_value`.
const ANNOTATIONS: u32 = 4;
const TYPE: u32 = 9;
const TRACK_UUID: u32 = 11;
const EVENT_NAME: u32 = 23;
const COUNTER_VALUE: u32 = 30;
/// `DebugAnnotation`: `string_value`, `name`.
const STRING_VALUE: u32 = 6;
const ANNOTATION_NAME: u32 = 10;
/// `TrackEvent.Type`.
const TYPE_SLICE_BEGIN: u64 = 1;
const TYPE_SLICE_END: u64 = 2;
const TYPE_INSTANT: u64 = 3;
const TYPE_COUNTER: u64 = 4;
/// The packets' one writer.
const WRITER: u64 = 1;

/// Tracks of CPUs are numbered from here, and those of zones.
const CPU_TRACKS: u64 = 0x1000;
const ZONE_TRACKS: u64 = 0x2000;

/// A protobuf message.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(mut self, field: u32, value: u64) -> Self {
        self.varint(u64::from(field) << 3);
        self.varint(value);
        self
    }

    fn bytes(mut self, field: u32, bytes: &[u8]) -> Self {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn message(self, field: u32, message: &Self) -> Self {
        self.bytes(field, &message.0)
    }
}

/// What has begun on a CPU's track and not ended: at most a workload and a phase of it.
#[derive(Debug, Default)]
struct Slices {
    open: Vec<(Kind, Phase)>,
    /// The time of the last begin or end. A guest's clock may go back, its track must not.
    time: u64,
}

impl Slices {
    /// A part begins. Gives how many end first, because their own ends did not come.
    fn begin(&mut self, mark: &Mark) -> usize {
        let around = |open: &(Kind, Phase)| mark.phase != Phase::Whole && *open == (mark.kind, Phase::Whole);
        let stays = self.open.iter().take_while(|open| around(open)).count();
        let ended = self.open.len() - stays;
        self.open.truncate(stays);
        self.open.push((mark.kind, mark.phase));
        ended
    }

    /// A part ends. Gives how many do with it; none when its begin was not seen.
    fn end(&mut self, mark: &Mark) -> usize {
        let at = self.open.iter().rposition(|open| *open == (mark.kind, mark.phase));
        let ended = at.map_or(0, |at| self.open.len() - at);
        self.open.truncate(self.open.len() - ended);
        ended
    }

    fn advance(&mut self, time: u64) -> u64 {
        self.time = self.time.max(time);
        self.time
    }
}

/// Makes a trace, piece by piece.
#[derive(Debug, Default)]
pub struct Perfetto {
    /// The free pages that were told last, by zone.
    free: BTreeMap<usize, u64>,
    /// The slices of each CPU that has had any.
    slices: BTreeMap<CpuId, Slices>,
    /// The time of the last event.
    now: u64,
}

impl Perfetto {
    /// The start of a trace: its tracks.
    pub fn begin(&mut self, region: &RegionRef<'_>) -> Vec<u8> {
        let mut out = Message::default();
        for cpu in 0..region.nr_cpus() {
            let track =
                Message::default().number(UUID, CPU_TRACKS + cpu as u64).bytes(NAME, format!("CPU {cpu}").as_bytes());
            out = packet(out, Message::default().message(TRACK_DESCRIPTOR, &track));
        }
        for (zone, _) in zones(region) {
            let kind = ZoneType::new(zone % MAX_NR_ZONES).map_or("?", ZoneType::name);
            let name = format!("nr_free_pages node {} {kind}", zone / MAX_NR_ZONES);
            let track = Message::default()
                .number(UUID, ZONE_TRACKS + zone as u64)
                .bytes(NAME, name.as_bytes())
                .bytes(COUNTER, &[]);
            out = packet(out, Message::default().message(TRACK_DESCRIPTOR, &track));
        }
        out.0
    }

    /// The next piece: `items`, and the zones' free pages where they have changed since the last one.
    pub fn append(&mut self, region: &RegionRef<'_>, renderer: &Renderer, items: &[Item]) -> Vec<u8> {
        let mut out = items.iter().fold(Message::default(), |out, item| self.item(out, renderer, item));
        for (zone, free) in zones(region) {
            if self.free.insert(zone, free) != Some(free) {
                let event = Message::default()
                    .number(TYPE, TYPE_COUNTER)
                    .number(TRACK_UUID, ZONE_TRACKS + zone as u64)
                    .number(COUNTER_VALUE, free);
                out = track_event(out, self.now, &event);
            }
        }
        out.0
    }

    /// The end of a trace: what has not ended does at the last event.
    pub fn finish(&mut self) -> Vec<u8> {
        let slices = std::mem::take(&mut self.slices);
        let out = slices.into_iter().fold(Message::default(), |out, (cpu, mut slices)| {
            let time = slices.advance(self.now);
            ends(out, cpu, time, slices.open.len())
        });
        out.0
    }

    fn item(&mut self, out: Message, renderer: &Renderer, item: &Item) -> Message {
        let (cpu, event) = match item {
            Item::Event(cpu, event) => (*cpu, event),
            Item::Lost(cpu, count) => {
                let event = on_cpu(*cpu, TYPE_INSTANT);
                return track_event(out, self.now, &named(event, &format!("LOST {count} EVENTS"), &[]));
            }
        };
        let time = renderer.nanos(event.tsc);
        self.now = self.now.max(time);
        if event.kind == EventKind::WorkloadMark
            && let Some(mark) = Mark::decode(event)
        {
            let slices = self.slices.entry(cpu).or_default();
            let time = slices.advance(time);
            if !mark.end {
                let out = ends(out, cpu, time, slices.begin(&mark));
                let name = if mark.phase == Phase::Whole { mark.kind.name() } else { mark.phase.name() };
                let begin = on_cpu(cpu, TYPE_SLICE_BEGIN);
                return track_event(out, time, &named(begin, name, &[("fields", workload(&mark))]));
            }
            let ended = slices.end(&mark);
            if ended != 0 {
                return ends(out, cpu, time, ended);
            }
        }
        let mut notes = vec![("fields", renderer.fields(event))];
        notes.extend(renderer.caller(event).map(|caller| ("caller", caller)));
        track_event(out, time, &named(on_cpu(cpu, TYPE_INSTANT), event.kind.name(), &notes))
    }
}

/// An event on a CPU's track.
fn on_cpu(cpu: CpuId, kind: u64) -> Message {
    Message::default().number(TYPE, kind).number(TRACK_UUID, CPU_TRACKS + cpu.index() as u64)
}

/// Gives an event its name, and notes, which have names too.
fn named(event: Message, name: &str, notes: &[(&str, String)]) -> Message {
    notes.iter().fold(event.bytes(EVENT_NAME, name.as_bytes()), |event, (name, value)| {
        let note = Message::default().bytes(ANNOTATION_NAME, name.as_bytes()).bytes(STRING_VALUE, value.as_bytes());
        event.message(ANNOTATIONS, &note)
    })
}

/// Ends the innermost `count` slices of a CPU.
fn ends(trace: Message, cpu: CpuId, time: u64, count: usize) -> Message {
    (0..count).fold(trace, |trace, _| track_event(trace, time, &on_cpu(cpu, TYPE_SLICE_END)))
}

/// Appends an event.
fn track_event(trace: Message, time: u64, event: &Message) -> Message {
    packet(trace, Message::default().number(TIMESTAMP, time).message(TRACK_EVENT, event))
}

/// Appends a packet of the trace's one writer.
fn packet(trace: Message, packet: Message) -> Message {
    trace.message(PACKET, &packet.number(SEQUENCE, WRITER))
}

/// Zones with memory, and their free pages as far as CPUs do not hold them back.
fn zones(region: &RegionRef<'_>) -> Vec<(usize, u64)> {
    use std::sync::atomic::Ordering::Relaxed;
    let zones = region.zones().iter().enumerate().filter(|(_, zone)| zone.present_pages.load(Relaxed) != 0);
    let free = |stat: i64| u64::try_from(stat).unwrap_or(0);
    zones.map(|(index, zone)| (index, free(zone.vm_stat[ZoneStat::NrFreePages.index()].load(Relaxed)))).collect()
}
