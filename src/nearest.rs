//! The known name that a mistyped one is nearest to.

/// Returns the candidate that `name` was probably meant to be, if any is near enough.
///
/// Dashes and case do not count. Near is a Damerau-Levenshtein distance of at most a third of the
/// name, rounded up: a worse suggestion is worse than none.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    within(name.chars().count().div_ceil(3), name, candidates)
}

/// Returns the candidate that `name` is but for a slip of the fingers: one letter of a short name, two of a longer one.
///
/// Dashes and case do not count.
pub fn slip<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let letters = if name.chars().count() < SHORT { 1 } else { 2 };
    within(letters, name, candidates)
}

/// Names of fewer letters than this are short: two of them make another word of one.
const SHORT: usize = 8;

fn within<'a>(
    far: usize,
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let wanted = plain(name);
    candidates
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&wanted, &plain(candidate)),
                candidate,
            )
        })
        .filter(|(distance, _)| *distance <= far)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_only_what_is_near() {
        let known = ["slot", "publication", "hold_back", "url"];
        for (name, expected) in [
            ("slto", Some("slot")),
            ("hold-back", Some("hold_back")),
            ("HoldBack", Some("hold_back")),
            ("publicatoin", Some("publication")),
            ("uri", Some("url")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, known), expected, "{name}");
        }
    }

    #[test]
    fn another_word_is_no_slip() {
        let known = ["outbox_events", "outbox", "order_events"];
        for (name, expected) in [
            ("outbox_event", Some("outbox_events")),
            ("oubtox_evnets", Some("outbox_events")),
            ("Outbox_Events", Some("outbox_events")),
            ("outbx", Some("outbox")),
            ("inbox", None),
            ("outbox_events_old", None),
            ("user_events", None),
        ] {
            assert_eq!(slip(name, known), expected, "{name}");
        }
    }
}
