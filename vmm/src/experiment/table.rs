//! Results as tables: one of runs, one of zones, one of pairs of nodes.

mod csv;
mod parquet;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use pagevisor_shared::units::MAX_ORDER;

use super::error::ExperimentError;
use super::record::{Indices, Measures, Record, RunResult};
use crate::workload::Value;

/// A value in a table.
#[derive(Clone, PartialEq, Debug)]
pub enum Cell {
    /// A whole number.
    Number(i64),
    /// A number.
    Real(f64),
    /// Text.
    Text(String),
    /// Yes or no.
    Truth(bool),
}

impl From<u64> for Cell {
    /// What is too large becomes the largest there is.
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<&Value> for Cell {
    fn from(value: &Value) -> Self {
        match value {
            Value::Number(number) => (*number).into(),
            Value::Text(text) => Self::Text(text.clone()),
        }
    }
}

/// A column.
#[derive(Clone, PartialEq, Debug)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// A cell for each row, all of one kind.
    pub cells: Vec<Option<Cell>>,
}

/// A table: columns of equal length.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Table {
    /// The columns.
    pub columns: Vec<Column>,
    /// Number of rows.
    pub rows: usize,
}

impl Table {
    /// The column of this name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Adds a row. Columns that other rows do not have are empty there.
    fn push(&mut self, row: Row) {
        let mut places: HashMap<&str, usize> = HashMap::new();
        for (column, place) in self.columns.iter().zip(0..) {
            places.insert(&column.name, place);
        }
        let places: Vec<Option<usize>> = row.0.iter().map(|(name, _)| places.get(name.as_str()).copied()).collect();
        for ((name, cell), place) in row.0.into_iter().zip(places) {
            match place.and_then(|place| self.columns.get_mut(place)) {
                Some(column) => column.cells.push(Some(cell)),
                None => {
                    let mut cells = vec![None; self.rows];
                    cells.push(Some(cell));
                    self.columns.push(Column { name, cells });
                }
            }
        }
        self.rows += 1;
        for column in &mut self.columns {
            column.cells.resize(self.rows, None);
        }
    }

    /// Makes text of a column that has both numbers and text.
    fn unify(mut self) -> Self {
        for column in &mut self.columns {
            let is_text = |cell: &Option<Cell>| matches!(cell, Some(Cell::Text(_)));
            if column.cells.iter().any(is_text) {
                for cell in column.cells.iter_mut().flatten() {
                    if let Cell::Number(number) = cell {
                        *cell = Cell::Text(number.to_string());
                    }
                }
            }
        }
        self
    }
}

/// A row that is being made.
#[derive(Default)]
struct Row(Vec<(String, Cell)>);

impl Row {
    fn add(&mut self, name: impl Into<String>, cell: impl Into<Cell>) {
        self.0.push((name.into(), cell.into()));
    }

    fn parameters(&mut self, record: &Record) {
        self.add("topology", record.topology.as_str());
        self.add("workload", record.workload.name.as_str());
        for (key, value) in &record.workload.params {
            self.add(format!("workload.{key}"), value);
        }
        for (setting, value) in &record.settings {
            self.add(setting.name(), value);
        }
        self.add("seed", record.seed);
    }

    fn indices(&mut self, blocks: &[u64; MAX_ORDER]) {
        let indices = Indices::of(blocks);
        for (name, values) in [("extfrag_index", indices.extfrag), ("unusable_index", indices.unusable)] {
            for (value, order) in values.into_iter().zip(0..) {
                self.0.push((format!("{name}_{order}"), Cell::Number(value)));
            }
        }
    }

