//! Tables as CSV (RFC 4180, lines ending as in files of Unix).

use std::borrow::Cow;
use std::io::{self, Write};

use super::{Cell, Table};

impl Table {
    /// Writes the table: a line of names, a line for each row. A cell without a value is empty.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_csv(&self, out: &mut (dyn Write + Send)) -> io::Result<()> {
        let names = self.columns.iter().map(|column| quoted(&column.name));
        line(names, out)?;
        for row in 0..self.rows {
            let cells = self.columns.iter().map(|column| match column.cells.get(row).and_then(Option::as_ref) {
                None => Cow::Borrowed(""),
                Some(Cell::Text(text)) => quoted(text),
                Some(Cell::Number(number)) => number.to_string().into(),
                Some(Cell::Real(number)) => number.to_string().into(),
                Some(Cell::Truth(truth)) => truth.to_string().into(),
            });
            line(cells, out)?;
        }
        Ok(())
    }
}

fn line<'a>(cells: impl Iterator<Item = Cow<'a, str>>, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let cells: Vec<_> = cells.collect();
    writeln!(out, "{}", cells.join(","))
}

fn quoted(text: &str) -> Cow<'_, str> {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\"")).into()
    } else {
        text.into()
    }
}
