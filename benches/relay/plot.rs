//! The plot, as SVG text: bars of events a second, and MB/s by the size of events.

use std::fmt::Write as _;

const WIDTH: f64 = 860.0;
const BAR: f64 = 26.0;
/// Height of a size's bars.
const POINT: f64 = 3.0 * BAR;
const LABEL: f64 = 290.0;
const OURS: &str = "#2b7a78";
const OTHERS: &str = "#a9b4c2";

fn text(out: &mut String, x: f64, y: f64, anchor: &str, label: &str) {
    let label = label.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        out,
        r#"<text x="{x:.0}" y="{y:.0}" text-anchor="{anchor}">{label}</text>"#
    );
}

/// The whole picture.
pub fn svg(date: &str, bars: &[(String, f64)], points: &[(u64, [f64; 3])]) -> String {
    let bars_height = 50.0 + bars.len() as f64 * BAR;
    let height = bars_height
        + if points.is_empty() {
            10.0
        } else {
            60.0 + points.len() as f64 * POINT
        };
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(
        &mut out,
        10.0,
        24.0,
        "start",
        &format!("Events a second, medians of one run ({date})"),
    );
    let most = bars.iter().map(|(_, rate)| *rate).fold(1.0, f64::max);
    for (index, (label, rate)) in bars.iter().enumerate() {
        let y = 40.0 + index as f64 * BAR;
        bar(
            &mut out,
            y,
            label,
            rate / most,
            &format!("{:.0} k", rate / 1_000.0),
        );
    }
    if !points.is_empty() {
        text(
            &mut out,
            10.0,
            bars_height + 20.0,
            "start",
            "MB/s of payload by the size of events, 10 a transaction",
        );
        let most = points
            .iter()
            .flat_map(|(_, values)| values)
            .copied()
            .fold(1.0, f64::max);
        for (index, (bytes, values)) in points.iter().enumerate() {
            let y = bars_height + 36.0 + index as f64 * POINT;
            let names = ["walrelay", "pg_recvlogical", "bare publishing"];
            for (offset, (who, value)) in names.into_iter().zip(values).enumerate() {
                let label = format!("{who}, {bytes} bytes");
                bar(
                    &mut out,
                    y + offset as f64 * BAR,
                    &label,
                    value / most,
                    &format!("{value:.0}"),
                );
            }
        }
    }
    out.push_str("</svg>\n");
    out
}

fn bar(out: &mut String, y: f64, label: &str, part: f64, value: &str) {
    let colour = if label.starts_with("walrelay") {
        OURS
    } else {
        OTHERS
    };
    let width = (WIDTH - LABEL - 70.0) * part;
    text(out, LABEL - 8.0, y + 15.0, "end", label);
    let _ = writeln!(
        out,
        r#"<rect x="{LABEL}" y="{y:.0}" width="{width:.1}" height="{:.0}" fill="{colour}"/>"#,
        BAR - 6.0
    );
    text(out, LABEL + width + 6.0, y + 15.0, "start", value);
}
