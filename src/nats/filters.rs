//! Subjects with wildcards: which others they take in.
//!
//! In: some of them. Out: whether one has all of another, or some; which have all. Pure.

/// Whether every subject of `wanted` (wildcards allowed) matches `filter`.
pub fn covers(filter: &str, wanted: &str) -> bool {
    let mut wanted = wanted.split('.');
    for token in filter.split('.') {
        match (token, wanted.next()) {
            (_, None) => return false,
            (">", Some(_)) => return true,
            ("*", Some(">")) => return false,
            ("*", Some(_)) => {}
            (token, Some(other)) if token == other => {}
            _ => return false,
        }
    }
    wanted.next().is_none()
}

/// Whether some subject matches both filters.
pub fn overlaps(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            _ => return false,
        }
    }
}

/// Those of them that cover all the others: no stream takes subjects of which one covers another.
pub fn widest(filters: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut widest: Vec<String> = Vec::new();
    for filter in filters {
        if !widest.iter().any(|wider| covers(wider, &filter)) {
            widest.retain(|narrow| !covers(&filter, narrow));
            widest.push(filter);
        }
    }
    widest
}

/// A subject that matches the filter, with `token` in the place of each wildcard.
pub fn one_of(filter: &str, token: &str) -> String {
    let tokens = filter.split('.').map(|it| match it {
        "*" | ">" => token,
        it => it,
    });
    tokens.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_has_a_subject_of_its_own() {
        for (filter, expected) in [
            ("a.>", "a.t"),
            ("*.b.*", "t.b.t"),
            ("a.b", "a.b"),
            (">", "t"),
        ] {
            assert_eq!(one_of(filter, "t"), expected);
            assert!(covers(filter, expected));
        }
    }

    #[test]
    fn wildcards_cover_and_overlap() {
        assert!(
            covers("a.>", "a.b.c")
                && covers("a.>", "a.>")
                && covers(">", "a.>")
                && covers("a.*", "a.b")
        );
        assert!(covers("a.*", "a.*") && covers("a.*.>", "a.b.>"));
        assert!(
            !covers("a.>", "a")
                && !covers("a.*", "a.>")
                && !covers("a.b", "a.*")
                && !covers("a.*", "a.b.c")
        );
        assert!(overlaps("a.*", "*.b") && overlaps("a.>", "a.b.c") && overlaps("a", "a"));
        assert!(!overlaps("a.>", "a") && !overlaps("a.b", "a.c") && !overlaps("a.*", "a.b.c"));
    }

    #[test]
    fn of_several_the_widest_stay_in_their_order() {
        let all = ["a.b", "c.d", "a.*", "a.c", "c.d"].map(str::to_owned);
        assert_eq!(widest(all), ["c.d", "a.*"]);
    }
}
