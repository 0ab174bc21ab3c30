//! What the database committed against what the stream holds.
//!
//! In: the committed ids in commit order, the stream's messages in the stream's order, the ids that the test itself
//! removed from the stream. Out: a [`Verdict`]. It knows nothing of positions, slots or acknowledgements; it would
//! judge any relay alike.

use std::collections::{HashMap, HashSet};

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::jetstream;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use futures_util::StreamExt as _;
use uuid::Uuid;

use crate::event::{self, Row};

/// Subject of the messages that the test puts between the relay's.
pub const FOREIGN_SUBJECT: &str = "outbox.foreign";
/// How many examples of each defect are told.
const EXAMPLES_MAX: usize = 5;

/// The sum of it.
#[derive(Debug, Default)]
pub struct Verdict {
    pub committed: usize,
    pub in_the_stream: usize,
    pub dead_letters: usize,
    pub dead_letters_expected: usize,
    pub foreign: usize,
    /// Removed from the stream by the test.
    pub removed: usize,
    pub lost: usize,
    pub doubled: usize,
    pub reordered: usize,
    pub phantom: usize,
    pub altered: usize,
    pub examples: Vec<String>,
}

impl Verdict {
    pub fn holds(&self) -> bool {
        self.committed > 0
            && [
                self.lost,
                self.doubled,
                self.reordered,
                self.phantom,
                self.altered,
            ] == [0; 5]
    }
}

/// The comparison, message by message.
pub struct Checker<'a> {
    ids: &'a [Uuid],
    ranks: HashMap<Uuid, usize>,
    seen: Vec<bool>,
    /// By what is in one order: an aggregate, or all events under none.
    highest: HashMap<Option<Uuid>, usize>,
    by_aggregate: bool,
    removed: &'a HashSet<Uuid>,
    verdict: Verdict,
}

impl<'a> Checker<'a> {
    pub fn new(ids: &'a [Uuid], removed: &'a HashSet<Uuid>) -> Checker<'a> {
        let dead = |id: &&Uuid| event::kind(**id).is_some_and(|kind| kind.reason().is_some());
        Checker {
            ids,
            ranks: ids
                .iter()
                .enumerate()
                .map(|(rank, id)| (*id, rank))
                .collect(),
            seen: vec![false; ids.len()],
            highest: HashMap::new(),
            by_aggregate: false,
            removed,
            verdict: Verdict {
                committed: ids.len(),
                dead_letters_expected: ids.iter().filter(dead).count(),
                ..Verdict::default()
            },
        }
    }

    /// A checker to which only the order of each aggregate counts, as in an outbox with shares.
    pub fn of_aggregates(ids: &'a [Uuid], removed: &'a HashSet<Uuid>) -> Checker<'a> {
        Checker {
            by_aggregate: true,
            ..Checker::new(ids, removed)
        }
    }

    /// The next message of the stream.
    pub fn message(
        &mut self,
        sequence: u64,
        subject: &str,
        headers: Option<&HeaderMap>,
        body: &[u8],
    ) {
        if subject == FOREIGN_SUBJECT {
            self.verdict.foreign += 1;
            return;
        }
        if subject.starts_with("walrelay.fence.") {
            return;
        }
        self.verdict.in_the_stream += 1;
        let dead = subject.starts_with("walrelay.dead.");
        self.verdict.dead_letters += usize::from(dead);
        let Some(id) = id_of(body) else {
            self.verdict.phantom += 1;
            return self.example(format!(
                "phantom: message {sequence} on {subject} has no id"
            ));
        };
        let Some(&rank) = self.ranks.get(&id) else {
            self.verdict.phantom += 1;
            return self.example(format!("phantom: message {sequence}, event {id}"));
        };
        if self.seen[rank] {
            self.verdict.doubled += 1;
            return self.example(format!(
                "doubled: message {sequence}, event {id}, rank {rank}"
            ));
        }
        self.seen[rank] = true;
        let ordered = self.by_aggregate.then(|| Row::of(id).aggregate_id);
        let highest = self.highest.insert(ordered, rank);
        if let Some(highest) = highest.filter(|highest| *highest > rank) {
            self.verdict.reordered += 1;
            self.example(format!(
                "reordered: message {sequence}, event {id}, rank {rank} behind {highest}"
            ));
            self.highest.insert(ordered, highest);
        }
        if !is_as_expected(id, subject, headers, body, dead) {
            self.verdict.altered += 1;
            self.example(format!("altered: message {sequence}, event {id}"));
        }
    }

    fn example(&mut self, text: String) {
        let word = text.split(':').next().unwrap_or_default();
        let told = self
            .verdict
            .examples
            .iter()
            .filter(|example| example.starts_with(word))
            .count();
        if told < EXAMPLES_MAX {
            self.verdict.examples.push(text);
        }
    }

    /// All messages were told.
    pub fn finish(mut self) -> Verdict {
        for (rank, id) in self.ids.iter().enumerate() {
            if self.seen[rank] {
                continue;
            }
            if self.removed.contains(id) {
                self.verdict.removed += 1;
            } else {
                self.verdict.lost += 1;
                self.example(format!("lost: event {id}, rank {rank}"));
            }
        }
        self.verdict
    }
}

