//! Objects in a guest: what `kmalloc`, slab caches, `vmalloc` and per-CPU memory give. Dropping them frees them.

use pagevisor_shared::command::{Mapping, ObjectOp, Objects as Wanted, Op, Text};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::layout::{PAGE_OFFSET, VMALLOC_START};
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::{NodeId, PAGE_SHIFT, VirtAddr};

use super::cpu::CpuHandle;
use super::error::{Error, ErrorKind};
use super::estate::Claim;
use super::pages::{Held, contents};
use super::session::Guest;

/// One object.
#[derive(Debug)]
#[must_use = "dropping it frees it"]
pub struct Object<'g> {
    held: Held<'g>,
    addr: VirtAddr,
}

impl Object<'_> {
    /// Its address in the guest; of per-CPU memory the pointer from which each CPU's is told.
    pub fn addr(&self) -> VirtAddr {
        self.addr
    }

    contents!();

    /// The node it is on, if it lies in the direct map.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`] for what lies elsewhere; when the guest's tables say nothing sensible about it.
    pub fn node(&self) -> Result<NodeId, Error> {
        let guest = self.held.cpu().guest();
        let phys = self.addr.raw().checked_sub(PAGE_OFFSET).filter(|_| self.addr.raw() < VMALLOC_START);
        let phys =
            phys.ok_or_else(|| guest.error(ErrorKind::Argument("only what is in the direct map has one node")))?;
        guest.zone_of(phys >> PAGE_SHIFT).map(|(node, _)| node)
    }
}

/// A slab cache of the host's making. Dropping it destroys it, unless objects of it are still in use.
#[derive(Debug)]
#[must_use = "dropping it destroys it"]
pub struct SlabCache<'g> {
    held: Held<'g>,
    addr: VirtAddr,
}

impl SlabCache<'_> {
    /// The address of its descriptor.
    pub fn addr(&self) -> VirtAddr {
        self.addr
    }

    /// What the guest knows it by.
    pub fn handle(&self) -> u32 {
        self.held.handle()
    }

    /// Gives back what it does not need (`kmem_cache_shrink`); tells whether it still has slabs.
    ///
    /// # Errors
    /// As every command.
    pub fn shrink(&self) -> Result<bool, Error> {
        let op = Op::Object(ObjectOp::CacheShrink { handle: self.handle() });
        self.held.cpu().execute(op).map(|done| done.value != 0)
    }

    /// Destroys it (`kmem_cache_destroy`). If that fails it is as it was.
    ///
    /// # Errors
    /// [`pagevisor_shared::command::OpError::Busy`] with objects in use, and as every command.
    pub fn destroy(&mut self) -> Result<(), Error> {
        let cpu = *self.held.cpu();
        self.held.try_release(&cpu)
    }
}

/// A shrinker in the guest, with objects that it frees when memory is short or caches are dropped. Dropping it
/// unregisters it, and frees what it has left.
#[derive(Debug)]
#[must_use = "dropping it unregisters it"]
pub struct Shrinker<'g> {
    held: Held<'g>,
}

impl Shrinker<'_> {
    /// `unregister_shrinker`: frees the objects that are left, and tells how many there were.
    ///
    /// # Errors
    /// As every command.
    pub fn unregister(self) -> Result<u64, Error> {
        let handle = self.held.handle();
        let op = Op::Object(ObjectOp::UnregisterShrinker { handle });
        let left = self.held.cpu().execute_claiming(op, &[], &[Claim::taken(handle, 1)])?.value;
        self.held.forget();
        Ok(left)
    }
}

