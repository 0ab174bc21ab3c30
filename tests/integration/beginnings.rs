//! Where a slot begins: what tells a lane at its beginning from one whose events are elsewhere, and who writes it down.

use postgres_types::PgLsn;
use serde_json::Value;

use crate::support::{Fixture, Output};

/// The publication's comment.
async fn comment(fixture: &Fixture) -> Option<String> {
    let sql =
        "SELECT obj_description(oid, 'pg_publication') FROM pg_publication WHERE pubname = $1";
    let row = fixture.sql.query_one(sql, &[&fixture.name]).await;
    row.expect("the publication is there").get(0)
}

/// Goes on from the slot as it is, as setup and run say where they do not know what it has passed.
async fn is_accepted_on_purpose(fixture: &mut Fixture) {
    let told = fixture.walrelay(&["setup"]).await;
    assert_eq!(told.code, Some(1), "{}", told.stderr);
    let halted = fixture.walrelay(&["run"]).await;
    assert_eq!(halted.code, Some(4), "{}", halted.stderr);
    for text in [&told.stderr, &halted.stderr] {
        assert!(text.contains("`walrelay adopt`"), "{text}");
    }
    fixture.walrelay(&["adopt", "--yes"]).await.success();
}

/// What a slot has passed is known where setup has made it, or a person by its statements; else a person says so.
#[tokio::test]
async fn a_slot_that_is_found_is_a_beginning_only_where_that_is_written_down() {
    let mut fixture = Fixture::bare().await;
    // A person runs what setup prints.
    let dry = fixture.walrelay(&["setup", "--dry-run"]).await.success();
    let (sql, _) = dry.stdout.split_once("-- stream").expect("statements");
    for statement in sql.split("\n\n") {
        fixture.sql.batch_execute(statement).await.unwrap();
    }
    fixture.insert(1, 3).await;
    fixture.walrelay(&["setup"]).await.success();
    let relay = fixture.run();
    fixture.holds(3).await;
    relay.stop().await;
    lose_lane(&fixture).await;
    let advance = "SELECT pg_replication_slot_advance($1::text::name, pg_current_wal_lsn())";
    fixture
        .sql
        .query_one(advance, &[&fixture.name])
        .await
        .unwrap();
    is_accepted_on_purpose(&mut fixture).await;
    let backfill = fixture.walrelay(&["backfill"]).await.success();
    assert!(backfill.stdout.contains('3'), "{}", backfill.stdout);
    fixture.insert(4, 6).await;
    let relay = fixture.run();
    fixture.holds(6).await;
    relay.stop().await;
}

/// Of one that a person or Patroni has made nothing tells what it has passed: whoever knows types what is printed, behind what the
/// comment says already.
#[tokio::test]
async fn a_slot_that_was_made_by_hand_is_a_beginning_once_a_person_says_so() {
    let mut fixture = Fixture::bare().await;
    let dry = fixture.walrelay(&["setup", "--dry-run"]).await.success();
    let (sql, _) = dry.stdout.split_once("-- stream").expect("statements");
    for statement in sql.split("\n\n").filter(|it| !it.contains("COMMENT ON")) {
        if statement.contains("replication_slot") {
            fixture.insert(11, 12).await;
        }
        fixture.sql.batch_execute(statement).await.unwrap();
    }
    assert_eq!(comment(&fixture).await, None);
    let others = format!("COMMENT ON PUBLICATION {} IS 'of billing''s'", fixture.name);
    fixture.sql.batch_execute(&others).await.unwrap();
    fixture.insert(1, 3).await;
    let asked = fixture.walrelay(&["setup"]).await;
    assert_eq!(asked.code, Some(1), "{asked:?}");
    tells_rows(&asked, 5, fixture.confirmed_lsn().await);
    let [begins, _] = statements(&asked.stderr)[..] else {
        panic!("{asked:?}")
    };
    fixture.sql.batch_execute(begins).await.expect(begins);
    let told = comment(&fixture).await.expect("a comment");
    let begins = format!("of billing's, walrelay: slot {} begins at ", fixture.name);
    assert_eq!(told, format!("{begins}{}", fixture.confirmed_lsn().await));
    let made = fixture.walrelay(&["setup"]).await.success();
    tells_rows(&made, 5, fixture.confirmed_lsn().await);
    let relay = fixture.run();
    fixture.holds(3).await;
    relay.stop().await;
    let published = fixture.walrelay(&["backfill"]).await.success();
    assert!(published.stdout.contains('2'), "{}", published.stdout);
    fixture.walrelay(&["verify"]).await.success();
    // What is there was told.
    let again = fixture.walrelay(&["setup"]).await.success();
    assert!(!again.stdout.contains("already in"), "{again:?}");
}

