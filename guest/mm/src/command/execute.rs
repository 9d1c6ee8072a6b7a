//! The operations.
//!
//! Their functions are what call traces and events name as callers of the memory stack (see the kernel's linker
//! script), as far as keeping them apart costs the others nothing; the rest goes by the name of `execute`.

mod contig;

use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::command::workload::{Params, Report};
use pagevisor_shared::command::{Fault, Faulty, MAX_HANDLE, Op, OpError, OpResult, Placement, RawOp, Setting};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::region::event::EventKind;
use pagevisor_shared::units::{Order, Pfn};
use pagevisor_shared::zone::MAX_NR_ZONES;

use super::content::Content;
use super::handles::Held;
use super::place::{Placer, may_try};
use super::{Batch, Services, partly};
use crate::instrument::{FailNth, FaultAttr};
use crate::page_alloc::PageVec;
use crate::platform::Platform;
use crate::sync::Plain;
use crate::workload;

/// Most blocks of an operation.
const MAX_COUNT: u32 = 8192;

pub(super) type Outcome = Result<OpResult, OpError>;

pub(super) fn done(value: u64) -> Outcome {
    Ok(OpResult::ok(value))
}

impl<P: Platform, S: Services> Batch<'_, '_, P, S> {
    /// Executes an operation.
    ///
    /// What messages are full of is done at once; everything else is looked at by [`Self::long`], which may grow without
    /// these being slower for it.
    #[inline(always)]
    pub(super) fn one(&mut self, raw: &[u8; RawOp::BYTES]) -> OpResult {
        match Op::decode_short(&RawOp::from_bytes(raw)) {
            Some(Op::Nop) => OpResult::ok(0),
            Some(Op::AllocPages { gfp, order, placement: Placement::Local, handle, .. }) => {
                self.alloc(gfp, order, Placement::Local, handle).unwrap_or_else(OpResult::err)
            }
            Some(Op::FreePages { handle, .. }) if self.free_block(handle) => OpResult::ok(1),
            _ => self.long(raw),
        }
    }

    /// As [`Self::one`], for an operation of any kind.
    #[inline(never)]
    fn long(&mut self, raw: &[u8; RawOp::BYTES]) -> OpResult {
        Op::decode(&RawOp::from_bytes(raw)).and_then(|op| self.any(op)).unwrap_or_else(OpResult::err)
    }

    fn any(&mut self, op: Op) -> Outcome {
        match op {
            Op::Nop => done(0),
            Op::AllocPages { gfp, order, placement, handle, count: 1 } => self.alloc(gfp, order, placement, handle),
            Op::AllocPages { gfp, order, placement, handle, count } => {
                self.alloc_many(gfp, order, placement, handle..handle.saturating_add(count))
            }
            Op::FreePages { handle, count: 1 } => {
                let freed = self.free(handle, |pfn, order| self.mm.free_pages(pfn, order));
                freed.map_or_else(Ok, |()| done(1))
            }
            Op::FreePages { handle, count } => self.free_many(handle, count),
            Op::SplitPage { handle, into } => self.split(handle, into),
            Op::ReadPage { handle, offset, len } => self.read(handle, offset, len),
            Op::WritePage { handle, offset, len, payload } => self.write(handle, offset, len, payload),
            Op::FillPattern { handle, count, seed } => {
                self.each(handle, count, |batch, number, handle| batch.pattern(handle, seed, number, false))
            }
            Op::CheckPattern { handle, count, seed } => {
                self.each(handle, count, |batch, number, handle| batch.pattern(handle, seed, number, true))
            }
            Op::DrainPages { all: true } => {
                self.mm.drain_all_pages(None);
                done(0)
            }
            Op::DrainPages { all: false } => {
                self.mm.drain_local_pages();
                done(0)
            }
            Op::Set { setting, index, value } => self.set(setting, index, value),
            Op::FailPageAlloc(fault) => self.fail(Faulty::Pages, &fault),
            Op::Failslab(fault) => self.fail(Faulty::Objects, &fault),
            Op::FailNth { of, nth, this_cpu } => self.fail_nth(of, nth, this_cpu),
            Op::Isolate { action, start, end, migratetype } => self.isolate(action, &(start..end), migratetype),
            Op::AllocContigRange { start, end, migratetype, gfp: _, handle } => {
                self.alloc_range(start..end, migratetype, handle)
            }
            Op::ReserveCma { pages, node } => self.reserve_cma(pages, node),
            Op::CmaAlloc { area, pages, align, handle } => self.cma_alloc(area, pages, align, handle),
            Op::Run { payload, len } => self.run_workload(payload, len),
            Op::ReleaseWorkload => done(self.state.left.release(self.mm, self.services)),
            Op::SetEvents { mask } => self.set_events(mask),
            Op::Barrier => {
                self.services.barrier();
                done(0)
            }
            Op::Shutdown { code } => {
                self.services.shutdown(code);
                done(0)
            }
            Op::Object(object) => self.object(object),
        }
    }

