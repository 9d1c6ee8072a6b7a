use std::collections::BTreeMap;
use std::fs::File;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;

use super::*;
use crate::workload::Value;

fn record(seed: u64, params: &[(&str, Value)], result: RunResult) -> Record {
    Record {
        key: format!("key{seed}"),
        topology: "two".to_owned(),
        machine: Machine { nodes: 2, cpus: 2 },
        workload: crate::workload::Workload {
            name: "fragment".to_owned(),
            params: params.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect(),
        },
        settings: BTreeMap::from([(Setting::MinFreeKbytes, Value::Number(4096))]),
        seed,
        host_ms: 100,
        result,
    }
}

fn measures(cycles: u64) -> Box<Measures> {
    let mut free_blocks = [0; 11];
    free_blocks[0] = 1024;
    let zone = |zone: &str| ZoneMeasure {
        node: 1,
        zone: zone.to_owned(),
        managed_pages: 4000,
        placed_pages: 25,
        free_pages: 1024,
        min_free_pages: 7,
        free_blocks,
    };
    let pair = |from, to, accesses, latency_ns| PairMeasure {
        from,
        to,
        accesses,
        latency_ns,
        bandwidth_mbps: 1000 * latency_ns,
    };
    Box::new(Measures {
        guest_cycles: cycles,
        tsc_khz: 2_000_000,
        allocs: 50,
        failed: 1,
        tries: 9,
        hits: 8,
        placed_pages: vec![30, 20],
        fallbacks: Fallbacks { zone: 3, node: 4 },
        pairs: vec![pair(0, 0, 30, 80), pair(0, 1, 10, 100)],
        zones: vec![zone("DMA32"), zone("Normal")],
        free_list_digest: "d".repeat(64),
        verified: true,
    })
}

fn records() -> Vec<Record> {
    let order = |order| [("order", Value::Number(order)), ("gfp", Value::Text("KERNEL|DMA, \"x\"".to_owned()))];
    vec![
        record(1, &order(9), RunResult::Ok(measures(2_000_000))),
        record(2, &order(9), RunResult::Failed("the guest panicked".to_owned())),
        record(3, &order(9), RunResult::Ok(measures(4_000_000))),
        record(4, &[("order", Value::Text("0-9".to_owned()))], RunResult::Ok(measures(2_000))),
    ]
}

#[test]
fn tables_have_the_results() {
    let records = records();
    let [(_, runs), (_, zones), (_, pairs)] = tables(&records.iter().collect::<Vec<_>>());
    assert_eq!((runs.rows, zones.rows, pairs.rows), (4, 6, 6));
    let cells = |table: &Table, name: &str| table.column(name).unwrap_or_else(|| panic!("{name}")).cells.clone();
    let number = |number: i64| Some(Cell::Number(number));
    let text = |text: &str| Some(Cell::Text(text.to_owned()));
    assert_eq!(cells(&runs, "workload.order"), ["9", "9", "9", "0-9"].map(text), "text, since one of them is");
    assert_eq!(cells(&runs, "vm.min_free_kbytes"), [number(4096), number(4096), number(4096), number(4096)]);
    assert_eq!(cells(&runs, "reason"), [None, text("the guest panicked"), None, None]);
    assert_eq!(cells(&runs, "guest_ns"), [number(1_000_000), None, number(2_000_000), number(1_000)]);
    assert_eq!(cells(&runs, "local_ratio")[0], Some(Cell::Real(0.75)));
    assert_eq!(cells(&runs, "modelled_ns")[0], number(30 * 80 + 10 * 100));
    assert_eq!(cells(&runs, "placed_pages_node1")[0], number(20));
    assert_eq!(cells(&runs, "min_free_pages_node1_Normal"), [number(7), None, number(7), number(7)]);
    // Two zones of 1024 single pages: order 1 takes 1024 of 2048 blocks.
    assert_eq!((cells(&runs, "extfrag_index_0")[0].clone(), cells(&runs, "extfrag_index_1")[0].clone()), {
        (number(-1000), number(500))
    });
    assert_eq!(cells(&zones, "unusable_index_1")[0], number(1000));
    assert_eq!(cells(&pairs, "modelled_transfer_ns")[..2], [24, 6].map(number));
    assert_eq!(cells(&pairs, "modelled_ns"), [2400, 1000, 2400, 1000, 2400, 1000].map(number));
}

