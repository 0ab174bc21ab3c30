//! What each key of the configuration is for, in a sentence or two.
//!
//! In: a key. Out: Markdown, for the page of all keys.

use super::Key;

impl Key {
    /// What it is for.
    pub(crate) fn about(self) -> &'static str {
        match self {
            Key::Name => "The relay's name; slot and publication take it where they are not given.",
            Key::Preset => "Defaults for columns, subject and format: `walrelay` or `debezium`.",
            Key::PostgresUrl => {
                "Postgres, as libpq takes it: a URL or `key=value`. Without it libpq's `PG*` variables say where the database is."
            }
            Key::PostgresPassword => {
                "The role's password. A file or a command can be changed while the relay runs."
            }
            Key::PostgresPasswordCommand => {
                "A program and its arguments, run at each connect, whose output is the password: a list, or a text that is split at blanks; no shell reads it."
            }
            Key::PostgresSlot => "The logical replication slot; by default the name.",
            Key::PostgresPublication => "The publication; by default the name.",
            Key::PostgresTable => "The outbox table, as in SQL.",
            Key::NatsUrl => "NATS servers: one, or a list.",
            Key::NatsStream => "The JetStream stream; `{share}` is the number of the share.",
            Key::NatsSubject => {
                "The subject of an event: tokens, and columns in braces; `{column:token}` makes one token of a value."
            }
            Key::NatsShared => {
                "Others write to the stream too. Takes nats-server 2.12 and atomic batches."
            }
            Key::NatsUser => "User name, with `nats.password`.",
            Key::NatsPassword => "Password.",
            Key::NatsToken => "Token.",
            Key::NatsCredentials => "File with a user's JWT and seed.",
            Key::NatsNkeySeed => "File with an nkey's seed.",
            Key::NatsJwt => "File with the JWT that goes with `nats.nkey_seed`.",
            Key::NatsContext => {
                "A context of the NATS command line, by its name or the path of its file."
            }
            Key::NatsTlsCa => "File with the authorities that are trusted, in PEM, or `system`.",
            Key::NatsTlsCert => "File with our own certificate.",
            Key::NatsTlsKey => "File with its key.",
            Key::NatsTlsFirst => {
                "TLS before anything is said, for a server with `handshake_first`."
            }
            Key::NatsDomain => "The JetStream domain.",
            Key::NatsApiPrefix => "Prefix of an API that another account exports.",
            Key::NatsImported => {
                "The API is imported from another account under its own name, which no server tells of."
            }
            Key::NatsInboxPrefix => "Where answers come to.",
            Key::NatsConnectTimeout => "How long one attempt to connect may take.",
            Key::SourceMessages => {
                "Prefix of `pg_logical_emit_message` whose messages are events too."
            }
            Key::SourceTables => {
                "Further tables of the lane, each `{ name = \"…\" }` with its own mapping."
            }
            Key::ColumnsId => "Column of the event's id.",
            Key::ColumnsAggregateId => "Column of the aggregate's id.",
            Key::ColumnsEventType => "Column of the type, or `{ value = \"…\" }`.",
            Key::ColumnsEventVersion => "Column of the version, or `{ value = 1 }`.",
            Key::ColumnsOccurredAt => "Column of the time; empty: the time of the commit.",
            Key::ColumnsPayload => "Column of the payload.",
            Key::MessageFormat => {
                "`envelope`, `payload`, `payload_string`, `cloudevents` or `cloudevents_json`."
            }
            Key::MessageTombstones => {
                "A row whose payload is NULL makes a message without one, instead of a dead letter."
            }
            Key::MessageHeaders => "Headers, each with its column.",
            Key::MessageHeaderValues => {
                "`text`, or `json`: a text in quotes, a number or truth value without."
            }
            Key::MessageFields => {
                "Fields of the envelope or beside the payload, or attributes of a CloudEvent, each with its column."
            }
            Key::MessageSource => "The source of CloudEvents; by default made of the name.",
            Key::RelayHoldBack => {
                "How old an acknowledged event must be before Postgres may forget its WAL; `0s` confirms at the acknowledgement."
            }
            Key::RelayOnReject => {
                "What becomes of a row that can never be published: `dead_letter` or `halt`."
            }
            Key::RelayWindowMessages => "Messages that may be without an acknowledgement.",
            Key::RelayWindowBytes => "Bytes that may be.",
            Key::RelayAckTimeout => "How long an acknowledgement may take.",
            Key::RelayShutdownTimeout => "How long stopping may wait for acknowledgements.",
            Key::RelayStatusInterval => {
                "How often Postgres hears of the relay. It frees the slot of one that was silent for three of them."
            }
            Key::RelayBackoffMax => "The longest pause between two attempts.",
            Key::RelayShares => "Lanes that the rows are divided among: a power of two.",
            Key::RelayShare => "The one share that this process has; without it any.",
            Key::RelayMaxSharesPerInstance => "Shares that one process may have; without it all.",
            Key::OutboxAfterPublish => {
                "What becomes of published rows: `keep`, `mark` or `delete`."
            }
            Key::HttpListen => {
                "Where metrics, health and the status page are served; empty turns them off."
            }
            Key::LogLevel => {
                "A level, or directives such as `walrelay::nats=trace`; read again by SIGHUP."
            }
        }
    }
}