/// Beside an empty table there is nothing that it could have passed.
#[tokio::test]
async fn a_slot_that_was_made_by_hand_beside_an_empty_table_is_its_beginning() {
    let mut fixture = Fixture::bare().await;
    let dry = fixture.walrelay(&["setup", "--dry-run"]).await.success();
    let (sql, _) = dry.stdout.split_once("-- stream").expect("statements");
    for statement in sql.split("\n\n").filter(|it| !it.contains("COMMENT ON")) {
        fixture.sql.batch_execute(statement).await.unwrap();
    }
    fixture.walrelay(&["setup"]).await.success();
    let begins = format!("walrelay: slot {} begins at ", fixture.name);
    let told = comment(&fixture).await.expect("a comment");
    assert_eq!(told, format!("{begins}{}", fixture.confirmed_lsn().await));
    let relay = fixture.run();
    fixture.insert(1, 3).await;
    fixture.holds(3).await;
    relay.stop().await;
    lose_lane(&fixture).await;
    is_accepted_on_purpose(&mut fixture).await;
}

/// How many rows there are, of which the slot may lack some.
fn tells_rows(setup: &Output, rows: u64, stands: PgLsn) {
    let told = format!(
        "{rows} rows are already in public.outbox_events: those that committed before {stands}"
    );
    assert!(setup.stdout.contains(&told), "{told}: {setup:?}");
}

/// What doctor says of it, if it does.
async fn remedy(fixture: &Fixture) -> Option<String> {
    let output = fixture.walrelay(&["doctor", "--json"]).await;
    let report: Value = serde_json::from_str(&output.stdout).expect("JSON");
    let findings = report["findings"].as_array().expect("a list");
    let mut found = findings.iter();
    let found = found.find(|finding| finding["code"] == "unwritten-beginning")?;
    assert_eq!(found["severity"], "warn");
    Some(found["mend"].as_str().expect("a remedy").to_owned())
}

/// The statements that a text has, as printed.
fn statements(text: &str) -> Vec<&str> {
    let begins = text.match_indices("COMMENT ON PUBLICATION");
    begins
        .map(|(begin, _)| {
            let end = text[begin..].find(';').expect("its end");
            &text[begin..=begin + end]
        })
        .collect()
}

/// A lane whose table and publication are an owner's, who has run what setup prints, and whose slot walrelay makes with the rights that
/// docs/postgres.md gives it.
async fn of_an_owner() -> (Fixture, String) {
    let mut fixture = Fixture::bare().await;
    let name = fixture.name.clone();
    let (owner, role) = (format!("{name}_owner"), format!("{name}_relay"));
    let roles = format!(
        "CREATE ROLE {owner}; GRANT CREATE ON DATABASE {name} TO {owner}; GRANT CREATE ON SCHEMA public TO {owner};
         CREATE ROLE {role} LOGIN REPLICATION; SET ROLE {owner};"
    );
    fixture.sql.batch_execute(&roles).await.unwrap();
    let url = fixture.servers().postgres.url(&name);
    fixture.set(
        "WALRELAY_POSTGRES_URL",
        url.replace("postgres@", &format!("{role}@")),
    );
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let (_, behind) = refused.stderr.split_once(" run\n").expect("SQL");
    let (sql, _) = behind.split_once("\nand then").expect("its end");
    fixture.sql.batch_execute(sql).await.unwrap();
    let grant = format!("GRANT SELECT ON outbox_events TO {role}; RESET ROLE");
    fixture.sql.batch_execute(&grant).await.unwrap();
    (fixture, owner)
}

/// The owner types what is printed.
async fn types(fixture: &Fixture, owner: &str, sql: &str) {
    let typed = format!("SET ROLE {owner}; {sql} RESET ROLE;");
    fixture.sql.batch_execute(&typed).await.expect(sql);
}

