//! Numbers of things, for people: 1 row, 2 rows.

/// So many of something: `one` is its name, with what follows from the number, such as `row is`, and `many` that of several.
pub(crate) fn counted(count: u64, one: &str, many: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {many}"),
    }
}

/// What they do.
#[cfg(feature = "cli")]
pub(crate) fn is_or_are(count: u64) -> &'static str {
    match count {
        1 => "is",
        _ => "are",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        let rows = |count| counted(count, "row is", "rows are");
        assert_eq!(rows(0), "0 rows are");
        assert_eq!(rows(1), "1 row is");
        assert_eq!(rows(2), "2 rows are");
    }
}
