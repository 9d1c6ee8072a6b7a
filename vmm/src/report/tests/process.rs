use std::mem::offset_of;

use pagevisor_shared::mm_types::{MmStruct, VmArea};
use pagevisor_shared::sched::TaskStruct;

use super::*;
use crate::state::fake::programs::{AREAS_OF, FRAMES, SPACE, TASKS, USER_TABLES};
use crate::state::fake::slabs::direct;

fn guest() -> FakeGuest {
    FakeGuest::used().with_programs()
}

#[test]
fn maps_is_linux_s() {
    let expected = "\
00400000-00402000 r-xp 00000000 00:01 12                                 /bin/init
00600000-00603000 rw-p 00000000 00:00 0                                  [heap]
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0                          [stack]
";
    let state = guest().view();
    assert_eq!(text(&state, "pid/1/maps"), expected);
    assert_eq!(text(&state, "pid/2/maps"), "");
    assert_eq!(json_of(&state, "pid/1/maps")[1]["name"], json!("[heap]"));
    let error = view("pid/3/maps").render(&state, false, &mut Vec::new()).unwrap_err();
    assert!(error.is_usage() && error.to_string() == "there is no task 3", "{error}");
}

#[test]
fn an_area_without_a_name_has_linux_s_trailing_space() {
    let guest = guest();
    guest.memory.write_u64(SPACE + offset_of!(MmStruct, brk) as u64, 0x10_0000);
    let found = text(&guest.view(), "pid/1/maps");
    assert_eq!(found.lines().nth(1), Some("00600000-00603000 rw-p 00000000 00:00 0 "));
}

#[test]
fn smaps_counts_what_is_mapped() {
    let found = text(&guest().view(), "pid/1/smaps");
    let heap = "\
00600000-00603000 rw-p 00000000 00:00 0                                  [heap]
Size:                 12 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:                   8 kB
Pss:                   8 kB
Pss_Dirty:             4 kB
Shared_Clean:          0 kB
Shared_Dirty:          0 kB
Private_Clean:         4 kB
Private_Dirty:         4 kB
Referenced:            8 kB
Anonymous:             8 kB
LazyFree:              0 kB
AnonHugePages:         0 kB
ShmemPmdMapped:        0 kB
FilePmdMapped:         0 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:       0 kB
Swap:                  0 kB
SwapPss:               0 kB
Locked:                0 kB
THPeligible:    0
VmFlags: rd wr mr mw me ac 
";
    assert!(found.contains(heap), "{found}");
    let file = found.split("00600000").next().unwrap();
    assert!(file.contains("Rss:                   4 kB\nPss:                   2 kB\n"), "{file}");
    assert!(file.contains("Shared_Clean:          4 kB\n"), "{file}");
}

#[test]
fn smaps_rollup_adds_up() {
    let found = text(&guest().view(), "pid/1/smaps_rollup");
    let expected = "\
00400000-7ffffffff000 ---p 00000000 00:00 0                              [rollup]
Rss:                  16 kB
Pss:                  14 kB
Pss_Dirty:             8 kB
Pss_Anon:             12 kB
Pss_File:              2 kB
Pss_Shmem:             0 kB
Shared_Clean:          4 kB
";
    starts_with(&found, expected);
}

#[test]
fn status_and_statm_tell_the_counters() {
    let state = guest().view();
    let expected = "\
Name:\tinit
Umask:\t0022
State:\tR (running)
Tgid:\t1
Ngid:\t0
Pid:\t1
PPid:\t0
TracerPid:\t0
Uid:\t0\t0\t0\t0
Gid:\t0\t0\t0\t0
FDSize:\t64
Groups:\t 
NStgid:\t1
NSpid:\t1
NSpgid:\t1
NSsid:\t4
VmPeak:\t     160 kB
VmSize:\t     152 kB
VmLck:\t       0 kB
VmPin:\t       0 kB
VmHWM:\t      16 kB
VmRSS:\t      16 kB
RssAnon:\t      12 kB
RssFile:\t       4 kB
RssShmem:\t       0 kB
VmData:\t      12 kB
VmStk:\t     132 kB
VmExe:\t       8 kB
VmLib:\t       0 kB
VmPTE:\t      28 kB
VmSwap:\t       0 kB
HugetlbPages:\t       0 kB
CoreDumping:\t0
THP_enabled:\t0
Threads:\t1
SigQ:\t0/1000
SigPnd:\t0000000000000100
ShdPnd:\t0000000000000200
SigBlk:\t0000000000000300
SigIgn:\t0000000000001000
SigCgt:\t0000000000010000
CapInh:\t0000000000000000
CapPrm:\t000001ffffffffff
CapEff:\t000001ffffffffff
CapBnd:\t000001ffffffffff
CapAmb:\t0000000000000000
NoNewPrivs:\t0
Seccomp:\t0
Seccomp_filters:\t0
Speculation_Store_Bypass:\tunknown
SpeculationIndirectBranch:\tunknown
Cpus_allowed:\t3
Cpus_allowed_list:\t0-1
Mems_allowed:\t00000000,00000003
Mems_allowed_list:\t0-1
voluntary_ctxt_switches:\t7
nonvoluntary_ctxt_switches:\t0
";
    assert_eq!(text(&state, "pid/1/status"), expected);
    assert_eq!(text(&state, "pid/1/statm"), "38 4 1 2 0 36 0\n");
    assert_eq!(text(&state, "pid/2/statm"), "0 0 0 0 0 0 0\n");
    // A thread of the kernel shares nothing.
    let kernel = text(&state, "pid/2/status");
    assert!(!kernel.contains("Vm") && kernel.contains("\nSigQ:\t0/18446744073709551615\n"), "{kernel}");
}