    #[inline(always)]
    fn alloc(&self, gfp: Gfp, order: Order, placement: Placement, handle: u32) -> Outcome {
        may_try(self.mm, gfp, order, placement)?;
        let mut placer = self.placer(placement, 1)?;
        let slot = self.state.handles.reserve(self.mm, handle)?;
        let Some(pfn) = placer.alloc(self.mm, gfp, order).0 else {
            slot.clear();
            return Err(OpError::NoMemory);
        };
        slot.put(Held::Block(pfn, order));
        done(pfn.raw())
    }

    #[inline(never)]
    fn alloc_many(&mut self, gfp: Gfp, order: Order, placement: Placement, handles: Range<u32>) -> Outcome {
        let count = handles.end - handles.start;
        if count == 0 || count > MAX_COUNT || handles.end > MAX_HANDLE {
            return Err(OpError::Invalid);
        }
        let mut placer = self.placer(placement, u64::from(count))?;
        let room = (count as usize).div_ceil(2);
        let (aux, frames) = self.reply.room(room)?;
        let (mut got, mut error) = (0, None);
        for handle in handles {
            self.services.safe_point();
            let slot =
                may_try(self.mm, gfp, order, placement).and_then(|()| self.state.handles.reserve(self.mm, handle));
            let slot = match slot {
                Ok(slot) => slot,
                Err(reason) => {
                    error = Some(reason);
                    break;
                }
            };
            let Some(pfn) = placer.alloc(self.mm, gfp, order).0 else {
                slot.clear();
                error = Some(OpError::NoMemory);
                break;
            };
            slot.put(Held::Block(pfn, order));
            let word = &frames[got / 2];
            word.set(if got % 2 == 0 { pfn.raw() } else { word.get() | pfn.raw() << 32 });
            got += 1;
        }
        self.reply.shrink(room - got.div_ceil(2));
        Ok(OpResult { error, aux, value: got as u64 })
    }

    /// The policy at work for the next `count` allocations.
    fn placer(&self, placement: Placement, count: u64) -> Result<Placer, OpError> {
        let turn = match placement {
            Placement::Interleave(_) => self.state.turn.fetch_add(count, Relaxed),
            _ => 0,
        };
        Placer::new(self.mm, placement, turn)
    }

    /// Does `work` with each of `count` handles, until one fails; the value counts those that did not, unless `work`
    /// says otherwise.
    pub(super) fn each(
        &mut self,
        first: u32,
        count: u32,
        mut work: impl FnMut(&mut Self, u32, u32) -> Result<(), OpResult>,
    ) -> Outcome {
        if count > MAX_HANDLE || first > MAX_HANDLE - count {
            return Err(OpError::BadHandle);
        }
        for number in 0..count {
            self.services.safe_point();
            if let Err(result) = work(self, number, first + number) {
                let value = if result.error == Some(OpError::Mismatch) { result.value } else { number.into() };
                return Ok(OpResult { value, ..result });
            }
        }
        done(count.into())
    }

    /// Frees a block of pages; false, and nothing done, if the handle stands for anything else or is in use.
    #[inline(always)]
    fn free_block(&self, handle: u32) -> bool {
        let Some((slot, pfn, order)) = self.state.handles.take_block(self.mm, handle) else { return false };
        self.mm.free_pages(pfn, order);
        slot.clear();
        true
    }

    /// Frees what handles stand for, single pages several at a time.
    #[inline(never)]
    fn free_many(&mut self, first: u32, count: u32) -> Outcome {
        let mut pages = PageVec::new();
        let outcome = self
            .each(first, count, |batch, _, handle| batch.free(handle, |pfn, order| pages.add(batch.mm, pfn, order)));
        pages.release(self.mm);
        outcome
    }

