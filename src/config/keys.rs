//! Every key of the configuration: its section, default, flag, and whether it is secret.
//!
//! In: nothing. Out: the one list that file, environment, flags and `config show` share, so that a
//! key is the same everywhere.

pub(super) use crate::pipeline::reshard::PLACEHOLDER;

/// A key of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is documented by its entry in KEYS")]
pub enum Key {
    Name,
    Preset,
    PostgresUrl,
    PostgresPassword,
    PostgresPasswordCommand,
    PostgresSlot,
    PostgresPublication,
    PostgresTable,
    NatsUrl,
    NatsStream,
    NatsSubject,
    NatsShared,
    NatsUser,
    NatsPassword,
    NatsToken,
    NatsCredentials,
    NatsNkeySeed,
    NatsJwt,
    NatsContext,
    NatsTlsCa,
    NatsTlsCert,
    NatsTlsKey,
    NatsTlsFirst,
    NatsDomain,
    NatsApiPrefix,
    NatsImported,
    NatsInboxPrefix,
    NatsConnectTimeout,
    SourceMessages,
    SourceTables,
    ColumnsId,
    ColumnsAggregateId,
    ColumnsEventType,
    ColumnsEventVersion,
    ColumnsOccurredAt,
    ColumnsPayload,
    MessageFormat,
    MessageTombstones,
    MessageHeaders,
    MessageHeaderValues,
    MessageFields,
    MessageSource,
    RelayHoldBack,
    RelayOnReject,
    RelayWindowMessages,
    RelayWindowBytes,
    RelayAckTimeout,
    RelayShutdownTimeout,
    RelayStatusInterval,
    RelayBackoffMax,
    RelayShares,
    RelayShare,
    RelayMaxSharesPerInstance,
    OutboxAfterPublish,
    HttpListen,
    LogLevel,
}

/// How a value may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrecy {
    /// As it is.
    Open,
    /// Never.
    Secret,
    /// A Postgres connection string: without its password.
    PostgresUrl,
    /// NATS URLs: without password and token.
    NatsUrls,
    /// The path of a secret's file; not a content that stands in its place.
    SecretFile,
    /// A command: its program, as an argument may be a secret.
    Command,
}

/// What is known about a key.
#[derive(Debug)]
pub struct Entry {
    /// Which key this is.
    pub key: Key,
    /// The file's table; `None` for the top level.
    pub section: Option<&'static str>,
    /// The name within the section.
    pub name: &'static str,
    /// The value where none is given; `None` where it is derived or may be absent.
    pub default: Option<&'static str>,
    /// How it may be shown, and whether `…_FILE` exists.
    pub(crate) secrecy: Secrecy,
    /// The command line's flag.
    pub flag: Option<&'static str>,
    /// A variable that serves where nothing else is set.
    pub(crate) fallback: Option<&'static str>,
}

const fn open(
    key: Key,
    section: &'static str,
    name: &'static str,
    default: Option<&'static str>,
    flag: Option<&'static str>,
) -> Entry {
    Entry {
        key,
        section: Some(section),
        name,
        default,
        secrecy: Secrecy::Open,
        flag,
        fallback: None,
    }
}

const fn column(key: Key, name: &'static str, default: &'static str) -> Entry {
    open(key, "columns", name, Some(default), None)
}

const fn secret(key: Key, section: &'static str, name: &'static str) -> Entry {
    Entry {
        secrecy: Secrecy::Secret,
        ..open(key, section, name, None, None)
    }
}

const fn secret_file(key: Key, name: &'static str) -> Entry {
    Entry {
        secrecy: Secrecy::SecretFile,
        ..open(key, "nats", name, None, None)
    }
}

