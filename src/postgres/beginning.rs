//! Where a slot begins, written down in Postgres beside its publication.
//!
//! In: the publication's comment. Out: the LSN from which the slot streams since it was made. Guarantee: a slot that stands there has
//! passed nothing. Postgres itself keeps no such place (14 to 18): where `confirmed_flush_lsn` began, nothing tells once it has moved.

#[cfg(feature = "cli")]
use crate::postgres::replication::quote_literal;
#[cfg(feature = "cli")]
use crate::table_name::quote_identifier;
use postgres_types::PgLsn;

/// In front of every such comment.
const OURS: &str = "walrelay: slot ";

/// What such a comment of the slot begins with: all but its end, the LSN.
pub(crate) fn words(slot: &str) -> String {
    format!("{OURS}{slot} begins at ")
}

/// Where the slot began by the publication's comment; none where it tells of no such slot.
pub(crate) fn read(comment: &str, slot: &str) -> Option<PgLsn> {
    comment.strip_prefix(&words(slot))?.parse().ok()
}

/// Whether the comment may be written over: somebody else's stays, and so does that of another slot.
#[cfg(feature = "cli")]
pub(crate) fn is_free(comment: Option<&str>, slot: &str) -> bool {
    comment.is_none_or(|comment| comment.starts_with(&words(slot)))
}

/// The statement that writes it down.
#[cfg(feature = "cli")]
pub(crate) fn comment_sql(publication: &str, slot: &str, lsn: PgLsn) -> String {
    let comment = quote_literal(&format!("{}{lsn}", words(slot)));
    format!(
        "COMMENT ON PUBLICATION {} IS {comment};",
        quote_identifier(publication)
    )
}

/// The same for a person to run behind the slot's creation.
#[cfg(feature = "cli")]
pub(crate) fn comment_by_hand_sql(publication: &str, slot: &str) -> String {
    let begin = format!(
        "COMMENT ON PUBLICATION {} IS ",
        quote_identifier(publication)
    );
    format!(
        "DO $do$ BEGIN EXECUTE (SELECT {} || quote_literal({} || confirmed_flush_lsn) \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = {}); END $do$;",
        quote_literal(&begin),
        quote_literal(&words(slot)),
        quote_literal(slot)
    )
}

#[cfg(all(test, feature = "cli"))]
mod tests {
    use super::*;

    #[test]
    fn a_comment_tells_of_its_own_slot_alone() {
        let sql = comment_sql("my \"own\"", "relay", 0x16_0000_00AB.into());
        let comment = "walrelay: slot relay begins at 16/AB";
        assert_eq!(
            sql,
            format!("COMMENT ON PUBLICATION \"my \"\"own\"\"\" IS '{comment}';")
        );
        assert_eq!(read(comment, "relay"), Some(0x16_0000_00AB.into()));
        assert_eq!(read(comment, "rela"), None);
        assert_eq!(read("walrelay: slot relay begins at noon", "relay"), None);
        assert!(is_free(None, "relay") && is_free(Some(comment), "relay"));
        assert!(!is_free(Some(comment), "other") && !is_free(Some("of billing"), "relay"));
    }
}