impl<'g> CpuHandle<'g> {
    /// `register_shrinker`: allocates `objects` of `cache`, which the guest frees, the youngest first, as shrinkers are
    /// asked to. `seeks` is what one costs to make anew (2 for most; the less, the more are freed), `batch` how many it
    /// looks at in a call (0 for 128).
    ///
    /// # Errors
    /// [`pagevisor_shared::command::OpError::Invalid`] for objects of less than 8 bytes, and as [`Self::kmalloc`].
    pub fn register_shrinker(
        &self,
        cache: &SlabCache<'_>,
        objects: u32,
        seeks: u32,
        batch: u32,
    ) -> Result<Shrinker<'g>, Error> {
        let handle = self.guest().take_handles(1)?;
        let op = ObjectOp::RegisterShrinker { handle, cache: cache.handle(), objects, seeks, batch };
        match self.execute_claiming(Op::Object(op), &[], &[Claim::given(handle, 1)]) {
            Ok(_) => Ok(Shrinker { held: Held::new(*self, handle, 1) }),
            Err(error) => Err(self.not_taken(handle, 1, error)),
        }
    }

    /// Has one object allocated by the operation that `op` makes.
    fn object(&self, gfp: Gfp, node: Option<NodeId>, op: impl Fn(Wanted) -> ObjectOp) -> Result<Object<'g>, Error> {
        let handle = self.guest().take_handles(1)?;
        let op = Op::Object(op(Wanted { gfp, node, handle, count: 1 }));
        match self.execute_claiming(op, &[], &[Claim::given(handle, 1)]) {
            Ok(done) => Ok(Object { held: Held::new(*self, handle, 1), addr: VirtAddr::new(done.value) }),
            Err(error) => Err(self.not_taken(handle, 1, error)),
        }
    }

    /// `kmalloc`.
    ///
    /// # Errors
    /// [`pagevisor_shared::command::OpError::NoMemory`], and as [`Self::execute`].
    pub fn kmalloc(&self, size: u64, gfp: Gfp) -> Result<Object<'g>, Error> {
        self.object(gfp, None, |objects| ObjectOp::Kmalloc { size, objects })
    }

    /// `kmalloc_node`.
    ///
    /// # Errors
    /// As [`Self::kmalloc`].
    pub fn kmalloc_node(&self, size: u64, gfp: Gfp, node: NodeId) -> Result<Object<'g>, Error> {
        self.object(gfp, Some(node), |objects| ObjectOp::Kmalloc { size, objects })
    }

    /// `vmalloc`.
    ///
    /// # Errors
    /// As [`Self::kmalloc`].
    pub fn vmalloc(&self, size: u64, gfp: Gfp) -> Result<Object<'g>, Error> {
        self.vmalloc_mapped(size, gfp, Mapping::default())
    }

    /// `vmalloc` with a say in how it is mapped.
    ///
    /// # Errors
    /// As [`Self::kmalloc`].
    pub fn vmalloc_mapped(&self, size: u64, gfp: Gfp, mapping: Mapping) -> Result<Object<'g>, Error> {
        self.object(gfp, None, |objects| ObjectOp::Vmalloc { size, mapping, objects })
    }

    /// `vmalloc_node`.
    ///
    /// # Errors
    /// As [`Self::kmalloc`].
    pub fn vmalloc_node(&self, size: u64, gfp: Gfp, node: NodeId) -> Result<Object<'g>, Error> {
        self.object(gfp, Some(node), |objects| ObjectOp::Vmalloc { size, mapping: Mapping::default(), objects })
    }

    /// `__alloc_percpu`. Its content is all CPUs' instances in a row.
    ///
    /// # Errors
    /// As [`Self::kmalloc`].
    pub fn alloc_percpu(&self, size: u32, align: u32) -> Result<Object<'g>, Error> {
        self.object(Gfp::KERNEL, None, |objects| ObjectOp::AllocPercpu { size, align, objects })
    }

    /// `kmem_cache_create`; `align` 0 is a word.
    ///
    /// # Errors
    /// [`pagevisor_shared::command::OpError::Invalid`] for what Linux would refuse, and as [`Self::kmalloc`].
    pub fn kmem_cache_create(
        &self,
        name: &str,
        size: u32,
        align: u32,
        flags: SlabFlags,
    ) -> Result<SlabCache<'g>, Error> {
        let handle = self.guest().take_handles(1)?;
        let text = Text { payload: 0, len: name.len() as u32 };
        let op = Op::Object(ObjectOp::CacheCreate { handle, name: text, size, align, flags });
        match self.execute_claiming(op, name.as_bytes(), &[Claim::given(handle, 1)]) {
            Ok(done) => Ok(SlabCache { held: Held::new(*self, handle, 1), addr: VirtAddr::new(done.value) }),
            Err(error) => Err(self.not_taken(handle, 1, error)),
        }
    }

    /// `kmem_cache_alloc`.
    ///
    /// # Errors
    /// As [`Self::kmalloc`].
    pub fn kmem_cache_alloc(&self, cache: &SlabCache<'_>, gfp: Gfp) -> Result<Object<'g>, Error> {
        self.object(gfp, None, |objects| ObjectOp::CacheAlloc { cache: cache.handle(), objects })
    }

    /// `kmem_cache_alloc_node`.
    ///
    /// # Errors
    /// As [`Self::kmalloc`].
    pub fn kmem_cache_alloc_node(&self, cache: &SlabCache<'_>, gfp: Gfp, node: NodeId) -> Result<Object<'g>, Error> {
        self.object(gfp, Some(node), |objects| ObjectOp::CacheAlloc { cache: cache.handle(), objects })
    }
}

impl Guest {
    /// Writes a line to slabinfo: `name limit batchcount shared`.
    ///
    /// # Errors
    /// [`pagevisor_shared::command::OpError::Invalid`] for what Linux would refuse, and as every command.
    pub fn set_slabinfo(&self, line: &str) -> Result<(), Error> {
        let text = Text { payload: 0, len: line.len() as u32 };
        let op = Op::Object(ObjectOp::SetSlabinfo { line: text });
        self.any_cpu().execute_with(op, line.as_bytes()).map(drop)
    }

    /// Says whether allocations from a cache fail under a [`super::Fault`] with a cache filter, as
    /// `/sys/kernel/slab/NAME/failslab`.
    ///
    /// # Errors
    /// [`pagevisor_shared::command::OpError::Invalid`] if there is no such cache, and as every command.
    pub fn failslab_cache(&self, name: &str, on: bool) -> Result<(), Error> {
        let text = Text { payload: 0, len: name.len() as u32 };
        let op = Op::Object(ObjectOp::SetFailslab { name: text, on });
        self.any_cpu().execute_with(op, name.as_bytes()).map(drop)
    }

    /// Has all slab caches give back what they do not need, and purges what waits for that of `vmalloc`.
    ///
    /// # Errors
    /// As every command.
    pub fn shrink_caches(&self) -> Result<(), Error> {
        self.any_cpu().execute(Op::Object(ObjectOp::CacheShrink { handle: 0 })).map(drop)
    }
}