    /// Frees what a handle stands for; a block by `free_block`.
    fn free(&self, handle: u32, free_block: impl FnOnce(Pfn, Order)) -> Result<(), OpResult> {
        let (slot, held) = self.state.handles.take(self.mm, handle).map_err(OpResult::err)?;
        match held {
            Held::Block(pfn, order) => free_block(pfn, order),
            Held::Range(first, count) => self.mm.free_contig_range(&(first..first.add(count))),
            Held::Cma(area, first, count) => {
                let released =
                    self.mm.cma_area_numbered(area.into()).is_some_and(|area| self.mm.cma_release(area, first, count));
                if !released {
                    slot.put(held);
                    return Err(OpResult::err(OpError::Busy));
                }
            }
            object => return self.free_object(slot, object).map_err(OpResult::err),
        }
        slot.clear();
        Ok(())
    }

    #[inline(never)]
    fn split(&self, handle: u32, into: u32) -> Outcome {
        let handles = &self.state.handles;
        let (slot, held) = handles.take(self.mm, handle)?;
        let Held::Block(pfn, order) = held else {
            slot.put(held);
            return Err(OpError::WrongKind);
        };
        let pages = 1u32 << order.raw();
        let compound = self.mm.page(pfn).is_none_or(|page| page.test_flag(PageFlag::Head));
        let error = if compound {
            Some(OpError::WrongKind)
        } else if into >= MAX_HANDLE || pages > MAX_HANDLE - into {
            Some(OpError::BadHandle)
        } else {
            // All or none: the handles stay locked until each is known to be free. The first may be the block's own.
            let first = u32::from(into == handle);
            (first..pages).find_map(|page| match handles.reserve(self.mm, into + page) {
                Ok(_locked) => None,
                Err(error) => {
                    (first..page).for_each(|page| handles.unlock(self.mm, into + page, None));
                    Some(error)
                }
            })
        };
        if let Some(error) = error {
            slot.put(held);
            return Err(error);
        }
        self.mm.split_page(pfn, order);
        let single = |page: u32| Held::Block(pfn.add(page.into()), Order::ZERO);
        let own = u32::from(into == handle);
        (own..pages).for_each(|page| handles.unlock(self.mm, into + page, Some(single(page))));
        if own == 1 {
            slot.put(single(0));
        } else {
            slot.clear();
        }
        done(pages.into())
    }

    #[inline(never)]
    fn read(&mut self, handle: u32, offset: u64, len: u32) -> Outcome {
        let words = (len as usize).div_ceil(8);
        let (aux, room) = self.reply.room(words)?;
        let result = self.state.handles.take(self.mm, handle).and_then(|(slot, held)| {
            let content = Content::new(self.mm, &slot, held);
            let result = content.and_then(|content| content.read(self.mm, offset, len as usize, room));
            slot.put(held);
            result
        });
        match result {
            Ok(()) => Ok(OpResult { aux, ..OpResult::ok(len.into()) }),
            Err(error) => {
                self.reply.shrink(words);
                Err(error)
            }
        }
    }

    #[inline(never)]
    fn write(&self, handle: u32, offset: u64, len: u32, payload: u32) -> Outcome {
        let from = self.bytes(payload, len)?;
        let (slot, held) = self.state.handles.take(self.mm, handle)?;
        let result = Content::new(self.mm, &slot, held).and_then(|content| content.write(self.mm, offset, from));
        slot.put(held);
        result.and_then(|()| done(len.into()))
    }

    /// Fills a block with its pattern, or checks it.
    fn pattern(&self, handle: u32, seed: u64, number: u32, check: bool) -> Result<(), OpResult> {
        let (slot, held) = self.state.handles.take(self.mm, handle).map_err(OpResult::err)?;
        let mismatch = Content::new(self.mm, &slot, held).map(|content| {
            if check {
                content.mismatch(self.mm, seed, number)
            } else {
                content.fill(self.mm, seed, number);
                None
            }
        });
        slot.put(held);
        mismatch.map_err(OpResult::err)?.map_or(Ok(()), |offset| Err(partly(OpError::Mismatch, offset, number)))
    }

