//! `walrelay status --watch`: the same again and again.
//!
//! In: the lanes, how often. Out: on a terminal a picture that is drawn anew, elsewhere a line a lane and look, until a signal or
//! until nobody reads. Guarantee: a look that fails is told and does not end it.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use chrono::Utc;
use tokio::time::{MissedTickBehavior, interval};

use super::{Answer, Args, Look, bytes, look};
use crate::cli::exit::Exit;
use crate::cli::signals::{self, Hangup};
use crate::cli::stdout;
use crate::cli::values;
use crate::config::Loaded;
use crate::relay::clock::now_text;
use crate::relay::status::{State, Status};

/// A relay answers in milliseconds, and nobody reads faster.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// Home; the end of each line and of the picture are cleared, so that nothing flickers (ECMA-48).
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K\n";
const CLEAR_BELOW: &str = "\x1b[J";
/// Once, before the first picture.
const CLEAR: &str = "\x1b[2J";

/// Reads how often.
pub(super) fn parse_pause(text: &str) -> Result<Duration, String> {
    match values::duration(text)? {
        pause if pause >= PAUSE_MIN => Ok(pause),
        _ => Err(format!("give {PAUSE_MIN:?} or more")),
    }
}

/// Shows until a signal, or until the pipe's reader has gone.
///
/// # Errors
/// Standard output cannot be written.
pub async fn watch(args: &Args, pause: Duration, loaded: &Loaded) -> Result<Exit, anyhow::Error> {
    let mut shutdown = signals::listen(Hangup::Stops)?;
    let follow = async {
        let mut looks = interval(pause);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let is_picture = !args.json && io::stdout().is_terminal();
        if is_picture {
            stdout::write(CLEAR)?;
        }
        loop {
            looks.tick().await;
            let mut found = Vec::new();
            for lane in &loaded.lanes {
                found.push((lane.postgres.slot.as_str(), look(lane, &loaded.http).await));
            }
            stdout::write(&match is_picture {
                true => picture(&found, pause),
                false => lines(args.json, &found)?,
            })?;
        }
    };
    tokio::select! {
        ended = follow => ended,
        () = stdout::reader_gone() => Ok(Exit::Done),
        () = shutdown.wait() => Ok(Exit::Done),
    }
}

fn picture(found: &[(&str, Look)], pause: Duration) -> String {
    let mut text = match found {
        [(_, look)] => whole(look),
        found => overview(found),
    };
    let now = Utc::now().format("%H:%M:%S UTC");
    let pause = humantime::format_duration(pause);
    let _ = writeln!(text, "{now}, every {pause}; Ctrl-C ends it");
    let drawn: String = text
        .lines()
        .map(|line| format!("{line}{CLEAR_LINE}"))
        .collect();
    format!("{HOME}{drawn}{CLEAR_BELOW}")
}

/// All of one lane.
fn whole(look: &Look) -> String {
    let mut text = String::new();
    for note in &look.notes {
        let _ = writeln!(text, "{note}");
    }
    let _ = writeln!(text, "{}\n", look.answer.text());
    text
}

/// A line a lane, which is what fits a screen, and what is not as it should be.
fn overview(found: &[(&str, Look)]) -> String {
    let longest = found.iter().map(|(slot, _)| slot.chars().count()).max();
    let width = longest.unwrap_or_default().max("slot".len());
    let mut text = format!(
        "{:<width$}  {:<9}  {:>9}  {:>9}  {:>10}  {:>12}\n",
        "slot", "state", "events/s", "in flight", "lag", "dead letters"
    );
    let mut told = String::new();
    for (slot, look) in found {
        let Some(status) = &look.answer.relay else {
            let _ = writeln!(text, "{slot:<width$}  -");
            let _ = writeln!(told, "\n{slot}: {}", look.notes.join("; "));
            continue;
        };
        let open = status.dead_letters_open;
        let _ = writeln!(
            text,
            "{slot:<width$}  {:<9}  {:>9}  {:>9}  {:>10}  {:>12}",
            status.state.name(),
            status.events_per_second,
            status.marks.in_flight,
            match status.lag_seconds {
                _ if status.state == State::Standby => "-".to_owned(),
                None | Some(0) => bytes(status.lag_bytes()),
                Some(seconds) => format!("{seconds} s"),
            },
            open.map_or_else(|| "-".to_owned(), |open| open.to_string()),
        );
        if let Some(reason) = &status.reason {
            let _ = writeln!(told, "\n{slot}: {reason}");
        }
        for work in &look.answer.bulk_work {
            let _ = writeln!(told, "\n{slot}: {}", work.text());
        }
    }
    format!("{text}{told}\n")
}

