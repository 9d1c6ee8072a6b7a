//! Commands and replies, with a driver that the test plays.

use std::io::Write;
use std::time::Instant;

use pagevisor_shared::command::{Op, OpResult, ReplyHeader, Status};

use super::*;

/// Where the driver's buffers are: 64 KiB for each descriptor of each queue.
const BUFFERS: u64 = 0x20_0000;
const PATIENCE: Duration = Duration::from_secs(30);
const WRITE_ONLY: u16 = 2;
const NEXT: u16 = 1;

/// A driver of which everything can be wrong.
struct Driver {
    rig: Rig,
    offered: [u16; QUEUES],
}

impl Driver {
    fn new() -> Self {
        let rig = rig();
        rig.set_up();
        Self { rig, offered: [0; QUEUES] }
    }

    fn buffer(queue: u64, index: u16) -> u64 {
        BUFFERS + queue * 0x10_0000 + u64::from(index) * BUFFER_BYTES as u64
    }

    fn describe(&self, queue: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = QUEUE_AT + queue * 0x1000 + u64::from(index) * 16;
        let ram = self.rig.monitor.memory.ram();
        ram.write_obj(address, GuestAddress(at)).unwrap();
        ram.write_obj(len, GuestAddress(at + 8)).unwrap();
        ram.write_obj(flags, GuestAddress(at + 12)).unwrap();
        ram.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes the chain at `head` available and rings.
    fn offer(&mut self, queue: u64, head: u16) {
        let ring = QUEUE_AT + queue * 0x1000 + AVAILABLE;
        let ram = self.rig.monitor.memory.ram();
        let offered = &mut self.offered[queue as usize];
        let slot = u64::from(*offered % QUEUE_SIZE as u16);
        ram.write_obj(head, GuestAddress(ring + 4 + 2 * slot)).unwrap();
        *offered += 1;
        ram.write_obj(*offered, GuestAddress(ring + 2)).unwrap();
        self.rig.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
    }

    /// Gives the device a buffer for a command.
    fn post(&mut self, index: u16) {
        self.describe(0, index, Self::buffer(0, index), BUFFER_BYTES as u32, WRITE_ONLY, 0);
        self.offer(0, index);
    }

    fn used(&self, queue: u64) -> u16 {
        self.rig.monitor.memory.ram().read_obj(GuestAddress(QUEUE_AT + queue * 0x1000 + USED + 2)).unwrap()
    }

    fn command(&self, index: u16) -> Vec<u8> {
        let mut bytes = vec![0; 256];
        self.rig.monitor.memory.ram().read_slice(&mut bytes, GuestAddress(Self::buffer(0, index))).unwrap();
        bytes
    }

    fn tag(&self, index: u16) -> u64 {
        CommandHeader::from_bytes(self.command(index).first_chunk().unwrap(), 256).unwrap().tag
    }

    fn reply(&mut self, index: u16, bytes: &[u8]) {
        let at = Self::buffer(1, index);
        self.rig.monitor.memory.ram().write_slice(bytes, GuestAddress(at)).unwrap();
        self.describe(1, index, at, bytes.len() as u32, 0, 0);
        self.offer(1, index);
    }

    fn submit(&self) -> Waiting {
        self.rig.monitor.submit(CommandHeader::default(), &[Op::Nop.encode()], b"more").unwrap()
    }
}

fn reply(tag: u64, values: &[u64]) -> Vec<u8> {
    let header = ReplyHeader {
        tag,
        status: Status::Done,
        cpu: 0,
        nr_results: values.len() as u32,
        payload_len: 0,
        tsc_start: 1,
        tsc_end: 2,
    };
    let mut bytes = header.to_bytes().to_vec();
    values.iter().for_each(|&value| bytes.extend(OpResult::ok(value).to_bytes()));
    bytes
}

#[test]
fn a_command_goes_out_and_its_reply_comes_back() {
    let mut driver = Driver::new();
    driver.post(0);
    assert!(!driver.rig.interrupted());
    let waiting = driver.submit();
    assert!(driver.rig.interrupted());
    assert_eq!(driver.used(0), 1);
    let command = driver.command(0);
    let header = CommandHeader::from_bytes(command.first_chunk().unwrap(), 256).unwrap();
    assert_eq!((header.nr_ops, header.payload_len), (1, 4));
    assert_eq!(&command[header.payload_offset()..][..4], b"more");
    driver.reply(0, &reply(header.tag, &[7]));
    let answer = waiting.wait(PATIENCE).unwrap();
    assert_eq!(answer.results, [OpResult::ok(7)]);
    assert_eq!(driver.used(1), 1);
    let traffic = driver.rig.monitor.mailbox().traffic();
    assert_eq!(traffic, Traffic { commands: 1, replies: 1, late: 0, strays: 0 });
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let mut driver = Driver::new();
    let flags = GuestAddress(QUEUE_AT + 0x1000 + AVAILABLE);
    driver.rig.monitor.memory.ram().write_obj(1u16, flags).unwrap();
    driver.post(0);
    let waiting = driver.submit();
    assert!(driver.rig.interrupted(), "by the command");
    driver.reply(0, &reply(driver.tag(0), &[]));
    assert!(waiting.wait(PATIENCE).is_ok());
    assert_eq!((driver.used(1), driver.rig.interrupted()), (1, false));
}

#[test]
fn a_driver_is_disturbed_and_asked_only_when_that_helps() {
    const EVENT_IDX: u32 = 1 << 29;
    let rig = rig();
    rig.set_up_with(EVENT_IDX);
    let mut driver = Driver { rig, offered: [0; QUEUES] };
    let word = |queue: u64, offset: u64| GuestAddress(QUEUE_AT + queue * 0x1000 + offset);
    let event = |driver: &Driver, queue| -> u16 {
        let at = word(queue, USED + 4 + 8 * u64::from(QUEUE_SIZE));
        driver.rig.monitor.memory.ram().read_obj(at).unwrap()
    };
    let wants = |driver: &Driver, queue, index: u16| {
        let at = word(queue, AVAILABLE + 4 + 2 * u64::from(QUEUE_SIZE));
        driver.rig.monitor.memory.ram().write_obj(index, at).unwrap();
    };
    (0..4).for_each(|index| driver.post(index));
    assert_eq!(event(&driver, 0), 0, "nothing waits for a buffer");
    // Interrupted for the first; until the driver has looked, not for more.
    let mut waiting: Vec<Waiting> = (0..3).map(|_| driver.submit()).collect();
    assert!(driver.rig.interrupted());
    assert_eq!((driver.used(0), driver.rig.monitor.signals().interrupts), (3, 1));
    wants(&driver, 0, 3);
    waiting.push(driver.submit());
    assert_eq!(driver.rig.monitor.signals().interrupts, 2);
    // One waits for a buffer now: it is the fifth that the device asks for.
    waiting.push(driver.submit());
    assert_eq!((driver.used(0), event(&driver, 0)), (4, 4));
    driver.post(4);
    assert_eq!(driver.used(0), 5);
    // Replies are wanted one by one, and cause no interrupts if the driver names one that has passed.
    wants(&driver, 1, u16::MAX);
    for index in 0..5 {
        assert_eq!(event(&driver, 1), index);
        driver.reply(index, &reply(driver.tag(index), &[]));
    }
    assert_eq!((driver.used(1), driver.rig.monitor.signals().interrupts), (5, 2));
    assert!(waiting.into_iter().all(|waiting| waiting.wait(PATIENCE).is_ok()));
    assert_eq!(driver.rig.monitor.signals().kicks, [5, 5, 0, 0]);
}

#[test]
fn commands_wait_for_buffers_and_replies_come_in_any_order() {
    let mut driver = Driver::new();
    let waiting: Vec<Waiting> = (0..4).map(|_| driver.submit()).collect();
    assert_eq!(driver.used(0), 0);
    for index in 0..4 {
        driver.post(index);
        assert_eq!(driver.used(0), index + 1);
    }
    for index in (0..4).rev() {
        let tag = driver.tag(index);
        driver.reply(index, &reply(tag, &[index.into()]));
    }
    for (waiting, value) in waiting.into_iter().zip(0..) {
        assert_eq!(waiting.wait(PATIENCE).unwrap().results, [OpResult::ok(value)]);
    }
}

#[test]
fn a_message_is_spread_over_the_parts_of_a_buffer() {
    let mut driver = Driver::new();
    driver.describe(0, 0, Driver::buffer(0, 0), 10, WRITE_ONLY | NEXT, 1);
    driver.describe(0, 1, Driver::buffer(0, 0) + 10, 1000, WRITE_ONLY, 0);
    driver.offer(0, 0);
    let _waiting = driver.submit();
    assert_eq!(driver.tag(0), 1);
}

#[test]
fn replies_that_make_no_sense_wake_nobody_wrong() {
    let mut driver = Driver::new();
    driver.post(0);
    let waiting = driver.submit();
    // To no command, to one of the future, and too short for a head.
    driver.reply(0, &reply(0, &[]));
    driver.reply(1, &reply(77, &[]));
    driver.reply(2, b"short");
    assert_eq!(driver.rig.monitor.mailbox().traffic().strays, 3);
    assert_eq!(driver.rig.events.try_iter().count(), 3);
    // The right tag, with more results than there are.
    let tag = driver.tag(0);
    let mut bytes = reply(tag, &[1]);
    bytes[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
    driver.reply(3, &bytes);
    assert_eq!(waiting.wait(PATIENCE), Err(NoReply::Malformed));
    // An error that does not exist.
    driver.post(1);
    let waiting = driver.submit();
    let mut bytes = reply(driver.tag(1), &[1]);
    bytes[ReplyHeader::BYTES..][..4].copy_from_slice(&999u32.to_le_bytes());
    driver.reply(4, &bytes);
    assert_eq!(waiting.wait(PATIENCE), Err(NoReply::Malformed));
    assert_eq!(driver.used(1), 5);
}

#[test]
fn a_reply_that_comes_late_is_no_stray() {
    let mut driver = Driver::new();
    driver.post(0);
    assert_eq!(driver.submit().wait(Duration::ZERO), Err(NoReply::TimedOut));
    driver.reply(0, &reply(1, &[]));
    assert_eq!(driver.rig.monitor.mailbox().traffic(), Traffic { commands: 1, replies: 0, late: 1, strays: 0 });
    // One that the guest never saw is not sent any more.
    drop(driver.submit());
    driver.post(1);
    assert_eq!(driver.used(0), 1);
}

/// Tells the test what it learns, and sends a command in turn if it has one.
struct Told(Sender<Fate>, Option<Bequest>);

impl Heir for Told {
    fn learn(self: Box<Self>, fate: Fate) -> Option<Bequest> {
        self.0.send(fate).unwrap();
        self.1
    }
}

#[test]
fn an_heir_learns_the_late_reply_and_sends_a_command_in_turn() {
    let mut driver = Driver::new();
    let (told, fates) = channel();
    driver.post(0);
    let waiting = driver.submit();
    let message = encode(CommandHeader { cpu: 5, ..CommandHeader::default() }, &[Op::Barrier.encode()], &[]);
    let bequest = Bequest { message, heir: Box::new(Told(told.clone(), None)) };
    assert_eq!(waiting.leave(Box::new(Told(told.clone(), Some(bequest)))), None);
    assert!(fates.try_recv().is_err());
    driver.post(1);
    driver.reply(0, &reply(1, &[7]));
    let Ok(Fate::Answered(found)) = fates.try_recv() else { panic!("no reply") };
    assert_eq!(found.results, [OpResult::ok(7)]);
    let header = CommandHeader::from_bytes(driver.command(1).first_chunk().unwrap(), 256).unwrap();
    assert_eq!((header.tag, header.cpu), (2, 5), "it was sent at once");
    driver.reply(1, &reply(2, &[]));
    assert!(matches!(fates.try_recv(), Ok(Fate::Answered(_))));
    let traffic = driver.rig.monitor.mailbox().traffic();
    assert_eq!(traffic, Traffic { commands: 2, replies: 1, late: 1, strays: 0 });
    // What the guest never saw is not sent, and the heir knows at once.
    assert_eq!(driver.submit().leave(Box::new(Told(told.clone(), None))), None);
    assert_eq!(fates.try_recv(), Ok(Fate::Unsent));
    driver.post(2);
    assert_eq!(driver.used(0), 2);
    // A reply that came before needs no heir.
    let waiting = driver.submit();
    let tag = driver.tag(2);
    driver.reply(2, &reply(tag, &[8]));
    assert_eq!(waiting.leave(Box::new(Told(told, None))).unwrap().unwrap().results, [OpResult::ok(8)]);
    assert!(fates.try_recv().is_err(), "the heirs are gone");
}

#[test]
fn a_guest_that_never_replies_has_no_end_of_buffers_but_an_end_of_heirs() {
    let mut driver = Driver::new();
    let (told, fates) = channel();
    for number in 0..MAX_HEIRS + 10 {
        driver.post(number as u16 % QUEUE_SIZE as u16);
        assert_eq!(driver.submit().leave(Box::new(Told(told.clone(), None))), None);
    }
    assert_eq!(fates.try_iter().collect::<Vec<_>>(), vec![Fate::Unknown(NoReply::TimedOut); 10]);
    driver.rig.set(reg::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(fates.try_iter().collect::<Vec<_>>(), vec![Fate::Unknown(NoReply::Reset); MAX_HEIRS]);
}

#[test]
fn the_end_wakes_all_who_wait() {
    let mut driver = Driver::new();
    driver.post(0);
    let (sent, unsent) = (driver.submit(), driver.submit());
    let monitor = driver.rig.monitor.clone();
    let begin = Instant::now();
    let closer = std::thread::spawn(move || monitor.mailbox().close());
    assert_eq!(sent.wait(PATIENCE), Err(NoReply::Ended));
    assert_eq!(unsent.wait(PATIENCE), Err(NoReply::Ended));
    closer.join().unwrap();
    assert!(begin.elapsed() < PATIENCE);
    assert_eq!(driver.rig.monitor.submit(CommandHeader::default(), &[], &[]).unwrap_err(), NoReply::Ended);
}

#[test]
fn a_reset_loses_what_was_sent_and_keeps_what_was_not() {
    let mut driver = Driver::new();
    driver.post(0);
    let (sent, unsent) = (driver.submit(), driver.submit());
    driver.rig.set(reg::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(sent.wait(PATIENCE), Err(NoReply::Reset));
    driver.rig.set_up();
    driver.offered = [0; QUEUES];
    driver.rig.monitor.memory.ram().write_obj(0u16, GuestAddress(QUEUE_AT + USED + 2)).unwrap();
    driver.post(1);
    let tag = driver.tag(1);
    driver.reply(0, &reply(tag, &[5]));
    assert_eq!(unsent.wait(PATIENCE).unwrap().results, [OpResult::ok(5)]);
}

#[test]
fn buffers_that_cannot_be_break_the_device_not_the_host() {
    // A command's buffer: too short, not writable, outside of RAM, a chain that bites its tail.
    let cases: [(u64, u32, u16, u16); 4] = [
        (Driver::buffer(0, 0), 20, WRITE_ONLY, 0),
        (Driver::buffer(0, 0), 0x1000, 0, 0),
        (0xe000_0000, 0x1000, WRITE_ONLY, 0),
        (Driver::buffer(0, 0), 1, WRITE_ONLY | NEXT, 0),
    ];
    for (address, len, flags, next) in cases {
        let mut driver = Driver::new();
        driver.describe(0, 0, address, len, flags, next);
        driver.offer(0, 0);
        let waiting = driver.submit();
        driver.rig.assert_broken("queue 0");
        // It was not sent: a driver that mends its ways gets it.
        assert_eq!(waiting.wait(Duration::ZERO), Err(NoReply::TimedOut));
    }
    // A reply outside of RAM; one that claims to be longer than all of memory ends at a message's length.
    let mut driver = Driver::new();
    driver.describe(1, 0, 0xe000_0000, 64, 0, 0);
    driver.offer(1, 0);
    driver.rig.assert_broken("queue 1");
    let mut driver = Driver::new();
    driver.describe(1, 0, Driver::buffer(1, 0), u32::MAX, 0, 0);
    driver.offer(1, 0);
    assert_eq!((driver.used(1), driver.rig.monitor.mailbox().traffic().strays), (1, 1));
}

#[test]
fn a_command_longer_than_a_buffer_is_not_taken() {
    let driver = Driver::new();
    let error = driver.rig.monitor.submit(CommandHeader::default(), &[], &[0; BUFFER_BYTES]).unwrap_err();
    assert_eq!(error, NoReply::TooLong);
}

#[test]
fn what_programs_print_arrives_and_its_buffers_come_back() {
    let mut driver = Driver::new();
    let tty = driver.rig.monitor.hooks.tty.clone();
    let ram = driver.rig.monitor.memory.clone();
    for (index, text) in [(0, "one "), (1, "two ")] {
        let at = Driver::buffer(2, index);
        ram.ram().write_slice(text.as_bytes(), GuestAddress(at)).unwrap();
        driver.describe(2, index, at, text.len() as u32, 0, 0);
        driver.offer(2, index);
    }
    assert_eq!(driver.used(2), 2);
    // A chain that leads out of memory breaks the device, and takes nothing back.
    driver.describe(2, 2, u64::MAX - 8, 16, 0, 0);
    driver.offer(2, 2);
    assert_eq!(driver.used(2), 2);
    let (sender, written) = channel();
    let sink = Box::new(Sink(sender));
    drop(crate::devices::TtyWriter::start(tty, sink, crate::sandbox::Mode::Off).unwrap());
    assert_eq!(written.into_iter().flatten().collect::<Vec<u8>>(), b"one two ");
}

#[test]
fn what_there_is_to_read_arrives_when_a_buffer_waits_for_it() {
    let mut driver = Driver::new();
    let (source, mut writer) = std::io::pipe().unwrap();
    let (input, quiet) = (driver.rig.monitor.hooks.input.clone(), Arc::new(|_: &str| {}));
    let _reader = crate::devices::InputReader::start(input, source.into(), quiet, crate::sandbox::Mode::Off).unwrap();
    let _worker = MonitorWorker::start(driver.rig.monitor.clone(), crate::sandbox::Mode::Off).unwrap();
    let ask = |driver: &mut Driver, index: u16, len: u32| {
        driver.describe(3, index, Driver::buffer(3, index), len, WRITE_ONLY, 0);
        driver.offer(3, index);
    };
    let answered = |driver: &Driver, count: u16| {
        let began = Instant::now();
        while driver.used(3) < count {
            assert!(began.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(1));
        }
        let entry = QUEUE_AT + 3 * 0x1000 + USED + 4 + 8 * u64::from(count - 1);
        let ram = driver.rig.monitor.memory.ram();
        let [index, len]: [u32; 2] = [0, 4].map(|at| ram.read_obj(GuestAddress(entry + at)).unwrap());
        let mut bytes = vec![0; len as usize];
        ram.read_slice(&mut bytes, GuestAddress(Driver::buffer(3, index as u16))).unwrap();
        bytes
    };
    ask(&mut driver, 0, 4);
    assert_eq!(driver.used(3), 0);
    writer.write_all(b"one two").unwrap();
    assert_eq!(answered(&driver, 1), b"one ");
    assert!(driver.rig.interrupted());
    ask(&mut driver, 1, 64);
    assert_eq!(answered(&driver, 2), b"two");
    drop(writer);
    ask(&mut driver, 2, 64);
    assert_eq!(answered(&driver, 3), b"");
}

#[test]
fn a_buffer_out_of_memory_breaks_the_device_not_the_host() {
    let mut driver = Driver::new();
    let (source, mut writer) = std::io::pipe().unwrap();
    let (input, quiet) = (driver.rig.monitor.hooks.input.clone(), Arc::new(|_: &str| {}));
    let _reader = crate::devices::InputReader::start(input, source.into(), quiet, crate::sandbox::Mode::Off).unwrap();
    let _worker = MonitorWorker::start(driver.rig.monitor.clone(), crate::sandbox::Mode::Off).unwrap();
    driver.describe(3, 0, u64::MAX - 8, 16, WRITE_ONLY, 0);
    driver.offer(3, 0);
    writer.write_all(b"for nobody").unwrap();
    let began = Instant::now();
    while driver.rig.get(reg::VIRTIO_MMIO_STATUS) & 0x40 == 0 {
        assert!(began.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Sink(Sender<Vec<u8>>);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(std::io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
