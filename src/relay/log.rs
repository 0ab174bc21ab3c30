//! What a person reads of a relay: one line for each change of its state, however many epochs that takes.
//!
//! In: how epochs begin and end. Out: log lines, and whether the start of an epoch already says that the relay is well.
//! An epoch that follows one which ended while it streamed would end like it as soon as it publishes: that it began is
//! no news, that it gets further is.

use crate::pipeline::burst::Burst;
use crate::pipeline::continuity::{Loss, Plan};
use crate::pipeline::dead_letter::RejectedRow;
use crate::pipeline::fault::{Class, Fault};
use crate::postgres::error::ServerError;
use crate::relay::STEADY;
use crate::relay::open::Summary;
use std::time::Duration;

/// An epoch with nothing in flight has got over what ended the one before after so long, and after as long again as
/// that one had lasted.
const QUIET: Duration = Duration::from_secs(1);

/// What the log has said last.
#[derive(Debug, Default)]
pub(super) struct Log {
    waiting_for: Option<Fault>,
    /// How long an epoch has to stay quiet before it counts; none where its beginning alone does.
    patience: Option<Duration>,
    warnings: Vec<String>,
}

/// The line of an epoch's start.
#[derive(Debug, Clone)]
pub(super) struct StartLine {
    postgres: String,
    nats: String,
    slot: String,
    stream: String,
    mode: &'static str,
    plan: Plan,
    /// How long to stay quiet before it is said; none for at once.
    pub(super) patience: Option<Duration>,
}

/// What the log says of dead letters: one deploy may make thousands of them.
#[derive(Debug, Default)]
pub(super) struct DeadLetterLog {
    burst: Burst,
}

impl DeadLetterLog {
    /// A row became a dead letter.
    pub(super) fn stored(&mut self, row: &RejectedRow, now: Duration) {
        let RejectedRow {
            position,
            event_id,
            reject,
        } = row;
        let reason = reject.reason();
        match self.burst.occurs(now) {
            true => tracing::error!(
                %position, event_id, reason, "a row cannot be published and became a dead letter: {reject}"
            ),
            false => tracing::debug!(
                %position, event_id, reason, "another row cannot be published and is a dead letter: {reject}"
            ),
        }
    }

    /// Says what is due; returns when to come again.
    pub(super) fn poll(&mut self, now: Duration) -> Option<Duration> {
        say_more(self.burst.poll(now));
        self.burst.next_time()
    }
}

impl Drop for DeadLetterLog {
    fn drop(&mut self) {
        say_more(self.burst.end());
    }
}

fn say_more(more: Option<u64>) {
    if let Some(more) = more {
        tracing::error!(
            more,
            "further rows became dead letters: `walrelay dead-letters list` shows them"
        );
    }
}

/// What the log has said of a standby that Postgres waits for before it sends more.
#[derive(Debug, Default)]
pub(super) struct StandbyWait {
    /// The server's words, and how many transactions had come by then.
    told: Option<(String, u64)>,
}

impl StandbyWait {
    /// The server waits: said once, and again when it waits for another one.
    pub(super) fn awaited(&mut self, notice: &ServerError, transactions: u64) {
        let text = notice.to_string();
        if self.told.as_ref().is_none_or(|(told, _)| *told != text) {
            tracing::warn!("Postgres sends nothing more before a standby has it: {text}");
        }
        self.told = Some((text, transactions));
    }

    /// Transactions that came later end the wait.
    pub(super) fn passed(&mut self, transactions: u64) {
        if self
            .told
            .as_ref()
            .is_some_and(|(_, before)| transactions > *before)
        {
            tracing::info!("Postgres sends on: the standby has what it waited for");
            self.told = None;
        }
    }
}

impl Log {
    /// An epoch could not begin.
    pub(super) fn not_begun(&mut self, fault: &Fault) {
        self.patience = None;
        self.wait(fault);
    }

    /// An epoch that had begun was ended by a fault, after so long.
    pub(super) fn ended(&mut self, fault: &Fault, progressed: bool, lasted: Duration) {
        self.patience = Some(match progressed {
            true => QUIET,
            false => (lasted + QUIET).min(STEADY),
        });
        self.wait(fault);
    }

