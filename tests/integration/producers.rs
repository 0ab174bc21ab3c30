//! Producers on another client and in other languages: what they insert is in the stream.
//!
//! Of `examples/producers`, SQL runs everywhere. The others run where their drivers are: `PYTHON` has psycopg, `NODE_MODULES` has tsx and pg, `PGJDBC` is the
//! driver's jar (`scripts/peers.sh producers` gets them); Go's are what `examples/producers/go.mod` pins, where its proxy or cache has them. A compiler that is there checks its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::Fixture;

const SQL: &str = include_str!("../../examples/producers/payment.sql");
const LANGUAGES: [(&str, Run); 4] = [
    ("py", python),
    ("ts", type_script),
    ("go", go),
    ("java", java),
];

/// How a language runs the example in this file, if it can; it may use the folder.
type Run = fn(PathBuf, &Path) -> Option<Command>;

fn file(name: &str) -> PathBuf {
    let producers = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/producers");
    PathBuf::from(producers).join(name)
}

fn python(producer: PathBuf, _: &Path) -> Option<Command> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    if !succeeds(Command::new(&python).args(["-c", "import psycopg"]))? {
        return None;
    }
    let mut command = Command::new(python);
    command.arg(producer);
    Some(command)
}

fn type_script(producer: PathBuf, folder: &Path) -> Option<Command> {
    let modules = PathBuf::from(std::env::var("NODE_MODULES").ok()?);
    // Modules are looked for beside the file that imports them.
    let copy = folder.join("payment.ts");
    std::fs::copy(producer, &copy).unwrap();
    std::os::unix::fs::symlink(&modules, folder.join("node_modules")).unwrap();
    let mut command = Command::new(modules.join(".bin/tsx"));
    command.arg(copy);
    Some(command)
}

fn go(producer: PathBuf, _: &Path) -> Option<Command> {
    let go = || {
        let mut go = Command::new("go");
        go.current_dir(producer.parent().expect("a folder"));
        go
    };
    // It fails where a module is not to be had.
    if !succeeds(go().args(["list", "-deps", "payment.go"]))? {
        return None;
    }
    let mut command = go();
    command.args(["run", "payment.go"]);
    Some(command)
}

fn java(producer: PathBuf, folder: &Path) -> Option<Command> {
    let Ok(driver) = std::env::var("PGJDBC") else {
        let mut javac = Command::new("javac");
        javac.arg("-d").arg(folder).arg(producer);
        let compiles = succeeds(javac.args(["-J-Xshare:auto", "-J-XX:TieredStopAtLevel=1"]));
        assert_ne!(compiles, Some(false), "javac refuses it");
        return None;
    };
    let mut command = Command::new("java");
    command.args(["-cp", &driver]).arg(producer);
    Some(command)
}

/// `postgres://postgres:password@host:port/name`, as JDBC wants it.
fn jdbc_url(url: &str) -> String {
    let (login, address) = url.split_once('@').expect("a login");
    let login = login.trim_start_matches("postgres://");
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    format!("jdbc:postgresql://{address}?user={user}&password={password}")
}

/// None where the program is not there.
fn succeeds(command: &mut Command) -> Option<bool> {
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    Some(status.ok()?.success())
}

#[tokio::test]
async fn payments_of_every_language_are_in_the_stream() {
    let mut fixture = Fixture::new().await;
    let relay = fixture.run();
    fixture.sql.batch_execute(SQL).await.unwrap();
    let url = fixture.servers().postgres.url(&fixture.name);
    let folder = tempfile::tempdir().unwrap();
    let mut accounts = vec!["alice"];
    for (extension, run) in LANGUAGES {
        let name = match extension {
            "java" => "Payment.java".to_owned(),
            extension => format!("payment.{extension}"),
        };
        let Some(mut command) = run(file(&name), folder.path()) else {
            eprintln!("not run: {name}");
            continue;
        };
        let url = match extension {
            "java" => jdbc_url(&url),
            _ => url.clone(),
        };
        command.env("DATABASE_URL", url).args([extension, "1250"]);
        let ended = command.output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{name}: {said}");
        accounts.push(extension);
    }
    fixture.holds(accounts.len() as u64).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    assert_eq!(stored.len(), accounts.len());
    for (event, account) in stored.iter().zip(accounts) {
        assert_eq!(event.kind, None);
        assert_eq!(event.field("event_type"), json!("payment.received.v1"));
        let payment = json!({"account": account, "cents": 1250});
        assert_eq!(event.field("payload_json"), payment);
        // The event is of the payment that was made with it.
        let sql = "SELECT id::text FROM payments WHERE account = $1";
        let payment = fixture.sql.query_one(sql, &[&account]).await.unwrap();
        assert_eq!(
            event.field("aggregate_id"),
            json!(payment.get::<_, String>(0))
        );
    }
}

