//! The SQL that a remedy tells a person to paste.

/// The statements in a text, each as it is printed; what stands behind the last semicolon is none.
pub fn statements(text: &str) -> Vec<String> {
    let begins = [
        "ALTER ",
        "COMMIT ",
        "CREATE ",
        "GRANT ",
        "ROLLBACK ",
        "SELECT ",
    ];
    let statement = |part: &str| {
        let begin = begins.iter().filter_map(|word| part.find(word)).min()?;
        Some(part[begin..].to_owned())
    };
    let ended = text.rsplit_once(';').map_or("", |(ended, _)| ended);
    ended.split(';').filter_map(statement).collect()
}