    #[inline(never)]
    fn set(&self, setting: Setting, index: u8, value: u64) -> Outcome {
        let mm = self.mm;
        let number = || u32::try_from(value).map_err(|_| OpError::Invalid);
        let result = match setting {
            Setting::MinFreeKbytes => mm.set_min_free_kbytes(number()?),
            Setting::WatermarkScaleFactor => mm.set_watermark_scale_factor(number()?),
            Setting::WatermarkBoostFactor => mm.set_watermark_boost_factor(number()?),
            Setting::PercpuPagelistHighFraction => mm.set_percpu_pagelist_high_fraction(number()?),
            Setting::ZoneReclaimMode => mm.set_zone_reclaim_mode(number()?),
            Setting::DropCaches => mm.set_drop_caches(number()?),
            Setting::OvercommitMemory => mm.set_overcommit_memory(number()?),
            Setting::OvercommitRatio => mm.set_overcommit_ratio(number()?),
            Setting::OvercommitKbytes => {
                mm.set_overcommit_kbytes(value);
                Ok(())
            }
            Setting::MaxMapCount => mm.set_max_map_count(number()?),
            Setting::MmapMinAddr => {
                mm.set_mmap_min_addr(value);
                Ok(())
            }
            Setting::LowmemReserveRatio => {
                let mut ratios = [0; MAX_NR_ZONES];
                for (ratio, now) in ratios.iter_mut().zip(&mm.region.sysctl().lowmem_reserve_ratio) {
                    *ratio = now.get();
                }
                *ratios.get_mut(usize::from(index)).ok_or(OpError::Invalid)? = number()?;
                mm.set_lowmem_reserve_ratio(ratios)
            }
        };
        result.map_err(|_| OpError::Invalid).and_then(|()| done(0))
    }

    fn fail_nth(&self, of: Faulty, nth: u64, this_cpu: bool) -> Outcome {
        let cpu = this_cpu.then_some(self.mm.platform.this_cpu().cpu);
        let fail = FailNth { cpu, ..FailNth::of_machine(nth) };
        let set = match of {
            Faulty::Pages => self.mm.set_fail_nth(fail),
            Faulty::Objects => self.mm.set_failslab_nth(fail),
        };
        set.map_err(|_| OpError::Invalid).and_then(|()| done(0))
    }

    fn fail(&self, of: Faulty, fault: &Fault) -> Outcome {
        let attr = FaultAttr {
            probability: fault.probability,
            interval: fault.interval,
            times: fault.times,
            space: i32::try_from(fault.space).map_err(|_| OpError::Invalid)?,
            min_order: fault.min_order.into(),
            ignore_gfp_reclaim: fault.ignore_gfp_wait,
            ignore_gfp_highmem: fault.ignore_gfp_highmem,
            cache_filter: fault.cache_filter,
            gfp: fault.gfp,
            seed: fault.seed,
        };
        let set = match of {
            Faulty::Pages => self.mm.set_fail_page_alloc(attr),
            Faulty::Objects => self.mm.set_failslab(attr),
        };
        set.map_err(|_| OpError::Invalid).and_then(|()| done(0))
    }

    fn set_events(&self, mask: u64) -> Outcome {
        if EventKind::ALL.iter().fold(mask, |left, kind| left & !kind.bit()) != 0 {
            return Err(OpError::Invalid);
        }
        done(self.mm.set_events(mask))
    }

    #[inline(never)]
    fn run_workload(&mut self, payload: u32, len: u32) -> Outcome {
        let bytes = self.bytes(payload, len)?;
        let (head, records) = bytes.split_at_checked(8 * Params::WORDS).ok_or(OpError::Invalid)?;
        let mut words = [0; Params::WORDS];
        for (word, part) in words.iter_mut().zip(head.as_chunks().0) {
            *word = u64::from_le_bytes(*part);
        }
        let params = Params::decode(&words)?;
        let size = Report::words(self.mm.nodes.len());
        let (aux, report) = self.reply.room(size)?;
        let result = match workload::run(self.mm, &self.state.left, self.services, &params, records, report) {
            Ok(None) => return Ok(OpResult { aux, ..OpResult::ok(size as u64) }),
            Ok(Some(bad)) => Ok(partly(OpError::BadRecord, bad.number, bad.error as u32)),
            Err(error) => Err(error),
        };
        self.reply.shrink(size);
        result
    }
}
