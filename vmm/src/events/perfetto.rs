//! Events as a Perfetto trace (`perfetto.protos.Trace`): a track per CPU with an instant for each event, and a counter
//! track per zone with its free pages.
//!
//! A trace is a sequence of packets, each a length-delimited field 1, so that one can be appended as it comes. Only
//! what is used of `TracePacket`, `TrackDescriptor` and `TrackEvent` is encoded; the numbers are those of Perfetto's
//! `protos/perfetto/trace`.

use std::collections::BTreeMap;

use pagevisor_shared::region::RegionRef;
use pagevisor_shared::vmstat::ZoneStat;
use pagevisor_shared::zone::{MAX_NR_ZONES, ZoneType};

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

/// Makes a trace, piece by piece.
#[derive(Debug, Default)]
pub struct Perfetto {
    /// The free pages that were told last, by zone.
    free: BTreeMap<usize, u64>,
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
        let mut out = Message::default();
        for item in items {
            let (cpu, name, notes) = match item {
                Item::Event(cpu, event) => {
                    self.now = self.now.max(renderer.nanos(event.tsc));
                    let notes =
                        [Some(("fields", renderer.fields(event))), renderer.caller(event).map(|c| ("caller", c))];
                    (*cpu, event.kind.name().to_owned(), notes)
                }
                Item::Lost(cpu, count) => (*cpu, format!("LOST {count} EVENTS"), [None, None]),
            };
            let time = match item {
                Item::Event(_, event) => renderer.nanos(event.tsc),
                Item::Lost(..) => self.now,
            };
            let mut event = Message::default()
                .number(TYPE, TYPE_INSTANT)
                .number(TRACK_UUID, CPU_TRACKS + cpu.index() as u64)
                .bytes(EVENT_NAME, name.as_bytes());
            for (name, value) in notes.into_iter().flatten() {
                let note =
                    Message::default().bytes(ANNOTATION_NAME, name.as_bytes()).bytes(STRING_VALUE, value.as_bytes());
                event = event.message(ANNOTATIONS, &note);
            }
            out = packet(out, Message::default().number(TIMESTAMP, time).message(TRACK_EVENT, &event));
        }
        for (zone, free) in zones(region) {
            if self.free.insert(zone, free) != Some(free) {
                let event = Message::default()
                    .number(TYPE, TYPE_COUNTER)
                    .number(TRACK_UUID, ZONE_TRACKS + zone as u64)
                    .number(COUNTER_VALUE, free);
                out = packet(out, Message::default().number(TIMESTAMP, self.now).message(TRACK_EVENT, &event));
            }
        }
        out.0
    }
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
