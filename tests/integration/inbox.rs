//! Consumers whose effects happen exactly once: the example services, killed at random.

use std::process::{Child, Command, Stdio};

use walrelay::consumer::{INBOX_SQL, Inbox, InboxError, Taken};

use crate::support::{Fixture, eventually, secure};

#[allow(dead_code, reason = "its main is for the example")]
#[path = "../../examples/ledger.rs"]
mod ledger;

/// Payments in front of the slot, and between two kills. A fifth of each is of another type.
const FIRST: i64 = 80;
const PER_ROUND: i64 = 40;
const KILLS: i64 = 8;

/// The example in a process of its own: this test program, told to run nothing else.
#[tokio::test]
#[ignore = "the service that other tests start and kill"]
async fn the_service() {
    let Ok(stream) = std::env::var("STREAM") else {
        return;
    };
    let variable = |name| std::env::var(name).expect(name);
    let options = match std::env::var_os("ROOTS") {
        Some(roots) => {
            let credentials = variable("CREDENTIALS");
            let options = async_nats::ConnectOptions::with_credentials_file(credentials).await;
            options.unwrap().add_root_certificates(roots.into())
        }
        None => async_nats::ConnectOptions::new(),
    };
    let nats = options.connect(variable("NATS_URL")).await.unwrap();
    let template = variable("SUBJECT").replace("payment.received.v1", "{event_type}");
    let served = ledger::serve(&variable("DATABASE_URL"), nats, &stream, &template).await;
    panic!("{served:?}");
}

fn in_rust() -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command.args(["--exact", "inbox::the_service", "--ignored", "--nocapture"]);
    command
}

/// Where the machine has the clients that the example needs: `PYTHON` may name another interpreter than python3.
fn in_python() -> Option<Command> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut probe = Command::new(&python);
    let has_clients = probe
        .args(["-c", "import nats, psycopg"])
        .stderr(Stdio::null())
        .status();
    let mut command = Command::new(python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/ledger.py"));
    has_clients.ok()?.success().then_some(command)
}

struct Service(Child);

impl Service {
    fn start(mut command: Command, fixture: &Fixture) -> Self {
        command
            .env(
                "DATABASE_URL",
                fixture.servers().postgres.url(&fixture.name),
            )
            .env("NATS_URL", fixture.servers().nats.url())
            .env("STREAM", fixture.stream_name())
            .env("SUBJECT", format!("{}.payment.received.v1", fixture.name));
        if secure::is_wanted() {
            let [roots, credentials] = secure::files(&fixture.servers().nats);
            command.env("ROOTS", roots).env("CREDENTIALS", credentials);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Service(child.expect("it starts"))
    }
}

/// SIGKILL.
impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `n` cents for each `n`, to one of three accounts, between events of another type.
fn payments(first: i64, last: i64) -> String {
    format!(
        "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
         SELECT gen_random_uuid(), gen_random_uuid(),
             CASE WHEN n % 5 = 0 THEN 'payment.refused.v1' ELSE 'payment.received.v1' END,
             jsonb_build_object('account', 'a' || n % 3, 'cents', n)
         FROM generate_series({first}::bigint, {last}) AS n"
    )
}

const EXPECTED: &str = "SELECT string_agg(account || ' ' || cents, ', ' ORDER BY account) FROM (
    SELECT payload_json->>'account' AS account, sum((payload_json->>'cents')::bigint) AS cents
    FROM outbox_events WHERE event_type = 'payment.received.v1' GROUP BY 1) AS expected";
const BALANCES: &str =
    "SELECT string_agg(account || ' ' || cents, ', ' ORDER BY account) FROM balances";

async fn text(fixture: &Fixture, sql: &str) -> Option<String> {
    // The service may not have made its tables yet.
    fixture.sql.query_one(sql, &[]).await.ok()?.get(0)
}

