//! Which of the stream's messages `walrelay tail` shows.
//!
//! In: what the command line names. Out: whether an entry is one of them. Guarantee: of what is named several times one must fit,
//! of what is named differently all.

use clap::builder::PossibleValuesParser;

use super::entry::{Entry, KIND_EVENT, KIND_OTHER};
use crate::bulk::readdress::is_of_type;
use crate::cli::exit::UsageError;
use crate::cli::values;
use crate::pipeline::position::{
    KIND_BACKFILL, KIND_DEAD_LETTER, KIND_DISCARDED, KIND_REPLAY, KIND_RETRIED, KIND_RETRY,
};
use crate::relay::settings::Settings;

const KINDS: [&str; 8] = [
    KIND_EVENT,
    KIND_REPLAY,
    KIND_RETRY,
    KIND_BACKFILL,
    KIND_DEAD_LETTER,
    KIND_RETRIED,
    KIND_DISCARDED,
    KIND_OTHER,
];

#[derive(Debug, Default, clap::Args)]
pub(super) struct Filter {
    /// Only events of this type; several times for several types. `lesson.*` takes all that begin so.
    #[arg(long = "event-type", value_name = "TYPE", value_parser = values::event_type)]
    event_types: Vec<String>,

    /// Only events of this aggregate; several times for several.
    #[arg(long = "aggregate-id", value_name = "ID", value_parser = values::aggregate_id)]
    aggregate_ids: Vec<String>,

    /// Only messages of this kind: event (its first publication), replay, retry, backfill; dead-letter, and what became of
    /// one: retried, discarded; other. Several times for several.
    #[arg(long = "kind", value_name = "KIND", value_parser = PossibleValuesParser::new(KINDS), hide_possible_values = true)]
    kinds: Vec<String>,
}

impl Filter {
    /// Looks whether any message of the lane can be one.
    pub(super) fn check(&self, settings: &Settings) -> Result<(), UsageError> {
        values::check_event_types(&self.event_types, settings)
    }

    /// Whether the message is one to be shown.
    pub(super) fn takes(&self, entry: &Entry) -> bool {
        let is_same = |wanted: &str, found: &str| wanted == found;
        fits(&self.event_types, entry.event_type.as_deref(), is_of_type)
            && fits(&self.aggregate_ids, entry.aggregate_id.as_deref(), is_same)
            && fits(&self.kinds, Some(entry.kind_name()), is_same)
    }
}

fn fits(wanted: &[String], found: Option<&str>, is: impl Fn(&str, &str) -> bool) -> bool {
    wanted.is_empty() || found.is_some_and(|found| wanted.iter().any(|wanted| is(wanted, found)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::HeaderMap;
    use chrono::Utc;

    fn takes(filter: [&[&str]; 3], subject: &str, kind: Option<&str>, event_type: &str) -> bool {
        let [event_types, aggregate_ids, kinds] =
            filter.map(|values| values.iter().map(ToString::to_string).collect());
        let filter = Filter {
            event_types,
            aggregate_ids,
            kinds,
        };
        let mut headers = HeaderMap::new();
        headers.insert("Walrelay-Position", "s 0/1:1");
        if let Some(kind) = kind {
            headers.insert("Walrelay-Kind", kind);
        }
        let body = format!(
            "{{\"id\":\"1\",\"aggregate_id\":\"a\",\"event_type\":\"{event_type}\",\"event_version\":1,\
             \"occurred_at\":\"2026-11-28T00:00:00Z\",\"payload_json\":{{}}}}"
        );
        let entry = Entry::read(subject, Some(&headers), body.as_bytes(), "", Utc::now());
        filter.takes(&entry)
    }

    #[test]
    fn each_filter_must_fit_and_of_each_one_value() {
        let event = |filter| takes(filter, "outbox.x", None, "lesson.published.v1");
        assert!(event([&[], &[], &[]]));
        assert!(event([&["x", "lesson.published.v1"], &["a"], &["event"]]));
        assert!(event([&["lesson.*"], &[], &[]]));
        assert!(!event([&["lesson"], &[], &[]]));
        assert!(!event([&["lesson.*"], &["b"], &[]]));
        assert!(!event([&[], &[], &["replay", "dead-letter"]]));
        let replay = |kinds| takes([&[], &[], kinds], "outbox.x", Some("replay"), "t");
        assert!(replay(&["replay"]) && !replay(&["event"]));
    }

    #[test]
    fn a_dead_letter_is_of_its_own_kind_and_has_no_type() {
        let dead = |filter, kind| takes(filter, "walrelay.dead.S.s", kind, "t");
        assert!(dead([&[], &[], &["dead-letter"]], Some("dead-letter")));
        assert!(dead([&[], &[], &["retried"]], Some("retried")));
        assert!(!dead([&["t"], &[], &[]], Some("dead-letter")));
    }
}
