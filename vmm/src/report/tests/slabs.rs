use super::*;
use crate::state::fake::slabs::{caches, direct};

#[test]
fn slabinfo_is_linux_s() {
    let guest = FakeGuest::with_slabs();
    let state = guest.view();
    let expected = "\
slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>
kmalloc-8            509    512      8  512    1 : tunables  120   60    8 : slabdata      1      1      0
scullc                 0      0   4000    1    1 : tunables  120   60    8 : slabdata      0      0      0
kmalloc-2k             3      4   2048    4    2 : tunables   24   12    8 : slabdata      1      1      0
kmalloc-64           136    256     64   64    1 : tunables  120   60    8 : slabdata      3      4      1
kmem_cache             3      4    896    4    1 : tunables   54   27    8 : slabdata      1      1      0
";
    assert_eq!(text(&state, "slabinfo"), expected);
    let value = json_of(&state, "slabinfo");
    assert_eq!(value["caches"][3]["active_objs"], 136);
    assert_eq!(value["caches"][3]["sharedavail"], 1);
    let files = crate::report::proc_tree(&state).unwrap();
    assert!(files.contains(&("proc/slabinfo".to_owned(), expected.to_owned())));
}

#[test]
fn damage_comes_after_what_is_whole() {
    let guest = FakeGuest::with_slabs();
    guest.memory.write_u32(caches()[1].gpa() + 4, 77);
    for (name, rows) in [("slabinfo", 2 + 4), ("kmem -s", 1 + 4)] {
        let mut bytes = Vec::new();
        let error = view(name).render(&guest.view(), false, &mut bytes).unwrap_err();
        assert!(error.is_corrupt() && error.to_string().contains("number of a slab cache"), "{error}");
        assert_eq!(String::from_utf8(bytes).unwrap().lines().count(), rows);
    }
    assert!(text(&guest.view(), "kmem -s scullc").contains("scullc"), "the others can still be asked for");
}

#[test]
fn kmem_s_is_crash_s() {
    let guest = FakeGuest::with_slabs();
    let state = guest.view();
    let expected = "\
CACHE             OBJSIZE  ALLOCATED     TOTAL  SLABS  SSIZE  NAME
ffff888003205000        8        509       512      1     4k  kmalloc-8
ffff888003204000     4000          0         0      0     4k  scullc
ffff888003203000     2048          3         4      1     8k  kmalloc-2k
ffff888003202000       64        130       256      4     4k  kmalloc-64
ffff888003201000      896          3         4      1     4k  kmem_cache
";
    assert_eq!(text(&state, "kmem -s"), expected);
    let one = "\
CACHE             OBJSIZE  ALLOCATED     TOTAL  SLABS  SSIZE  NAME
ffff888003203000     2048          3         4      1     8k  kmalloc-2k
";
    assert_eq!(text(&state, "kmem -s kmalloc-2k"), one);
    let error = view("kmem -s nothing").render(&state, false, &mut Vec::new()).unwrap_err();
    assert!(error.is_usage() && error.to_string() == "there is no slab cache 'nothing'", "{error}");
    assert_eq!(json_of(&state, "kmem -s")["caches"][3]["cached"], 6);
}

#[test]
fn kmem_capital_s_shows_every_object() {
    let guest = FakeGuest::with_slabs();
    let state = guest.view();
    let large = "\
CACHE             OBJSIZE  ALLOCATED     TOTAL  SLABS  SSIZE  NAME
ffff888003203000     2048          3         4      1     8k  kmalloc-2k
KMEM_CACHE_NODE   NODE  SLABS  PARTIAL   FULL   FREE
ffff888003203140     0      1        1      0      0
  SLAB              MEMORY            NODE  TOTAL  ALLOCATED  FREE
  ffffea00000620c0  ffff888003106000     0      4          3     1
  FREE / [ALLOCATED]
  [ffff888003106000]
  [ffff888003106800]
   ffff888003107000
  [ffff888003107800]
KMEM_CACHE_NODE   NODE  SLABS  PARTIAL   FULL   FREE
ffff888003203200     1      0        0      0      0
KMEM_CACHE_NODE   NODE  SLABS  PARTIAL   FULL   FREE
ffff8880032032c0     2      0        0      0      0
";
    assert_eq!(text(&state, "kmem -S kmalloc-2k"), large);
    let small = text(&state, "kmem -S kmalloc-64");
    assert!(small.contains("\n  ffffea0000062040  ffff888003102000     0     64          8    56\n"), "{small}");
    for line in [
        "   ffff888003102000  (cpu 0 cache)",
        "  [ffff888003102040]",
        "   ffff888003102280",
        "   ffff888003103fc0  (shared cache)",
        "   ffff888100900000  (cpu 1 cache)",
        "   ffff888100900080  (node 0 alien cache)",
    ] {
        assert!(small.lines().any(|other| other == line), "{line}\n{small}");
    }
    assert_eq!(text(&state, "kmem -S").matches("CACHE  ").count(), 5);
    let value = json_of(&state, "kmem -S kmalloc-64");
    let object = &value["caches"][0]["nodes"][0]["slab_list"][0]["objects"][9];
    let expected = json!({ "address": "0xffff888003102240", "state": "cached", "holder": "cpu 0 cache" });
    assert_eq!(*object, expected);
}

