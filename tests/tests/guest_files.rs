//! Files that programs read, write and map, and memory that is a file's: there is one copy, and it counts. The program is
//! `tests/programs/files.c`; each of its parts ends with 42 if everything was as it should be, and with the number of the
//! line that was not otherwise.

use pagevisor_tests::program::Program;

/// What a part ends with that has found nothing wrong.
const FINE: i32 = 42;

static PROGRAM: Program = Program::new("files", include_bytes!(concat!(env!("OUT_DIR"), "/files")));

#[track_caller]
fn fine(parts: &[&str]) {
    let output = PROGRAM.run(parts);
    assert_eq!(output.code(), FINE, "{}\n{}", output.stdout, output.stderr);
}

#[test]
fn reading_writing_and_mapping_show_the_same_file() {
    fine(&["coherent"]);
}

#[test]
fn a_file_is_mapped_as_it_was_opened_and_streams_give_what_they_have() {
    fine(&["rights", "streams", "sizes"]);
}

#[test]
fn children_share_memory_that_was_mapped_shared() {
    fine(&["shared"]);
}

#[test]
fn memfds_have_holes_and_seals() {
    fine(&["memfd"]);
}

#[test]
fn pages_of_files_and_promises_are_counted() {
    fine(&["counters"]);
}

#[test]
fn maps_and_smaps_name_files_and_tell_whose_pages_they_are() {
    fine(&["maps"]);
}
