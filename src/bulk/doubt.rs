//! Messages of a command of which nobody knows whether they are stored, and what tells that they are.
//!
//! In: what was sent, what the stream has where it would stand. Out: whether that is it. Pure. Guarantee: what somebody else has put there
//! counts as none of them, whatever it carries; the stream's relay puts events there with the same body.

use std::collections::VecDeque;

use anyhow::{Context as _, bail, ensure};

use super::Queued;
use crate::nats::api::StoredMessage;
use crate::nats::headers::Headers;
use crate::pipeline::event_id::ID_HEADERS;
use crate::pipeline::position::{
    BATCH_HEADER, BATCH_SEQUENCE_HEADER, EXPECTED_HEADER, TAIL_HEADER,
};

/// Messages in doubt: the first so many are stored, or none.
#[derive(Debug)]
pub(super) struct Doubt {
    /// The last sequence before them; on a shared stream that of the fence.
    pub(super) last_sequence: u64,
    /// The atomic batch whose commit was under way: it has the first of them, and those behind it are stored no more.
    pub(super) batch: Option<String>,
    /// In their order.
    pub(super) items: VecDeque<Queued>,
}

impl Doubt {
    /// Whether `message` of a stream without others' messages is the one in doubt that has so many before it.
    pub(super) fn is_stored_as(&self, index: usize, message: &StoredMessage) -> bool {
        let item = &self.items[index].item;
        // Not the subject: a stream that transforms them stores another one.
        message.data == item.body
            && is_in_place(message)
            && told(&item.block()).eq(told(&message.headers))
    }

    /// How many of them the batch has that ends with `fence`, the last one on its subject; the lease is ours.
    ///
    /// # Errors
    /// The fence is neither of this batch nor one that was put up by itself.
    pub(super) fn stored_before(&self, fence: &StoredMessage) -> anyhow::Result<usize> {
        ensure!(
            fence.seq > self.last_sequence,
            "the stream no longer has what it had acknowledged up to sequence {}: run this again",
            self.last_sequence
        );
        let Some(batch) = fence.header_text(BATCH_HEADER) else {
            return Ok(0);
        };
        if self.batch.as_deref() != Some(batch) {
            bail!(
                "the fence at sequence {} ends batch {batch}, which is none of this command: run this again",
                fence.seq
            );
        }
        let last = fence.header_text(BATCH_SEQUENCE_HEADER);
        let before = last.and_then(|last| last.parse::<usize>().ok()?.checked_sub(1));
        before
            .filter(|before| *before <= self.items.len())
            .with_context(|| {
                let last = last.unwrap_or_default();
                format!(
                    "the fence at sequence {} is message {last:?} of batch {batch}, which is not as it was sent: run this again",
                    fence.seq
                )
            })
    }
}

/// Whether it stands where who sent it wanted it. A consumer may have put a copy there.
fn is_in_place(message: &StoredMessage) -> bool {
    let expected = message.header_text(EXPECTED_HEADER);
    expected.and_then(|text| text.parse().ok()) == message.seq.checked_sub(1)
}

