//! Commands that publish for a slot's lanes beside the relay, as their leases tell.
//!
//! In: the leases of a slot. Out: which command is at work and how far it is, and which has ended without finishing. Guarantees:
//! reads only; whether a command lives is told by whether its lease changes while it is watched, by no clock of another machine.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::nats::admin::Admin;
use crate::nats::api::StoredMessage;
use crate::nats::stream::{LANE_RECORD_STREAM, lane_lease_subject};
use crate::relay::lane_client::{LaneClient, LaneError};

/// So often a holder of a lease is heard.
pub(crate) const RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// A holder without a sign of life for so long has ended, or stands still.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Stands in a command line for the id of an aggregate that is erased.
pub(crate) const NOT_KEPT: &str = "<ID>";

/// How far a command is; the names are keys of the stored lease.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Work {
    /// What it does now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// Messages of this stage that are done.
    #[serde(default)]
    pub done: u64,
    /// All messages of this stage, as far as they are known.
    #[serde(default)]
    pub total: u64,
    /// Since the stage began, on average.
    #[serde(default)]
    pub per_second: u64,
}

/// What a lease has stored; an older version's has less.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    /// Its name.
    pub(crate) command: String,
    /// What was typed, without secrets and without what is erased.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) line: Option<String>,
    pub(crate) process: u32,
    /// RFC 3339, for people.
    pub(crate) since: String,
    /// Tells two commands apart; the leases of one command have the same.
    pub(crate) token: String,
    /// The command has ended.
    pub(crate) released: bool,
    /// One that had it before has not given it back, or not heard what has become of all that it has sent: that may still be stored.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_unfenced: bool,
    #[serde(default)]
    pub(crate) work: Work,
    /// Other commands that had it before, and ended without giving it back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) unfinished: Vec<Holder>,
}

impl Holder {
    pub(crate) fn read(message: &StoredMessage) -> Result<Self, LaneError> {
        serde_json::from_slice(&message.data).map_err(|error| LaneError::Lease(error.to_string()))
    }
}

/// A command beside the relay; the names are the JSON keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkWork {
    /// What was typed, without secrets.
    pub command: String,
    /// The stream of the lane that it publishes for.
    pub stream: String,
    /// Its process id, wherever it runs.
    pub process: u32,
    /// When it began, by its own clock.
    pub since: String,
    /// It shows no sign of life: run it again.
    pub ended: bool,
    /// How far it is, or was.
    #[serde(flatten)]
    pub work: Work,
    /// At this rate; none where nothing tells.
    pub seconds_left: Option<u64>,
}

impl BulkWork {
    pub(crate) fn of(holder: Holder, stream: &str, ended: bool) -> Self {
        let work = holder.work;
        let left = work.total.saturating_sub(work.done);
        BulkWork {
            command: holder
                .line
                .unwrap_or_else(|| format!("walrelay {}", holder.command)),
            stream: stream.to_owned(),
            process: holder.process,
            since: holder.since,
            ended,
            seconds_left: (!ended && work.total > 0 && work.per_second > 0)
                .then(|| left.div_ceil(work.per_second)),
            work,
        }
    }

    /// What it is, and how far.
    #[must_use]
    pub fn what(&self) -> String {
        let mut text = format!(
            "{} (process {}, since {}, stream {})",
            self.command, self.process, self.since, self.stream
        );
        if self.ended {
            text += " has ended without finishing";
        }
        if let Some(stage) = &self.work.stage {
            text += &format!(": {stage}");
        }
        let Work {
            done,
            total,
            per_second,
            ..
        } = self.work;
        if total > 0 {
            text += &format!(", {done} of {total}");
        }
        if !self.ended && per_second > 0 {
            text += &format!(", {per_second} a second");
        }
        if let Some(seconds) = self.seconds_left {
            text += &format!(", {seconds} s left");
        }
        text
    }

    /// What ends it where it has not finished.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        let why = match self.command.contains(NOT_KEPT) {
            true => format!(", with the id for {NOT_KEPT}, which is not kept"),
            false => String::new(),
        };
        self.ended
            .then(|| format!("run it again: {}{why}", self.command))
    }

    /// Both.
    #[must_use]
    pub fn text(&self) -> String {
        let remedy = self.remedy();
        let remedy = remedy.map_or_else(String::new, |remedy| format!("; {remedy}"));
        self.what() + &remedy
    }
}

/// A lease while it is watched.
#[derive(Debug)]
struct Watched {
    sequence: u64,
    at: Instant,
    is_heard: bool,
}

/// The leases of one slot, look after look.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    by_stream: BTreeMap<String, Watched>,
}

/// What one look has found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) works: Vec<BulkWork>,
    /// Of another one it is not known yet whether it lives.
    pub(crate) is_undecided: bool,
}

impl Watch {
    /// Looks once.
    ///
    /// # Errors
    /// [`LaneError`].
    pub(crate) async fn look(&mut self, nats: &Admin, slot: &str) -> Result<Found, LaneError> {
        let leases = leases(nats, slot).await?;
        Ok(self.take(leases, Instant::now()))
    }

    fn take(&mut self, leases: Vec<(String, u64, Holder)>, now: Instant) -> Found {
        let mut found = Found::default();
        // A command may have several lanes.
        let mut by_token: BTreeMap<String, BulkWork> = BTreeMap::new();
        let mut tell = |holder: Holder, stream: &str, ended: bool| {
            let token = holder.token.clone();
            // Stored later, so it knows more.
            let ended = ended && by_token.get(&token).is_none_or(|work| work.ended);
            by_token.insert(token, BulkWork::of(holder, stream, ended));
        };
        for (stream, sequence, mut holder) in leases {
            for unfinished in std::mem::take(&mut holder.unfinished) {
                tell(unfinished, &stream, true);
            }
            if holder.released {
                continue;
            }
            match self.is_alive(&stream, sequence, now) {
                Some(is_alive) => tell(holder, &stream, !is_alive),
                None => found.is_undecided = true,
            }
        }
        found.works = by_token.into_values().collect();
        found.works.sort_by(|a, b| a.since.cmp(&b.since));
        found
    }

