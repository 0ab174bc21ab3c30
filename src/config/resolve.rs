//! Raw layers → [`Settings`].
//!
//! In: the text of each key. Out: values in the program's types, each checked against its range.
//! Guarantee: an error names the key, the value (masked), where it was given and what is allowed.

use std::time::Duration;

use super::auth;
use super::checked::{checked, invalid, required};
use super::error::ConfigError;
use super::keys::Key;
use super::layers::{Layers, Value, command_words};
use super::origin::ValueOrigin;
use super::quantity::{format_bytes, parse_bytes, parse_duration};
use super::shares::{self, LaneLayers};
use super::{HttpSettings, mapping, nats_way, syntax, tables};
use crate::environment::Environment;
use crate::nats::address::NatsAddress;
use crate::nats::settings::ConnectionSettings;
use crate::nats::stream::LANE_RECORD_STREAM;
use crate::pipeline::after_publish::AfterPublish;
use crate::postgres::conninfo::{self, Conninfo, Host, PasswordCommand, PasswordSource};
use crate::postgres::settings::PostgresSettings;
use crate::relay::settings::{NatsSettings, OnReject, OutboxSettings, RelaySettings, Settings};
use crate::secret::{MASK, Secret};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Shortest of the timeouts: below it, a busy machine alone would trip them.
const TIMEOUT_MIN: Duration = Duration::from_millis(100);

/// What a configuration comes to.
pub(super) struct Resolved {
    pub(super) lanes: Vec<Settings>,
    pub(super) lanes_max: usize,
    pub(super) http: HttpSettings,
}