/// The broker loses all that it has of the lane.
async fn lose_lane(fixture: &Fixture) {
    let context = async_nats::jetstream::new(fixture.nats.clone());
    context.delete_stream(fixture.stream_name()).await.unwrap();
    let records = context.get_stream("WALRELAY").await.unwrap();
    let subject = format!("walrelay.*.{}.{}", fixture.stream_name(), fixture.name);
    records.purge().filter(subject).await.unwrap();
}

/// Beside an emptied NATS and a slot of which nobody has written down where it begins, setup leaves to a person what it cannot know.
async fn is_asked(fixture: &mut Fixture) -> String {
    let stands = fixture.confirmed_lsn().await;
    for command in [&["setup"][..], &["setup"], &["run", "--setup"]] {
        let asked = fixture.walrelay(command).await;
        assert_eq!(asked.code, Some(1), "{asked:?}");
        let told = statements(&asked.stderr);
        let [begins, passed] = told[..] else {
            panic!("{asked:?}")
        };
        assert!(
            begins.ends_with(&format!("begins at {stands}';")),
            "{begins}"
        );
        assert!(passed.ends_with("begins at 0/0';"), "{passed}");
        assert!(!asked.stdout.contains("lane record"), "{asked:?}");
        let doctor = remedy(fixture).await.expect("a finding");
        assert_eq!(statements(&doctor), told);
    }
    assert_eq!(comment(fixture).await, None);
    let told = remedy(fixture).await.expect("a finding");
    statements(&told)[1].to_owned()
}

/// What may have become of a slot since it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Since {
    Nothing,
    /// The server counts of a copy anew.
    Copied,
    /// So it does of one of the same name.
    MadeAnew,
    /// And of all of them.
    Crashed,
}

impl Since {
    async fn happens(self, fixture: &mut Fixture) {
        let name = &fixture.name;
        let (drop, create) = (
            format!("SELECT pg_drop_replication_slot('{name}')"),
            format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"),
        );
        let copy = |from: &str, to: &str| {
            format!("SELECT pg_copy_logical_replication_slot('{from}', '{to}')")
        };
        let sql = match self {
            Since::Nothing => Vec::new(),
            Since::Copied => vec![copy(name, "aside"), drop, copy("aside", name)],
            Since::MadeAnew => vec![drop, create],
            Since::Crashed => {
                let postgres = &mut fixture.own_servers().postgres;
                postgres.kill();
                postgres.start_again().await.unwrap();
                fixture.reconnect().await;
                Vec::new()
            }
        };
        for sql in sql {
            fixture.sql.batch_execute(&sql).await.expect(&sql);
        }
    }
}

/// Nothing that the server has tells whether somebody has read the slot: what it counts begins anew, and a copy stands where the first
/// one stood.
#[tokio::test]
async fn setup_calls_no_slot_a_beginning_that_may_have_been_read() {
    let mut fixture = Fixture::own().await;
    let uncomment = format!("COMMENT ON PUBLICATION {} IS NULL", fixture.name);
    let since = [
        Since::Nothing,
        Since::Copied,
        Since::MadeAnew,
        Since::Crashed,
    ];
    for (since, held) in since.into_iter().zip((0..).step_by(3)) {
        fixture.sql.batch_execute(&uncomment).await.unwrap();
        let relay = fixture.run();
        fixture.insert(held + 1, held + 3).await;
        fixture.holds(3).await;
        relay.stop().await;
        since.happens(&mut fixture).await;
        lose_lane(&fixture).await;
        let asked = fixture.walrelay(&["setup"]).await;
        assert_eq!(asked.code, Some(1), "{since:?}: {asked:?}");
        tells_rows(&asked, held + 3, fixture.confirmed_lsn().await);
        let passed = is_asked(&mut fixture).await;
        fixture.sql.batch_execute(&passed).await.expect(&passed);
        is_accepted_on_purpose(&mut fixture).await;
    }
}