async fn sums_come_out_right(command: impl Fn() -> Command) {
    let mut fixture = Fixture::bare().await;
    // For a replay at the end, the slot keeps all.
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    // In front of the slot: a backfill brings them.
    let sql = include_str!("../../sql/0001_outbox_events.sql");
    fixture.sql.batch_execute(sql).await.unwrap();
    let first = payments(1, FIRST);
    fixture.sql.batch_execute(&first).await.unwrap();
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.walrelay(&["backfill"]).await.success();

    let taken = "SELECT count(*)::text FROM inbox_events";
    let mut service = Service::start(command(), &fixture);
    for round in 0..KILLS {
        let from = FIRST + 1 + round * PER_ROUND;
        let more = payments(from, from + PER_ROUND - 1);
        fixture.sql.batch_execute(&more).await.unwrap();
        let before = text(&fixture, taken).await;
        eventually("the service has taken more", async || {
            (text(&fixture, taken).await? != before.clone().unwrap_or_default()).then_some(())
        })
        .await;
        drop(service);
        service = Service::start(command(), &fixture);
    }
    // Two at once, and everything from the WAL a second time.
    let second = Service::start(command(), &fixture);
    relay.stop().await;
    let begin = fixture.confirmed_lsn().await;
    let mut replaying = fixture.run_with(&["--from", &begin.to_string()]);
    replaying.streams().await;
    let expected = text(&fixture, EXPECTED).await;
    eventually("the sums are there", async || {
        (text(&fixture, BALANCES).await == expected).then_some(())
    })
    .await;
    // And stay, once everything is acknowledged.
    let stream = async_nats::jetstream::new(fixture.nats.clone())
        .get_stream(fixture.stream_name())
        .await
        .unwrap();
    let replayed = KILLS * PER_ROUND * 4 / 5;
    let received = replayed + FIRST * 4 / 5;
    eventually("the service has acknowledged everything", async || {
        let mut consumer = stream
            .get_consumer::<async_nats::jetstream::consumer::pull::Config>("ledger")
            .await
            .ok()?;
        let info = consumer.info().await.ok()?;
        let is_all = info.num_pending == 0 && info.num_ack_pending == 0;
        let delivered = info.delivered.consumer_sequence as i64;
        (is_all && delivered >= received + replayed).then_some(())
    })
    .await;
    drop((service, second));
    assert_eq!(text(&fixture, BALANCES).await, expected);
    assert_eq!(
        text(&fixture, taken).await,
        Some(received.to_string()),
        "each once"
    );
    replaying.stop().await;
}

#[tokio::test]
async fn a_service_that_is_killed_has_its_sums_right() {
    sums_come_out_right(in_rust).await;
}

#[tokio::test]
async fn the_same_in_python_where_its_clients_are_there() {
    match in_python() {
        Some(_) if secure::is_wanted() => eprintln!("not run: the example takes no certificate"),
        Some(_) => sums_come_out_right(|| in_python().expect("as before")).await,
        None => eprintln!("not run: pip install nats-py 'psycopg[binary]', or set PYTHON"),
    }
}

