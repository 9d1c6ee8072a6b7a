//! The operations on objects: slab caches and what they give, `kmalloc`, `vmalloc`, per-CPU memory.

use core::str;

use pagevisor_shared::command::{
    MAX_HANDLE, MAX_OBJECTS, Mapping, ObjectOp, Objects, OpError, OpResult, Placement, Text,
};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::slab::{NAME_BYTES, SlabFlags};
use pagevisor_shared::units::{Order, PAGE_SHIFT, VirtAddr};
use pagevisor_shared::vmalloc::VmFlags;

use super::execute::{Outcome, done};
use super::handles::{Held, Slot};
use super::reserve::Price;
use super::{Batch, Services, may_try};
use crate::platform::Platform;
use crate::slab::{Cache, CacheError, KMALLOC_MAX_SIZE};
use crate::sync::{self, Plain};
use crate::vmalloc::VmallocRequest;

impl From<CacheError> for OpError {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Invalid | CacheError::TooBig => Self::Invalid,
            CacheError::Memory => Self::NoMemory,
        }
    }
}

impl<P: Platform, S: Services> Batch<'_, '_, P, S> {
    /// Executes an operation on objects.
    #[inline(never)]
    pub(super) fn object(&mut self, op: ObjectOp) -> Outcome {
        match op {
            ObjectOp::CacheCreate { handle, name, size, align, flags } => {
                self.create_cache(handle, name, size, align, flags)
            }
            ObjectOp::CacheDestroy { handle } => self.free_those(handle, 1, |_, held| matches!(held, Held::Cache(_))),
            ObjectOp::CacheAlloc { cache, objects } => self.alloc_from_cache(cache, &objects),
            ObjectOp::CacheFree { cache, handle, count } => self.free_to_cache(cache, handle, count),
            ObjectOp::CacheShrink { handle } => self.shrink(handle),
            ObjectOp::Kmalloc { size, objects } => self.kmalloc(size, &objects),
            ObjectOp::Kfree { handle, count } => {
                self.free_those(handle, count, |_, held| matches!(held, Held::Kmalloc(_) | Held::Object(_)))
            }
            ObjectOp::Vmalloc { size, mapping, objects } => self.vmalloc(size, mapping, &objects),
            ObjectOp::Vfree { handle, count } => {
                self.free_those(handle, count, |_, held| matches!(held, Held::Vmalloc(..)))
            }
            ObjectOp::AllocPercpu { size, align, objects } => self.alloc_percpu(size, align, &objects),
            ObjectOp::FreePercpu { handle, count } => {
                self.free_those(handle, count, |_, held| matches!(held, Held::Percpu(..)))
            }
            ObjectOp::RegisterShrinker { handle, cache, objects, seeks, batch } => {
                self.register(handle, cache, objects, Price { seeks, batch })
            }
            ObjectOp::UnregisterShrinker { handle } => self.unregister(handle),
            ObjectOp::SetSlabinfo { line } => self.set_slabinfo(line),
            ObjectOp::SetFailslab { name, on } => self.set_failslab_cache(name, on),
        }
    }

    /// Allocates objects by `alloc`, for as many handles as are asked for or memory lasts.
    fn alloc_objects(
        &mut self,
        objects: &Objects,
        mut alloc: impl FnMut(&Self) -> Option<(VirtAddr, Held)>,
    ) -> Outcome {
        let Objects { gfp, node, handle, count } = *objects;
        if count == 0 || count > MAX_OBJECTS || handle > MAX_HANDLE - count {
            return Err(OpError::Invalid);
        }
        if node.is_some_and(|node| !self.mm.online_nodes.contains(node)) {
            return Err(OpError::Invalid);
        }
        let room = if count == 1 { 0 } else { count as usize };
        let (aux, addresses) = self.reply.room(room)?;
        let (mut got, mut last, mut error) = (0, VirtAddr::new(0), None);
        for handle in handle..handle + count {
            self.services.safe_point();
            let slot = may_try(self.mm, gfp, Order::ZERO, Placement::Local)
                .and_then(|()| self.state.handles.reserve(self.mm, handle));
            let slot = match slot {
                Ok(slot) => slot,
                Err(reason) => {
                    error = Some(reason);
                    break;
                }
            };
            let Some((addr, held)) = alloc(self) else {
                slot.clear();
                error = Some(OpError::NoMemory);
                break;
            };
            slot.put(held);
            if let Some(word) = addresses.get(got) {
                word.set(addr.raw());
            }
            last = addr;
            got += 1;
        }
        if count == 1 {
            return error.map_or_else(|| done(last.raw()), Err);
        }
        self.reply.shrink(room - got);
        Ok(OpResult { error, aux, value: got as u64 })
    }

