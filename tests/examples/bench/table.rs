//! A table of figures: each with what it is compared with and the bound it has to keep.

use std::fmt;

use serde_json::{Value, json};

/// A figure.
#[derive(Debug)]
pub struct Row {
    pub name: String,
    pub value: f64,
    /// What it is compared with.
    pub reference: Option<f64>,
    /// The most it may be.
    pub bound: Option<f64>,
}

impl Row {
    pub fn new(name: impl Into<String>, value: f64) -> Self {
        Self { name: name.into(), value, reference: None, bound: None }
    }

    pub fn holds(&self) -> bool {
        self.bound.is_none_or(|bound| self.value <= bound)
    }

    fn ratio(&self) -> Option<f64> {
        self.reference.map(|reference| self.value / reference)
    }
}

/// Figures of one kind.
#[derive(Debug)]
pub struct Table {
    pub title: String,
    pub unit: &'static str,
    /// What the references are.
    pub reference: &'static str,
    pub rows: Vec<Row>,
}

impl Table {
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|r| {
            json!({"name": r.name, "value": r.value, "reference": r.reference, "ratio": r.ratio(), "bound": r.bound,
                "holds": r.holds()})
        });
        json!({"title": self.title, "unit": self.unit, "reference": self.reference,
            "rows": Value::from_iter(rows)})
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|r| r.name.len()).max().unwrap_or(0).max(10);
        let referenced = self.rows.iter().any(|r| r.reference.is_some());
        writeln!(f, "{} [{}]", self.title, self.unit)?;
        write!(f, "{:width$} {:>13}", "", "Pagevisor")?;
        if referenced {
            write!(f, " {:>13} {:>7}", self.reference, "ratio")?;
        }
        writeln!(f, " {:>11}", "bound")?;
        for row in &self.rows {
            let mut line = format!("{:width$} {:>13}", row.name, number(row.value));
            if referenced {
                line += &format!(
                    " {:>13} {:>7}",
                    row.reference.map(number).unwrap_or_default(),
                    row.ratio().map(|r| format!("{r:.3}")).unwrap_or_default()
                );
            }
            if let Some(bound) = row.bound {
                line += &format!(" {:>11}{}", number(bound), if row.holds() { "" } else { "  MISSED" });
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Whole numbers where the fraction says nothing.
fn number(value: f64) -> String {
    if value >= 10_000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