    /// Whether the lease's holder lives; none where nothing tells yet.
    fn is_alive(&mut self, stream: &str, sequence: u64, now: Instant) -> Option<bool> {
        let watched = self.by_stream.entry(stream.to_owned()).or_insert(Watched {
            sequence,
            at: now,
            is_heard: false,
        });
        if watched.sequence != sequence {
            *watched = Watched {
                sequence,
                at: now,
                is_heard: true,
            };
        }
        match now.duration_since(watched.at) >= PATIENCE {
            true => Some(false),
            false => watched.is_heard.then_some(true),
        }
    }
}

/// All leases of the slot, in the order in which they were stored: their streams, where they are stored, and what they say.
async fn leases(nats: &Admin, slot: &str) -> Result<Vec<(String, u64, Holder)>, LaneError> {
    let records = LaneClient::new(nats, LANE_RECORD_STREAM, slot)?;
    let subjects = lane_lease_subject("*", slot);
    let last = match records.last_of_each(&subjects, |_| true).await {
        Err(LaneError::NoStream(_)) => return Ok(Vec::new()),
        last => last?,
    };
    let mut found = Vec::new();
    for (subject, message) in last {
        let stream = subject.split('.').nth(2).unwrap_or_default();
        found.push((stream.to_owned(), message.seq, Holder::read(&message)?));
    }
    found.sort_by_key(|(_, sequence, _)| *sequence);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(command: &str, token: &str) -> Holder {
        Holder {
            command: command.to_owned(),
            line: Some(format!("walrelay {command} --yes")),
            process: 7,
            since: "2026-11-29T07:00:00Z".to_owned(),
            token: token.to_owned(),
            released: false,
            is_unfenced: false,
            work: Work {
                stage: Some("publishing".to_owned()),
                done: 10,
                total: 40,
                per_second: 7,
            },
            unfinished: Vec::new(),
        }
    }

    fn lease(sequence: u64, holder: &Holder) -> Vec<(String, u64, Holder)> {
        vec![("A".to_owned(), sequence, holder.clone())]
    }

    #[test]
    fn a_holder_lives_while_its_lease_changes() {
        let (mut watch, begin) = (Watch::default(), Instant::now());
        let backfill = holder("backfill", "a");
        let first = watch.take(lease(1, &backfill), begin);
        assert!(first.is_undecided && first.works.is_empty());
        let found = watch.take(lease(2, &backfill), begin + RENEW_INTERVAL);
        assert!(!found.is_undecided && !found.works[0].ended);
        assert_eq!(
            found.works[0].text(),
            "walrelay backfill --yes (process 7, since 2026-11-29T07:00:00Z, stream A): publishing, 10 of 40, 7 a second, 5 s left"
        );
        // A renewal may be late.
        let late = watch.take(lease(2, &backfill), begin + PATIENCE);
        assert!(!late.works[0].ended);
        let silent = watch.take(lease(2, &backfill), begin + RENEW_INTERVAL + PATIENCE);
        assert_eq!(
            silent.works[0].text(),
            "walrelay backfill --yes (process 7, since 2026-11-29T07:00:00Z, stream A) has ended without finishing: publishing, \
             10 of 40; run it again: walrelay backfill --yes"
        );
        // The machine was asleep.
        let again = watch.take(lease(3, &backfill), begin + 3 * PATIENCE);
        assert!(!again.works[0].ended);
        let released = Holder {
            released: true,
            ..backfill
        };
        let done = watch.take(lease(4, &released), begin + 4 * PATIENCE);
        assert!(!done.is_undecided && done.works.is_empty());
    }

    #[test]
    fn what_was_killed_is_told_until_its_like_has_ended() {
        let retry = Holder {
            released: true,
            unfinished: vec![holder("backfill", "a")],
            ..holder("dead-letters retry", "b")
        };
        let found = Watch::default().take(lease(9, &retry), Instant::now());
        assert!(!found.is_undecided && found.works.len() == 1);
        assert_eq!(
            found.works[0].remedy().as_deref(),
            Some("run it again: walrelay backfill --yes")
        );
    }

    #[test]
    fn a_command_with_two_lanes_is_told_once() {
        let (mut watch, begin) = (Watch::default(), Instant::now());
        let moving = holder("move", "a");
        let both = |from, to| {
            vec![
                ("A".to_owned(), from, moving.clone()),
                ("B".to_owned(), to, moving.clone()),
            ]
        };
        watch.take(both(1, 2), begin);
        let found = watch.take(both(3, 2), begin + PATIENCE);
        assert_eq!(found.works.len(), 1);
        assert!(!found.works[0].ended);
    }

    #[test]
    fn the_lease_of_an_older_version_has_no_more_than_a_name() {
        let old = br#"{"command":"erase","process":3,"since":"x","token":"t","released":false}"#;
        let old: Holder = serde_json::from_slice(old).expect("an older lease is read");
        let work = BulkWork::of(old, "A", true);
        assert_eq!(
            work.text(),
            "walrelay erase (process 3, since x, stream A) has ended without finishing; run it again: walrelay erase"
        );
    }
}
