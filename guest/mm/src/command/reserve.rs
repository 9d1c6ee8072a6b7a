//! Objects that the guest may do without: the host's shrinkers.
//!
//! They stand for what a kernel keeps because making it anew is dear, and can free when memory is short, as Linux does
//! dentries and inodes. Objects are linked by their first words, the youngest first.
#![allow(unsafe_code, reason = "handles name records")]

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_shared::command::OpError;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::VirtAddr;

use super::execute::{Outcome, done};
use super::handles::Held;
use super::{Batch, Services};
use crate::Mm;
use crate::platform::Platform;
use crate::raw::{Handle, Owned};
use crate::shrinker::{ShrinkControl, Shrinker, ShrinkerId};
use crate::slab::Cache;
use crate::sync;

/// Bytes of the link in an object.
const LINK: usize = 8;
/// Objects between two safe points.
const STRIDE: u32 = 64;

/// What a shrinker says of its objects.
#[derive(Clone, Copy, Debug)]
pub(super) struct Price {
    /// What one costs to make anew.
    pub(super) seeks: u32,
    /// How many to look at in a call; 0 for the default.
    pub(super) batch: u32,
}

/// A shrinker's record, and its objects. Those on the list are allocated and nobody else's; `lock` guards the list.
#[derive(Debug)]
pub struct Reserve {
    lock: AtomicU32,
    seeks: AtomicU32,
    batch: AtomicU32,
    /// The descriptor of the cache that the objects are of. It stays while there are objects.
    cache: AtomicU64,
    /// The youngest object; 0 for none.
    first: AtomicU64,
    count: AtomicU64,
    /// The number under which it is registered.
    id: AtomicU64,
}

impl Reserve {
    /// Adds an object of `cache`, the caller's.
    fn push<P: Platform>(&self, mm: &Mm<P>, object: VirtAddr) {
        sync::lock(&self.lock, || mm.platform.relax());
        Owned::new(object, LINK as u64).write(mm, 0, &self.first.load(Relaxed).to_le_bytes());
        self.first.store(object.raw(), Relaxed);
        self.count.fetch_add(1, Relaxed);
        sync::unlock(&self.lock);
    }

    /// Takes the youngest object off the list; it is the caller's then.
    fn pop<P: Platform>(&self, mm: &Mm<P>) -> Option<VirtAddr> {
        sync::lock(&self.lock, || mm.platform.relax());
        let first = self.first.load(Relaxed);
        if first != 0 {
            let mut next = [0; LINK];
            Owned::new(VirtAddr::new(first), LINK as u64).read(mm, 0, &mut next);
            self.first.store(u64::from_le_bytes(next), Relaxed);
            self.count.fetch_sub(1, Relaxed);
        }
        sync::unlock(&self.lock);
        (first != 0).then_some(VirtAddr::new(first))
    }

    /// Frees up to `most` objects; gives how many.
    fn free<P: Platform>(&self, mm: &Mm<P>, most: u64) -> u64 {
        let Some(cache) = mm.cache_at(VirtAddr::new(self.cache.load(Relaxed))) else { return 0 };
        let mut freed = 0;
        while freed < most
            && let Some(object) = self.pop(mm)
        {
            mm.kmem_cache_free(cache, object);
            freed += 1;
        }
        freed
    }
}

impl<P: Platform> Shrinker<P> for Reserve {
    fn count_objects(&self, _: &Mm<P>, _: &ShrinkControl) -> u64 {
        self.count.load(Relaxed)
    }

    fn scan_objects(&self, mm: &Mm<P>, control: &mut ShrinkControl) -> Option<u64> {
        Some(self.free(mm, control.nr_to_scan))
    }

    fn seeks(&self) -> u32 {
        self.seeks.load(Relaxed)
    }

    fn batch(&self) -> u64 {
        self.batch.load(Relaxed).into()
    }
}

impl<P: Platform, S: Services> Batch<'_, '_, P, S> {
    /// `register_shrinker`, of objects that it allocates.
    pub(super) fn register(&mut self, handle: u32, cache: u32, objects: u32, price: Price) -> Outcome {
        if handle == cache {
            return Err(OpError::HandleInUse);
        }
        self.with_cache(cache, |batch, cache| {
            if batch.mm.kmem_cache_size(cache) < LINK {
                return Err(OpError::Invalid);
            }
            let slot = batch.state.handles.reserve(batch.mm, handle)?;
            match batch.make_reserve(cache, objects, price) {
                Some(reserve) => {
                    slot.put(Held::Shrinker(reserve.addr()));
                    done(objects.into())
                }
                None => {
                    slot.clear();
                    Err(OpError::NoMemory)
                }
            }
        })
    }

    /// `unregister_shrinker`.
    pub(super) fn unregister(&mut self, handle: u32) -> Outcome {
        let (slot, held) = self.state.handles.take(self.mm, handle)?;
        let Held::Shrinker(addr) = held else {
            slot.put(held);
            return Err(OpError::WrongKind);
        };
        let left = self.unregister_shrinker(addr);
        slot.clear();
        done(left)
    }

    /// A registered shrinker of that many objects; `None`, and nothing allocated, if memory does not last.
    fn make_reserve(&self, cache: Cache, objects: u32, price: Price) -> Option<Handle<Reserve>> {
        let (mm, reserves) = (self.mm, &self.state.reserves);
        let reserve = reserves.alloc(mm, Gfp::KERNEL)?;
        reserve.seeks.store(price.seeks, Relaxed);
        reserve.batch.store(price.batch, Relaxed);
        reserve.cache.store(cache.addr().raw(), Relaxed);
        let enough = (0..objects).all(|number| {
            if number % STRIDE == 0 {
                self.services.safe_point();
            }
            mm.kmem_cache_alloc(cache, Gfp::KERNEL).map(|object| reserve.push(mm, object)).is_some()
        });
        let id = if enough { mm.register_shrinker("command", reserve.record()).ok() } else { None };
        if id.is_none() {
            reserve.free(mm, u64::MAX);
            reserves.free(mm, reserve);
        }
        // Release: who finds the handle finds the number.
        reserve.id.store(id?.raw(), Release);
        Some(reserve)
    }

    /// Ends the shrinker with its record at `addr`, which a handle stood for, and frees what it has left.
    pub(super) fn unregister_shrinker(&self, addr: VirtAddr) -> u64 {
        // SAFETY: handles stand for shrinkers by addresses of records only (`register`).
        let Some(reserve) = (unsafe { Handle::<Reserve>::at(addr.raw()) }) else { return 0 };
        self.mm.unregister_shrinker(ShrinkerId::from_raw(reserve.id.load(Acquire)));
        let left = reserve.free(self.mm, u64::MAX);
        self.state.reserves.free(self.mm, reserve);
        left
    }
}
