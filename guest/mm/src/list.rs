//! Lists of pages, linked by frame number through the page metadata.
//!
//! A list is a [`ListHead`] (first and last frame) and, in each page, a link forward and one backward. Links are
//! numbers, so this is safe code, and another address space can follow them. Zone lists keep both ends' outer links
//! at 0; pageset lists leave the backward link of their first page and the end of an empty list alone, which saves a
//! cache line and two instructions per allocation.

use pagevisor_shared::page::{Page, decode_next, decode_prev, encode_next, encode_prev};
use pagevisor_shared::region::zone::ListHead;

use crate::raw::Memmap;
use crate::sync::Plain;

/// The frame behind `pfn`, 0 at the end.
#[inline(always)]
pub fn next(pfn: u32, page: &Page) -> u32 {
    decode_next(pfn, page.next.get())
}

/// The frame before `pfn`, 0 at the start. Not for the first page of a pageset list.
#[inline(always)]
pub fn prev(pfn: u32, page: &Page) -> u32 {
    decode_prev(pfn, page.prev.get())
}

/// Marks the branch it is called in as unlikely.
#[cold]
#[inline(always)]
fn cold() {}

/// Puts frame `pfn` in front (`list_add`).
#[inline(always)]
pub fn push_head(memmap: Memmap, list: &ListHead, pfn: u32, page: &Page) {
    page.prev.set(encode_prev(pfn, 0));
    pcp_push_head(memmap, list, pfn, page);
}

/// As [`push_head`], on a pageset list.
#[inline(always)]
pub fn pcp_push_head(memmap: Memmap, list: &ListHead, pfn: u32, page: &Page) {
    pcp_link_head(memmap, list, list.first.get(), pfn, page);
    list.first.set(pfn);
}

/// As [`pcp_push_head`], for a caller that holds the list's `first` meanwhile and writes it when it is done.
#[inline(always)]
pub fn pcp_link_head(memmap: Memmap, list: &ListHead, first: u32, pfn: u32, page: &Page) {
    // The same word links both ways.
    let link = encode_next(pfn, first);
    page.next.set(link);
    if first == 0 {
        cold();
        list.last.set(pfn);
    } else {
        memmap.page(first).prev.set(link);
    }
}

/// Puts the chain from `first` to `last`, linked inside, at the end (`list_splice_tail`).
#[inline]
pub fn push_tail_chain(memmap: Memmap, list: &ListHead, first: u32, last: u32) {
    let old = list.last.get();
    memmap.page(first).prev.set(encode_prev(first, old));
    if old == 0 {
        list.first.set(first);
    } else {
        memmap.page(old).next.set(encode_next(old, first));
    }
    memmap.page(last).next.set(encode_next(last, 0));
    list.last.set(last);
}

/// Puts the chain from `first` to `last`, linked inside and with 0 before its first, in front (`list_splice`).
#[inline]
pub fn push_head_chain(memmap: Memmap, list: &ListHead, first: u32, last: u32) {
    let old = list.first.get();
    // The same word links both ways.
    let link = encode_next(last, old);
    memmap.page(last).next.set(link);
    if old == 0 {
        list.last.set(last);
    } else {
        memmap.page(old).prev.set(link);
    }
    list.first.set(first);
}

/// Takes frame `first` and all behind it out of a zone list, linked as they are but with 0 before the first.
#[inline]
pub fn cut_tail(memmap: Memmap, list: &ListHead, first: u32) {
    let page = memmap.page(first);
    let before = prev(first, page);
    list.last.set(before);
    if before == 0 {
        list.first.set(0);
    } else {
        memmap.page(before).next.set(encode_next(before, 0));
    }
    page.prev.set(encode_prev(first, 0));
}

/// Takes frame `last` and all before it out of a zone list, linked as they are.
#[inline(always)]
pub fn cut_head(memmap: Memmap, list: &ListHead, last: u32) {
    let behind = next(last, memmap.page(last));
    list.first.set(behind);
    if behind == 0 {
        list.last.set(0);
    } else {
        memmap.page(behind).prev.set(encode_prev(behind, 0));
    }
}

/// Links frame `second`, the first of a chain, to `first`, the last of another.
#[inline(always)]
pub fn join(memmap: Memmap, first: u32, second: u32) {
    // The same word links both ways.
    let link = encode_next(first, second);
    memmap.page(first).next.set(link);
    memmap.page(second).prev.set(link);
}

/// Puts frame `pfn` at the end (`list_add_tail`).
#[inline]
pub fn push_tail(memmap: Memmap, list: &ListHead, pfn: u32) {
    push_tail_chain(memmap, list, pfn, pfn);
}

/// Takes frame `pfn` out of a zone list (`list_del`).
#[inline(always)]
pub fn remove(memmap: Memmap, list: &ListHead, pfn: u32, page: &Page) {
    let (next, prev) = (next(pfn, page), prev(pfn, page));
    if prev == 0 {
        list.first.set(next);
    } else {
        memmap.page(prev).next.set(encode_next(prev, next));
    }
    if next == 0 {
        list.last.set(prev);
    } else {
        memmap.page(next).prev.set(encode_prev(next, prev));
    }
}

/// Takes the frames from `first` to `last`, neighbours in that order, out of a zone list, linked as they are but with 0
/// before the first.
#[inline(always)]
pub fn remove_chain(memmap: Memmap, list: &ListHead, first: u32, last: u32) {
    let (before, behind) = (prev(first, memmap.page(first)), next(last, memmap.page(last)));
    if before == 0 {
        list.first.set(behind);
    } else {
        memmap.page(before).next.set(encode_next(before, behind));
    }
    if behind == 0 {
        list.last.set(before);
    } else {
        memmap.page(behind).prev.set(encode_prev(behind, before));
    }
    memmap.page(first).prev.set(encode_prev(first, 0));
}

/// Takes the first frame `pfn` off a pageset list.
#[inline(always)]
pub fn pcp_pop_head(list: &ListHead, pfn: u32, page: &Page) {
    list.first.set(next(pfn, page));
}

/// Puts a chain, as [`push_tail_chain`], on a pageset list.
#[inline]
pub fn pcp_push_tail_chain(memmap: Memmap, list: &ListHead, first: u32, last: u32) {
    if list.first.get() == 0 {
        list.last.set(0);
    }
    push_tail_chain(memmap, list, first, last);
}

/// Puts the chain from `first` to `last`, linked inside, in front of a pageset list.
#[inline]
pub fn pcp_push_head_chain(memmap: Memmap, list: &ListHead, first: u32, last: u32) {
    pcp_link_head(memmap, list, list.first.get(), last, memmap.page(last));
    list.first.set(first);
}