fn lines(json: bool, found: &[(&str, Look)]) -> Result<String, anyhow::Error> {
    let mut text = String::new();
    for (slot, look) in found {
        let line = match (json, &look.answer.relay) {
            (true, _) => serde_json::to_string(&look.answer)?,
            (false, Some(status)) => line(status) + &bulk_work(&look.answer),
            (false, None) => {
                let now = now_text();
                let notes = look.notes.join("; ");
                format!("{now} {slot} {notes}{}", bulk_work(&look.answer))
            }
        };
        text.push_str(&line.replace('\n', " "));
        text.push('\n');
    }
    Ok(text)
}

fn bulk_work(answer: &Answer) -> String {
    let works = answer.bulk_work.iter();
    works.map(|work| format!("; {}", work.text())).collect()
}

fn line(status: &Status) -> String {
    let now = now_text();
    let open = status
        .dead_letters_open
        .map_or("-".to_owned(), |open| open.to_string());
    let reason = status
        .reason
        .as_ref()
        .map_or_else(String::new, |reason| format!(": {reason}"));
    format!(
        "{now} {} {}{reason} events={} rate={}/s in_flight={} lag={} lag_seconds={} dead_letters={open}",
        status.slot,
        status.state.name(),
        status.totals.acknowledged,
        status.events_per_second,
        status.marks.in_flight,
        bytes(status.lag_bytes()).replace(' ', ""),
        status
            .lag_seconds
            .map_or_else(|| "-".to_owned(), |lag| lag.to_string()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_a_duration_that_a_relay_can_answer_in() {
        assert_eq!(parse_pause("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_pause("100ms"), Ok(PAUSE_MIN));
        for wrong in ["", "99ms", "0s", "often"] {
            assert!(parse_pause(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn several_lanes_fit_a_screen_with_a_line_each() {
        let look = |state, reason: Option<&str>| Look {
            answer: Answer {
                relay: Some(Status {
                    state,
                    reason: reason.map(str::to_owned),
                    lag_seconds: Some(70),
                    lag_known: true,
                    dead_letters_open: Some(3),
                    ..Status::default()
                }),
                ..Answer::default()
            },
            notes: Vec::new(),
            exit: Exit::Done,
        };
        let mute = Look {
            answer: Answer::default(),
            notes: vec!["no relay answers: nobody".to_owned()],
            exit: Exit::Failed,
        };
        let lanes = [
            ("parts_0", look(State::Waiting, Some("NATS: gone"))),
            ("parts_1", look(State::Standby, None)),
            ("parts_2", mute),
        ];
        let drawn = overview(&lanes);
        let wanted = "\
slot     state       events/s  in flight         lag  dead letters
parts_0  waiting            0          0        70 s             3
parts_1  standby            0          0           -             3
parts_2  -

parts_0: NATS: gone

parts_2: no relay answers: nobody

";
        assert_eq!(drawn, wanted);
    }

    #[test]
    fn each_line_of_a_picture_clears_what_stood_there() {
        let look = Look {
            answer: Answer::default(),
            notes: vec!["no relay answers: nobody".to_owned()],
            exit: Exit::Failed,
        };
        let drawn = picture(&[("s", look)], Duration::from_secs(2));
        assert!(drawn.starts_with("\x1b[Hno relay answers: nobody\x1b[K\n"));
        assert!(drawn.ends_with(", every 2s; Ctrl-C ends it\x1b[K\n\x1b[J"));
    }
}