fn is_as_expected(
    id: Uuid,
    subject: &str,
    headers: Option<&HeaderMap>,
    body: &[u8],
    dead: bool,
) -> bool {
    let header = |name| {
        headers
            .and_then(|headers| headers.get(name))
            .map(|value| value.as_str())
    };
    match event::kind(id).and_then(event::Kind::reason) {
        Some(reason) => dead && header("Walrelay-Reason") == Some(reason),
        None => {
            let row = Row::of(id);
            !dead
                && header("Walrelay-Kind").is_none()
                && without_share(subject) == Some(&row.event_type)
                && body == row.envelope().as_bytes()
        }
    }
}

/// The event type of a subject, behind the number of a share where it has one.
fn without_share(subject: &str) -> Option<&str> {
    let behind = subject.strip_prefix("outbox.")?;
    let share = behind.split_once('.');
    let share = share.filter(|(number, _)| number.parse::<u32>().is_ok());
    Some(share.map_or(behind, |(_, event_type)| event_type))
}

/// The id of an envelope or of a dead letter: both begin with it.
pub fn id_of(body: &[u8]) -> Option<Uuid> {
    let rest = body.strip_prefix(br#"{"id":""#)?;
    Uuid::try_parse_ascii(rest.get(..36)?).ok()
}

/// Reads the stream from its first message to its last.
pub async fn read(
    client: async_nats::Client,
    stream: &str,
    checker: &mut Checker<'_>,
) -> anyhow::Result<()> {
    let mut stream = jetstream::new(client).get_stream(stream).await?;
    let last_sequence = stream.info().await?.state.last_sequence;
    if stream.cached_info().state.messages == 0 {
        return Ok(());
    }
    let config = OrderedConfig {
        deliver_policy: DeliverPolicy::All,
        ..OrderedConfig::default()
    };
    let mut messages = stream.create_consumer(config).await?.messages().await?;
    let (mut read, expected) = (0, stream.cached_info().state.messages);
    while let Some(message) = messages.next().await {
        let message = message.context("reading the stream")?;
        let sequence = message
            .info()
            .map_err(|error| anyhow::anyhow!(error))?
            .stream_sequence;
        checker.message(
            sequence,
            &message.subject,
            message.headers.as_ref(),
            &message.payload,
        );
        read += 1;
        if sequence >= last_sequence || read >= expected {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: &[u8]) -> Vec<Uuid> {
        let id = |number: &u8| Uuid::from_u128((0x0e << 120) | u128::from(*number));
        numbers.iter().map(id).collect()
    }

    /// Lost, doubled, reordered, phantom, altered.
    fn judge(committed: &[u8], stored: &[u8], removed: &[u8]) -> [usize; 5] {
        let (committed, removed) = (ids(committed), ids(removed).into_iter().collect());
        let mut checker = Checker::new(&committed, &removed);
        for (sequence, id) in (1..).zip(ids(stored)) {
            let row = Row::of(id);
            let subject = format!("outbox.{}", row.event_type);
            checker.message(sequence, &subject, None, row.envelope().as_bytes());
        }
        let verdict = checker.finish();
        [
            verdict.lost,
            verdict.doubled,
            verdict.reordered,
            verdict.phantom,
            verdict.altered,
        ]
    }

    #[test]
    fn each_defect_is_seen_and_named() {
        assert_eq!(judge(&[3, 1, 2], &[3, 1, 2], &[]), [0; 5]);
        assert_eq!(judge(&[3, 1, 2], &[3, 2], &[]), [1, 0, 0, 0, 0]);
        assert_eq!(judge(&[3, 1, 2], &[3, 2], &[1]), [0; 5]);
        assert_eq!(judge(&[3, 1, 2], &[3, 1, 2, 1], &[]), [0, 1, 0, 0, 0]);
        assert_eq!(judge(&[3, 1, 2], &[1, 3, 2], &[]), [0, 0, 1, 0, 0]);
        assert_eq!(judge(&[3, 1, 2], &[3, 9, 1, 2], &[]), [0, 0, 0, 1, 0]);
    }

    #[test]
    fn of_aggregates_only_their_own_order_counts() {
        // Numbers modulo 1,000 are aggregates.
        let id = |number: u128| Uuid::from_u128((0x0e << 120) | number);
        let committed: Vec<Uuid> = [1, 2, 1_001].map(id).to_vec();
        for (stored, reordered) in [([2, 1, 1_001], 0), ([1_001, 2, 1], 1)] {
            let removed = HashSet::new();
            let mut checker = Checker::of_aggregates(&committed, &removed);
            for (sequence, id) in (1..).zip(stored.map(id)) {
                let row = Row::of(id);
                let subject = format!("outbox.3.{}", row.event_type);
                checker.message(sequence, &subject, None, row.envelope().as_bytes());
            }
            let verdict = checker.finish();
            assert_eq!((verdict.reordered, verdict.altered), (reordered, 0));
        }
    }

    #[test]
    fn an_altered_message_is_seen() {
        let (committed, removed) = (ids(&[1]), HashSet::new());
        let mut checker = Checker::new(&committed, &removed);
        let row = Row::of(committed[0]);
        let body = row.envelope().replace("\"pad\": ", "\"pad\":");
        checker.message(
            1,
            &format!("outbox.{}", row.event_type),
            None,
            body.as_bytes(),
        );
        assert_eq!(checker.finish().altered, 1);
    }
}