/// What headers tell of whose message it is: those of walrelay's own, but for the lane's place, and the event's id. A server may
/// change others.
fn told(block: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let headers = Headers::parse(block).into_iter();
    headers
        .flat_map(|headers| headers.iter())
        .filter(|(name, _)| {
            let is_id = ID_HEADERS.iter().any(|id| id.as_bytes() == *name);
            is_id || (name.starts_with(b"Walrelay-") && *name != TAIL_HEADER.as_bytes())
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bulk::Item;

    fn doubt(items: &[(&str, &'static str)]) -> Doubt {
        let items = items
            .iter()
            .zip(1..)
            .map(|((headers, body), number)| Queued {
                number,
                item: Item {
                    name: number.to_string(),
                    subject: b"prefix.outbox.made".to_vec(),
                    headers: headers.as_bytes().to_vec(),
                    body: (*body).into(),
                },
            });
        Doubt {
            last_sequence: 10,
            batch: Some("b1-2".to_owned()),
            items: items.collect(),
        }
    }

    fn stored(seq: u64, headers: &str, body: &str) -> StoredMessage {
        StoredMessage {
            seq,
            subject: "outbox.made".to_owned(),
            headers: format!("NATS/1.0\r\n{headers}\r\n").into_bytes(),
            data: body.as_bytes().to_vec(),
            time: String::new(),
        }
    }

    #[test]
    fn only_what_the_command_has_sent_is_its_own() {
        const BACKFILL: &str = "Walrelay-Kind: backfill\r\nid: 7\r\ntraceparent: 00-1\r\n";
        let of_backfill = doubt(&[(BACKFILL, "{}")]);
        let is =
            |headers: &str, body: &str| of_backfill.is_stored_as(0, &stored(11, headers, body));
        let place = "Nats-Expected-Last-Sequence: 10\r\n";
        let tail = "Walrelay-Tail: a 0/10:1 -\r\n";
        assert!(is(&format!("{BACKFILL}{tail}{place}"), "{}"));
        // A server that traces messages marks that header.
        let marked = BACKFILL.replace("traceparent", "Xraceparent");
        assert!(is(&format!("{marked}{place}"), "{}"));
        assert!(!is(&format!("{BACKFILL}{place}"), "{ }"));
        for other in [
            // A relay's own event with the same payload.
            format!("Walrelay-Position: a 0/10:1\r\nid: 8\r\n{place}"),
            format!("Walrelay-Position: a 0/10:1\r\nid: 7\r\n{place}"),
            format!("Walrelay-Kind: replay\r\nid: 7\r\n{tail}{place}"),
            // Of another row, of another table, a retry, a copy.
            format!("{}{place}", BACKFILL.replace("id: 7", "id: 8")),
            format!("{}{place}", BACKFILL.replace("id: 7", "ce-id: 7")),
            format!("{BACKFILL}Walrelay-Table: public.b\r\n{place}"),
            format!("{}{place}", BACKFILL.replace("backfill", "retry")),
            format!("{BACKFILL}Nats-Expected-Last-Sequence: 9\r\n"),
            BACKFILL.to_owned(),
            String::new(),
        ] {
            assert!(!is(&other, "{}"), "{other}");
        }
    }

    #[test]
    fn a_retry_is_of_one_letter() {
        let retry = |letter: &str| {
            format!("Walrelay-Kind: retry\r\nWalrelay-Retry: a {letter}\r\nid: 7\r\n")
        };
        let first = retry("0/10:1");
        let doubt = doubt(&[(&first, "{}")]);
        let place = "Nats-Expected-Last-Sequence: 10\r\n";
        let is = |headers: String| doubt.is_stored_as(0, &stored(11, &headers, "{}"));
        assert!(is(first + place));
        assert!(!is(retry("0/10:2") + place));
    }

    #[test]
    fn a_fence_tells_of_its_own_batch_alone() {
        let doubt = doubt(&[("", "1"), ("", "2"), ("", "3")]);
        let fence = |seq, batch: &str, sequence: &str| {
            let headers = format!("Nats-Batch-Id: {batch}\r\nNats-Batch-Sequence: {sequence}\r\n");
            doubt.stored_before(&stored(seq, &headers, "")).ok()
        };
        // Two events and the fence; the third event is of the batch that was open.
        assert_eq!(fence(14, "b1-2", "3"), Some(2));
        assert_eq!(fence(14, "b1-2", "4"), Some(3));
        assert_eq!(fence(14, "b1-2", "1"), Some(0));
        // One that was put up by itself, behind which the batch is not stored.
        assert_eq!(doubt.stored_before(&stored(11, "", "")).ok(), Some(0));
        for (seq, batch, sequence) in [
            (14, "b1-2", "5"),
            (14, "b1-2", "0"),
            (14, "b1-2", ""),
            (14, "b1-1", "3"),
            (14, "b1-3", "3"),
            (14, "b2-2", "3"),
            // What was acknowledged is gone.
            (10, "b1-2", "3"),
            (4, "b1-1", "3"),
        ] {
            assert_eq!(
                fence(seq, batch, sequence),
                None,
                "{seq} {batch} {sequence}"
            );
        }
        assert!(doubt.stored_before(&stored(9, "", "")).is_err());
    }

    #[test]
    fn without_a_commit_under_way_no_batch_is_ours() {
        let doubt = Doubt {
            batch: None,
            ..doubt(&[("", "1")])
        };
        let headers = "Nats-Batch-Id: b1-1\r\nNats-Batch-Sequence: 2\r\n";
        assert!(doubt.stored_before(&stored(12, headers, "")).is_err());
    }
}
