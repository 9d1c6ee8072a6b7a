//! The monitor's configuration space, [`pagevisor_shared::device::monitor`].

use pagevisor_shared::device::monitor;
use pagevisor_shared::region::GuestState;

use super::registers::{Effect, Violation};

const SIZE: usize = monitor::CONFIG_SIZE as usize;
const ABI: usize = monitor::CONFIG_ABI as usize;
const STATE: usize = monitor::CONFIG_STATE as usize;
const REGION_SIZE: usize = monitor::CONFIG_REGION_SIZE as usize;
const MSI_ADDR: usize = monitor::CONFIG_MSI_ADDR as usize;
const MSI_ADDR_HIGH: usize = MSI_ADDR + 4;
const MSI_DATA: usize = monitor::CONFIG_MSI_DATA as usize;

/// The bytes of the configuration space.
#[derive(Debug)]
pub struct ConfigSpace([u8; SIZE]);

impl ConfigSpace {
    /// The configuration after reset, of a device whose state region has `region_size` bytes.
    pub fn new(region_size: u64) -> Self {
        let mut bytes = [0; SIZE];
        bytes[ABI..ABI + 4].copy_from_slice(&pagevisor_shared::ABI_VERSION.to_le_bytes());
        bytes[REGION_SIZE..REGION_SIZE + 8].copy_from_slice(&region_size.to_le_bytes());
        Self(bytes)
    }

    /// The place of an access, if it is one: 1, 2, 4 or 8 bytes, aligned, inside.
    fn place(at: u64, len: usize) -> Option<std::ops::Range<usize>> {
        let fits = at < SIZE as u64 && matches!(len, 1 | 2 | 4 | 8);
        let start = if fits { at as usize } else { return None };
        (start % len == 0 && start + len <= SIZE).then_some(start..start + len)
    }

    /// Reads; `None` when this is no proper access.
    pub fn read(&self, at: u64, data: &mut [u8]) -> Option<()> {
        data.copy_from_slice(&self.0[Self::place(at, data.len())?]);
        Some(())
    }

    /// Writes a field, 64-bit ones as a whole or by halves.
    pub fn write(&mut self, at: u64, data: &[u8]) -> Result<Effect, Violation> {
        let place = Self::place(at, data.len()).ok_or(Violation::Config(at, data.len()))?;
        match (place.start, data) {
            (STATE, &[a, b, c, d]) => {
                let raw = u32::from_le_bytes([a, b, c, d]);
                let state = GuestState::new(raw).ok_or(Violation::State(raw))?;
                self.0[place].copy_from_slice(data);
                Ok(Effect::State(state))
            }
            (MSI_ADDR | MSI_ADDR_HIGH | MSI_DATA, [_, _, _, _]) | (MSI_ADDR, [_, _, _, _, _, _, _, _]) => {
                self.0[place].copy_from_slice(data);
                Ok(self.msi())
            }
            _ => Err(Violation::Config(at, data.len())),
        }
    }

    /// The message, which is complete once both its parts were written.
    fn msi(&self) -> Effect {
        let mut address = [0; 8];
        address.copy_from_slice(&self.0[MSI_ADDR..MSI_ADDR + 8]);
        let mut data = [0; 4];
        data.copy_from_slice(&self.0[MSI_DATA..MSI_DATA + 4]);
        match (u64::from_le_bytes(address), u32::from_le_bytes(data)) {
            (0, _) | (_, 0) => Effect::None,
            (address, data) => Effect::Msi { address, data },
        }
    }
}