    fn measures(&mut self, measures: &Measures) {
        self.add("guest_cycles", measures.guest_cycles);
        if let Some(ns) = measures.guest_ns() {
            self.add("guest_ns", ns);
        }
        self.add("allocs", measures.allocs);
        self.add("failed", measures.failed);
        self.add("tries", measures.tries);
        self.add("hits", measures.hits);
        self.add("zone_fallback_pages", measures.fallbacks.zone);
        self.add("node_fallback_pages", measures.fallbacks.node);
        for (&pages, node) in measures.placed_pages.iter().zip(0..) {
            self.add(format!("placed_pages_node{node}"), pages);
        }
        self.add("accesses_local", measures.accesses(true));
        self.add("accesses_remote", measures.accesses(false));
        if let Some(ratio) = measures.local_ratio() {
            self.0.push(("local_ratio".to_owned(), Cell::Real(ratio)));
        }
        self.add("modelled_ns", measures.modelled_ns());
        self.add("modelled_transfer_ns", measures.modelled_transfer_ns());
        for zone in &measures.zones {
            self.add(format!("min_free_pages_node{}_{}", zone.node, zone.zone), zone.min_free_pages);
        }
        self.indices(&measures.free_blocks());
        self.add("free_list_digest", measures.free_list_digest.as_str());
        self.0.push(("verified".to_owned(), Cell::Truth(measures.verified)));
    }
}

/// The tables of these results by name: `runs` with a row each, `zones` with a row for each zone of each run, `pairs`
/// with a row for each pair of nodes of each run.
pub fn tables(records: &[&Record]) -> [(&'static str, Table); 3] {
    let (mut runs, mut zones, mut pairs) = (Table::default(), Table::default(), Table::default());
    for record in records {
        let mut row = Row::default();
        row.add("key", record.key.as_str());
        row.parameters(record);
        row.add("nodes", record.machine.nodes as u64);
        row.add("machine_cpus", record.machine.cpus as u64);
        row.add("host_ms", record.host_ms);
        match &record.result {
            RunResult::Failed(reason) => {
                row.add("status", "failed");
                row.add("reason", reason.as_str());
            }
            RunResult::Ok(measures) => {
                row.add("status", "ok");
                row.measures(measures);
            }
        }
        runs.push(row);
        for zone in record.measures().into_iter().flat_map(|measures| &measures.zones) {
            let mut row = Row::default();
            row.add("key", record.key.as_str());
            row.parameters(record);
            row.add("node", zone.node as u64);
            row.add("zone", zone.zone.as_str());
            row.add("managed_pages", zone.managed_pages);
            row.add("placed_pages", zone.placed_pages);
            row.add("free_pages", zone.free_pages);
            row.add("min_free_pages", zone.min_free_pages);
            row.indices(&zone.free_blocks);
            zones.push(row);
        }
        for pair in record.measures().into_iter().flat_map(|measures| &measures.pairs) {
            let mut row = Row::default();
            row.add("key", record.key.as_str());
            row.parameters(record);
            row.add("cpu_node", pair.from as u64);
            row.add("memory_node", pair.to as u64);
            row.add("accesses", pair.accesses);
            row.add("latency_ns", u64::from(pair.latency_ns));
            row.add("bandwidth_mbps", u64::from(pair.bandwidth_mbps));
            row.add("modelled_ns", pair.modelled_ns());
            row.add("modelled_transfer_ns", pair.modelled_transfer_ns());
            pairs.push(row);
        }
    }
    [("runs", runs.unify()), ("zones", zones.unify()), ("pairs", pairs.unify())]
}

impl Table {
    /// Writes the table as `DIR/NAME.csv` and `DIR/NAME.parquet`. Each file appears as a whole, or stays as it was.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: &Path, name: &str) -> Result<(), ExperimentError> {
        save(dir, &format!("{name}.csv"), &|out| self.write_csv(out))?;
        save(dir, &format!("{name}.parquet"), &|out| self.write_parquet(out))
    }
}

type Fill<'a> = &'a dyn Fn(&mut (dyn Write + Send)) -> io::Result<()>;

fn save(dir: &Path, name: &str, fill: Fill<'_>) -> Result<(), ExperimentError> {
    let path = dir.join(name);
    let write = || -> io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(dir)?;
        // A temporary file is its owner's only; these are results like any other file.
        fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        let mut out = io::BufWriter::new(file.as_file_mut());
        fill(&mut out)?;
        out.flush()?;
        drop(out);
        file.persist(&path).map(|_| ()).map_err(|error| error.error)
    };
    write().map_err(|source| ExperimentError::Results { what: "write", path: path.clone(), source })
}
