//! Who allocated each page, as the guest noted it (`page_owner=on`).

use pagevisor_shared::page_owner::{MAX_STACKS, OWNER_RECORD_SIZE, OwnerState, STACK_DEPTH, STACK_RECORD_SIZE};
use pagevisor_shared::units::Order;

use super::StateView;
use super::error::StateError;

/// Bytes of a record.
const RECORD: usize = OWNER_RECORD_SIZE as usize;
/// Bytes of the table that are read at a time.
const CHUNK: u64 = 64 << 10;

/// A block that is allocated, and by whom. Traces are named by [`StateView::stack`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owned {
    /// First frame.
    pub pfn: u64,
    /// Its order.
    pub order: Order,
    /// The flags it was allocated with; bits without a meaning may be among them.
    pub gfp: u32,
    /// The CPU that allocated it.
    pub cpu: u8,
    /// When it was allocated, in nanoseconds since boot.
    pub ts_nsec: u64,
    /// When it was freed last; 0 for never.
    pub free_ts_nsec: u64,
    /// Who allocated it; 0 when not known.
    pub stack: u32,
    /// Who freed it last; 0 when not known, or never.
    pub free_stack: u32,
}

impl Owned {
    /// The block in a record; `None` for one that is not allocated, or cannot be one.
    fn from_bytes(pfn: u64, bytes: &[u8; RECORD]) -> Option<Self> {
        let mut words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
        let mut word = || words.next().unwrap_or(0);
        let (gfp, state) = (word(), OwnerState::unpack(word()));
        let mut long = || u64::from(word()) | u64::from(word()) << 32;
        let (ts_nsec, free_ts_nsec) = (long(), long());
        let (stack, free_stack) = (word(), word());
        let order = Order::new(state.order.into()).ok()?;
        let is_block = state.allocated && pfn.is_multiple_of(1 << order.raw());
        is_block.then_some(Self { pfn, order, gfp, cpu: state.cpu, ts_nsec, free_ts_nsec, stack, free_stack })
    }
}

impl StateView {
    /// Whether the guest notes who allocates its pages.
    pub fn has_owners(&self) -> bool {
        self.roots().page_owner != 0
    }

    /// Calls `found` for every block below frame `end` whose owner is known, lowest first, until it fails. Only what the
    /// guest wrote is read: the table is sparse.
    ///
    /// # Errors
    /// When the table lies outside memory, and those of `found`.
    pub fn owners<E: From<StateError>>(
        &self,
        end: u64,
        found: &mut dyn FnMut(Owned) -> Result<(), E>,
    ) -> Result<(), E> {
        let roots = self.roots();
        let table = roots.page_owner;
        let frames = roots.max_pfn.min(end);
        let top = table.saturating_add(frames.saturating_mul(OWNER_RECORD_SIZE));
        let mut at = table;
        let mut bytes = Vec::new();
        while at < top {
            let Some(data) = self.memory().next_data(at..top)? else { break };
            // Whole records, whatever the host's pages are.
            let skipped = (data.start - table) / OWNER_RECORD_SIZE;
            at = table + skipped * OWNER_RECORD_SIZE;
            let stop = data.end.max(at.saturating_add(OWNER_RECORD_SIZE)).min(top).min(at.saturating_add(CHUNK));
            let count = (stop - at).div_ceil(OWNER_RECORD_SIZE).min(frames - skipped);
            bytes.resize((count * OWNER_RECORD_SIZE) as usize, 0);
            self.memory().read(at, &mut bytes)?;
            for (pfn, record) in (skipped..).zip(bytes.as_chunks::<RECORD>().0) {
                if let Some(owned) = Owned::from_bytes(pfn, record) {
                    found(owned)?;
                }
            }
            at = at.saturating_add((count * OWNER_RECORD_SIZE).max(1));
        }
        Ok(())
    }

    /// The return addresses of call trace `handle`, innermost first; none for a handle that names nothing.
    ///
    /// # Errors
    /// When the table lies outside memory.
    pub fn stack(&self, handle: u32) -> Result<Vec<u64>, StateError> {
        let roots = self.roots();
        let Some(index) = handle.checked_sub(1) else { return Ok(Vec::new()) };
        if u64::from(index) >= roots.nr_stacks.min(MAX_STACKS.into()) {
            return Ok(Vec::new());
        }
        let mut bytes = [0; STACK_RECORD_SIZE as usize];
        let at = roots.stacks.saturating_add(u64::from(index) * STACK_RECORD_SIZE);
        self.memory().read(at, &mut bytes)?;
        let (words, _) = bytes.as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let len = (words.next().unwrap_or(0) & 0xffff_ffff).min(STACK_DEPTH as u64);
        Ok(words.take(len as usize).collect())
    }
}