/// The same where another role owns the publication, and has not run what setup has printed.
#[tokio::test]
async fn setup_leads_no_owner_to_a_beginning_that_the_slot_has_passed() {
    let (mut fixture, owner) = of_an_owner().await;
    let made = fixture.walrelay(&["setup"]).await;
    assert_eq!(made.code, Some(1), "{made:?}");
    let relay = fixture.run();
    fixture.insert(1, 3).await;
    fixture.holds(3).await;
    relay.stop().await;
    lose_lane(&fixture).await;
    let passed = is_asked(&mut fixture).await;
    types(&fixture, &owner, &passed).await;
    is_accepted_on_purpose(&mut fixture).await;
    let backfill = fixture.walrelay(&["backfill"]).await.success();
    assert!(backfill.stdout.contains('3'), "{}", backfill.stdout);
}

/// Only the owner of a publication may comment on it: who may not says what is to be run, until it was.
#[tokio::test]
async fn what_only_the_publications_owner_can_write_down_is_printed() {
    let (mut fixture, owner) = of_an_owner().await;
    let dry = fixture.walrelay(&["setup", "--dry-run"]).await.success();
    let by = format!("-- as {owner}, or a superuser\nDO $do$");
    assert!(dry.stdout.contains(&by), "{}", dry.stdout);

    let made = fixture.walrelay(&["setup"]).await;
    assert_eq!(made.code, Some(1), "{made:?}");
    let begins_lsn = fixture.confirmed_lsn().await;
    let told = statements(&made.stderr);
    let [exact] = told[..] else {
        panic!("{made:?}");
    };
    assert!(
        exact.contains(&format!("begins at {begins_lsn}'")),
        "{exact}"
    );
    let let_owner = format!("let {owner}, which owns publication");
    assert!(made.stderr.contains(&let_owner), "{made:?}");
    let again = fixture.walrelay(&["setup"]).await;
    assert_eq!(
        (again.code, statements(&again.stderr)),
        (Some(1), vec![exact])
    );
    let dry = fixture.walrelay(&["setup", "--dry-run"]).await.success();
    assert_eq!(statements(&dry.stdout), [exact]);
    assert_eq!(statements(&remedy(&fixture).await.unwrap()), [exact]);

    // It runs without, and says so.
    let mut relay = fixture.run_with(&["--setup"]);
    relay.streams().await;
    let logged = relay.log().contains(&format!("run {exact}"));
    assert!(logged, "{}", relay.log());
    fixture.insert(1, 3).await;
    fixture.holds(3).await;
    relay.stop().await;

    // Nobody knows any more where it began; that it has passed something is enough.
    let later = remedy(&fixture).await.expect("a finding");
    let told = statements(&later);
    let [passed] = told[..] else {
        panic!("{later}")
    };
    assert!(passed.ends_with("begins at 0/0';"), "{passed}");
    for sql in [passed, exact] {
        types(&fixture, &owner, sql).await;
        assert_eq!(remedy(&fixture).await, None);
        fixture.walrelay(&["setup"]).await.success();
        lose_lane(&fixture).await;
        is_accepted_on_purpose(&mut fixture).await;
    }
    let relay = fixture.run();
    fixture.insert(4, 6).await;
    fixture.holds(3).await;
    relay.stop().await;
    assert_eq!(remedy(&fixture).await, None);
}

/// Before setup has seen a slot, a person says which of the two is so.
#[tokio::test]
async fn of_a_slot_without_a_record_both_statements_are_printed() {
    let fixture = Fixture::bare().await;
    let dry = fixture.walrelay(&["setup", "--dry-run"]).await.success();
    let (sql, _) = dry.stdout.split_once("-- stream").expect("statements");
    for statement in sql.split("\n\n").filter(|it| !it.contains("COMMENT ON")) {
        fixture.sql.batch_execute(statement).await.unwrap();
    }
    let told = remedy(&fixture).await.expect("a finding");
    let both = statements(&told);
    let [begins, passed] = both[..] else {
        panic!("{told}")
    };
    fixture.sql.batch_execute(passed).await.unwrap();
    assert_eq!(remedy(&fixture).await, None);
    let halts = fixture.walrelay(&["setup"]).await;
    assert_eq!(halts.code, Some(1), "{halts:?}");
    assert!(
        halts.stderr.contains("began where nobody knows"),
        "{halts:?}"
    );
    fixture.sql.batch_execute(begins).await.unwrap();
    assert_eq!(remedy(&fixture).await, None);
    fixture.setup().await;
}
