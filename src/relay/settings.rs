//! What a relay is told: two servers, and how it behaves.
//!
//! In: nothing; the configuration fills these types. Out: plain values. Guarantee: where they were loaded, each has
//! passed its check, so its readers check nothing again.

use std::time::Duration;

use crate::nats::settings::ConnectionSettings;
use crate::nats::stream::StreamSettings;
use crate::pipeline::after_publish::AfterPublish;
use crate::pipeline::dead_letter;
use crate::pipeline::mapping::{Mapping, MessageSettings};
use crate::pipeline::shared_end_search::fence_subject;
use crate::pipeline::subject::SubjectTemplate;
use crate::postgres::settings::PostgresSettings;

/// Everything that a relay is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Metric label, and the slot's and publication's name where those are not given.
    pub name: String,
    /// `[postgres]`
    pub postgres: PostgresSettings,
    /// `[nats]`
    pub nats: NatsSettings,
    /// `[message]`: what becomes of a row, beside its subject.
    pub message: MessageSettings,
    /// `[relay]`
    pub relay: RelaySettings,
    /// `[outbox]`
    pub outbox: OutboxSettings,
}

impl Settings {
    /// What of a row becomes what of a message.
    pub fn mapping(&self) -> Mapping {
        Mapping::new(
            self.postgres.columns.clone(),
            self.nats.subject.clone(),
            self.message.clone(),
        )
    }

    /// The same of each table by itself, the lane's own first: for what is about one table.
    #[must_use]
    pub fn tables(&self) -> Vec<Settings> {
        let mut tables = Vec::new();
        let further = self.postgres.further.iter();
        let mappings = std::iter::once(self.mapping()).chain(further.map(|it| it.mapping.clone()));
        for (postgres, mapping) in self.postgres.tables().into_iter().zip(mappings) {
            let nats = NatsSettings {
                subject: mapping.subject,
                ..self.nats.clone()
            };
            tables.push(Settings {
                postgres,
                nats,
                message: mapping.message,
                ..self.clone()
            });
        }
        tables
    }
}

/// `[nats]`: which servers, and where the events go.
#[derive(Debug, Clone)]
pub struct NatsSettings {
    /// How to reach the servers.
    pub connection: ConnectionSettings,
    /// The JetStream stream.
    pub stream: String,
    /// Template of the events' subjects.
    pub subject: SubjectTemplate,
    /// All that the tables of the lane publish on, where it has several; empty where it has one.
    pub further_subjects: Vec<String>,
    /// Others write to the stream too: other relays, or anything else.
    pub shared: bool,
    /// What other lanes of this configuration publish on in the same stream.
    pub neighbours: Vec<String>,
}

impl NatsSettings {
    /// Of events and dead letters. Dead letters stay those of this slot: another slot's may be in a stream of its own.
    pub(crate) fn own_subjects(&self, slot: &str) -> Vec<String> {
        let mut subjects = self.event_subjects();
        subjects.push(dead_letter::subject(slot));
        subjects
    }

    /// What the lane's events come on.
    pub(crate) fn event_subjects(&self) -> Vec<String> {
        match self.further_subjects.is_empty() {
            true => vec![self.subject.filter()],
            false => self.further_subjects.clone(),
        }
    }

    /// What a slot's lane wants of its stream; a new one has a single replica.
    #[must_use]
    pub fn stream_settings(&self, slot: &str) -> StreamSettings {
        let mut subjects = self.own_subjects(slot);
        let mut subjects_to_create = subjects.clone();
        let neighbours = self.neighbours.iter();
        subjects_to_create.extend(
            neighbours
                .filter(|other| !subjects.contains(other))
                .cloned(),
        );
        if self.shared {
            subjects.push(fence_subject(&self.stream, slot));
            // A new one is ready for every slot's fence.
            subjects_to_create.push(fence_subject(&self.stream, "*"));
        }
        StreamSettings {
            name: self.stream.clone(),
            subjects,
            subjects_to_create,
            slot: slot.to_owned(),
            num_replicas: 1,
            shared: self.shared,
        }
    }
}

/// `[relay]`: how the relay behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelaySettings {
    /// How old an acknowledged event must be before Postgres may forget its WAL; zero confirms at the ack.
    pub hold_back: Duration,
    /// What becomes of a row that can never be published.
    pub on_reject: OnReject,
    /// Messages sent and not yet acknowledged, at most.
    pub window_messages_max: usize,
    /// Bytes of messages sent and not yet acknowledged, at most.
    pub window_bytes_max: usize,
    /// Silence of the broker with messages in flight that ends the epoch.
    pub ack_timeout: Duration,
    /// How long a stop waits for acks that are under way.
    pub shutdown_timeout: Duration,
    /// Longest time between two status updates to Postgres, which frees the slot after three that do not come.
    pub status_interval: Duration,
    /// Longest pause between two epochs.
    pub backoff_max: Duration,
}

/// `[outbox]`: the table's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OutboxSettings {
    /// What becomes of a published row.
    pub after_publish: AfterPublish,
}

/// What becomes of a row that can never be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReject {
    /// It becomes a small dead-letter message at its position.
    DeadLetter,
    /// The relay halts and waits for a person.
    Halt,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::address::NatsAuth;

    #[test]
    fn a_stream_stores_events_dead_letters_and_fences() {
        let mut nats = NatsSettings {
            connection: ConnectionSettings::new(Vec::new(), NatsAuth::None),
            stream: "OUTBOX".to_owned(),
            subject: "outbox.{event_type}".parse().expect("a template"),
            further_subjects: Vec::new(),
            shared: false,
            neighbours: Vec::new(),
        };
        let own = nats.stream_settings("s");
        assert_eq!(own.subjects, ["outbox.>", "walrelay.dead.s"]);
        assert_eq!(own.subjects_to_create, own.subjects);
        nats.shared = true;
        let shared = nats.stream_settings("s");
        let fences = |slot: &str| format!("walrelay.fence.OUTBOX.{slot}");
        assert_eq!(
            shared.subjects,
            ["outbox.>", "walrelay.dead.s", &fences("s")]
        );
        assert_eq!(
            shared.subjects_to_create,
            ["outbox.>", "walrelay.dead.s", &fences("*")]
        );
    }
}
