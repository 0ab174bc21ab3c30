//! What the check has found.
//!
//! In: counts and examples. Out: the verdict with its exit code, as text ([`text`]) or as one JSON object. Guarantee: at most
//! [`SAMPLES_MAX`] examples of each kind, however many there are.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::compare::{Group, Verdict};
use super::key;
use super::lane::{LaneReading, SAMPLES_MAX};
use super::slot::Settled;
use super::table::Table;
use crate::cli::dead_letters::letters::Letters;
use crate::cli::exit::Exit;
use crate::cli::stdout::Account;

mod text;

/// How long a row may wait for a relay.
const PENDING_MAX: Duration = Duration::from_secs(5);

/// One example.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Example {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// In the stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    /// Of the last one, where it is there more than once.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<String>,
    /// Of another one whose share is no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    slot: Option<String>,
    /// The position that came before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    behind: Option<String>,
}

impl Example {
    fn of_row(group: &Group) -> Self {
        Example {
            id: Some(key::text(group.id)),
            ..Example::default()
        }
    }

    pub(super) fn of_event(group: &Group) -> Self {
        Example {
            sequence: Some(group.sequence),
            ..Example::of_row(group)
        }
    }

    fn of_copies(group: &Group) -> Self {
        Example {
            sequence: group.copies.map(|(first, _)| first),
            last_sequence: group.copies.map(|(_, last)| last),
            ..Example::of_row(group)
        }
    }

    fn of_dead_letter(group: &Group) -> Self {
        Example {
            sequence: Some(group.dead_letter_sequence),
            ..Example::of_row(group)
        }
    }
}

/// How many, and the first few.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Findings {
    count: u64,
    examples: Vec<Example>,
}

