//! Descriptors of slab caches.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering::Acquire};

use pagevisor_shared::region::zone::ListHead;
use pagevisor_shared::slab::{self, ArrayCache, KmemCache, KmemCacheNode, NAME_BYTES, SlabFlags, SlabWord};
use pagevisor_shared::units::{Order, PAGE_SIZE};

use crate::state::StateView;
use crate::state::error::{Corrupt, StateError};

/// How often a descriptor is read again that a running guest changes meanwhile.
const TRIES: u32 = 100;

/// A record in bytes that were copied out of the guest.
#[derive(Clone, Copy)]
pub(crate) struct Record<'b>(pub &'b [u8]);

impl Record<'_> {
    /// The record of `len` bytes at `start`.
    pub fn part(&self, start: usize, len: usize) -> Record<'_> {
        Record(self.0.get(start..).and_then(|rest| rest.get(..len)).unwrap_or(&[]))
    }

    /// The word of 32 bits at `offset`; 0 behind the end.
    pub fn u32(&self, offset: usize) -> u32 {
        let bytes = self.0.get(offset..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    /// The word of 64 bits at `offset`; 0 behind the end.
    pub fn u64(&self, offset: usize) -> u64 {
        let bytes = self.0.get(offset..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    fn list(&self, offset: usize) -> (u32, u32) {
        (self.u32(offset + offset_of!(ListHead, first)), self.u32(offset + offset_of!(ListHead, last)))
    }
}

/// An array of free objects. Fields as in [`ArrayCache`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named and documented in the contract")]
pub struct ArrayInfo {
    pub lock: u32,
    pub hot_lock: u32,
    pub avail: u32,
    pub limit: u32,
    pub batchcount: u32,
    pub entry: u64,
    pub home: SlabWord,
    pub hot: u32,
    pub allocmiss: u64,
    pub freemiss: u64,
}

impl ArrayInfo {
    fn of(record: Record<'_>) -> Self {
        Self {
            lock: record.u32(offset_of!(ArrayCache, lock)),
            hot_lock: record.u32(offset_of!(ArrayCache, hot_lock)),
            avail: record.u32(offset_of!(ArrayCache, avail)),
            limit: record.u32(offset_of!(ArrayCache, limit)),
            batchcount: record.u32(offset_of!(ArrayCache, batchcount)),
            entry: record.u64(offset_of!(ArrayCache, entry)),
            home: SlabWord(record.u32(offset_of!(ArrayCache, home))),
            hot: record.u32(offset_of!(ArrayCache, hot)),
            allocmiss: record.u64(offset_of!(ArrayCache, allocmiss)),
            freemiss: record.u64(offset_of!(ArrayCache, freemiss)),
        }
    }

    /// The array in the bytes of an [`ArrayCache`].
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        Self::of(Record(bytes))
    }
}

/// The lists of a node. Fields as in [`KmemCacheNode`]; lists as first and last frame.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named and documented in the contract")]
pub struct NodeSlabs {
    pub node: usize,
    /// Guest-virtual address of the record.
    pub address: u64,
    pub list_lock: u32,
    pub seq: u32,
    pub slabs_partial: (u32, u32),
    pub slabs_full: (u32, u32),
    pub slabs_free: (u32, u32),
    pub total_slabs: u64,
    pub free_slabs: u64,
    pub free_objects: u64,
    pub free_limit: u32,
    pub colour_next: u32,
    pub alien: u64,
    pub shared: ArrayInfo,
}

impl NodeSlabs {
    fn of(node: usize, address: u64, record: Record<'_>) -> Self {
        Self {
            node,
            address,
            list_lock: record.u32(offset_of!(KmemCacheNode, list_lock)),
            seq: record.u32(offset_of!(KmemCacheNode, seq)),
            slabs_partial: record.list(offset_of!(KmemCacheNode, slabs_partial)),
            slabs_full: record.list(offset_of!(KmemCacheNode, slabs_full)),
            slabs_free: record.list(offset_of!(KmemCacheNode, slabs_free)),
            total_slabs: record.u64(offset_of!(KmemCacheNode, total_slabs)),
            free_slabs: record.u64(offset_of!(KmemCacheNode, free_slabs)),
            free_objects: record.u64(offset_of!(KmemCacheNode, free_objects)),
            free_limit: record.u32(offset_of!(KmemCacheNode, free_limit)),
            colour_next: record.u32(offset_of!(KmemCacheNode, colour_next)),
            alien: record.u64(offset_of!(KmemCacheNode, alien)),
            shared: ArrayInfo::of(record.part(offset_of!(KmemCacheNode, shared), size_of::<ArrayCache>())),
        }
    }
}

/// A slab cache as it was read. Fields as in [`KmemCache`]. What its geometry says was checked: its objects lie within
/// a slab.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named and documented in the contract")]
pub struct SlabCache {
    /// Guest-virtual address of the descriptor.
    pub address: u64,
    pub id: u16,
    /// The name; what is no plain character reads as `?`.
    pub name: String,
    pub flags: SlabFlags,
    pub size: u32,
    pub object_size: u32,
    pub reciprocal_size: u32,
    pub num: u32,
    pub order: Order,
    pub limit: u32,
    pub batchcount: u32,
    pub shared: u32,
    pub align: u32,
    pub obj_offset: u32,
    pub freelist_size: u32,
    pub colour: u32,
    pub colour_off: u32,
    pub ctor: u64,
    pub serial: u64,
    pub freelist_cache: u32,
    pub grown: u64,
    pub reaped: u64,
    pub errors: u64,
    pub node_allocs: u64,
    pub node_frees: u64,
    pub node_overflow: u64,
    pub high_mark: u64,
    /// The arrays of the CPUs.
    pub cpus: Vec<ArrayInfo>,
    /// The lists of the nodes.
    pub nodes: Vec<NodeSlabs>,
    /// Whether the lists and counters of each node are of one moment.
    pub stable: bool,
}

impl SlabCache {
    /// Bytes of a slab.
    pub const fn slab_bytes(&self) -> u64 {
        PAGE_SIZE << self.order.raw()
    }

    /// Bytes from the first object's buffer to object `number`, which a debug cache puts behind a red zone.
    pub fn object_offset(&self, number: u16) -> u64 {
        u64::from(number) * u64::from(self.size) + u64::from(self.obj_offset)
    }

    /// Pages of a slab.
    pub const fn slab_pages(&self) -> u64 {
        self.order.pages()
    }

    /// Slabs of all nodes, as they are counted.
    pub fn num_slabs(&self) -> u64 {
        self.nodes.iter().fold(0, |sum, node| sum.wrapping_add(node.total_slabs))
    }

    /// Objects of all slabs, by the same count.
    pub fn num_objects(&self) -> u64 {
        self.num_slabs().wrapping_mul(self.num.into())
    }

    /// Checks what is said about sizes and fills in the rest. `bytes` are those of the whole descriptor.
    fn of(number: u16, address: u64, bytes: &[u8], cpus: usize, nodes: usize) -> Result<Self, Corrupt> {
        let record = Record(bytes);
        let u32_at = |offset| record.u32(offset);
        let u64_at = |offset| record.u64(offset);
        let wrong = |what, offset: usize| {
            let found = u64::from(record.u32(offset));
            Corrupt { what, at: address.wrapping_add(offset as u64), found }
        };
        let ensure = |ok: bool, what, offset| if ok { Ok(()) } else { Err(wrong(what, offset)) };
        let (id, flags) = (offset_of!(KmemCache, id), offset_of!(KmemCache, flags));
        ensure(u32_at(id) == u32::from(number), "number of a slab cache", id)?;
        let flags = SlabFlags::from_bits(u32_at(flags)).ok_or_else(|| wrong("flags of a slab cache", flags))?;
        let order = offset_of!(KmemCache, gfporder);
        let order = Order::new(u32_at(order)).map_err(|_| wrong("order of a slab cache", order))?;
        let (size, num) = (u32_at(offset_of!(KmemCache, size)), u32_at(offset_of!(KmemCache, num)));
        ensure(size >= 1, "size of a slab cache's objects", offset_of!(KmemCache, size))?;
        let fits = (1..=1 << 16).contains(&num) && u64::from(num) * u64::from(size) <= PAGE_SIZE << order.raw();
        ensure(fits, "number of objects of a slab", offset_of!(KmemCache, num))?;
        let array = |cpu: usize| ArrayInfo::of(record.part(slab::cpu_cache_offset(cpu), size_of::<ArrayCache>()));
        let lists = |node: usize| {
            let offset = slab::node_offset(cpus, node);
            let part = record.part(offset, size_of::<KmemCacheNode>());
            NodeSlabs::of(node, address.wrapping_add(offset as u64), part)
        };
        Ok(Self {
            address,
            id: number,
            name: name(record.part(offset_of!(KmemCache, name), NAME_BYTES).0),
            flags,
            size,
            object_size: u32_at(offset_of!(KmemCache, object_size)),
            reciprocal_size: u32_at(offset_of!(KmemCache, reciprocal_size)),
            num,
            order,
            limit: u32_at(offset_of!(KmemCache, limit)),
            batchcount: u32_at(offset_of!(KmemCache, batchcount)),
            shared: u32_at(offset_of!(KmemCache, shared)),
            align: u32_at(offset_of!(KmemCache, align)),
            obj_offset: u32_at(offset_of!(KmemCache, obj_offset)),
            freelist_size: u32_at(offset_of!(KmemCache, freelist_size)),
            colour: u32_at(offset_of!(KmemCache, colour)),
            colour_off: u32_at(offset_of!(KmemCache, colour_off)),
            ctor: u64_at(offset_of!(KmemCache, ctor)),
            serial: u64_at(offset_of!(KmemCache, serial)),
            freelist_cache: u32_at(offset_of!(KmemCache, freelist_cache)),
            grown: u64_at(offset_of!(KmemCache, grown)),
            reaped: u64_at(offset_of!(KmemCache, reaped)),
            errors: u64_at(offset_of!(KmemCache, errors)),
            node_allocs: u64_at(offset_of!(KmemCache, node_allocs)),
            node_frees: u64_at(offset_of!(KmemCache, node_frees)),
            node_overflow: u64_at(offset_of!(KmemCache, node_overflow)),
            high_mark: u64_at(offset_of!(KmemCache, high_mark)),
            cpus: (0..cpus).map(array).collect(),
            nodes: (0..nodes).map(lists).collect(),
            stable: false,
        })
    }
}

/// The name in these bytes.
fn name(bytes: &[u8]) -> String {
    let letters = bytes.iter().take_while(|byte| **byte != 0);
    letters.map(|&byte| if byte.is_ascii_graphic() { byte.into() } else { '?' }).collect()
}

/// The slab caches of a guest.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SlabCaches {
    /// Newest first, as Linux keeps them.
    pub caches: Vec<SlabCache>,
    /// What is wrong with descriptors that are not among them.
    pub damaged: Vec<Corrupt>,
}

impl SlabCaches {
    /// The newest cache of that name.
    pub fn named(&self, name: &str) -> Option<&SlabCache> {
        self.caches.iter().find(|cache| cache.name == name)
    }

    /// The first damage, if there is any.
    ///
    /// # Errors
    /// With that.
    pub fn check(&self) -> Result<(), StateError> {
        self.damaged.first().map_or(Ok(()), |damage| Err((*damage).into()))
    }
}

impl StateView {
    /// Reads the descriptors of all slab caches.
    ///
    /// # Errors
    /// When the host cannot read the guest's memory. A damaged descriptor is told in the result.
    pub fn slab_caches(&self) -> Result<SlabCaches, StateError> {
        let mut found = SlabCaches::default();
        let region = self.region();
        for (number, word) in (0u16..).zip(region.slab_caches()) {
            match self.slab_cache_at(number, word) {
                Ok(cache) => found.caches.extend(cache),
                Err(StateError::Corrupt(damage)) => found.damaged.push(damage),
                Err(error) => return Err(error),
            }
        }
        found.caches.sort_by_key(|cache| std::cmp::Reverse(cache.serial));
        Ok(found)
    }

    /// The slab cache with that number, if there is one.
    ///
    /// # Errors
    /// [`Corrupt`] when its descriptor is damaged.
    pub fn slab_cache(&self, number: u16) -> Result<Option<SlabCache>, StateError> {
        match self.region().slab_caches().get(usize::from(number)) {
            Some(word) => self.slab_cache_at(number, word),
            None => Ok(None),
        }
    }

    /// The cache whose descriptor `word` of the table has the address of. A running guest may be making it, destroying
    /// it, or changing it, so that it is read again.
    fn slab_cache_at(&self, number: u16, word: &AtomicU64) -> Result<Option<SlabCache>, StateError> {
        let mut tries = 1;
        loop {
            let address = word.load(Acquire);
            if address == 0 {
                return Ok(None);
            }
            let result = self.read_slab_cache(number, address);
            let good = word.load(Acquire) == address && result.as_ref().is_ok_and(|cache| cache.stable);
            if good || tries >= TRIES || !self.is_running() {
                return result.map(Some);
            }
            tries += 1;
            std::thread::yield_now();
        }
    }

    fn read_slab_cache(&self, number: u16, address: u64) -> Result<SlabCache, StateError> {
        let region = self.region();
        let (cpus, nodes) = (region.nr_cpus(), region.nr_nodes());
        let mut bytes = vec![0; slab::cache_size(cpus, nodes)];
        let unmapped = Corrupt { what: "address of a slab cache", at: number.into(), found: address };
        if !address.is_multiple_of(align_of::<KmemCache>() as u64) || !self.read_virtual(address, &mut bytes)? {
            return Err(unmapped.into());
        }
        let mut cache = SlabCache::of(number, address, &bytes, cpus, nodes)?;
        // What of a node has the same even number once more is of one moment.
        let before: Vec<u32> = cache.nodes.iter().map(|node| node.seq).collect();
        if !self.read_virtual(address, &mut bytes)? {
            return Err(unmapped.into());
        }
        let after = |node: usize| Record(&bytes).u32(slab::node_offset(cpus, node) + offset_of!(KmemCacheNode, seq));
        cache.stable = before.iter().enumerate().all(|(node, seq)| seq & 1 == 0 && after(node) == *seq);
        Ok(cache)
    }

    /// Reads the lists of a node again.
    pub(super) fn reread_node(&self, node: &NodeSlabs) -> Result<NodeSlabs, StateError> {
        let mut bytes = [0; size_of::<KmemCacheNode>()];
        if !self.read_virtual(node.address, &mut bytes)? {
            return Err(
                Corrupt { what: "address of a slab cache's node", at: node.node as u64, found: node.address }.into()
            );
        }
        Ok(NodeSlabs::of(node.node, node.address, Record(&bytes)))
    }
}
