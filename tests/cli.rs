//! The real executable: help, configuration, exit codes, closed pipes. Needs no server.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// The executable in an empty folder and an empty environment.
struct Walrelay {
    folder: TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Walrelay {
    fn new() -> Self {
        Walrelay {
            folder: tempfile::tempdir().unwrap(),
            environment: vec![("PGUSER", "relay".to_owned())],
        }
    }

    fn with_file(text: &str) -> Self {
        let walrelay = Walrelay::new();
        fs::write(walrelay.path().join("walrelay.toml"), text).unwrap();
        walrelay
    }

    fn env(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_walrelay"));
        command
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .envs(self.environment.clone());
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        Ended::from(self.command(arguments).output().unwrap())
    }
}

struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Ended {
            code: output.status.code().expect("it ended by itself"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The commands that `--help` lists: each begins a line behind two spaces, a wrapped description behind more.
fn commands() -> Vec<String> {
    let help = Walrelay::new().run(&["--help"]).stdout;
    let section = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty());
    let names = section
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next());
    names
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn help_of_every_command_has_examples_and_no_secret() {
    let walrelay = Walrelay::new().env("WALRELAY_POSTGRES_URL", "postgres://u:hunter2@h/d");
    let commands = commands();
    for expected in [
        "setup",
        "teardown",
        "position",
        "tail",
        "config",
        "demo",
        "completions",
    ] {
        assert!(
            commands.iter().any(|name| name == expected),
            "{expected}: {commands:?}"
        );
    }
    for name in commands {
        let ended = walrelay.run(&[&name, "--help"]);
        assert_eq!(ended.code, 0, "{name}");
        assert!(
            ended.stdout.contains("Examples:") && ended.stdout.contains("--config"),
            "{name}: {}",
            ended.stdout
        );
        assert!(!ended.stdout.contains("hunter2"), "{name}");
    }
}

#[test]
fn help_needs_no_usable_configuration() {
    let walrelay = Walrelay::with_file("nonsense");
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["config", "--help"],
        &["completions", "bash"],
        &["help", "config"],
    ] {
        assert_eq!(walrelay.run(arguments).code, 0, "{arguments:?}");
    }
    let help = walrelay.run(&["help"]).stdout;
    assert_eq!(walrelay.run(&["help", "--help"]).stdout, help);
    assert!(help.contains("Commands:"));
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let walrelay = Walrelay::new();
    for arguments in [
        &[][..],
        &["dance"],
        &["config"],
        &["config", "show", "--no-such-flag"],
        &["--log-level", "loud", "config", "check"],
        &["--log-level", "info", "-v", "config", "check"],
        &["--log-format", "xml", "config", "check"],
        &["completions", "tcsh"],
        &["--config", "missing.toml", "config", "check"],
        &["move", "--to-stream", "a.b"],
        &["replay", "--from", "0/1", "--stream", "a.b"],
        &["reshard", "--shares", "0"],
        &["reshard", "--shares", "3"],
    ] {
        let ended = walrelay.run(arguments);
        assert_eq!(ended.code, 2, "{arguments:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, "");
        assert!(!ended.stderr.is_empty());
    }
    assert_eq!(
        Walrelay::new()
            .env("WALRELAY_LOG_LEVEL", "loud")
            .run(&["config", "check"])
            .code,
        2
    );
    assert_eq!(
        Walrelay::new()
            .env("WALRELAY_LOG_FORMAT", "xml")
            .run(&["config", "check"])
            .code,
        2
    );
}

#[test]
fn an_unknown_key_names_file_line_and_the_nearest() {
    let ended =
        Walrelay::with_file("name = 'x'\n[relay]\nhold_bakc = '1s'\n").run(&["config", "check"]);
    assert_eq!(ended.code, 2);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    for part in [
        "error: ",
        "walrelay.toml:3",
        "`relay.hold_bakc`",
        "`relay.hold_back`",
    ] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
}

#[test]
fn a_bad_range_names_key_value_source_and_range() {
    let ended = Walrelay::new().run(&["config", "check", "--hold-back", "25h"]);
    assert_eq!(ended.code, 2);
    for part in ["relay.hold_back", "25h", "flag --hold-back", "0s", "1day"] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
}

#[test]
fn tls_that_contradicts_itself_is_refused_with_what_mends_it() {
    let url = "postgres://u:hunter2@h/d?sslmode=require&sslrootcert=system";
    let walrelay = Walrelay::new().env("DATABASE_URL", url);
    let ended = walrelay.run(&["config", "check"]);
    assert_eq!(ended.code, 2);
    for part in ["DATABASE_URL", "sslrootcert=system", "use verify-full"] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
    assert!(!ended.stderr.contains("hunter2"));
}

#[test]
fn config_show_prints_values_sources_and_no_secret() {
    let file = "name = 'shop'\n[postgres]\nurl = 'postgres://u:hunter2@h/d'\n";
    let walrelay = Walrelay::with_file(file)
        .env("WALRELAY_NATS_STREAM", "SHOP")
        .env("NATS_URL", "nats://hunter2@n");
    let ended = walrelay.run(&["config", "show", "--hold-back", "0s"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let line = |key: &str| {
        let found = ended
            .stdout
            .lines()
            .find(|line| line.starts_with(&format!("{key} = ")));
        found
            .unwrap_or_else(|| panic!("{key}: {}", ended.stdout))
            .to_owned()
    };
    for (key, value, source) in [
        ("name", "\"shop\"", "walrelay.toml:1"),
        (
            "postgres.url",
            "\"postgres://u:***@h/d\"",
            "walrelay.toml:3",
        ),
        ("postgres.slot", "\"shop\"", "default, from name"),
        ("nats.url", "\"nats://***@n\"", "env NATS_URL"),
        ("nats.stream", "\"SHOP\"", "env WALRELAY_NATS_STREAM"),
        ("relay.hold_back", "\"0s\"", "flag --hold-back"),
        ("relay.ack_timeout", "\"5s\"", "default"),
    ] {
        let line = line(key);
        assert!(
            line.contains(value) && line.ends_with(&format!("# {source}")),
            "{line}"
        );
    }
    let json = walrelay.run(&["config", "show", "--json"]);
    let parsed: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(parsed["values"]["name"]["source"]["line"], 1);
    assert_eq!(parsed["values"]["nats.stream"]["value"], "SHOP");
    assert!(
        !format!(
            "{}{}{}{}",
            ended.stdout, ended.stderr, json.stdout, json.stderr
        )
        .contains("hunter2")
    );
}

#[test]
fn what_config_show_prints_can_be_a_file() {
    let shown = Walrelay::new().run(&["config", "show"]).stdout;
    let again = Walrelay::with_file(&shown).run(&["config", "check"]);
    assert_eq!(again.code, 0, "{}", again.stderr);
}

#[test]
fn warnings_go_to_standard_error_in_the_format_asked_for() {
    let walrelay = Walrelay::new()
        .env("WALRELAY_PORT", "tcp://10.0.0.1:7187")
        .env("WALRELAY_NAMR", "x");
    let human = walrelay.run(&["config", "check"]);
    assert_eq!(human.code, 0);
    assert_eq!(human.stderr.matches("WARN").count(), 2, "{}", human.stderr);
    assert!(!human.stderr.contains('\u{1b}'), "no colour into a pipe");
    let json = walrelay.run(&["config", "check", "--log-format", "json"]);
    for line in json.stderr.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(event["level"], "WARN");
    }
    assert_eq!(json.stderr.lines().count(), 2);
    assert_eq!(
        walrelay
            .run(&["config", "check", "--log-level", "error"])
            .stderr,
        ""
    );
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let ended = Walrelay::new().run(&["completions", shell]);
        assert_eq!(ended.code, 0, "{shell}");
        assert!(
            ended.stdout.contains("walrelay") && ended.stdout.contains("config"),
            "{shell}"
        );
    }
}

#[test]
fn a_closed_pipe_is_no_failure() {
    for arguments in [
        &["config", "show"][..],
        &["completions", "bash"],
        &["--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Walrelay::new()
            .command(arguments)
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    }
}

#[test]
fn a_server_that_is_not_there_is_exit_code_1() {
    let ended = Walrelay::new().run(&["tail", "--nats-url", "nats://127.0.0.1:1"]);
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("error: "), "{}", ended.stderr);
}

#[test]
fn config_check_refuses_what_run_refuses() {
    for (variable, value) in [
        ("WALRELAY_NAME", "-a"),
        ("WALRELAY_POSTGRES_URL", "postgres://h/d?sslmode=maybe"),
        ("WALRELAY_POSTGRES_URL", "postgres://h:0/d"),
        ("WALRELAY_POSTGRES_SLOT", "Orders"),
        ("WALRELAY_POSTGRES_PUBLICATION", "a\tb"),
        ("WALRELAY_POSTGRES_TABLE", "a.b.c"),
        ("WALRELAY_NATS_URL", "http://h"),
        ("WALRELAY_NATS_TLS_CERT", "client.crt"),
        ("WALRELAY_NATS_TLS_FIRST", "perhaps"),
        ("WALRELAY_NATS_CONTEXT", "missing/context.json"),
        ("WALRELAY_NATS_DOMAIN", "a.b"),
        ("WALRELAY_NATS_API_PREFIX", "a..b"),
        ("WALRELAY_NATS_INBOX_PREFIX", "a.>"),
        ("WALRELAY_NATS_STREAM", "a.b"),
        ("WALRELAY_NATS_SUBJECT", "{event_type}"),
        ("WALRELAY_NATS_SUBJECT", "outbox-{event_type}"),
        ("WALRELAY_NATS_SHARED", "perhaps"),
        ("WALRELAY_NATS_USER", "alice"),
        ("WALRELAY_NATS_CREDENTIALS", "missing.creds"),
        ("WALRELAY_NATS_NKEY_SEED", "missing.nk"),
        ("WALRELAY_NATS_CONNECT_TIMEOUT", "1ms"),
        ("WALRELAY_RELAY_HOLD_BACK", "2 days"),
        ("WALRELAY_RELAY_ON_REJECT", "skip"),
        ("WALRELAY_RELAY_WINDOW_MESSAGES", "0"),
        ("WALRELAY_RELAY_WINDOW_BYTES", "1KiB"),
        ("WALRELAY_HTTP_LISTEN", "7187"),
    ] {
        let walrelay = Walrelay::new().env(variable, value);
        let check = walrelay.run(&["config", "check"]);
        assert_eq!(check.code, 2, "{variable}={value}: {}", check.stderr);
        let run = walrelay.run(&["run"]);
        assert_eq!(run.code, 2, "{variable}={value}: {}", run.stderr);
        assert_eq!(run.stderr, check.stderr, "{variable}={value}");
    }
}

/// What is published, by the configuration alone.
#[test]
fn the_asyncapi_document_follows_the_configuration() {
    let document = |variables: &[(&'static str, &str)]| -> serde_json::Value {
        let walrelay = Walrelay::new();
        let given =
            |walrelay: Walrelay, (name, value): &(&'static str, &str)| walrelay.env(name, value);
        let ended = variables
            .iter()
            .fold(walrelay, given)
            .run(&["config", "asyncapi"]);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        serde_json::from_str(&ended.stdout).unwrap()
    };
    let plain = document(&[("NATS_URL", "nats://joe:s3cr3t@nats.example:4333")]);
    assert!(!plain.to_string().contains("s3cr3t"), "{plain}");
    assert_eq!(plain["servers"]["nats1"]["host"], "nats.example:4333");
    assert_eq!(
        plain["channels"]["events"]["address"],
        "outbox.{event_type}"
    );
    let message = &plain["components"]["messages"]["event"];
    assert_eq!(
        message["payload"]["required"],
        serde_json::json!([
            "id",
            "aggregate_id",
            "event_type",
            "event_version",
            "occurred_at"
        ])
    );
    let debezium = document(&[
        ("WALRELAY_PRESET", "debezium"),
        ("WALRELAY_NATS_SUBJECT", "shop.{kind$:token}"),
        ("WALRELAY_MESSAGE_HEADERS", "{ eventType = 'type' }"),
        ("WALRELAY_MESSAGE_FIELDS", "{ tenant = 'tenant' }"),
    ]);
    let events = &debezium["channels"]["events"];
    assert_eq!(events["address"], "shop.{kind_}");
    assert!(events["parameters"]["kind_"].is_object(), "{events}");
    let message = &debezium["components"]["messages"]["event"];
    assert_eq!(message["headers"]["required"], serde_json::json!(["id"]));
    assert!(message["headers"]["properties"]["eventType"].is_object());
    assert_eq!(
        message["payload"]["required"],
        serde_json::json!(["payload"])
    );
}

#[test]
fn all_that_is_wrong_with_the_configuration_is_told_at_once() {
    let file = "naem = 'x'\n[relay]\nhold_back = 'soon'\non_reject = 'ignore'\n[nats]\nshared = 'perhaps'\n\
                subject = 'a b'\ntoken = 't'\ncredentials = 'c'\n[http]\nlisten = 'nowhere'\n[postgres]\ntable = true\n";
    for command in [&["config", "check"][..], &["run"]] {
        let ended = Walrelay::with_file(file)
            .env("WALRELAY_RELAY_ACK_TIMEOUT", "1 week")
            .run(command);
        assert_eq!(ended.code, 2);
        let said = &ended.stderr;
        assert!(
            said.lines().all(|line| line.starts_with("error: ")),
            "{said}"
        );
        for words in [
            "walrelay.toml:1: unknown key `naem`; did you mean `name`?",
            "relay.hold_back = \"soon\"",
            "relay.on_reject = \"ignore\"",
            "relay.ack_timeout = \"1 week\" (env WALRELAY_RELAY_ACK_TIMEOUT)",
            "nats.shared = \"perhaps\"",
            "nats.subject = \"a b\"",
            "two ways to authenticate at NATS",
            "http.listen = \"nowhere\"",
            "`postgres.table` must be",
        ] {
            let lines = said.lines().filter(|line| line.contains(words)).count();
            assert_eq!(lines, 1, "{words}: {said}");
        }
        assert_eq!(said.lines().count(), 9, "{said}");
    }
}

/// With the feature it would begin to run instead.
#[cfg(not(feature = "otlp"))]
#[test]
fn an_export_by_otlp_that_is_not_built_in_is_refused_and_the_way_out_is_one() {
    let file = "[postgres]\nurl = \"postgres://relay@127.0.0.1:1/app\"\n";
    for (variable, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318"),
        (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "http://localhost:4318/v1/traces",
        ),
        ("OTEL_METRICS_EXPORTER", "otlp"),
    ] {
        let refused = Walrelay::with_file(file).env(variable, value).run(&["run"]);
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        for word in [variable, "cargo build --release --features otlp"] {
            assert!(refused.stderr.contains(word), "{}", refused.stderr);
        }
        let (way_out, value_of_it) = (refused.stderr.split(' '))
            .find_map(|word| word.strip_prefix("OTEL_SDK_DISABLED").map(|_| word))
            .and_then(|word| word.split_once('='))
            .expect("it names the variable");
        assert_eq!(way_out, "OTEL_SDK_DISABLED");
        let value_of_it = value_of_it.to_owned();
        // It comes to what is looked at next.
        let runs = Walrelay::with_file(file)
            .env(variable, value)
            .env("OTEL_SDK_DISABLED", &value_of_it)
            .run(&["run", "--from", "0/0"]);
        assert!(!runs.stderr.contains("OTLP"), "{}", runs.stderr);
        assert!(runs.stderr.contains("--from 0/0"), "{}", runs.stderr);
    }
    // Other commands export nothing.
    let shown = Walrelay::with_file(file)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
        .run(&["config", "check"]);
    assert_eq!(shown.code, 0, "{}", shown.stderr);
}

/// Who has configured nothing is told what is tried, and where to begin.
#[test]
fn what_is_tried_without_a_configuration_is_told() {
    let said = "nothing names a database";
    let port = ["position", "--nats-url", "nats://127.0.0.1:1"];
    let bare = Walrelay::new().run(&port);
    assert!(bare.stderr.contains(said), "{}", bare.stderr);
    for (name, value) in [
        ("PGPORT", "1"),
        ("WALRELAY_POSTGRES_URL", "postgres://u@127.0.0.1:1/d"),
        ("DATABASE_URL", "postgres://u@127.0.0.1:1/d"),
    ] {
        let named = Walrelay::new().env(name, value).run(&port);
        assert!(!named.stderr.contains(said), "{name}: {}", named.stderr);
    }
    let file = Walrelay::with_file("").run(&port);
    assert!(!file.stderr.contains(said), "{}", file.stderr);
}
