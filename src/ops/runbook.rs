//! What the runbook says to do, for the page.
//!
//! In: a fault's side and reason, or a dead letter's reason. Out: the last cell of its row in `docs/runbook.md`, in Markdown;
//! `tests/docs.rs` sees to it that each has one.

const RUNBOOK: &str = include_str!("../../docs/runbook.md");

/// What to do where a fault repeats.
pub(super) fn of_fault(side: &str, reason: &str) -> Option<&'static str> {
    last_cell(
        "## Reasons to begin anew",
        &format!("| {side} | `{reason}` | "),
    )
}

/// What to do about a dead letter.
pub(super) fn of_dead_letter(reason: &str) -> Option<&'static str> {
    last_cell("## Reasons of dead letters", &format!("| `{reason}` | "))
}

/// Of the row that begins so, below a heading.
fn last_cell(heading: &str, beginning: &str) -> Option<&'static str> {
    let (_, section) = RUNBOOK.split_once(heading)?;
    let section = section.split("\n## ").next()?;
    let row = section.lines().find(|line| line.starts_with(beginning))?;
    row.strip_suffix(" |")?.rsplit(" | ").next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_cell_of_a_row_is_found_in_its_own_section() {
        let repeats = of_fault("nats", "no-responders");
        assert_eq!(repeats, Some("`walrelay setup`"));
        assert_eq!(of_fault("postgres", "no-responders"), None);
        assert_eq!(
            of_dead_letter("too-large"),
            Some("raise the limit, `retry`")
        );
        // A halt.
        assert_eq!(of_dead_letter("stuck"), None);
    }
}
