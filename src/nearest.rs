//! The known name that a mistyped one is nearest to.

/// Returns the candidate that `name` was probably meant to be, if any is near enough.
///
/// Dashes and case do not count. Near is a Damerau-Levenshtein distance of at most a third of the
/// name, rounded up: a worse suggestion is worse than none.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let wanted = plain(name);
    let far = wanted.chars().count().div_ceil(3);
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
}
