//! `/proc/slabinfo`, from the descriptors in guest memory.

use std::io::Write;

use pagevisor_shared::report::slabinfo::{self, SlabInfo};
use serde_json::{Value, json};

use super::error::ReportError;
use super::view::write_json;
use crate::state::StateView;
use crate::state::slab::{SlabCache, SlabCaches};

/// The line of a cache (`get_slabinfo`).
pub fn slab_info(cache: &SlabCache) -> SlabInfo<'_> {
    let sum = |field: fn(&crate::state::slab::NodeSlabs) -> u64| {
        cache.nodes.iter().fold(0, |sum: u64, node| sum.wrapping_add(field(node)))
    };
    let (num_slabs, num_objs) = (cache.num_slabs(), cache.num_objects());
    SlabInfo {
        name: &cache.name,
        active_objs: num_objs.wrapping_sub(sum(|node| node.free_objects)),
        num_objs,
        objsize: cache.size,
        objperslab: cache.num,
        pagesperslab: cache.slab_pages() as u32,
        limit: cache.limit,
        batchcount: cache.batchcount,
        sharedfactor: cache.shared,
        active_slabs: num_slabs.wrapping_sub(sum(|node| node.free_slabs)),
        num_slabs,
        sharedavail: sum(|node| node.shared.avail.into()),
    }
}

/// The file's text.
pub fn slabinfo_text(caches: &SlabCaches) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = slabinfo::header(&mut text);
    for cache in &caches.caches {
        let _ = slab_info(cache).line(&mut text);
    }
    text
}

fn to_json(cache: &SlabCache) -> Value {
    let info = slab_info(cache);
    json!({
        "name": info.name,
        "active_objs": info.active_objs,
        "num_objs": info.num_objs,
        "objsize": info.objsize,
        "objperslab": info.objperslab,
        "pagesperslab": info.pagesperslab,
        "limit": info.limit,
        "batchcount": info.batchcount,
        "sharedfactor": info.sharedfactor,
        "active_slabs": info.active_slabs,
        "num_slabs": info.num_slabs,
        "sharedavail": info.sharedavail,
        "object_size": cache.object_size,
        "align": cache.align,
        "grown": cache.grown,
        "reaped": cache.reaped,
        "errors": cache.errors,
        "node_allocs": cache.node_allocs,
        "node_frees": cache.node_frees,
        "node_overflow": cache.node_overflow,
        "high_mark": cache.high_mark,
    })
}

/// `show slabinfo`: the caches that are whole; damage comes after them.
pub(super) fn slabinfo(state: &StateView, as_json: bool, out: &mut dyn Write) -> Result<(), ReportError> {
    let caches = state.slab_caches()?;
    if as_json {
        write_json(&json!({ "caches": caches.caches.iter().map(to_json).collect::<Vec<_>>() }), out)?;
    } else {
        out.write_all(slabinfo_text(&caches).as_bytes()).map_err(ReportError::Write)?;
    }
    Ok(caches.check()?)
}