/// Resolves the layers, and writes the values that were derived into them for `config show`.
pub(super) fn resolve(
    layers: &mut Layers,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Result<Resolved, ConfigError> {
    let name = checked(
        layers,
        Key::Name,
        "1 to 63 letters, digits, _, - and ., the first a letter or digit",
        |text| syntax::is_name(text).then(|| text.to_owned()),
    )?;
    for key in [Key::PostgresSlot, Key::PostgresPublication] {
        if layers.get(key).is_none() {
            layers.set(key, syntax::slot_of_name(&name), ValueOrigin::FromName);
        }
    }
    if layers.get(Key::MessageSource).is_none() {
        let source = mapping::source_of_name(&name);
        layers.set(Key::MessageSource, source, ValueOrigin::FromName);
    }
    mapping::apply_preset(layers)?;
    let mut lanes = Vec::new();
    for lane in shares::lanes(layers)? {
        let mut told = Vec::new();
        lanes.push(resolve_lane(&name, lane, environment, &mut told)?);
        told.retain(|warning| !warnings.contains(warning));
        warnings.append(&mut told);
    }
    shares::join_streams(&mut lanes);
    if let Some(pinned) = shares::pinned(layers, lanes.len())? {
        lanes = vec![lanes.swap_remove(pinned)];
    }
    let lanes_max = shares::lanes_max(layers)?.unwrap_or(lanes.len());
    let listen = checked(
        layers,
        Key::HttpListen,
        "an address and a port from 0 to 65535, such as 127.0.0.1:7187 or 0.0.0.0:7187, or empty to turn it off",
        syntax::parse_listen,
    )?;
    let http = HttpSettings {
        listen,
        chosen: required(layers, Key::HttpListen).source != ValueOrigin::Default,
    };
    Ok(Resolved {
        lanes,
        lanes_max,
        http,
    })
}

fn resolve_lane(
    name: &str,
    LaneLayers {
        layers,
        share,
        undivided,
    }: LaneLayers,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Result<Settings, ConfigError> {
    let mut postgres = resolve_postgres(&layers, environment, warnings)?;
    postgres.share = share;
    postgres.undivided = undivided;
    let nats = resolve_nats(&layers, environment)?;
    let message = mapping::message(&layers, &postgres.columns, &nats.subject)?;
    let mut settings = Settings {
        name: name.to_owned(),
        postgres,
        nats,
        message,
        relay: resolve_relay(&layers)?,
        outbox: OutboxSettings {
            after_publish: mapping::one_of(&layers, Key::OutboxAfterPublish, &AfterPublish::NAMES)?,
        },
    };
    let mapping = settings.mapping();
    settings.postgres.extra_columns = mapping.extras().to_vec();
    settings.postgres.may_be_null = mapping.may_be_null();
    tables::add(&layers, &mut settings)?;
    let formats = settings.tables().into_iter();
    mapping::check_source(&layers, formats.map(|table| table.message.format))?;
    Ok(settings)
}

fn resolve_postgres(
    layers: &Layers,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Result<PostgresSettings, ConfigError> {
    let url = layers.get(Key::PostgresUrl);
    let password = password_source(layers, environment)?;
    let wrong = |source| ConfigError::Conninfo {
        origin: url.map_or(ValueOrigin::Default, |url| url.source.clone()),
        source,
    };
    let text = url.map(|url| url.text.as_str());
    let (conninfo, conninfo_warnings) =
        Conninfo::resolve(text, password, environment).map_err(wrong)?;
    if conninfo
        .hosts
        .iter()
        .any(|host| matches!(host.host, Host::Tcp(_)))
    {
        conninfo.tls.check_files().map_err(wrong)?;
    }
    warnings.extend(conninfo_warnings);
    Ok(PostgresSettings {
        conninfo,
        slot: checked(
            layers,
            Key::PostgresSlot,
            "1 to 63 of a-z, 0-9 and _",
            |text| syntax::is_slot(text).then(|| text.to_owned()),
        )?,
        publication: checked(
            layers,
            Key::PostgresPublication,
            "1 to 63 bytes without control characters",
            |text| syntax::is_publication(text).then(|| text.to_owned()),
        )?,
        table: checked(
            layers,
            Key::PostgresTable,
            "a table as in SQL, such as public.outbox_events",
            |text| text.parse().ok(),
        )?,
        columns: mapping::columns(layers)?,
        subject: mapping::subject(layers)?,
        extra_columns: Vec::new(),
        may_be_null: Vec::new(),
        further: Vec::new(),
        entry: None,
        messages: checked(
            layers,
            Key::SourceMessages,
            "a prefix of pg_logical_emit_message, 1 to 63 bytes, not of walrelay, or \"\"",
            |text| match text {
                "" => Some(None),
                // walrelay writes messages of its own under such prefixes.
                text if text.starts_with("walrelay") => None,
                text => syntax::is_publication(text).then(|| Some(text.to_owned())),
            },
        )?,
        share: None,
        undivided: None,
    })
}

/// The password's source from the highest layer that has one; `None` leaves it to the connection string and what libpq
/// reads beside it.
fn password_source(
    layers: &Layers,
    environment: &Environment,
) -> Result<Option<PasswordSource>, ConfigError> {
    let url = layers
        .get(Key::PostgresUrl)
        .filter(|url| conninfo::has_password(&url.text))
        .map(|url| (Key::PostgresUrl, url));
    let own = |key| layers.get(key).map(|value| (key, value));
    let password = own(Key::PostgresPassword);
    let command = own(Key::PostgresPasswordCommand);
    let rank = |given: &Option<(Key, &Value)>| given.map(|(_, value)| value.source.rank());
    // A password of its own goes with a URL of the same layer.
    let fixed = if rank(&password) >= rank(&url) {
        password
    } else {
        url
    };
    match (fixed, command) {
        (Some((first, fixed)), Some((second, command)))
            if fixed.source.rank() == command.source.rank() =>
        {
            let name = |key: Key, value: &Value| format!("{} ({})", key.path(), value.source);
            Err(ConfigError::PasswordTwice {
                first: name(first, fixed),
                second: name(second, command),
            })
        }
        (_, Some((_, command)))
            if rank(&Some((Key::PostgresPasswordCommand, command))) > rank(&fixed) =>
        {
            let expected =
                "a program and its arguments, such as [\"cat\", \"/run/secrets/password\"]";
            command_words(&command.text)
                .and_then(PasswordCommand::new)
                .map(|command| Some(PasswordSource::Command(command)))
                .ok_or_else(|| invalid(Key::PostgresPasswordCommand, command, expected.to_owned()))
        }
        (Some((Key::PostgresPassword, password)), _) => {
            // One that comes from a file is read again at each connect.
            let file = match &password.source {
                ValueOrigin::Variable(variable) if variable.ends_with("_FILE") => {
                    environment.get(variable)
                }
                _ => None,
            };
            Ok(Some(match file {
                Some(path) => PasswordSource::File(path.into()),
                None => Secret::new(&*password.text).into(),
            }))
        }
        _ => Ok(None),
    }
}

fn resolve_nats(layers: &Layers, environment: &Environment) -> Result<NatsSettings, ConfigError> {
    let url = required(layers, Key::NatsUrl);
    let (servers, of_url) =
        NatsAddress::parse_urls(&url.text).map_err(|error| ConfigError::Value {
            key: Key::NatsUrl.path(),
            // Where the list cannot be read, nobody can tell which part of it is a password.
            shown: if url.text.contains('@') {
                MASK.to_owned()
            } else {
                url.text.clone()
            },
            origin: url.source.clone(),
            expected: format!("one or more NATS URLs such as nats://localhost:4222: {error}"),
        })?;
    Ok(NatsSettings {
        connection: ConnectionSettings {
            login: auth::choose(layers, of_url, environment)?,
            tls: nats_way::tls(layers, &servers)?,
            servers,
            api_prefix: nats_way::api_prefix(layers)?,
            imported: checked(layers, Key::NatsImported, "true or false", |text| {
                text.parse().ok()
            })?,
            inbox_prefix: nats_way::inbox_prefix(layers)?,
            connect_timeout: duration(layers, Key::NatsConnectTimeout, TIMEOUT_MIN, 5 * MINUTE)?,
        },
        stream: stream(layers)?,
        subject: mapping::subject(layers)?,
        further_subjects: Vec::new(),
        shared: checked(layers, Key::NatsShared, "true or false", |text| {
            text.parse().ok()
        })?,
        neighbours: Vec::new(),
    })
}

/// The stream of the events, which is never that of the lane records.
fn stream(layers: &Layers) -> Result<String, ConfigError> {
    let stream = checked(layers, Key::NatsStream, syntax::STREAM_FORM, |text| {
        syntax::is_stream(text).then(|| text.to_owned())
    })?;
    match stream == LANE_RECORD_STREAM {
        true => Err(invalid(
            Key::NatsStream,
            required(layers, Key::NatsStream),
            format!(
                "another stream than {LANE_RECORD_STREAM}, in which walrelay keeps its own records"
            ),
        )),
        false => Ok(stream),
    }
}

fn resolve_relay(layers: &Layers) -> Result<RelaySettings, ConfigError> {
    Ok(RelaySettings {
        hold_back: duration(layers, Key::RelayHoldBack, Duration::ZERO, 24 * HOUR)?,
        on_reject: checked(
            layers,
            Key::RelayOnReject,
            "dead_letter or halt",
            |text| match text {
                "dead_letter" => Some(OnReject::DeadLetter),
                "halt" => Some(OnReject::Halt),
                _ => None,
            },
        )?,
        window_messages_max: checked(
            layers,
            Key::RelayWindowMessages,
            "a number from 1 to 1000000",
            |text| {
                text.parse()
                    .ok()
                    .filter(|count| (1..=1_000_000).contains(count))
            },
        )?,
        window_bytes_max: bytes(layers, Key::RelayWindowBytes, 64 << 10, 1 << 30)?,
        ack_timeout: duration(layers, Key::RelayAckTimeout, TIMEOUT_MIN, 5 * MINUTE)?,
        shutdown_timeout: duration(
            layers,
            Key::RelayShutdownTimeout,
            Duration::ZERO,
            10 * MINUTE,
        )?,
        status_interval: duration(layers, Key::RelayStatusInterval, TIMEOUT_MIN, MINUTE)?,
        backoff_max: duration(layers, Key::RelayBackoffMax, TIMEOUT_MIN, 10 * MINUTE)?,
    })
}

fn duration(
    layers: &Layers,
    key: Key,
    min: Duration,
    max: Duration,
) -> Result<Duration, ConfigError> {
    let written = humantime::format_duration;
    let expected = format!(
        "a duration from {} to {}, such as \"10s\"",
        written(min),
        written(max)
    );
    checked(layers, key, &expected, |text| {
        parse_duration(text).filter(|value| (min..=max).contains(value))
    })
}

fn bytes(layers: &Layers, key: Key, min: u64, max: u64) -> Result<usize, ConfigError> {
    let expected = format!(
        "a size from {} to {}, such as \"8MiB\"",
        format_bytes(min),
        format_bytes(max)
    );
    checked(layers, key, &expected, |text| {
        let value = parse_bytes(text).filter(|value| (min..=max).contains(value))?;
        usize::try_from(value).ok()
    })
}