impl Findings {
    pub(super) fn add(&mut self, count: u64, example: impl FnOnce() -> Example) {
        self.count += count;
        if self.examples.len() < SAMPLES_MAX {
            self.examples.push(example());
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_none(count: &u64) -> bool {
    *count == 0
}

/// Everything; the names are the JSON keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    /// `clean`, `found` or `unchecked`.
    verdict: &'static str,
    /// Which of the lane's tables, where it has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<String>,
    rows: u64,
    rows_without_id: u64,
    /// All rows of the snapshot were committed below this.
    snapshot_lsn: String,
    /// The table was read on a standby.
    on_standby: bool,
    messages: u64,
    events: u64,
    /// Replays, retries, backfills.
    again: u64,
    dead_letters: u64,
    /// Of the lane, and no events: where it was adopted or erased, its fences, the states of dead letters.
    marks: u64,
    /// Of other slots, or of no relay.
    foreign: u64,
    /// Of other tables of the lane; in the report on a further one, those of no table too.
    #[serde(skip_serializing_if = "is_none")]
    of_other_tables: u64,
    /// Messages that are no longer there between the stream's first and last.
    removed_inside: u64,
    missing: Findings,
    /// In the table, not in the stream, which may have had their messages and removed them.
    unjudged: Findings,
    doubled: Findings,
    out_of_order: Findings,
    /// Open dead letters.
    dead_lettered: Findings,
    /// Dead letters that nobody wants published.
    discarded: u64,
    /// Dead letters that are marked as retried, and whose events are not there; they count as missing, or as dead-lettered where
    /// the table has no row of them.
    unretried: u64,
    pub(super) phantom: Findings,
    /// Events that would be phantoms, had no rows been deleted: no finding.
    pub(super) rowless: Findings,
    /// In the table and the slot, not in the stream yet.
    pending: u64,
    /// Age of the oldest of these.
    pending_seconds: Option<u64>,
    /// In the table and the slot, at positions whose messages the stream has removed.
    removed: u64,
    /// The relay had not passed the snapshot: what is missing may still come.
    is_behind: bool,
    /// The broker has lost messages of pending rows, which the relay had published and publishes again.
    is_set_back: bool,
    /// A change of the number of shares is not at its end: what is missing may be in slots of lanes that are no more.
    pub(super) left: Option<String>,
    /// Why the stream cannot serve as it is configured now, if it cannot.
    unfit: Option<String>,
    /// Partitions whose rows nobody sees, and what mends that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) detached: Option<String>,
    #[serde(skip)]
    has_slot: bool,
    /// Rows that are older are left out.
    #[serde(skip)]
    pub(super) since: Option<DateTime<Utc>>,
    /// Unjudged only for an older row of the same id.
    #[serde(skip)]
    ambiguous: u64,
    /// Unjudged only for a message of another table.
    #[serde(skip)]
    former: u64,
    /// Missing, and not told from the unjudged ones.
    #[serde(skip)]
    unnamed: u64,
}

impl Report {
    pub(super) fn new(
        name: Option<String>,
        table: &Table,
        lane: &LaneReading,
        settled: Settled,
        pending_for: Option<Duration>,
        unfit: Option<String>,
    ) -> Self {
        let dead_lettered = Findings {
            count: lane.dead_letters_without_id,
            examples: Vec::new(),
        };
        Report {
            verdict: "",
            table: name,
            rows: table.rows,
            rows_without_id: table.rows_without_id,
            snapshot_lsn: table.snapshot_lsn.to_string(),
            on_standby: table.in_recovery,
            messages: lane.messages,
            events: lane.events,
            again: lane.again,
            dead_letters: lane.dead_letters,
            marks: lane.marks,
            foreign: lane.foreign,
            of_other_tables: lane.of_other_tables,
            removed_inside: lane.removed_inside,
            missing: Findings::default(),
            unjudged: Findings::default(),
            doubled: Findings::default(),
            out_of_order: Findings {
                count: lane.out_of_order,
                examples: lane
                    .misplaced
                    .iter()
                    .map(|misplaced| Example {
                        sequence: Some(misplaced.sequence),
                        position: Some(misplaced.position.to_string()),
                        behind: Some(misplaced.behind.to_string()),
                        ..Example::default()
                    })
                    .collect(),
            },
            dead_lettered,
            discarded: lane.discarded_without_id,
            unretried: 0,
            phantom: Findings::default(),
            rowless: Findings::default(),
            pending: 0,
            pending_seconds: pending_for.map(|age| age.as_secs()),
            removed: 0,
            is_behind: settled == Settled::Behind,
            is_set_back: settled == Settled::SetBack,
            left: None,
            unfit,
            detached: None,
            has_slot: settled != Settled::NoSlot,
            since: None,
            ambiguous: 0,
            former: 0,
            unnamed: 0,
        }
    }

    /// Adds what is the matter with one id, but for phantoms: they are looked for once more.
    pub(super) fn take(&mut self, group: &Group, verdict: &Verdict) {
        self.pending += verdict.pending;
        self.removed += verdict.removed;
        self.discarded += verdict.discarded;
        self.unretried += verdict.unretried;
        self.ambiguous += verdict.ambiguous;
        self.former += verdict.former;
        let unjudged = verdict.unjudgeable();
        let of_row: fn(&Group) -> Example = Example::of_row;
        for (findings, count, example) in [
            (&mut self.missing, verdict.missing, of_row),
            (&mut self.unjudged, unjudged, of_row),
            (&mut self.doubled, verdict.doubled, Example::of_copies),
            (
                &mut self.dead_lettered,
                verdict.dead_lettered,
                Example::of_dead_letter,
            ),
        ] {
            if count > 0 {
                findings.add(count, || example(group));
            }
        }
    }

    /// Adds the open ones of a lane whose share is no more. Its rows count as published until then, whatever share they are of.
    pub(super) fn take_letters(&mut self, slot: &str, letters: &Letters) {
        for letter in letters.open() {
            let example = || Example {
                id: letter.id.clone(),
                sequence: Some(letter.place.sequence),
                slot: Some(slot.to_owned()),
                ..Example::default()
            };
            self.dead_lettered.add(1, example);
        }
    }

    /// Of the rows without a message at most `removed_max` can have had one that was removed: the others are missing,
    /// whichever they are.
    pub(super) fn explain(&mut self, removed_max: u64) {
        let unjudged = self.unjudged.count - self.ambiguous - self.former;
        let missing = unjudged.saturating_sub(removed_max);
        self.unjudged.count -= missing;
        self.missing.count += missing;
        self.unnamed = missing;
    }

    /// Whether what is missing may still come.
    pub(super) fn may_come(&self) -> bool {
        let may_come = self.is_behind || self.left.is_some();
        may_come && self.missing.count + self.unjudged.count > 0
    }

    /// What keeps from publishing what is missing, if anything does.
    pub(super) fn in_the_way(&self) -> Option<String> {
        if self.is_set_back {
            return Some(format!("{}, and run this again", self.set_back()));
        }
        let behind = "what is missing cannot be told from what is still to come: the relay is too far behind";
        let why = self.left.as_deref().unwrap_or(behind);
        self.may_come().then(|| why.to_owned())
    }

    /// Whether the lane does not move although something is to be published.
    fn stands_still(&self) -> bool {
        let seconds = self.pending_seconds.unwrap_or(0);
        self.pending > 0 && seconds > PENDING_MAX.as_secs()
    }

    fn kinds(&self) -> [(&'static str, &Findings); 6] {
        [
            ("missing", &self.missing),
            ("unjudged", &self.unjudged),
            ("doubled", &self.doubled),
            ("out of order", &self.out_of_order),
            ("dead-lettered", &self.dead_lettered),
            ("phantom", &self.phantom),
        ]
    }

    /// What the command ends with.
    pub(super) fn exit(&self) -> Exit {
        let found = [
            &self.doubled,
            &self.out_of_order,
            &self.dead_lettered,
            &self.phantom,
        ]
        .into_iter()
        .any(|kind| kind.count > 0);
        let is_missing = self.missing.count > 0 && !self.may_come();
        if found || is_missing || self.stands_still() || self.unfit.is_some() {
            Exit::Failed
        } else if self.may_come() || self.is_set_back || self.unjudged.count > 0 {
            Exit::Unchecked
        } else {
            Exit::Done
        }
    }

    /// A reader that goes away does not take the exit code with it.
    pub(super) fn print(&self, json: bool) -> Result<(), anyhow::Error> {
        let mut report = self.clone();
        report.verdict = match self.exit() {
            Exit::Done => "clean",
            Exit::Failed => "found",
            _ => "unchecked",
        };
        let mut account = Account::default();
        if json {
            account.line(serde_json::to_string(&report)?);
        } else {
            account.line(report.text());
        }
        account.close()
    }
}