#[test]
fn kmem_s_tells_lists_from_counters() {
    let guest = FakeGuest::with_slabs();
    guest.set_meta(0x3102, 2, 11);
    let mut bytes = Vec::new();
    let error = View::KmemSlabs(kmem::SlabSpec::All).render(&guest.view(), false, &mut bytes).unwrap_err();
    assert!(error.is_corrupt());
    let expected = "slabs are not as they should be: \"kmalloc-64\" cache: node 0: \
                    3 slabs counted, 3 found; 118 objects counted free, 117 found";
    assert_eq!(error.to_string(), expected);
    assert_eq!(String::from_utf8(bytes).unwrap().lines().count(), 6);
}

#[test]
fn kmem_address_says_what_it_is() {
    let guest = FakeGuest::with_slabs();
    let state = guest.view();
    let object = "\
CACHE             OBJSIZE  ALLOCATED     TOTAL  SLABS  SSIZE  NAME
ffff888003202000       64        130       256      4     4k  kmalloc-64
  SLAB              MEMORY            NODE  TOTAL  ALLOCATED  FREE
  ffffea0000062040  ffff888003102000     0     64          8    56
  FREE / [ALLOCATED]
  [ffff888003102040]
";
    assert_eq!(text(&state, "kmem -s ffff888003102047"), object);
    let page = "
      PAGE       PHYSICAL      MAPPING       INDEX  CNT FLAGS
ffffea0000062040   3102000         40000002        0  1 200 slab
";
    let found = text(&state, "kmem ffff888003102047");
    assert_eq!(found.strip_prefix(object).unwrap().lines().nth(2), page.lines().nth(2));
    // The same by its physical address.
    assert_eq!(text(&state, "kmem 3102047"), found);
    let unused = text(&state, "kmem ffff888003100f00");
    assert!(unused.contains("   ffff888003100f00 (unused part of slab)\n"), "{unused}");
    let free = text(&state, "kmem ffffea0000060040");
    assert!(free.contains("AREA    SIZE  FREE_AREA_STRUCT\n  1       8k  "), "{free}");
    assert!(free.contains("\nffffea0000060040  (ffffea0000060040 is 1st of 2 pages)\n\n"), "{free}");
    let fresh = json_of(&state, "kmem 3600000");
    assert_eq!((&fresh["free"]["order"], &fresh["slab"]), (&json!(10), &Value::Null));
    for (address, message) in [
        ("kmem ffff888500000000", "address not found in mem map: ffff888500000000"),
        ("kmem ffffc90000006000", "address not found in mem map: ffffc90000006000"),
        ("kmem -s ffff888003001000", "address is not allocated in slab subsystem: ffff888003001000"),
        ("vtop 400000", "not a kernel virtual address: 400000"),
    ] {
        let error = view(address).render(&state, false, &mut Vec::new()).unwrap_err();
        assert!(error.is_usage() && error.to_string() == message, "{error}");
    }
}

#[test]
fn vtop_is_crash_s() {
    let guest = FakeGuest::with_slabs();
    let state = guest.view();
    let large = "\
VIRTUAL           PHYSICAL        
ffff888003102040  3102040         

PGD DIRECTORY: ffff888001400000
PAGE DIRECTORY: 1404063
   PUD: 1404000 => 1405063
   PMD: 14050c0 => 80000000030001e3
  PAGE: 3000000  (2MB)

      PTE         PHYSICAL  FLAGS
80000000030001e3   3000000  (PRESENT|RW|ACCESSED|DIRTY|PSE|GLOBAL|NX)

      PAGE        PHYSICAL      MAPPING       INDEX CNT FLAGS
ffffea0000062040   3102000         40000002        0  1 200 slab
";
    let found = text(&state, &format!("vtop {:x}", direct(0x310_2040)));
    assert_eq!(found, large);
    let small = text(&state, "vtop ffffea0000062040");
    assert!(small.contains("   PTE: 1403310 => 2062003\n  PAGE: 2062000\n\n"), "{small}");
    let nothing = text(&state, "vtop ffffc90000003000");
    assert!(nothing.starts_with("VIRTUAL           PHYSICAL        \nffffc90000003000  (not mapped)\n\n"), "{nothing}");
    let value = json_of(&state, "vtop ffff888003102040");
    assert_eq!((&value["physical"], &value["page_bytes"]), (&json!(0x310_2040), &json!(2 << 20)));
    assert_eq!(value["entries"][2], json!({ "level": "PMD", "at": "0x14050c0", "entry": "0x80000000030001e3" }));
}

#[test]
fn kmem_i_is_crash_s() {
    let guest = FakeGuest::with_slabs();
    guest.region().header().roots.committed_as.store(4895, std::sync::atomic::Ordering::Relaxed);
    let found = text(&guest.view(), "kmem -i");
    let expected = "                 PAGES        TOTAL      PERCENTAGE
    TOTAL MEM    97907     382.4 MB         ----
         FREE    86580     338.2 MB   88% of TOTAL MEM
         USED    11327      44.2 MB   11% of TOTAL MEM
      BUFFERS        0            0    0% of TOTAL MEM
       CACHED        0            0    0% of TOTAL MEM
         SLAB        0            0    0% of TOTAL MEM

   TOTAL HUGE        0            0         ----
    HUGE FREE        0            0    0% of TOTAL HUGE

   TOTAL SWAP        0            0         ----
    SWAP USED        0            0    0% of TOTAL SWAP
    SWAP FREE        0            0    0% of TOTAL SWAP

 COMMIT LIMIT    48953     191.2 MB         ----
    COMMITTED     4895      19.1 MB    9% of TOTAL LIMIT
";
    assert_eq!(found, expected);
}