/// All keys, in the order of [`Key`].
pub const KEYS: &[Entry] = &[
    // The relay's name.
    Entry {
        key: Key::Name,
        section: None,
        name: "name",
        default: Some("walrelay"),
        secrecy: Secrecy::Open,
        flag: Some("--name"),
        fallback: None,
    },
    // Defaults for columns, subject and format.
    Entry {
        key: Key::Preset,
        section: None,
        name: "preset",
        default: Some("walrelay"),
        secrecy: Secrecy::Open,
        flag: None,
        fallback: None,
    },
    // Without a URL, PG* variables and libpq's defaults say where the database is.
    Entry {
        secrecy: Secrecy::PostgresUrl,
        fallback: Some("DATABASE_URL"),
        ..open(
            Key::PostgresUrl,
            "postgres",
            "url",
            None,
            Some("--database-url"),
        )
    },
    secret(Key::PostgresPassword, "postgres", "password"),
    // A program and its arguments, for passwords that live for minutes.
    Entry {
        secrecy: Secrecy::Command,
        ..open(
            Key::PostgresPasswordCommand,
            "postgres",
            "password_command",
            None,
            None,
        )
    },
    // Slot and publication are derived from the name.
    open(Key::PostgresSlot, "postgres", "slot", None, Some("--slot")),
    open(
        Key::PostgresPublication,
        "postgres",
        "publication",
        None,
        Some("--publication"),
    ),
    open(
        Key::PostgresTable,
        "postgres",
        "table",
        Some("public.outbox_events"),
        Some("--table"),
    ),
    Entry {
        secrecy: Secrecy::NatsUrls,
        fallback: Some("NATS_URL"),
        ..open(
            Key::NatsUrl,
            "nats",
            "url",
            Some("nats://localhost:4222"),
            Some("--nats-url"),
        )
    },
    open(
        Key::NatsStream,
        "nats",
        "stream",
        Some("OUTBOX"),
        Some("--stream"),
    ),
    open(
        Key::NatsSubject,
        "nats",
        "subject",
        Some("outbox.{event_type}"),
        Some("--subject"),
    ),
    // With others, a relay cannot take the stream's last sequence for its own.
    open(Key::NatsShared, "nats", "shared", Some("false"), None),
    open(Key::NatsUser, "nats", "user", None, None),
    secret(Key::NatsPassword, "nats", "password"),
    secret(Key::NatsToken, "nats", "token"),
    // Paths of files: they hold the secret, their names do not.
    open(Key::NatsCredentials, "nats", "credentials", None, None),
    secret_file(Key::NatsNkeySeed, "nkey_seed"),
    secret_file(Key::NatsJwt, "jwt"),
    // A context of the NATS command line, by name or path.
    open(Key::NatsContext, "nats", "context", None, None),
    open(Key::NatsTlsCa, "nats", "tls_ca", None, None),
    open(Key::NatsTlsCert, "nats", "tls_cert", None, None),
    open(Key::NatsTlsKey, "nats", "tls_key", None, None),
    open(Key::NatsTlsFirst, "nats", "tls_first", Some("false"), None),
    // Both say where the JetStream API listens.
    open(Key::NatsDomain, "nats", "domain", None, None),
    open(Key::NatsApiPrefix, "nats", "api_prefix", None, None),
    open(Key::NatsImported, "nats", "imported", Some("false"), None),
    open(
        Key::NatsInboxPrefix,
        "nats",
        "inbox_prefix",
        Some("_INBOX"),
        None,
    ),
    // Several times a round trip across the world with TLS and a signature.
    open(
        Key::NatsConnectTimeout,
        "nats",
        "connect_timeout",
        Some("5s"),
        None,
    ),
    // Messages without a table are asked for where somebody writes them.
    open(Key::SourceMessages, "source", "messages", Some(""), None),
    // Beside postgres.table.
    open(Key::SourceTables, "source", "tables", Some("[]"), None),
    column(Key::ColumnsId, "id", "id"),
    column(Key::ColumnsAggregateId, "aggregate_id", "aggregate_id"),
    column(Key::ColumnsEventType, "event_type", "event_type"),
    column(Key::ColumnsEventVersion, "event_version", "event_version"),
    column(Key::ColumnsOccurredAt, "occurred_at", "occurred_at"),
    column(Key::ColumnsPayload, "payload", "payload_json"),
    open(
        Key::MessageFormat,
        "message",
        "format",
        Some("envelope"),
        None,
    ),
    open(
        Key::MessageTombstones,
        "message",
        "tombstones",
        Some("false"),
        None,
    ),
    open(Key::MessageHeaders, "message", "headers", Some("{}"), None),
    open(
        Key::MessageHeaderValues,
        "message",
        "header_values",
        Some("text"),
        None,
    ),
    open(Key::MessageFields, "message", "fields", Some("{}"), None),
    // A CloudEvent's source is derived from the name.
    open(Key::MessageSource, "message", "source", None, None),
    // Half as long again as JetStream's pause between two passes of syncs, two minutes: a pass takes its time too.
    open(
        Key::RelayHoldBack,
        "relay",
        "hold_back",
        Some("180s"),
        Some("--hold-back"),
    ),
    open(
        Key::RelayOnReject,
        "relay",
        "on_reject",
        Some("dead_letter"),
        None,
    ),
    // Enough to fill a fast link at some milliseconds of round trip, little enough to publish again.
    open(
        Key::RelayWindowMessages,
        "relay",
        "window_messages",
        Some("8192"),
        None,
    ),
    open(
        Key::RelayWindowBytes,
        "relay",
        "window_bytes",
        Some("8MiB"),
        None,
    ),
    // JetStream answers within milliseconds; a new leader is elected within about 4 s.
    open(
        Key::RelayAckTimeout,
        "relay",
        "ack_timeout",
        Some("5s"),
        None,
    ),
    // Well below the 30 s that Kubernetes leaves between SIGTERM and SIGKILL.
    open(
        Key::RelayShutdownTimeout,
        "relay",
        "shutdown_timeout",
        Some("10s"),
        None,
    ),
    // Postgres frees the slot of a relay that it has not heard for three of them: a standby takes over within 5 s.
    open(
        Key::RelayStatusInterval,
        "relay",
        "status_interval",
        Some("1s"),
        None,
    ),
    // Short enough that a server's return is noticed within a second.
    open(
        Key::RelayBackoffMax,
        "relay",
        "backoff_max",
        Some("500ms"),
        None,
    ),
    // Lanes that the rows are divided among. Only reshard has the flag.
    open(
        Key::RelayShares,
        "relay",
        "shares",
        Some("1"),
        Some("--shares"),
    ),
    // Without it: all of them.
    open(Key::RelayShare, "relay", "share", None, Some("--share")),
    open(
        Key::RelayMaxSharesPerInstance,
        "relay",
        "max_shares_per_instance",
        None,
        None,
    ),
    open(
        Key::OutboxAfterPublish,
        "outbox",
        "after_publish",
        Some("keep"),
        None,
    ),
    open(
        Key::HttpListen,
        "http",
        "listen",
        Some("127.0.0.1:7187"),
        Some("--http-listen"),
    ),
    open(
        Key::LogLevel,
        "log",
        "level",
        Some("info"),
        Some("--log-level"),
    ),
];

