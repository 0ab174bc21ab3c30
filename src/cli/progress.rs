//! How far long work is: a bar on a terminal, a JSON object a line for a program, else nothing.
//!
//! In: what became of one after the other. Out: a bar on standard error, or lines on standard output, at most one a second.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{
    HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};
use serde::Serialize;

use super::stdout::Account;
use crate::bulk::Outcome;
use crate::bulk::lease::{Lease, Working};
use crate::cli::stderr;

const LINE_INTERVAL: Duration = Duration::from_secs(1);
/// A bar costs more than a message.
const BAR_STEP: u64 = 500;

/// How far it is; the names are the JSON keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    /// All that is to be published, as far as it is known.
    pub(super) total: u64,
    /// What the stream has of it.
    pub(super) published: u64,
    /// What cannot be published.
    pub(super) rejected: u64,
    /// What is left out, since it does not tell whether it is asked for.
    #[serde(skip_serializing_if = "is_none")]
    pub(super) untold: u64,
    /// What was deleted before it could be published.
    #[serde(skip_serializing_if = "is_none")]
    pub(super) gone: u64,
    /// Since the first one, on average.
    pub(super) rows_per_second: u64,
    /// At that rate; none where nothing tells.
    pub(super) seconds_left: Option<u64>,
    /// Nothing more is done.
    pub(super) done: bool,
}

/// Whether there are none of these.
#[allow(clippy::trivially_copy_pass_by_ref)] // As serde calls it.
fn is_none(count: &u64) -> bool {
    *count == 0
}

/// A bar on a terminal, nothing elsewhere nor where a program reads JSON. Beside indicatif's own keys it has `count`, `rate` and `left`,
/// in whole numbers and of what is known.
///
/// # Panics
/// Where `template` is none of indicatif's.
pub(super) fn bar(length: Option<u64>, json: bool, template: &'static str) -> ProgressBar {
    // Standard error that is no terminal draws nothing.
    let target = match json {
        true => ProgressDrawTarget::hidden(),
        false => ProgressDrawTarget::stderr_with_hz(5),
    };
    let style = ProgressStyle::with_template(template)
        .expect("the template is a constant")
        .with_key("count", |state: &ProgressState, out: &mut dyn Write| {
            let _ = out.write_str(&count(state.pos(), state.len()));
        })
        .with_key("rate", |state: &ProgressState, out: &mut dyn Write| {
            let _ = out.write_str(&rate(state.per_sec()));
        })
        .with_key("left", |state: &ProgressState, out: &mut dyn Write| {
            if known(state.pos(), state.len()).is_some() {
                let _ = write!(out, "{:#}", HumanDuration(state.eta()));
            }
        });
    ProgressBar::with_draw_target(length, target).with_style(style)
}

/// So many, of how many where that is known: an estimate of rows may be none, or too low.
fn count(position: u64, length: Option<u64>) -> String {
    match known(position, length) {
        Some(length) => format!("{}/{}", HumanCount(position), HumanCount(length)),
        None => HumanCount(position).to_string(),
    }
}

fn known(position: u64, length: Option<u64>) -> Option<u64> {
    length.filter(|length| *length > 0 && position <= *length)
}

fn rate(per_second: f64) -> String {
    format!("{}/s", HumanCount(per_second as u64))
}

/// The progress of one command.
#[derive(Debug)]
pub(super) struct Progress {
    counts: Counts,
    taken: u64,
    begun: Instant,
    line_at: Instant,
    json: bool,
    bar: ProgressBar,
    /// For those who look from elsewhere.
    working: Option<Arc<Working>>,
}

impl Progress {
    pub(super) fn of(total: u64, json: bool) -> Self {
        let now = Instant::now();
        Progress {
            counts: Counts {
                total,
                ..Counts::default()
            },
            taken: 0,
            begun: now,
            line_at: now + LINE_INTERVAL,
            json,
            bar: bar(Some(total), json, "{wide_bar} {count} {rate} {left}"),
            working: None,
        }
    }

    /// Also told by the lease, as `stage`.
    pub(super) fn told_by(self, lease: &Lease, stage: &str) -> Self {
        let working = lease.working();
        working.begin(stage);
        working.tell(0, self.counts.total);
        Progress {
            working: Some(working),
            ..self
        }
    }

    /// Takes what became of the next one.
    pub(super) fn take(&mut self, outcome: Outcome<'_>, account: &mut Account) {
        let counts = &mut self.counts;
        match outcome {
            Outcome::Published { .. } => counts.published += 1,
            Outcome::Passed | Outcome::Same { .. } => counts.total = counts.total.saturating_sub(1),
            Outcome::Gone { .. } => {
                counts.total = counts.total.saturating_sub(1);
                counts.gone += 1;
            }
            Outcome::Untold => {
                counts.total = counts.total.saturating_sub(1);
                counts.untold += 1;
            }
            Outcome::Rejected { name, why } => {
                counts.rejected += 1;
                self.bar.suspend(|| {
                    stderr::line(format_args!("{name} cannot be published: {why}"));
                });
            }
        }
        if let Some(working) = &self.working {
            working.tell(counts.published + counts.rejected, counts.total);
        }
        self.taken += 1;
        if self.taken.is_multiple_of(BAR_STEP) {
            self.bar.set_length(self.counts.total);
            self.bar
                .set_position(self.counts.published + self.counts.rejected);
            if self.json && Instant::now() >= self.line_at {
                self.line(false, account);
            }
        }
    }

    /// What it came to.
    pub(super) fn end(mut self, account: &mut Account) -> Counts {
        self.bar.finish_and_clear();
        if self.json {
            self.line(true, account);
        }
        self.counts
    }

    fn line(&mut self, done: bool, account: &mut Account) {
        let counts = &mut self.counts;
        let seconds = self.begun.elapsed().as_secs_f64();
        let rate = (counts.published + counts.rejected) as f64 / seconds.max(f64::MIN_POSITIVE);
        let behind = counts.published + counts.rejected;
        counts.total = counts.total.max(behind);
        let left = counts.total - behind;
        counts.rows_per_second = rate as u64;
        counts.seconds_left = (rate >= 1.0).then(|| (left as f64 / rate) as u64);
        counts.done = done;
        match serde_json::to_string(counts) {
            Ok(line) => account.line(line),
            Err(error) => unreachable!("numbers always have a JSON form: {error}"),
        }
        self.line_at = Instant::now() + LINE_INTERVAL;
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use indicatif::TermLike;

    use super::*;

    #[test]
    fn a_bar_counts_in_whole_numbers_and_of_what_is_known() {
        assert_eq!(count(1_000, Some(5_000)), "1,000/5,000");
        assert_eq!(count(5_000, Some(5_000)), "5,000/5,000");
        for unknown in [None, Some(0), Some(999)] {
            assert_eq!(count(1_000, unknown), "1,000");
        }
        assert_eq!(rate(27_455.948_8), "27,455/s");
    }

    /// What a bar has drawn.
    #[derive(Debug, Clone, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            80
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().expect("nobody panics").push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_templates_draw_them() {
        for (length, expected) in [(Some(5_000), "1,000/5,000 "), (Some(0), " 1,000 ")] {
            let screen = Screen::default();
            let bar = bar(length, true, "{wide_bar} {count} {rate} {left}");
            bar.set_draw_target(ProgressDrawTarget::term_like(Box::new(screen.clone())));
            bar.set_position(1_000);
            bar.abandon();
            let drawn = screen.0.lock().expect("nobody panics");
            assert!(drawn.contains(expected), "{drawn}");
            assert!(drawn.contains("/s"), "{drawn}");
        }
    }
}
