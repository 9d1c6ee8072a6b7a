//! The view of what is known to be zero.

use pagevisor_shared::page_flags::PG_NOTZERO;

use super::*;

#[test]
fn zeroed_tells_what_was_cleared_and_what_need_not_be() {
    let guest = FakeGuest::used();
    let region = guest.region();
    for (cpu, counts) in region.cpus().iter().zip([[1_000_000, 20, 3], [40, u64::from(u32::MAX), 0]]) {
        let words = [&cpu.pages_cleared, &cpu.clears_saved, &cpu.idle_cleared];
        words.iter().zip(counts).for_each(|(word, count)| word.store(count, Relaxed));
    }
    // A block of order 9, and a page on CPU 0's own list.
    guest.set_meta(0x3200, 0, PG_NOTZERO);
    guest.set_meta(0x3010, 0, PG_NOTZERO);
    let state = guest.view();
    let expected = "\u{20}cpu           pages_cleared   clears_saved   idle_cleared
   0                 1000000             20              3
   1                      40     4294967295              0
 all                 1000040     4294967315              3

node  zone              free     known_zero            pcp pcp_known_zero
   0  all              23092          22580             10              9
   0  DMA               3120           3120              0              0
   0  DMA32            19972          19460             10              9
   1  all              63488          63488              0              0
   1  Normal           63488          63488              0              0
 all                   86580          86068             10              9
";
    assert_eq!(text(&state, "zeroed"), expected);
    let value = json_of(&state, "zeroed");
    let cpu = json!({ "cpu": 1, "pages_cleared": 40, "clears_saved": u32::MAX, "idle_cleared": 0 });
    assert_eq!(value["cpus"][1], cpu);
    let zone =
        json!({ "node": 0, "zone": "DMA32", "free": 19972, "known_zero": 19460, "pcp": 10, "pcp_known_zero": 9 });
    assert_eq!(value["zones"][1], zone);
    assert_eq!((&value["all"]["known_zero"], &value["all"]["clears_saved"]), (&json!(86068), &json!(4_294_967_315u64)));
}

#[test]
fn zeroed_tells_lists_from_counters() {
    let guest = FakeGuest::used();
    guest.region().zones()[DMA32].vm_stat[0].fetch_add(3, Relaxed);
    let mut bytes = Vec::new();
    let error = view("zeroed").render(&guest.view(), false, &mut bytes).unwrap_err();
    assert!(error.is_corrupt() && error.to_string().contains("19975 counted, 19972 found"), "{error}");
    assert!(String::from_utf8(bytes).unwrap().contains("   0  DMA32            19972 "));
}