#[tokio::test]
async fn an_inbox_goes_by_ids_and_what_is_forgotten_by_places() {
    let fixture = Fixture::bare().await;
    let mut client = fixture.connect().await;
    let inbox = Inbox::new("it");
    let event = |id: &str, place: Option<&str>| {
        let mut message = crate::support::Stored {
            sequence: 1,
            stored_ns: 0,
            subject: "outbox.a".to_owned(),
            position: String::new(),
            kind: None,
            headers: Default::default(),
            body: format!(r#"{{"id":"{id}"}}"#),
        };
        let place = place.map(|place| ("Walrelay-Position".to_owned(), place.to_owned()));
        message.headers.extend(place);
        message.event()
    };
    let transaction = client.transaction().await.unwrap();
    let missing = inbox.take(&transaction, &event("a", None)).await;
    assert!(matches!(missing, Err(InboxError::NoInbox)));
    transaction.rollback().await.unwrap();
    client.batch_execute(INBOX_SQL).await.unwrap();
    client.batch_execute(INBOX_SQL).await.unwrap();

    let mut take = async |id: &str, place: Option<&str>| {
        let transaction = client.transaction().await.unwrap();
        let taken = inbox.take(&transaction, &event(id, place)).await.unwrap();
        transaction.commit().await.unwrap();
        taken
    };
    // Out of order, in two lanes, without a place.
    for (id, place) in [
        ("c", Some("one 0/A:3")),
        ("a", Some("one 0/9:1")),
        ("b", Some("two 0/1:1")),
        ("d", None),
    ] {
        assert_eq!(take(id, place).await, Taken::First, "{id}");
        assert_eq!(take(id, place).await, Taken::Again, "{id}");
    }
    // By the id wherever it comes from: as a replay, or behind an adoption.
    assert_eq!(take("c", None).await, Taken::Again);
    assert_eq!(take("c", Some("new 0/1:1")).await, Taken::Again);

    let forgotten = Inbox::new("it")
        .forget(&fixture.sql, std::time::Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(forgotten, 3);
    for (id, place, expected) in [
        ("c", Some("one 0/A:3"), Taken::Again),
        ("a", Some("one 0/9:1"), Taken::Again),
        ("b", Some("two 0/1:1"), Taken::Again),
        ("d", None, Taken::Again),
        // In front of the first, behind the last, in another lane.
        ("e", Some("one 0/8:9"), Taken::First),
        ("f", Some("one 0/A:4"), Taken::First),
        ("g", Some("three 0/A:3"), Taken::First),
        // The limits that docs/consumers.md tells: a place in between that was never taken, and forgotten ids that come by another way.
        ("h", Some("one 0/9:2"), Taken::Again),
        ("c", None, Taken::First),
        ("a", Some("new 0/1:1"), Taken::First),
    ] {
        assert_eq!(take(id, place).await, expected, "{id}");
    }
    // What came later from in front of the first is never forgotten: others of there may still come.
    let forgotten = Inbox::new("it")
        .forget(&fixture.sql, std::time::Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(forgotten, 3, "a, f, g");
    for (id, place, expected) in [
        ("e", "one 0/8:9", Taken::Again),
        ("f", "one 0/A:4", Taken::Again),
        ("h", "one 0/8:8", Taken::First),
    ] {
        assert_eq!(take(id, Some(place)).await, expected, "{id}");
    }
    // Its snapshot would have neither the id nor what stands for it.
    let sql = "SELECT inbox_take('it', 'x', 'one 0/A:3')";
    for (level, code) in [
        ("REPEATABLE READ", Some("0A000")),
        ("SERIALIZABLE", None),
        ("READ COMMITTED", None),
    ] {
        let begin = format!("BEGIN ISOLATION LEVEL {level}");
        fixture.sql.batch_execute(&begin).await.unwrap();
        let taken = fixture.sql.query_one(sql, &[]).await;
        let refused = taken
            .err()
            .and_then(|error| Some(error.code()?.code().to_owned()));
        assert_eq!(refused.as_deref(), code, "{level}");
        fixture.sql.batch_execute("ROLLBACK").await.unwrap();
    }
    let null = "SELECT inbox_take('it', NULL, 'one 0/A:3')";
    let null = fixture.sql.query_one(null, &[]).await.unwrap_err();
    let message = null.as_db_error().unwrap().message();
    assert!(message.ends_with("event_id is NULL"), "{message}");
    let bad = fixture
        .sql
        .query_one("SELECT inbox_take('it', 'x', '0/A:3')", &[]);
    let bad = bad.await.unwrap_err();
    let message = bad.as_db_error().unwrap().message();
    assert_eq!(
        message,
        "'0/A:3' is not a place such as: walrelay 16/B374D848:3"
    );
}

/// Two instances have the same message: one has its effects, also where the other one gives up.
#[tokio::test]
async fn a_second_transaction_waits_for_the_first() {
    let fixture = Fixture::bare().await;
    fixture.sql.batch_execute(INBOX_SQL).await.unwrap();
    for (end, expected) in [("COMMIT", false), ("ROLLBACK", true)] {
        let (one, two) = (fixture.connect().await, fixture.connect().await);
        let take = format!("SELECT inbox_take('it', '{end}', 'walrelay 0/A:3')");
        one.batch_execute("BEGIN").await.unwrap();
        assert!(one.query_one(&take, &[]).await.unwrap().get::<_, bool>(0));
        let second =
            tokio::spawn(async move { two.query_one(&take, &[]).await.unwrap().get::<_, bool>(0) });
        let waits = "SELECT FROM pg_stat_activity WHERE datname = current_database()
                     AND wait_event_type = 'Lock' AND query LIKE '%inbox_take%'";
        eventually("the second one waits", async || {
            fixture.sql.query_opt(waits, &[]).await.unwrap()
        })
        .await;
        one.batch_execute(end).await.unwrap();
        assert_eq!(second.await.unwrap(), expected);
    }
}