    fn kmalloc(&mut self, size: u64, objects: &Objects) -> Outcome {
        let size = usize::try_from(size).ok().filter(|size| *size <= KMALLOC_MAX_SIZE).ok_or(OpError::Invalid)?;
        if objects.gfp.contains(Gfp::NOFAIL) && Order::for_bytes(size as u64).is_none_or(|order| order.raw() > 1) {
            return Err(OpError::Invalid);
        }
        self.alloc_objects(objects, |batch| {
            let addr = batch.mm.kmalloc_node(size, objects.gfp, objects.node)?;
            Some((addr, Held::Kmalloc(addr)))
        })
    }

    fn vmalloc(&mut self, size: u64, mapping: Mapping, objects: &Objects) -> Outcome {
        let pages = u32::try_from(size.div_ceil(1 << PAGE_SHIFT)).map_err(|_| OpError::Invalid)?;
        if size == 0 || objects.gfp.contains(Gfp::NOFAIL) || mapping.user && mapping.huge {
            return Err(OpError::Invalid);
        }
        let flags = match mapping {
            Mapping { user: true, .. } => VmFlags::USERMAP,
            Mapping { huge: true, .. } => VmFlags::ALLOW_HUGE_VMAP,
            Mapping { .. } => VmFlags(0),
        };
        let request = VmallocRequest { gfp: objects.gfp, flags, node: objects.node, ..VmallocRequest::new(size) };
        self.alloc_objects(objects, |batch| {
            let addr = batch.mm.vmalloc_range(&request)?;
            Some((addr, Held::Vmalloc(addr, pages)))
        })
    }

    fn alloc_percpu(&mut self, size: u32, align: u32, objects: &Objects) -> Outcome {
        if size == 0 || !align.is_power_of_two() || objects.gfp.contains(Gfp::NOFAIL) {
            return Err(OpError::Invalid);
        }
        self.alloc_objects(objects, |batch| {
            let ptr = batch.mm.alloc_percpu_gfp(size.into(), align.into(), objects.gfp)?;
            Some((VirtAddr::new(ptr.raw()), Held::Percpu(ptr, size)))
        })
    }

    /// Does `work` with the cache of a handle, which nobody else uses meanwhile.
    pub(super) fn with_cache<R>(
        &mut self,
        handle: u32,
        work: impl FnOnce(&mut Self, Cache) -> Result<R, OpError>,
    ) -> Result<R, OpError> {
        let (slot, held) = self.state.handles.take(self.mm, handle)?;
        let result = match held {
            Held::Cache(addr) => self.mm.cache_at(addr).ok_or(OpError::BadHandle),
            _ => Err(OpError::WrongKind),
        };
        let result = result.and_then(|cache| work(self, cache));
        slot.put(held);
        result
    }

    fn alloc_from_cache(&mut self, cache: u32, objects: &Objects) -> Outcome {
        // The cache's handle is locked meanwhile: it cannot be asked for again.
        let own = objects.handle..objects.handle.saturating_add(objects.count);
        if own.contains(&cache) {
            return Err(OpError::HandleInUse);
        }
        self.with_cache(cache, |batch, cache| {
            let size = batch.mm.kmem_cache_size(cache);
            if objects.gfp.contains(Gfp::NOFAIL) && size > 1 << PAGE_SHIFT {
                return Err(OpError::Invalid);
            }
            batch.alloc_objects(objects, |batch| {
                let addr = batch.mm.kmem_cache_alloc_node(cache, objects.gfp, objects.node)?;
                Some((addr, Held::Object(addr)))
            })
        })
    }

    fn free_to_cache(&mut self, cache: u32, handle: u32, count: u32) -> Outcome {
        if (handle..handle.saturating_add(count)).contains(&cache) {
            return Err(OpError::WrongKind);
        }
        self.with_cache(cache, |batch, cache| {
            batch.free_those(
                handle,
                count,
                |batch, held| matches!(held, Held::Object(addr) if batch.mm.virt_to_cache(addr) == Some(cache)),
            )
        })
    }

    /// Frees what handles stand for if `right` says that this is the way; else it stays.
    fn free_those(&mut self, first: u32, count: u32, right: impl Fn(&Self, Held) -> bool) -> Outcome {
        self.each(first, count, |batch, _, handle| {
            let (slot, held) = batch.state.handles.take(batch.mm, handle).map_err(OpResult::err)?;
            if right(batch, held) {
                batch.free_object(slot, held).map_err(OpResult::err)
            } else {
                slot.put(held);
                Err(OpResult::err(OpError::WrongKind))
            }
        })
    }