#[test]
fn numa_maps_and_pagemap_look_at_pages() {
    let state = guest().view();
    let expected = "\
00400000 default file=/bin/init mapped=1 mapmax=2 active=0 N0=1 kernelpagesize_kB=4
00600000 default heap anon=2 dirty=1 active=1 N0=1 N1=1 kernelpagesize_kB=4
7ffffffde000 default stack anon=1 dirty=1 active=0 N0=1 kernelpagesize_kB=4
";
    assert_eq!(text(&state, "pid/1/numa_maps"), expected);
    let expected = "\
000000400000 a000000000003a00
000000600000 8100000000003a01
000000601000 8100000000100900
000000602000 8000000000003a02
7fffffffe000 8100000000003a03
";
    assert_eq!(text(&state, "pid/1/pagemap"), expected);
}

#[test]
fn ps_and_vm_are_crash_s() {
    let state = guest().view();
    let expected = "      PID    PPID  CPU       TASK        ST  %MEM      VSZ      RSS  COMM
>       1       0   1  ffff888003800000  RU   0.0      152       16  init
        2       0   0  ffff888003800100  IN   0.0        0        0  [kthreadd]
";
    assert_eq!(text(&state, "ps"), expected);
    let expected = "\
PID: 1        TASK: ffff888003800000  CPU: 1    COMMAND: \"init\"
       MM               PGD          RSS    TOTAL_VM
ffff888003801000  ffff888003900000   16k      152k  
      VMA           START       END     FLAGS FILE
ffff888003802000     400000     402000     75 /bin/init
ffff888003802100     600000     603000 100073 
ffff888003802200 7ffffffde000 7ffffffff000 100173 
";
    assert_eq!(text(&state, "vm 1"), expected);
    let pages = text(&state, "vm -p 1");
    let file = "\
ffff888003802000     400000     402000     75 /bin/init
VIRTUAL     PHYSICAL 
400000        3a00000
401000      FILE: /bin/init  OFFSET: 1000

";
    assert!(pages.contains(file), "{pages}");
    assert!(pages.contains("7ffffffdf000  (not mapped)\n") && pages.contains("7fffffffe000    3a03000\n\n"), "{pages}");
}

#[test]
fn vtop_walks_a_program_s_tables() {
    let state = guest().view();
    let found = text(&state, "vtop 1 0x601123");
    let expected = "\
VIRTUAL     PHYSICAL        
601123      100900123       

   PGD: 3900000 => 3901027
   PUD: 3901000 => 3902027
   PMD: 3902018 => 3904027
   PTE: 3904008 => 8000000100900067
  PAGE: 100900000

      PTE         PHYSICAL   FLAGS
8000000100900067  100900000  (PRESENT|RW|USER|ACCESSED|DIRTY|NX)

      VMA           START       END     FLAGS FILE
ffff888003802100     600000     603000 100073 

";
    assert!(found.starts_with(expected), "{found}");
    assert!(text(&state, "vtop 1 401000").contains("401000      (not mapped)\n\n"));
    assert!(text(&state, "vtop 1 500000").ends_with("500000      (not accessible)\n\n"));
    let error = view("vtop 1 ffff888000000000").render(&state, false, &mut Vec::new()).unwrap_err();
    assert!(error.is_usage(), "{error}");
    assert_eq!(json_of(&state, "vtop 1 601123")["physical"], json!(0x1_0090_0123_u64));
}

#[test]
fn damage_ends_a_view_and_is_told() {
    let cases: [(&str, u64, u64, &str); 7] = [
        ("pid/1/maps", AREAS_OF + 256 + offset_of!(VmArea, vm_start) as u64, 0x40_1000, "start of an area"),
        ("pid/1/maps", AREAS_OF + 512 + offset_of!(VmArea, next) as u64, direct(AREAS_OF), "start of an area"),
        ("pid/1/maps", AREAS_OF + offset_of!(VmArea, vm_mm) as u64, 0, "address space of an area"),
        ("ps", TASKS + 256 + offset_of!(TaskStruct, next) as u64, direct(TASKS), "backward link of a task"),
        ("ps", TASKS + offset_of!(TaskStruct, next) as u64, 0x1234, "address of a task"),
        ("pid/1/status", TASKS + offset_of!(TaskStruct, files) as u64, 0x1234, "address of what a task shares"),
        ("pid/1/smaps", USER_TABLES, 0xf000_0000_0027, "page table"),
    ];
    for (name, at, value, what) in cases {
        let guest = guest();
        // A guest that is down is not looked at again.
        guest.region().header().state.store(pagevisor_shared::region::GuestState::Panicked as u32, Relaxed);
        guest.memory.write_u64(at, value);
        let error = view(name).render(&guest.view(), false, &mut Vec::new()).unwrap_err();
        assert!(error.is_corrupt() && error.to_string().contains(what), "{name}: {error}");
    }
    // The tables lead back to their top: the walk ends.
    let guest = guest();
    guest.memory.write_u64(USER_TABLES + 0x1000, USER_TABLES | 0x27);
    assert!(u64::from(FRAMES[0]) < USER_TABLES);
    let _ = view("pid/1/pagemap").render(&guest.view(), false, &mut Vec::new());
}
