//! A chart of the last hour, as SVG.
//!
//! In: a value each ten seconds, or none. Out: a figure whose text says the same: now and the most. Guarantee: no script, and
//! no style in it.

use std::fmt::Write as _;

use crate::ops::history::POINTS_MAX;

/// Of the picture, which is stretched to the place that it gets.
const HEIGHT: f64 = 100.0;

/// A figure; `values` are the oldest first, and `say` writes one.
pub(super) fn chart(title: &str, values: &[Option<f64>], say: impl Fn(f64) -> String) -> String {
    let most = values.iter().flatten().copied().fold(0.0, f64::max);
    let now = values.last().copied().flatten();
    let now = now.map_or_else(|| "–".to_owned(), &say);
    let caption = format!("<figcaption>{title} <b>{now}</b></figcaption>");
    if values.is_empty() {
        return format!(
            "<figure>{caption}<p class=\"dim\">The first point comes in a moment.</p></figure>"
        );
    }
    let label = format!("{title} in the last hour: now {now}, at most {}", say(most));
    let top = if most > 0.0 { most } else { 1.0 };
    format!(
        "<figure>{caption}<svg viewBox=\"0 0 {POINTS_MAX} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"{label}\"><path class=\"ground\" d=\"M0 1H{POINTS_MAX}M0 99H{POINTS_MAX}\"/>\
         <path class=\"line\" d=\"{}\"/></svg>\
         <div class=\"axis\"><span>1 h ago</span><span>most {}</span><span>now</span></div></figure>",
        path(values, top),
        say(most),
    )
}

/// The line, with a gap where nothing is known; the last value is at the right edge.
fn path(values: &[Option<f64>], top: f64) -> String {
    let mut path = String::new();
    let first = POINTS_MAX.saturating_sub(values.len());
    let mut is_drawing = false;
    for (at, value) in values.iter().enumerate() {
        let Some(value) = value else {
            is_drawing = false;
            continue;
        };
        // Within the two lines of the ground.
        let y = HEIGHT - 2.0 - (HEIGHT - 4.0) * value / top;
        let step = if is_drawing { 'L' } else { 'M' };
        let _ = write!(path, "{step}{} {y:.1}", first + at);
        if !is_drawing {
            // A point that stands alone is seen too.
            let _ = write!(path, "h1");
        }
        is_drawing = true;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_says_in_words_what_it_shows_and_has_gaps_where_nothing_is_known() {
        let values = [Some(0.0), None, Some(4.0), Some(2.0)];
        let chart = chart("Events a second", &values, |value| format!("{value:.0}"));
        assert!(
            chart.contains("aria-label=\"Events a second in the last hour: now 2, at most 4\"")
        );
        assert!(
            chart.contains("d=\"M356 98.0h1M358 2.0h1L359 50.0\""),
            "{chart}"
        );
        assert!(!chart.contains("style"));
    }

    #[test]
    fn nothing_at_all_is_no_line() {
        let chart = chart("Lag", &[], |value| value.to_string());
        assert!(chart.contains("–") && !chart.contains("<svg"));
    }
}
