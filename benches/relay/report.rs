//! Tables of what was measured, as Markdown and as a plot.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::machine::Machine;
use crate::plot;

/// One cell of a table, ready to print.
pub struct Cell(pub String);

impl Cell {
    pub fn text(text: String) -> Cell {
        Cell(text)
    }

    pub fn count(count: u64) -> Cell {
        Cell(thousands(count))
    }

    /// To three digits: more would be noise.
    pub fn rate(rate: f64) -> Cell {
        Cell(thousands((rate / 100.0).round() as u64 * 100))
    }

    pub fn number(number: f64, digits: usize) -> Cell {
        Cell(format!("{number:.digits$}"))
    }

    /// A dash where the system does not tell.
    pub fn maybe(number: Option<f64>, digits: usize) -> Cell {
        number.map_or_else(
            || Cell("–".to_owned()),
            |number| Cell::number(number, digits),
        )
    }
}

fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The middle value.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (length, middle) if length % 2 == 1 => sorted[middle],
        (_, middle) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// From the lowest to the highest, in percent of the median.
pub fn spread(values: &[f64]) -> String {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let percent = |value: f64| (value / median(values) - 1.0) * 100.0;
    format!("{:+.0} … {:+.0} %", percent(low), percent(high))
}

struct Table {
    title: String,
    header: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

/// All that a run found.
pub struct Report {
    pub machine: Machine,
    tables: Vec<Table>,
    bars: Vec<(String, f64)>,
    points: Vec<(u64, [f64; 3])>,
}

impl Report {
    pub fn new(machine: Machine) -> Report {
        Report {
            machine,
            tables: Vec::new(),
            bars: Vec::new(),
            points: Vec::new(),
        }
    }

    /// The rows of the table with this title, which is made where there is none.
    pub fn table(&mut self, title: &str, header: &[&str]) -> &mut Vec<Vec<Cell>> {
        let index = self
            .tables
            .iter()
            .position(|table| table.title == title)
            .unwrap_or_else(|| {
                self.tables.push(Table {
                    title: title.to_owned(),
                    header: header.iter().map(|&name| name.to_owned()).collect(),
                    rows: Vec::new(),
                });
                self.tables.len() - 1
            });
        &mut self.tables[index].rows
    }

    /// A bar of the plot, in events a second.
    pub fn bar(&mut self, label: &str, rate: f64) {
        self.bars.push((label.to_owned(), rate));
    }

    /// A point of the plot by size: bytes, MB/s of walrelay, of pg_recvlogical, of bare publishing.
    pub fn point(&mut self, bytes: u64, ours: f64, theirs: f64, bare: f64) {
        self.points.push((bytes, [ours, theirs, bare]));
    }

    /// The whole, with the plot of that name.
    pub fn markdown(&self, plot: &str) -> String {
        let mut text = format!(
            "# walrelay {}, {}\n\n",
            env!("CARGO_PKG_VERSION"),
            self.machine.date
        );
        for (name, value) in &self.machine.lines {
            let _ = writeln!(text, "- {name}: {value}");
        }
        text.push_str("\nMedians of interleaved rounds; a spread is from the lowest to the highest round. docs/performance.md says how it is measured.\n");
        if !plot.is_empty() {
            let _ = writeln!(text, "\n![Throughput]({plot})");
        }
        for table in &self.tables {
            let _ = writeln!(text, "\n## {}\n", table.title);
            let _ = writeln!(text, "| {} |", table.header.join(" | "));
            let _ = writeln!(text, "|{}", "---|".repeat(table.header.len()));
            for row in &table.rows {
                let cells: Vec<&str> = row.iter().map(|cell| cell.0.as_str()).collect();
                let _ = writeln!(text, "| {} |", cells.join(" | "));
            }
        }
        text
    }

    /// Writes table and plot; the table's path.
    pub fn write(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        std::fs::create_dir_all(folder)?;
        let name = self.machine.file_name();
        let plot = format!("{name}.svg");
        std::fs::write(
            folder.join(&plot),
            plot::svg(&self.machine.date, &self.bars, &self.points),
        )?;
        let table = folder.join(format!("{name}.md"));
        std::fs::write(&table, self.markdown(&plot))?;
        Ok(table)
    }
}
