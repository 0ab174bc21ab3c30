//! Precedence, sources, ranges, masks: the configuration as users see it.

mod blame;
mod mapping;
mod nats_way;
mod secrets;
mod tables;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::nats::address::NatsAuth;
use crate::postgres::conninfo::{ConninfoError, Host};
use crate::relay::settings::{OnReject, RelaySettings};

const CERTIFICATE: &str = include_str!("../../tests/keys/version1.crt");

/// A file in a folder of its own, an environment and flags, loaded together.
struct Case {
    folder: tempfile::TempDir,
    environment: Vec<(String, String)>,
    flags: Flags,
}

impl Case {
    fn new(text: &str) -> Self {
        let case = Case {
            folder: tempfile::tempdir().unwrap(),
            environment: Vec::new(),
            flags: Flags::default(),
        };
        if !text.is_empty() {
            case.write("walrelay.toml", text);
        }
        case
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn flag(mut self, key: Key, value: &str) -> Self {
        self.flags.values.push((key, value.to_owned()));
        self
    }

    fn load(&self) -> Result<Loaded, ConfigError> {
        let environment = Environment::new(self.environment.clone()).with_os_user("os");
        load_from(
            &self.flags,
            &environment,
            &[self.folder.path().join("walrelay.toml")],
        )
    }
}

fn shown(loaded: &Loaded, key: Key) -> &Shown {
    loaded
        .values
        .iter()
        .find(|shown| shown.key == key)
        .expect("the key has a value")
}

#[test]
fn defaults_are_the_documented_ones() {
    let loaded = Case::new("").load().unwrap();
    let settings = loaded.lane().unwrap();
    assert_eq!(settings.name, "walrelay");
    assert_eq!(
        (
            settings.postgres.slot.as_str(),
            settings.postgres.publication.as_str()
        ),
        ("walrelay", "walrelay")
    );
    assert_eq!(settings.postgres.table.to_string(), "public.outbox_events");
    assert_eq!(
        settings.nats.connection.servers[0].to_string(),
        "nats://localhost:4222"
    );
    assert_eq!(
        (
            settings.nats.stream.as_str(),
            settings.nats.subject.to_string().as_str()
        ),
        ("OUTBOX", "outbox.{event_type}")
    );
    assert_eq!(settings.nats.connection.login.read(), Ok(NatsAuth::None));
    let relay = RelaySettings {
        hold_back: Duration::from_secs(180),
        on_reject: OnReject::DeadLetter,
        window_messages_max: 8192,
        window_bytes_max: 8 << 20,
        ack_timeout: Duration::from_secs(5),
        shutdown_timeout: Duration::from_secs(10),
        status_interval: Duration::from_secs(1),
        backoff_max: Duration::from_millis(500),
    };
    assert_eq!(settings.relay, relay);
    assert_eq!(loaded.http.listen, Some("127.0.0.1:7187".parse().unwrap()));
    assert_eq!((loaded.file, loaded.warnings), (None, vec![]));
}

#[test]
fn the_documents_show_a_file_that_loads_and_its_values_are_the_defaults() {
    let document = include_str!("../../docs/configuration.md");
    let (_, block) = document.split_once("```toml\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let loaded = Case::new(block).load().unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new());
    for default in Case::new("").load().unwrap().values {
        assert_eq!(shown(&loaded, default.key).text, default.text);
    }
}

#[test]
fn a_switch_is_written_as_in_toml_or_as_text() {
    for (text, expected) in [("true", true), ("\"true\"", true), ("false", false)] {
        let loaded = Case::new(&format!("[nats]\nshared = {text}"))
            .load()
            .unwrap();
        assert_eq!(loaded.lane().unwrap().nats.shared, expected, "{text}");
    }
    for text in ["1.5", "\"yes\"", "[true]"] {
        let error = Case::new(&format!("[nats]\nshared = {text}")).load().err();
        let message = error.expect(text).to_string();
        assert!(message.ends_with("must be true or false"), "{message}");
    }
    // Elsewhere it is a mistake, never the text "true".
    let error = Case::new("[nats]\nstream = true").load().err();
    assert!(matches!(error, Some(ConfigError::Type { line: 2, .. })));
}

#[test]
fn flag_over_environment_over_file_over_fallback_over_default() {
    let url = |host: &str| format!("postgres://u@{host}/d");
    let mut case = Case::new("");
    let host = |case: &Case| {
        let loaded = case.load().unwrap();
        let source = loaded
            .values
            .iter()
            .find(|shown| shown.key == Key::PostgresUrl)
            .map(|shown| shown.source.clone());
        match &loaded.lane().unwrap().postgres.conninfo.hosts[0].host {
            Host::Tcp(name) => (name.clone(), source),
            Host::Unix(_) => ("socket".to_owned(), source),
        }
    };
    case = case.env("PGHOST", "pghost");
    assert_eq!(host(&case), ("pghost".to_owned(), None));
    case = case.env("DATABASE_URL", &url("fallback"));
    assert_eq!(
        host(&case),
        (
            "fallback".to_owned(),
            Some(ValueOrigin::Fallback("DATABASE_URL".to_owned()))
        )
    );
    let path = case.write(
        "walrelay.toml",
        &format!("\n[postgres]\nurl = \"{}\"\n", url("file")),
    );
    assert_eq!(
        host(&case),
        ("file".to_owned(), Some(ValueOrigin::File { path, line: 3 }))
    );
    case = case.env("WALRELAY_POSTGRES_URL", &url("env"));
    assert_eq!(
        host(&case),
        (
            "env".to_owned(),
            Some(ValueOrigin::Variable("WALRELAY_POSTGRES_URL".to_owned()))
        )
    );
    case = case.flag(Key::PostgresUrl, &url("flag"));
    assert_eq!(
        host(&case),
        ("flag".to_owned(), Some(ValueOrigin::Flag("--database-url")))
    );
}

#[test]
fn every_key_can_be_given_by_file_and_environment() {
    let seed = nkeys::KeyPair::new_user().seed().unwrap();
    let case = Case::new("");
    let seed_path = case.write("seed", &seed);
    let roots = case.write("ca.crt", CERTIFICATE);
    for entry in keys::KEYS {
        let text = match entry.key {
            Key::Name => "other".to_owned(),
            Key::PostgresUrl => "host=h".to_owned(),
            Key::NatsNkeySeed => seed_path.display().to_string(),
            Key::NatsCredentials | Key::NatsUser | Key::NatsPassword => continue,
            // Files that must be there, and halves.
            Key::NatsContext | Key::NatsTlsCert | Key::NatsTlsKey | Key::NatsJwt => continue,
            Key::NatsTlsCa => roots.display().to_string(),
            Key::NatsDomain | Key::NatsApiPrefix => "hub".to_owned(),
            Key::NatsToken | Key::PostgresPassword => "s3cr3t".to_owned(),
            Key::PostgresPasswordCommand => "cat file".to_owned(),
            Key::PostgresSlot | Key::PostgresPublication => "other".to_owned(),
            Key::MessageSource => "/app".to_owned(),
            Key::RelayShare => "0".to_owned(),
            Key::RelayMaxSharesPerInstance => "1".to_owned(),
            key => key.entry().default.unwrap().to_owned(),
        };
        let line = match entry.section {
            Some(section) => format!("[{section}]\n{} = '{text}'\n", entry.name),
            None => format!("{} = '{text}'\n", entry.name),
        };
        // No other format has a source.
        let format = match entry.key {
            Key::MessageSource => "format = 'cloudevents'\n",
            _ => "",
        };
        let line = line + format;
        let by_file = Case::new(&line).load().unwrap();
        assert!(
            matches!(shown(&by_file, entry.key).source, ValueOrigin::File { .. }),
            "{}",
            entry.path()
        );
        let section = match format {
            "" => String::new(),
            format => format!("[message]\n{format}"),
        };
        let by_variable = Case::new(&section)
            .env(&entry.variable(), &text)
            .load()
            .unwrap();
        assert_eq!(
            shown(&by_variable, entry.key).source,
            ValueOrigin::Variable(entry.variable())
        );
        assert_eq!(by_variable.warnings, Vec::<String>::new());
    }
}

#[test]
fn slot_and_publication_take_the_name() {
    let loaded = Case::new("name = 'My-App'\n[postgres]\npublication = 'Other One'")
        .load()
        .unwrap();
    assert_eq!(loaded.lane().unwrap().name, "My-App");
    assert_eq!(loaded.lane().unwrap().postgres.slot, "my_app");
    assert_eq!(loaded.lane().unwrap().postgres.publication, "Other One");
    assert_eq!(
        shown(&loaded, Key::PostgresSlot).source,
        ValueOrigin::FromName
    );
}

#[test]
fn unknown_keys_name_file_line_and_the_nearest() {
    for (text, line_expected, key_expected, nearest_expected) in [
        (
            "[postgres]\nslto = 'x'",
            2,
            "postgres.slto",
            Some("postgres.slot"),
        ),
        (
            "\n\n[relay]\n\nhold-back = '1s'",
            5,
            "relay.hold-back",
            Some("relay.hold_back"),
        ),
        (
            "[relay]\nstream = 'x'",
            2,
            "relay.stream",
            Some("nats.stream"),
        ),
        ("slot = 'x'", 1, "slot", Some("postgres.slot")),
        ("nam = 'x'", 1, "nam", Some("name")),
        ("[postgre]\nurl = 'x'", 1, "postgre", Some("[postgres]")),
        ("[Nats]\nurl = 'x'", 1, "Nats", Some("[nats]")),
        ("nats.stram = 'x'", 1, "nats.stram", Some("nats.stream")),
        (
            "[http]\nwhatever_this_is = 1",
            2,
            "http.whatever_this_is",
            None,
        ),
    ] {
        match Case::new(text).load() {
            Err(ConfigError::UnknownKey {
                line,
                key,
                nearest,
                path,
            }) => {
                assert_eq!(
                    (line, key.as_str(), nearest.as_deref()),
                    (line_expected, key_expected, nearest_expected)
                );
                assert!(path.ends_with("walrelay.toml"));
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn files_that_are_no_configuration() {
    let secret = Case::new("[postgres]\nurl = \"postgres://u:hunter2@h\n")
        .load()
        .unwrap_err();
    assert!(
        matches!(secret, ConfigError::Syntax { line: 2, .. }),
        "{secret:?}"
    );
    assert!(!format!("{secret} {secret:?}").contains("hunter2"));
    for (text, key_expected) in [
        ("name = true", "name"),
        ("postgres = 'postgres://h'", "postgres"),
        ("[nats]\nurl = [1]", "nats.url"),
        ("[message]\nheaders = ['a']", "message.headers"),
        ("[nats]\nurl = 4222.5", "nats.url"),
        ("[relay]\nwindow_messages = 1.5", "relay.window_messages"),
    ] {
        let error = Case::new(text).load().unwrap_err();
        assert!(
            matches!(error, ConfigError::Type { key, .. } if key == key_expected),
            "{text}"
        );
    }
    let mut case = Case::new("");
    case.flags.config = Some(case.folder.path().join("missing.toml"));
    let missing = case.load().unwrap_err();
    assert!(matches!(missing, ConfigError::Unreadable { .. }));
    assert!(!missing.to_string().contains("--config"), "{missing}");
    let forbidden = ConfigError::Unreadable {
        path: "/etc/walrelay/walrelay.toml".into(),
        source: std::io::ErrorKind::PermissionDenied.into(),
    };
    assert!(forbidden.to_string().contains("--config FILE"));
    case.flags.config = Some(case.write("other.toml", "name = 'other'"));
    assert_eq!(case.load().unwrap().lane().unwrap().name, "other");
    let path = case.write("third.toml", "name = 'third'");
    case.flags.config = None;
    let case = case.env("WALRELAY_CONFIG", path.to_str().unwrap());
    assert_eq!(case.load().unwrap().lane().unwrap().name, "third");
}

#[test]
fn values_out_of_range_name_key_value_source_and_range() {
    for (key_expected, values) in [
        (Key::Name, &["", "-x", "a b"][..]),
        (Key::PostgresSlot, &["", "My-Slot", "a.b"]),
        (Key::PostgresTable, &["", "a b", "a.b.c"]),
        (Key::NatsUrl, &["http://h", "nats://h:0"]),
        (Key::NatsStream, &["", "a.b", "a b", "a>", "WALRELAY"]),
        (Key::NatsConnectTimeout, &["0s", "6m", "5"]),
        (Key::Preset, &["", "Debezium", "wal-listener"]),
        (Key::ColumnsId, &["", "{value = 1}", "{value"]),
        (Key::ColumnsPayload, &["", "{value = 1}"]),
        (
            Key::ColumnsEventVersion,
            &["{value = 256}", "{value = []}", "{}"],
        ),
        (Key::ColumnsOccurredAt, &["{value = 1}"]),
        (
            Key::SourceMessages,
            &["xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"],
        ),
        (Key::MessageFormat, &["", "json", "Envelope"]),
        (Key::MessageSource, &["", "a b"]),
        (Key::MessageTombstones, &["", "yes"]),
        (Key::MessageHeaderValues, &["", "JSON"]),
        (
            Key::MessageHeaders,
            &[
                "",
                "{",
                "{a = 1}",
                r#"{a = ""}"#,
                r#"{nats-msg-id = "a"}"#,
                r#"{Walrelay-Kind = "a"}"#,
                r#"{"a b" = "c"}"#,
                r#"{a = "b", A = "c"}"#,
            ],
        ),
        (
            Key::MessageFields,
            &[r#"{id = "a"}"#, r#"{payload_base64 = "a"}"#],
        ),
        (Key::RelayHoldBack, &["25h", "-1s", "130", "soon"]),
        (Key::RelayOnReject, &["skip", "Halt", ""]),
        (Key::RelayWindowMessages, &["0", "1000001", "many", "-1"]),
        (Key::RelayWindowBytes, &["1KiB", "2GiB", "8M", "0"]),
        (Key::RelayAckTimeout, &["99ms", "301s"]),
        (Key::RelayShutdownTimeout, &["601s"]),
        (Key::RelayStatusInterval, &["0s", "61s"]),
        (Key::RelayBackoffMax, &["0s", "11m"]),
        (Key::OutboxAfterPublish, &["Delete", "drop", ""]),
        (
            Key::HttpListen,
            &["7187", ":7187", "127.0.0.1", "127.0.0.1:99999"],
        ),
    ] {
        for value in values {
            let entry = key_expected.entry();
            let line = match entry.section {
                Some(section) => format!("[{section}]\n{} = '{value}'", entry.name),
                None => format!("{} = '{value}'", entry.name),
            };
            match Case::new(&line).load() {
                Err(ConfigError::Value {
                    key,
                    shown,
                    origin: ValueOrigin::File { .. },
                    ..
                }) => {
                    assert_eq!((key, shown.as_str()), (key_expected.path(), *value));
                }
                other => panic!("{line}: {other:?}"),
            }
        }
    }
    // `run` takes the template that is parsed here: it has nothing of its own to refuse.
    for subject in [
        "$JS.x",
        "walrelay.x",
        "a..b",
        "a.{type:slug}",
        "{event_type}",
        "outbox-{event_type}",
        "",
    ] {
        let error = Case::new("")
            .flag(Key::NatsSubject, subject)
            .load()
            .unwrap_err();
        assert!(
            matches!(
                error,
                ConfigError::Subject {
                    origin: ValueOrigin::Flag("--subject"),
                    ..
                }
            ),
            "{subject}"
        );
    }
    for (key, value) in [
        (Key::RelayHoldBack, "0s"),
        (Key::RelayHoldBack, "0"),
        (Key::HttpListen, ""),
    ] {
        Case::new("").flag(key, value).load().unwrap();
    }
}

#[test]
fn the_message_of_a_range_is_complete() {
    let error = Case::new("")
        .env("WALRELAY_RELAY_ACK_TIMEOUT", "1ms")
        .load()
        .unwrap_err()
        .to_string();
    for part in [
        "relay.ack_timeout",
        "\"1ms\"",
        "env WALRELAY_RELAY_ACK_TIMEOUT",
        "100ms",
        "5m",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn an_empty_variable_is_not_set_but_an_empty_listener_is_off() {
    let case = Case::new("")
        .env("WALRELAY_NATS_TOKEN", "")
        .env("WALRELAY_NATS_STREAM", "");
    let loaded = case.env("WALRELAY_HTTP_LISTEN", "").load().unwrap();
    assert_eq!(
        loaded.lane().unwrap().nats.connection.login.read(),
        Ok(NatsAuth::None)
    );
    assert_eq!(loaded.lane().unwrap().nats.stream, "OUTBOX");
    assert_eq!(loaded.http.listen, None);
}

#[test]
fn an_empty_text_in_the_file_is_not_set_where_a_key_may_be_absent() {
    let may_be_absent = keys::KEYS.iter().filter(|entry| entry.is_unset_by_empty());
    let may_be_absent: Vec<&keys::Entry> = may_be_absent.collect();
    for entry in &may_be_absent {
        let section = entry.section.expect("none of them is at the top");
        let text = format!("[{section}]\n{} = \"\"\n", entry.name);
        let loaded = Case::new(&text).load().expect(&text);
        let value = loaded.values.iter().find(|shown| shown.key == entry.key);
        let is_given = value.is_some_and(|shown| shown.source.rank() > 0);
        assert!(!is_given, "{text}");
    }
    let names: Vec<String> = may_be_absent.iter().map(|entry| entry.path()).collect();
    for name in [
        "nats.domain",
        "nats.api_prefix",
        "nats.inbox_prefix",
        "nats.token",
    ] {
        assert!(names.iter().any(|found| found == name), "{names:?}");
    }
    // As it stands in the documents, beside what it excludes where it is given.
    let text = "[nats]\nurl = \"nats://u:p@h\"\ntoken = \"\"\ndomain = \"\"\napi_prefix = \"js\"\n";
    let loaded = Case::new(text).load().unwrap();
    let connection = &loaded.lane().unwrap().nats.connection;
    assert_eq!(connection.api_prefix, "js");
    // What cannot be absent is a typing mistake.
    for wrong in ["[nats]\nstream = \"\"\n", "[relay]\nhold_back = \"\"\n"] {
        assert!(Case::new(wrong).load().is_err(), "{wrong}");
    }
}

#[test]
fn unknown_variables_are_warnings() {
    let case = Case::new("")
        .env("WALRELAY_POSTGRES_SLTO", "x")
        .env("WALRELAY_LOG_LEVEL", "debug")
        .env("OTHER", "x");
    let warnings = case.load().unwrap().warnings;
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].contains("WALRELAY_POSTGRES_SLTO")
            && warnings[0].contains("WALRELAY_POSTGRES_SLOT")
    );
    let warnings = Case::new("").env("WALRELAY_RELAY_HOLDBACK", "0s").load();
    let warnings = warnings.unwrap().warnings;
    assert!(
        warnings[0].ends_with("did you mean WALRELAY_RELAY_HOLD_BACK?"),
        "{warnings:?}"
    );
    let warnings = Case::new("")
        .env("WALRELAY_FOO", "x")
        .load()
        .unwrap()
        .warnings;
    assert!(!warnings[0].contains("did you mean"), "{warnings:?}");
    let mut case = Case::new("");
    for link in [
        "WALRELAY_PORT",
        "WALRELAY_SERVICE_HOST",
        "WALRELAY_SERVICE_PORT",
        "WALRELAY_SERVICE_PORT_HTTP",
        "WALRELAY_PORT_7187_TCP",
        "WALRELAY_PORT_7187_TCP_ADDR",
    ] {
        case = case.env(link, "tcp://10.0.0.1:7187");
    }
    let warnings = case.load().unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("Kubernetes"));
}

#[test]
fn several_nats_servers() {
    for text in [
        "url = 'nats://a, nats://b:1'",
        "url = ['nats://a', 'nats://b:1']",
    ] {
        let loaded = Case::new(&format!("[nats]\n{text}")).load().unwrap();
        let servers: Vec<String> = loaded
            .lane()
            .unwrap()
            .nats
            .connection
            .servers
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(servers, ["nats://a:4222", "nats://b:1"]);
    }
}

#[test]
fn a_connection_string_is_an_error_with_its_source() {
    let error = Case::new("")
        .env("DATABASE_URL", "postgres://h/d?sslmode=maybe")
        .load()
        .unwrap_err();
    match error {
        ConfigError::Conninfo { origin, source } => {
            assert_eq!(origin, ValueOrigin::Fallback("DATABASE_URL".to_owned()));
            assert!(matches!(source, ConninfoError::Value { .. }));
        }
        other => panic!("{other:?}"),
    }
    // One fault of a variable is told once.
    let error = Case::new("")
        .env("PGSSLMODE", "maybe")
        .flag(Key::PostgresUrl, "")
        .load()
        .unwrap_err();
    assert!(matches!(error, ConfigError::Conninfo { .. }), "{error}");
    let loaded = Case::new("")
        .env("DATABASE_URL", "postgres://h/d?pgbouncer=true")
        .load()
        .unwrap();
    assert_eq!(loaded.warnings.len(), 1);
}
