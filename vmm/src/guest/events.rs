//! Following a guest's events.

use super::{Error, Guest};
use crate::events::{EventReader, Item, Kinds, Renderer};

/// Events of a guest; their kinds are recorded while this lives.
#[derive(Debug)]
pub struct Events<'g> {
    guest: &'g Guest,
    reader: EventReader,
    /// What was recorded before.
    before: u64,
}

impl Guest {
    /// Has the guest record events of `kinds`, beside those that it records already, until what this gives is dropped;
    /// reads those of `kinds` from now on.
    ///
    /// # Errors
    /// As every command.
    pub fn events(&self, kinds: Kinds) -> Result<Events<'_>, Error> {
        let region = self.view().region();
        let before = region.header().event_mask.load(std::sync::atomic::Ordering::Relaxed);
        let reader = EventReader::from_now(&region, kinds);
        self.set_events(before | kinds.0)?;
        Ok(Events { guest: self, reader, before })
    }

    /// The newest `count` events that the guest has recorded and not yet overwritten, in the text of `trace_pipe`. It
    /// records nothing unless it was told to: by [`Self::events`], by [`Self::set_events`], or by `trace_event=` on its
    /// command line.
    pub fn last_events(&self, count: usize) -> String {
        let region = self.view().region();
        let items = EventReader::from_oldest(&region, Kinds::ALL).read(&region);
        let last = &items[items.len().saturating_sub(count)..];
        Renderer::new(&region, None).lines(last, false)
    }
}

impl Events<'_> {
    /// What was recorded since the last call, in order of time.
    pub fn read(&mut self) -> Vec<Item> {
        self.reader.read(&self.guest.view().region())
    }

    /// As [`Self::read`], in the text of `trace_pipe`.
    pub fn text(&mut self) -> String {
        let items = self.read();
        Renderer::new(&self.guest.view().region(), None).lines(&items, false)
    }
}

impl Drop for Events<'_> {
    fn drop(&mut self) {
        // A guest that does not answer any more, or has ended, records what it likes.
        let _ = self.guest.set_events(self.before);
    }
}
