//! Which device answers at which address.

use std::ops::Range;
use std::sync::Arc;

/// What a virtual CPU can reach by port or by memory-mapped registers. Accesses come from all vCPUs at once, and
/// their offsets, lengths and data are the guest's choice.
pub trait Device: Send + Sync {
    /// Fills `data` with what is read `offset` bytes above the device's base.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes what is written `offset` bytes above the device's base.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Devices by address. One bus for ports, one for memory-mapped registers.
#[derive(Default)]
pub struct Bus {
    devices: Vec<(Range<u64>, Arc<dyn Device>)>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.devices.iter().map(|(range, _)| range)).finish()
    }
}

impl Bus {
    /// Puts `device` at `range`, which no other device has.
    pub fn attach(&mut self, range: Range<u64>, device: Arc<dyn Device>) {
        debug_assert!(self.devices.iter().all(|(other, _)| other.end <= range.start || range.end <= other.start));
        self.devices.push((range, device));
    }

    /// The device at `address` and the offset in it. An access that begins inside a device may end beyond it; the
    /// device sees to that.
    fn find(&self, address: u64) -> Option<(&dyn Device, u64)> {
        let (range, device) = self.devices.iter().find(|(range, _)| range.contains(&address))?;
        Some((&**device, address - range.start))
    }

    /// A read; where nothing is, all bits are one, as on a bus that nobody drives.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A write; where nothing is, it is lost.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl Device for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn an_access_reaches_the_device_at_its_address_or_nobody() {
        let device = Arc::new(Recorder(Mutex::new(Vec::new())));
        let mut bus = Bus::default();
        bus.attach(0x10..0x18, device.clone());
        let mut data = [0; 2];
        bus.read(0x17, &mut data);
        assert_eq!(data, [7, 7]);
        bus.read(0x18, &mut data);
        assert_eq!(data, [0xff, 0xff]);
        bus.write(0xf, &[1]);
        bus.write(0x10, &[2, 3]);
        bus.write(u64::MAX, &[4]);
        assert_eq!(*device.0.lock().unwrap(), [(0, vec![2, 3])]);
    }
}
