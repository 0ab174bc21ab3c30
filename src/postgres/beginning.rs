//! Where a slot begins, written down in Postgres beside its publication.
//!
//! In: the publication's comment. Out: the LSN from which the slot streams since it was made, and what writes it. Guarantee: a slot that
//! stands there has passed nothing; what else the comment says stays. Postgres itself keeps no such place (14 to 18): where
//! `confirmed_flush_lsn` began, nothing tells once it has moved.

use crate::postgres::replication::quote_literal;
use crate::table_name::quote_identifier;
use postgres_types::PgLsn;

/// In front of every such note.
const OURS: &str = "walrelay: slot ";
/// Between what else the comment says and the note.
const BEHIND: &str = ", ";
/// What the note of the slot begins with: all but its end, the LSN.
pub(crate) fn words(slot: &str) -> String {
    format!("{OURS}{slot} begins at ")
}

/// Where the slot began by the publication's comment; none where it tells of no such slot.
pub(crate) fn read(comment: &str, slot: &str) -> Option<PgLsn> {
    let (_, behind) = comment.split_once(&words(slot))?;
    behind[..lsn_bytes(behind)].parse().ok()
}

/// How much of the text is an LSN.
fn lsn_bytes(text: &str) -> usize {
    let is_other = |c: char| !c.is_ascii_hexdigit() && c != '/';
    text.find(is_other).unwrap_or(text.len())
}

/// The comment in front of the LSN and behind it, once it tells of the slot.
fn around(comment: Option<&str>, slot: &str) -> (String, String) {
    let (comment, words) = (comment.unwrap_or_default(), words(slot));
    match comment.split_once(&words) {
        Some((before, behind)) => (
            format!("{before}{words}"),
            behind[lsn_bytes(behind)..].to_owned(),
        ),
        None if comment.is_empty() => (words, String::new()),
        None => (format!("{comment}{BEHIND}{words}"), String::new()),
    }
}

/// The statement that writes it down.
pub(crate) fn comment_sql(
    publication: &str,
    comment: Option<&str>,
    slot: &str,
    lsn: PgLsn,
) -> String {
    let (before, behind) = around(comment, slot);
    format!(
        "COMMENT ON PUBLICATION {} IS {};",
        quote_identifier(publication),
        quote_literal(&format!("{before}{lsn}{behind}"))
    )
}

/// The same for a person to run behind the slot's creation.
#[cfg(feature = "cli")]
pub(crate) fn comment_by_hand_sql(publication: &str, comment: Option<&str>, slot: &str) -> String {
    let (before, behind) = around(comment, slot);
    let begin = format!(
        "COMMENT ON PUBLICATION {} IS ",
        quote_identifier(publication)
    );
    let behind = match behind.is_empty() {
        true => behind,
        false => format!(" || {}", quote_literal(&behind)),
    };
    format!(
        "DO $do$ BEGIN EXECUTE (SELECT {} || quote_literal({} || confirmed_flush_lsn{behind}) \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = {}); END $do$;",
        quote_literal(&begin),
        quote_literal(&before),
        quote_literal(slot)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_tells_of_its_own_slot_alone() {
        let sql = comment_sql("my \"own\"", None, "relay", 0x16_0000_00AB.into());
        let comment = "walrelay: slot relay begins at 16/AB";
        assert_eq!(
            sql,
            format!("COMMENT ON PUBLICATION \"my \"\"own\"\"\" IS '{comment}';")
        );
        assert_eq!(read(comment, "relay"), Some(0x16_0000_00AB.into()));
        assert_eq!(read(comment, "rela"), None);
        assert_eq!(read("walrelay: slot relay begins at noon", "relay"), None);
    }

    #[test]
    fn what_else_a_comment_says_stays() {
        let write = |comment: &str, slot: &str, lsn: u64| {
            let (before, behind) = around(Some(comment), slot);
            format!("{before}{}{behind}", PgLsn::from(lsn))
        };
        let both = write(&write("of billing's", "relay", 0xAB), "other", 0xCD);
        assert_eq!(
            both,
            "of billing's, walrelay: slot relay begins at 0/AB, walrelay: slot other begins at 0/CD"
        );
        let again = write(&both, "relay", 0xEF);
        assert_eq!(read(&again, "relay"), Some(0xEF.into()));
        assert_eq!(read(&again, "other"), Some(0xCD.into()));
        assert!(again.starts_with("of billing's, "), "{again}");
    }
}