#[test]
fn csv_is_quoted_where_it_must_be() {
    let records = records();
    let [(_, runs), ..] = tables(&records.iter().collect::<Vec<_>>());
    let mut bytes = Vec::new();
    runs.write_csv(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(text.lines().count(), 5);
    let start = "key,topology,workload,workload.gfp,workload.order,vm.min_free_kbytes,seed,nodes,machine_cpus,host_ms,";
    assert!(text.starts_with(start), "{text}");
    let first = text.lines().nth(1).unwrap();
    assert!(first.starts_with("key1,two,fragment,\"KERNEL|DMA, \"\"x\"\"\",9,4096,1,2,2,100,ok,"), "{first}");
    assert!(text.lines().nth(4).unwrap().starts_with("key4,two,fragment,,0-9,4096,4,"), "{text}");
}

/// A cell as Parquet's reader gives it.
fn field(cell: Option<&Cell>) -> Field {
    match cell {
        None => Field::Null,
        Some(Cell::Number(number)) => Field::Long(*number),
        Some(Cell::Real(number)) => Field::Double(*number),
        Some(Cell::Text(text)) => Field::Str(text.clone()),
        Some(Cell::Truth(truth)) => Field::Bool(*truth),
    }
}

#[test]
fn parquet_reads_back_equal() {
    let (records, dir) = (records(), tempfile::tempdir().unwrap());
    for (name, table) in tables(&records.iter().collect::<Vec<_>>()) {
        table.save(dir.path(), name).unwrap();
        let reader =
            SerializedFileReader::new(File::open(dir.path().join(format!("{name}.parquet"))).unwrap()).unwrap();
        assert_eq!(reader.metadata().file_metadata().num_rows(), table.rows as i64);
        for (row, number) in reader.get_row_iter(None).unwrap().zip(0..) {
            let row = row.unwrap();
            let found: Vec<_> = row.get_column_iter().map(|(name, value)| (name.clone(), value.clone())).collect();
            let cell = |column: &Column| (column.name.clone(), field(column.cells[number].as_ref()));
            assert_eq!(found, table.columns.iter().map(cell).collect::<Vec<_>>());
        }
    }
    let names = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(names, 6, "no temporary file stays");
    let [(_, empty), ..] = tables(&[]);
    empty.save(dir.path(), "empty").unwrap();
}

#[test]
fn a_table_that_cannot_be_written_leaves_the_old_one() {
    let records = records();
    let [(name, runs), ..] = tables(&records.iter().collect::<Vec<_>>());
    let error = runs.save(Path::new("/nowhere"), name).unwrap_err();
    assert!(error.to_string().starts_with("cannot write /nowhere/runs.csv; finished runs are kept"), "{error}");
    let mut full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    assert_eq!(runs.write_parquet(&mut full).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
}

#[test]
fn the_summary_has_medians_over_the_seeds() {
    let mut records = records();
    records[3].settings.insert(Setting::MinFreeKbytes, Value::Number(8192));
    for record in &mut records {
        record.settings.insert(Setting::Append, Value::Text("kernelcore=1G loglevel=3".to_owned()));
    }
    let text = summary(&records.iter().collect::<Vec<_>>());
    let lines: Vec<Vec<&str>> =
        text.lines().map(|line| line.split("  ").filter(|cell| !cell.is_empty()).map(str::trim).collect()).collect();
    assert_eq!(lines[0], ["everywhere: append=\"kernelcore=1G loglevel=3\""]);
    assert_eq!(
        lines[1],
        [
            "topology",
            "workload",
            "settings",
            "runs",
            "failed",
            "guest ms",
            "allocs",
            "no memory",
            "hits",
            "zone fb",
            "node fb",
            "local %",
            "modelled ms",
            "unusable 9",
        ]
    );
    assert_eq!(
        lines[2],
        [
            "two",
            "fragment:gfp=KERNEL|DMA, \"x\",order=9",
            "vm.min_free_kbytes=4096",
            "3",
            "1",
            "1.5",
            "50",
            "1",
            "8",
            "3",
            "4",
            "75.0",
            "0.003",
            "1.000",
        ]
    );
    assert_eq!(lines[3][3..6], ["1", "-", "0.0"]);
    assert!(text.contains("modelled ms: a model"), "{text}");
}