#[cfg(feature = "outbox-sqlx")]
#[tokio::test]
async fn what_a_sqlx_transaction_commits_is_in_the_stream() {
    use sqlx_core::connection::Connection;
    use uuid::Uuid;
    use walrelay::event::teaching::{LessonPublished, UserEraseRequested};
    use walrelay::event::{DomainEvent, EventEnvelope};
    use walrelay::outbox::{Outbox, OutboxError};

    let mut fixture = Fixture::new().await;
    let relay = fixture.run();
    let url = fixture.servers().postgres.url(&fixture.name);
    let mut connection = sqlx_postgres::PgConnection::connect(&url).await.unwrap();
    let outbox = Outbox::default();
    let lesson = |title: &str| LessonPublished::new(Uuid::now_v7(), Uuid::now_v7(), title);
    let (one, taken_back) = (lesson("«Größe»\n"), lesson("taken back"));

    let mut transaction = connection.begin().await.unwrap();
    outbox
        .add_event(&mut transaction, &taken_back)
        .await
        .unwrap();
    transaction.rollback().await.unwrap();

    // Neither the ids' order nor the clock's is the order that counts.
    let mut many: Vec<_> = (0..300).map(|number| lesson(&number.to_string())).collect();
    many.reverse();
    let erase = EventEnvelope::from_event(&UserEraseRequested::new(Uuid::now_v7())).unwrap();
    let mut transaction = connection.begin().await.unwrap();
    outbox.add_event(&mut transaction, &one).await.unwrap();
    let refused = outbox.add_event(&mut transaction, &lesson("a\0b")).await;
    assert!(matches!(refused, Err(OutboxError::NulCharacter { .. })));
    outbox.add_events(&mut transaction, &many).await.unwrap();
    outbox.add_envelope(&mut transaction, &erase).await.unwrap();
    transaction.commit().await.unwrap();

    let written: Vec<_> = std::iter::once(&one).chain(&many).collect();
    fixture.holds(written.len() as u64 + 1).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    assert_eq!(stored.len(), written.len() + 1);
    for (event, lesson) in stored.iter().zip(written) {
        assert_eq!(event.field("id"), json!(lesson.event_id));
        assert_eq!(
            event.field("event_type"),
            json!(LessonPublished::EVENT_TYPE)
        );
        assert_eq!(event.field("payload_json"), json!(lesson));
    }
    assert_eq!(stored[301].field("id"), json!(erase.id));
    // The many took one command of their transaction, and so did each of the others.
    let sql =
        "SELECT count(*) FROM outbox_events GROUP BY cmin::text::int ORDER BY cmin::text::int";
    let commands = fixture.sql.query(sql, &[]).await.unwrap();
    let commands: Vec<i64> = commands.iter().map(|row| row.get(0)).collect();
    assert_eq!(commands, [1, 300, 1]);

    let mut transaction = connection.begin().await.unwrap();
    let twice = outbox.add_event(&mut transaction, &one).await;
    assert!(matches!(twice, Err(OutboxError::Sqlx { source, .. })
        if source.as_database_error().unwrap().is_unique_violation()));
    transaction.rollback().await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    let missing = Outbox::new(&"public.nowhere".parse().unwrap());
    let refused = missing.add_events(&mut transaction, &many).await;
    assert!(matches!(refused, Err(OutboxError::NoTable { .. })));
}