    fn wait(&mut self, fault: &Fault) {
        if self
            .waiting_for
            .as_ref()
            .is_some_and(|last| is_same(last, fault))
        {
            tracing::debug!("still waiting: {fault}");
            return;
        }
        if fault.class() == Class::Resync {
            tracing::warn!("starting again from the stream's end: {fault}");
        } else {
            tracing::warn!("waiting: {fault}");
        }
        self.waiting_for = Some(fault.clone());
    }

    /// An epoch has begun: says what is new about it, and returns its line.
    pub(super) fn begun(&mut self, summary: &Summary, slot: &str, stream: &str) -> StartLine {
        let plan = &summary.plan;
        let mut warnings = summary.warnings.clone();
        if plan.foreign_messages > 0 {
            warnings.push(format!(
                "the stream ends with messages that no relay wrote, {} through sequence {}; they stay",
                plan.foreign_messages, plan.last_sequence
            ));
        }
        self.warn_of(&warnings);
        self.warnings = warnings;
        if let Some(loss) = &plan.loss {
            log_loss(loss);
        }
        StartLine {
            postgres: summary.postgres_version.clone(),
            nats: summary.nats_version.clone(),
            slot: slot.to_owned(),
            stream: stream.to_owned(),
            mode: summary.mode,
            plan: plan.clone(),
            patience: self.patience,
        }
    }

    /// Another relay has the lane. What is a risk in the catalog would be told too late by a takeover.
    pub(super) fn stands_by(&mut self, warnings: &[String]) {
        self.warn_of(warnings);
        let news = (warnings.iter()).filter(|warning| !self.warnings.contains(warning));
        let news: Vec<String> = news.cloned().collect();
        self.warnings.extend(news);
    }

    fn warn_of(&self, warnings: &[String]) {
        for warning in warnings {
            if !self.warnings.contains(warning) {
                tracing::warn!("{warning}");
            }
        }
    }

    /// The epoch's line was said: whatever was waited for is over.
    pub(super) fn is_well(&mut self) {
        self.waiting_for = None;
        self.patience = None;
    }
}

/// Whether a second line would tell a person nothing.
fn is_same(last: &Fault, fault: &Fault) -> bool {
    match (last, fault) {
        (Fault::AckTimeout(_), Fault::AckTimeout(_)) => true,
        _ => last == fault,
    }
}

impl StartLine {
    pub(super) fn log(&self) {
        let plan = &self.plan;
        let resume = plan.lane_end.as_ref().map_or_else(
            || "the slot's beginning".to_owned(),
            |lane_end| lane_end.position.to_string(),
        );
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            postgres = self.postgres,
            nats = self.nats,
            slot = self.slot,
            stream = self.stream,
            publish = self.mode,
            start_lsn = %plan.start_lsn,
            last_sequence = plan.last_sequence,
            "streaming, behind {resume}{}",
            replay_text(plan)
        );
    }
}

/// What a plan's `--from` publishes again.
fn replay_text(plan: &Plan) -> String {
    match (plan.replay_from, &plan.lane_end) {
        (None, _) => String::new(),
        (Some(from), Some(lane_end)) if from <= lane_end.position.commit_lsn => {
            format!(
                "; first it publishes again what committed from {from} up to there, marked as replay"
            )
        }
        (Some(from), _) => {
            format!("; nothing to replay: the stream has no event from {from} on")
        }
    }
}

fn log_loss(loss: &Loss) {
    let messages = loss.messages.map_or_else(
        || "an unknown number of".to_owned(),
        |count| format!("up to {count}"),
    );
    let after = loss
        .after
        .map_or_else(|| "the beginning".to_owned(), |after| after.to_string());
    match loss.gone_below {
        None => tracing::error!(
            "the broker has lost {messages} acknowledged messages, behind {after} through {}; the slot still has them all, \
             and the relay publishes them again now",
            loss.through
        ),
        Some(below) => tracing::error!(
            "the broker has lost {messages} acknowledged messages, behind {after} through {}; what committed from {below} on \
             is published again now; what committed before is no longer in the slot: `walrelay verify` names it",
            loss.through
        ),
    }
}