impl Key {
    /// What is known about this key.
    pub fn entry(self) -> &'static Entry {
        &KEYS[self as usize]
    }

    /// `section.name`, as messages call it.
    pub fn path(self) -> String {
        self.entry().path()
    }
}

impl Entry {
    /// `section.name`, as messages call it.
    pub fn path(&self) -> String {
        match self.section {
            Some(section) => format!("{section}.{}", self.name),
            None => self.name.to_owned(),
        }
    }

    /// `WALRELAY_<SECTION>_<NAME>`.
    pub fn variable(&self) -> String {
        format!(
            "WALRELAY_{}",
            self.path().replace('.', "_").to_ascii_uppercase()
        )
    }

    /// Whether an empty text in the file is "not set", as in the environment: a key that may be absent. Of others, those that are
    /// derived from the name among them, a typing mistake would become a default in silence.
    pub(crate) fn is_unset_by_empty(&self) -> bool {
        match self.key {
            Key::PostgresSlot | Key::PostgresPublication | Key::MessageSource => false,
            Key::NatsInboxPrefix => true,
            _ => self.default.is_none(),
        }
    }

    /// Whether `<variable>_FILE` names a file that holds the value.
    pub(crate) fn has_file_variable(&self) -> bool {
        matches!(
            self.secrecy,
            Secrecy::Secret | Secrecy::PostgresUrl | Secrecy::NatsUrls
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_stand_at_their_keys() {
        for (index, entry) in KEYS.iter().enumerate() {
            assert_eq!(entry.key as usize, index, "{}", entry.path());
        }
        assert_eq!(Key::LogLevel as usize + 1, KEYS.len());
    }

    #[test]
    fn no_key_can_be_taken_for_a_kubernetes_service_link() {
        for entry in KEYS {
            assert!(
                !entry
                    .name
                    .split('_')
                    .any(|word| word == "port" || word == "service"),
                "{}",
                entry.path()
            );
        }
    }

    #[test]
    fn variables_follow_section_and_name() {
        assert_eq!(Key::Name.entry().variable(), "WALRELAY_NAME");
        assert_eq!(
            Key::RelayHoldBack.entry().variable(),
            "WALRELAY_RELAY_HOLD_BACK"
        );
    }
}
