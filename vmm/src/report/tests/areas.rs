use std::mem::offset_of;

use pagevisor_shared::vmalloc::VmapArea;

use super::*;
use crate::state::fake::areas::AREAS;
use crate::state::fake::slabs::direct;

#[test]
fn vmallocinfo_is_linux_s() {
    let guest = FakeGuest::with_slabs();
    let state = guest.view();
    // The fake has no kernel, so that callers have no names.
    let expected = "\
0xffffc90000000000-0xffffc90000003000   12288 0xffffffff81000010 pages=2 vmalloc N0=2
0xffffc90000004000-0xffffc90000006000    8192 0xffffffff81000010 phys=0x00000000d0000000 ioremap
0xffffc90000006000-0xffffc90000008000    8192 unpurged vm_area
";
    assert_eq!(text(&state, "vmallocinfo"), expected);
    let value = json_of(&state, "vmallocinfo");
    assert_eq!(value["areas"][0]["nodes"], json!([{ "node": 0, "pages": 2 }]));
    assert_eq!(value["areas"].as_array().unwrap().len(), 3);
    assert_eq!(value["unpurged"][0]["start"], "0xffffc90000006000");
}

#[test]
fn kmem_v_is_crash_s() {
    let guest = FakeGuest::with_slabs();
    let state = guest.view();
    let expected = "   VMAP_AREA         VM_STRUCT                 ADDRESS RANGE                SIZE
ffff888003500000  ffff888003500040  ffffc90000000000 - ffffc90000003000    12288
ffff888003500080  ffff8880035000c0  ffffc90000004000 - ffffc90000006000     8192
";
    let trimmed = |text: &str| text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    assert_eq!(trimmed(&text(&state, "kmem -v")), trimmed(expected));
    assert_eq!(text(&state, "vmlist"), text(&state, "kmem -v"));
    let found = text(&state, "kmem ffffc90000001008");
    assert!(found.contains("  ffffc90000000000 - ffffc90000003000    12288\n\n"), "{found}");
    assert!(found.lines().last().unwrap().contains(" 3601000 "), "{found}");
    let device = text(&state, "kmem ffffc90000004008");
    assert!(device.ends_with("  ffffc90000004000 - ffffc90000006000     8192\n"), "{device}");
}

#[test]
fn damaged_areas_are_told() {
    for (field, value, rows) in [
        (offset_of!(VmapArea, va_start), 0, 1),
        (offset_of!(VmapArea, va_end), 0, 1),
        (offset_of!(VmapArea, next), direct(AREAS), 2),
        (offset_of!(VmapArea, next), 1, 2),
        (offset_of!(VmapArea, max_or_vm), 1 << 60, 1),
    ] {
        let guest = FakeGuest::with_slabs();
        guest.memory.write_u64(AREAS + 128 + field as u64, value);
        let mut bytes = Vec::new();
        let error = view("vmallocinfo").render(&guest.view(), false, &mut bytes).unwrap_err();
        assert!(error.is_corrupt() && error.to_string().contains("vmalloc area"), "{error}");
        assert_eq!(String::from_utf8(bytes).unwrap().lines().count(), rows, "{field} {value:#x}");
    }
}
