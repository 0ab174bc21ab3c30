//! Under which subjects a stream that transforms them stores what is published.
//!
//! In: its configuration, the subjects published. Out: filters. Pure.

use crate::nats::api::StreamConfig;
use crate::nats::filters::overlaps;

/// The filters under which messages of these subjects are stored beside their own, where the stream transforms them.
pub(super) fn stored_as(config: &StreamConfig, subjects: &[String]) -> Vec<String> {
    let Some(transform) = &config.subject_transform else {
        return Vec::new();
    };
    let is_concerned = |subject: &String| overlaps(transform.filter(), subject);
    match subjects.iter().any(is_concerned) {
        true => vec![destination_filter(&transform.dest)],
        false => Vec::new(),
    }
}

/// What a transform's destination can come to: `$1` and `{{wildcard(1)}}` stand for a token, other functions for any number.
fn destination_filter(destination: &str) -> String {
    let mut filter = Vec::new();
    for token in destination.split('.') {
        let function = token
            .strip_prefix("{{")
            .map(|rest| rest.trim_start().to_ascii_lowercase());
        match function {
            None if token.starts_with('$') => filter.push("*"),
            None => filter.push(token),
            Some(name) if name.starts_with("wildcard") || name.starts_with("partition") => {
                filter.push("*");
            }
            Some(_) => {
                filter.push(">");
                break;
            }
        }
    }
    filter.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::api::SubjectMapping;

    #[test]
    fn events_are_looked_for_as_they_are_stored() {
        let stored = |src: &str, dest: &str| {
            let config = StreamConfig {
                subject_transform: Some(SubjectMapping {
                    src: src.into(),
                    dest: dest.into(),
                }),
                ..StreamConfig::default()
            };
            stored_as(&config, &["outbox.>".into()])
        };
        assert_eq!(
            stored_as(&StreamConfig::default(), &["outbox.>".into()]),
            [""; 0]
        );
        assert_eq!(stored("other.>", "a.>"), [""; 0]);
        assert_eq!(stored("outbox.>", "a.>"), ["a.>"]);
        assert_eq!(stored("outbox.*.*", "a.$2.b"), ["a.*.b"]);
        assert_eq!(stored("", "a.{{wildcard(1)}}.>"), ["a.*.>"]);
        assert_eq!(stored("outbox.*", "a.{{split(1,-)}}.b"), ["a.>"]);
    }
}
