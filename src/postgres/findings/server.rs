//! What of a server's settings stands in the relay's way.

use super::{Finding, Kind, refuse, warn};
use crate::postgres::catalog::Server;
use crate::postgres::replication::quote_literal;
use crate::table_name::quote_identifier;

/// What is wrong with the server.
pub(super) fn server(server: &Server, found: &mut Vec<Finding>) {
    if server.wal_level != "logical" {
        found.push(refuse(
            Kind::WalLevel,
            format!(
                "wal_level is {}, and logical replication needs logical",
                server.wal_level
            ),
            "run ALTER SYSTEM SET wal_level = logical; and restart Postgres",
        ));
    }
    if server.in_recovery && server.version_num < 160_000 {
        found.push(refuse(
            Kind::Standby,
            "the server is a standby, and Postgres decodes on standbys from version 16 on only",
            "give the primary's address in postgres.url",
        ));
    } else if server.in_recovery {
        found.push(warn(
            Kind::Standby,
            "the server is a standby: events arrive once they are replayed there, and the slot ends with it",
            "give the primary's address in postgres.url, or add target_session_attrs=read-write",
        ));
    }
    synchronous_standby(server, found);
    if let Some(timeout) = &server.idle_slot_timeout {
        found.push(warn(
            Kind::IdleSlotTimeout,
            format!(
                "idle_replication_slot_timeout is {timeout}: a slot that nobody reads for so long is given up, and with it what \
                 commits while the relay is stopped, or has started while NATS is away: it takes the slot once NATS is there"
            ),
            "run ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
        ));
    }
    if server.encoding == "SQL_ASCII" {
        found.push(warn(
            Kind::Encoding,
            "the database's encoding is SQL_ASCII, which does not promise that text is UTF-8: a row of the outbox that is not \
             becomes a dead letter",
            "dump the database and restore it into one made with ENCODING 'UTF8'",
        ));
    }
    if ["EUC_", "MULE_INTERNAL", "JOHAB"]
        .iter()
        .any(|name| server.encoding.starts_with(name))
    {
        found.push(warn(
            Kind::Encoding,
            format!(
                "the database's encoding is {}: a row with a character that UTF-8 cannot write, of any table of the publication, \
                 stops the relay in front of it",
                server.encoding
            ),
            "dump the database and restore it into one made with ENCODING 'UTF8'",
        ));
    }
    found.extend(may_not_replicate(server));
}

/// The role cannot read a slot.
pub(crate) fn may_not_replicate(server: &Server) -> Option<Finding> {
    (!server.may_replicate).then(|| {
        let role = quote_identifier(&server.login_role);
        refuse(
            Kind::Privilege,
            format!("role {role} may not open a replication connection"),
            format!("run ALTER ROLE {role} REPLICATION; (on Amazon RDS: GRANT rds_replication TO {role};)"),
        )
    })
}

/// A relay reports like a standby: what it confirms would count for a standby's word, and it is none.
fn synchronous_standby(server: &Server, found: &mut Vec<Finding>) {
    let (setting, own_name) = (&server.synchronous_standby_names, &server.application_name);
    if !names_standby(setting, own_name) {
        return;
    }
    let names: Vec<_> = (server.standbys.iter())
        .map(|name| quote_identifier(name))
        .collect();
    let mend = if !setting.contains('*') {
        "add application_name=walrelay_outbox, or another name that is not listed there, to postgres.url".to_owned()
    } else if names.is_empty() {
        "name the standbys there, such as FIRST 1 (standby1, standby2), and run SELECT pg_reload_conf();".to_owned()
    } else {
        let named = quote_literal(&setting.replace('*', &names.join(", ")));
        format!(
            "run ALTER SYSTEM SET synchronous_standby_names = {named}; SELECT pg_reload_conf();"
        )
    };
    found.push(refuse(
        Kind::SynchronousStandby,
        format!(
            "synchronous_standby_names is {setting:?}, which also means this relay: at each confirmation it would count as a standby \
             for a moment, and a commit that waits for a real one be released"
        ),
        mend,
    ));
}

/// Whether `synchronous_standby_names` lists the name, or everybody. Names are compared without case (manual, 19.6.2).
fn names_standby(setting: &str, application_name: &str) -> bool {
    setting.split([',', '(', ')', ' ']).any(|name| {
        let name = name.trim_matches('"');
        name == "*" || (!name.is_empty() && name.eq_ignore_ascii_case(application_name))
    })
}
