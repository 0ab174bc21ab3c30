//! The names of connection parameters: libpq's, and those of poolers and ORMs.
//!
//! In: a name out of a connection string. Out: what is to be done with it. Guarantee: only a name
//! that neither libpq nor a well-known pooler or ORM has is an error.

/// What is done with a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Treatment {
    /// It takes effect.
    Used,
    /// libpq's, but without effect here.
    Unused,
    /// A pooler's or an ORM's.
    Foreign,
    /// libpq's, and ignoring it would connect elsewhere or less safely than asked.
    Refused(&'static str),
    /// Nobody's.
    Unknown,
}

/// libpq's parameters that take effect.
pub(super) const USED: &[&str] = &[
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "passfile",
    "sslmode",
    "connect_timeout",
    "application_name",
    "fallback_application_name",
    "options",
    "target_session_attrs",
    "load_balance_hosts",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "tcp_user_timeout",
    "service",
    "servicefile",
    "channel_binding",
    "require_auth",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcert",
    "sslcertmode",
    "sslcrl",
    "sslkey",
    "sslnegotiation",
    "sslpassword",
    "sslrootcert",
    "sslsni",
];

/// libpq's parameters (manual, 32.1.2) that are taken and ignored.
const UNUSED: &[&str] = &[
    "client_encoding",
    "gssdelegation",
    "gssencmode",
    "gsslib",
    "krbsrvname",
    "max_protocol_version",
    "min_protocol_version",
    "replication",
    "scram_client_key",
    "scram_server_key",
    "sslcompression",
    "sslkeylogfile",
];

/// Parameters of Prisma, SQLAlchemy, asyncpg, pgx, lib/pq, GORM, node-postgres, Rails, Django,
/// Ecto, JDBC and Supabase, in lower case.
const FOREIGN: &[&str] = &[
    "adapter",
    "advisory_locks",
    "applicationname",
    "assumeminserverversion",
    "async_fallback",
    "atomic_requests",
    "autosave",
    "binary_parameters",
    "binarytransfer",
    "checkout_timeout",
    "command_timeout",
    "conn_health_checks",
    "conn_max_age",
    "connection_limit",
    "currentschema",
    "default_query_exec_mode",
    "defaultrowfetchsize",
    "description_cache_capacity",
    "disable_server_side_cursors",
    "encoding",
    "idle_timeout",
    "loadbalancehosts",
    "logintimeout",
    "max_connection_lifetime",
    "max_idle_connection_lifetime",
    "max_overflow",
    "max_pool_size",
    "min_pool_size",
    "pgbouncer",
    "pool",
    "pool_health_check_period",
    "pool_max_conn_idle_time",
    "pool_max_conn_lifetime",
    "pool_max_conn_lifetime_jitter",
    "pool_max_conns",
    "pool_min_conns",
    "pool_min_idle_conns",
    "pool_mode",
    "pool_pre_ping",
    "pool_recycle",
    "pool_size",
    "pool_timeout",
    "pooler",
    "prefer_simple_protocol",
    "prepared_statement_cache_size",
    "prepared_statement_name_func",
    "prepared_statements",
    "preparedstatementcachequeries",
    "preparethreshold",
    "reaping_frequency",
    "rewritebatchedinserts",
    "schema",
    "search_path",
    "server_settings",
    "simple_protocol",
    "single_use_connections",
    "socket_timeout",
    "sockettimeout",
    "sslaccept",
    "sslfactory",
    "sslidentity",
    "statement_cache_capacity",
    "statement_cache_mode",
    "statement_cache_size",
    "statement_limit",
    "statement_timeout",
    "stringtype",
    "supa",
    "targetservertype",
    "tcpkeepalive",
    "timezone",
    "uselibpqcompat",
    "workaround",
];

/// What is done with the parameter of this name and value.
pub(super) fn treatment(name: &str, value: &str) -> Treatment {
    match (name, value) {
        ("gssencmode", "require") => {
            Treatment::Refused("walrelay has no GSSAPI: use sslmode=require, or verify-full")
        }
        ("requirepeer", _) => Treatment::Refused(
            "walrelay cannot check who runs the server behind a socket: remove it",
        ),
        ("sslcrldir", _) => Treatment::Refused(
            "walrelay reads revocation lists from one file: put them into it and name it with sslcrl",
        ),
        ("sslcertmode", "require") => Treatment::Refused(
            "walrelay cannot tell whether the server has asked for the certificate: remove it",
        ),
        _ if USED.contains(&name) => Treatment::Used,
        _ if UNUSED.contains(&name) => Treatment::Unused,
        _ if FOREIGN.contains(&name.to_ascii_lowercase().as_str()) => Treatment::Foreign,
        _ => Treatment::Unknown,
    }
}

/// The parameter that was probably meant.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    crate::nearest::nearest(name, USED.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_names_are_lower_case_and_sorted() {
        assert!(FOREIGN.is_sorted());
        assert!(
            FOREIGN
                .iter()
                .all(|name| *name == name.to_ascii_lowercase())
        );
    }

    #[test]
    fn sorts_parameters_by_what_is_done_with_them() {
        for (name, value, expected) in [
            ("host", "h", Treatment::Used),
            ("sslrootcert", "/x", Treatment::Used),
            ("krbsrvname", "x", Treatment::Unused),
            ("gssencmode", "prefer", Treatment::Unused),
            ("pgbouncer", "true", Treatment::Foreign),
            ("connection_limit", "1", Treatment::Foreign),
            ("currentSchema", "x", Treatment::Foreign),
            ("TimeZone", "UTC", Treatment::Foreign),
            ("hots", "h", Treatment::Unknown),
        ] {
            assert_eq!(treatment(name, value), expected, "{name}");
        }
        assert!(matches!(
            treatment("gssencmode", "require"),
            Treatment::Refused(_)
        ));
        assert!(matches!(
            treatment("requirepeer", "x"),
            Treatment::Refused(_)
        ));
        assert_eq!(nearest("hots"), Some("host"));
        assert_eq!(nearest("zzzzzzzz"), None);
    }
}