    /// Frees an object, or destroys a cache. What cannot be freed stays.
    pub(super) fn free_object(&self, slot: Slot, held: Held) -> Result<(), OpError> {
        let mm = self.mm;
        match held {
            Held::Kmalloc(addr) => mm.kfree(addr),
            Held::Object(addr) => match mm.virt_to_cache(addr) {
                Some(cache) => mm.kmem_cache_free(cache, addr),
                None => mm.kfree(addr),
            },
            Held::Vmalloc(addr, _) => mm.vfree(addr),
            Held::Percpu(ptr, _) => mm.free_percpu(ptr),
            Held::Cache(addr) if !self.destroy_cache(addr) => {
                slot.put(held);
                return Err(OpError::Busy);
            }
            Held::Cache(_) => {}
            Held::Shrinker(addr) => drop(self.unregister_shrinker(addr)),
            Held::Block(..) | Held::Range(..) | Held::Cma(..) => {
                slot.put(held);
                return Err(OpError::WrongKind);
            }
        }
        slot.clear();
        Ok(())
    }

    /// Does what must not happen to caches at the same time on two CPUs.
    fn one_by_one<R>(&self, work: impl FnOnce() -> R) -> R {
        sync::lock(&self.state.caches, || self.services.relax());
        let result = work();
        sync::unlock(&self.state.caches);
        result
    }

    fn create_cache(&mut self, handle: u32, name: Text, size: u32, align: u32, flags: SlabFlags) -> Outcome {
        let name = self.bytes(name.payload, name.len)?;
        let named = |name: &&str| name.len() <= NAME_BYTES && name.bytes().all(|byte| byte.is_ascii_graphic());
        let name = str::from_utf8(name).ok().filter(named).ok_or(OpError::Invalid)?;
        // A constructor would be the guest's own; and the host's mistakes do not bring a guest down.
        let allowed = SlabFlags::CREATE.without(SlabFlags::PANIC);
        if !allowed.contains(flags) {
            return Err(OpError::Invalid);
        }
        let slot = self.state.handles.reserve(self.mm, handle)?;
        match self.one_by_one(|| self.mm.kmem_cache_create(name, size as usize, align as usize, flags, None)) {
            Ok(cache) => {
                let addr = cache.addr();
                slot.put(Held::Cache(addr));
                done(addr.raw())
            }
            Err(error) => {
                slot.clear();
                Err(error.into())
            }
        }
    }

    /// Destroys a cache; false if it is still in use.
    fn destroy_cache(&self, addr: VirtAddr) -> bool {
        let Some(cache) = self.mm.cache_at(addr) else { return true };
        self.one_by_one(|| {
            self.mm.kmem_cache_destroy(cache);
            // The descriptor of one that is gone has no number, and gets none as long as this has the lock.
            self.mm.kmem_cache_record(cache).id.get() == 0
        })
    }

    fn shrink(&mut self, handle: u32) -> Outcome {
        if handle == 0 {
            self.one_by_one(|| {
                self.mm.percpu_balance();
                self.mm.purge_vmap_areas();
                self.mm.kmem_cache_shrink_all();
            });
            return done(0);
        }
        let left = self.with_cache(handle, |batch, cache| Ok(batch.mm.kmem_cache_shrink(cache)))?;
        done(left.into())
    }

    /// `failslab_store`.
    fn set_failslab_cache(&mut self, name: Text, on: bool) -> Outcome {
        let name = str::from_utf8(self.bytes(name.payload, name.len)?).map_err(|_| OpError::Invalid)?;
        let told = self.one_by_one(|| {
            let cache = self.mm.kmem_cache_find(name)?;
            self.mm.kmem_cache_failslab(cache, on).then_some(())
        });
        told.ok_or(OpError::Invalid).and_then(|()| done(0))
    }

    /// `slabinfo_write`.
    fn set_slabinfo(&mut self, line: Text) -> Outcome {
        let line = str::from_utf8(self.bytes(line.payload, line.len)?).map_err(|_| OpError::Invalid)?;
        let mut words = line.split_ascii_whitespace();
        let name = words.next().ok_or(OpError::Invalid)?;
        let mut number = || words.next().and_then(|word| word.parse().ok()).ok_or(OpError::Invalid);
        let (limit, batchcount, shared) = (number()?, number()?, number()?);
        let tuned = self.one_by_one(|| {
            let cache = self.mm.kmem_cache_find(name)?;
            self.mm.kmem_cache_tune(cache, limit, batchcount, shared).then_some(())
        });
        tuned.ok_or(OpError::Invalid).and_then(|()| done(0))
    }
}
