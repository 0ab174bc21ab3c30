//! A chart of the last hour, as SVG.
//!
//! In: a value each ten seconds, or none. Out: a figure whose text says the same: now and the most. Guarantee: no script, and
//! no style in it.

use std::fmt::Write as _;

use super::UNKNOWN;
use crate::ops::history::{POINT_SECONDS, POINTS_MAX};

/// Of the picture, which is stretched to the place that it gets.
const HEIGHT: f64 = 100.0;
/// Five minutes, which a young process has room for.
const POINTS_MIN: usize = 30;

/// A figure; `values` are the oldest first, and `say` writes one.
pub(super) fn chart(title: &str, values: &[Option<f64>], say: impl Fn(f64) -> String) -> String {
    let most = values.iter().flatten().copied().reduce(f64::max);
    let say_or_dash = |value: Option<f64>| value.map_or_else(|| UNKNOWN.to_owned(), &say);
    let now = say_or_dash(values.last().copied().flatten());
    let caption = format!("<figcaption>{title} <b>{now}</b></figcaption>");
    if values.is_empty() {
        return format!(
            "<figure>{caption}<p class=\"dim\">The first point comes in a moment.</p></figure>"
        );
    }
    // A young process does not draw its few minutes at the edge of an hour.
    let width = values.len().clamp(POINTS_MIN, POINTS_MAX);
    let span = match width {
        POINTS_MAX => "1 h".to_owned(),
        points => format!("{} min", (points * POINT_SECONDS).div_ceil(60)),
    };
    let most_text = say_or_dash(most);
    let label = format!("{title}, over the last {span}: now {now}, at most {most_text}");
    let top = most.filter(|most| *most > 0.0).unwrap_or(1.0);
    let line = path(values, width, top);
    let right = width - 1;
    format!(
        "<figure>{caption}<div class=\"axis\"><span>most {most_text}</span></div>\
         <svg viewBox=\"0 0 {right} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"{label}\"><path class=\"ground\" d=\"M0 1H{right}M0 99H{right}\"/>\
         <path class=\"line\" d=\"{line}\"/></svg>\
         <div class=\"axis\"><span>{span} ago</span><span>now</span></div></figure>",
    )
}

/// The line, with a gap where nothing is known; the last value is at the right edge.
fn path(values: &[Option<f64>], width: usize, top: f64) -> String {
    let mut path = String::new();
    let first = width.saturating_sub(values.len());
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
            let _ = write!(path, "h0");
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
            chart.contains("aria-label=\"Events a second, over the last 5 min: now 2, at most 4\""),
            "{chart}"
        );
        assert!(
            chart.contains("d=\"M26 98.0h0M28 2.0h0L29 50.0\""),
            "{chart}"
        );
        assert!(!chart.contains("style"));
    }

    #[test]
    fn a_chart_grows_with_its_process_up_to_an_hour() {
        for (points, right, ago) in [
            (1, 29, "5 min ago"),
            (31, 30, "6 min ago"),
            (359, 358, "60 min ago"),
            (POINTS_MAX, 359, "1 h ago"),
        ] {
            let chart = chart("Lag", &vec![Some(0.0); points], |value| value.to_string());
            let viewed = format!("viewBox=\"0 0 {right} 100\"");
            assert!(chart.contains(&viewed) && chart.contains(ago), "{chart}");
        }
    }

    #[test]
    fn what_was_never_known_has_no_most() {
        let chart = chart("Lag", &[None, None], |value| value.to_string());
        assert!(chart.contains("now –, at most –"), "{chart}");
    }

    #[test]
    fn nothing_at_all_is_no_line() {
        let chart = chart("Lag", &[], |value| value.to_string());
        assert!(chart.contains("–") && !chart.contains("<svg"));
    }
}
