//! A role that may do only a part: nothing is done by halves, and what somebody else has to run is printed.

use crate::support::{Fixture, Output, Servers, options};

/// The lane's commands run as another role from now on: it may replicate, and owns nothing.
async fn as_relay(fixture: &mut Fixture) {
    let role = format!("{}_relay", fixture.name);
    let create = format!("CREATE ROLE {role} LOGIN REPLICATION");
    fixture.sql.batch_execute(&create).await.unwrap();
    let url = fixture.servers().postgres.url(&fixture.name);
    let url = url.replace("postgres@", &format!("{role}@"));
    fixture.set("WALRELAY_POSTGRES_URL", url);
}

/// Types the SQL that a refusal prints, as the superuser.
async fn type_sql(fixture: &Fixture, refused: &Output, first: &str) {
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let (_, sql) = refused.stderr.split_once(" run\n").expect("SQL");
    let (sql, _) = sql.split_once("\nand then run").expect("its end");
    assert!(sql.starts_with(first), "{sql}");
    fixture.sql.batch_execute(sql).await.expect(sql);
}

async fn has_slot(fixture: &Fixture) -> bool {
    let query = "SELECT FROM pg_replication_slots WHERE slot_name = $1";
    let slot = fixture.sql.query_opt(query, &[&fixture.name]).await;
    slot.unwrap().is_some()
}

#[tokio::test]
async fn teardown_takes_nothing_where_it_may_not_take_all() {
    let mut fixture = Fixture::new().await;
    as_relay(&mut fixture).await;
    let refused = fixture
        .walrelay(&["teardown", "--drop-table", "--yes"])
        .await;
    assert!(has_slot(&fixture).await, "{}", refused.stdout);
    type_sql(&fixture, &refused, "DROP PUBLICATION").await;
    fixture.walrelay(&["teardown", "--yes"]).await.success();
    assert!(!has_slot(&fixture).await);
}

#[tokio::test]
async fn setup_makes_nothing_where_it_may_not_make_all() {
    let mut fixture = Fixture::bare().await;
    as_relay(&mut fixture).await;
    // A schema that is not there, too.
    fixture.set("WALRELAY_POSTGRES_TABLE", "events.outbox");
    let refused = fixture.walrelay(&["setup"]).await;
    assert!(!has_slot(&fixture).await, "{}", refused.stdout);
    type_sql(&fixture, &refused, "CREATE SCHEMA").await;
    // Who made the publication has to write into its comment, too.
    let left = fixture.walrelay(&["setup"]).await;
    assert_eq!(left.code, Some(1), "{left:?}");
    let uncounted = "are not counted: this role does not see all of them";
    assert!(left.stdout.contains(uncounted), "{left:?}");
    let begin = left.stderr.find("COMMENT ON").expect("SQL");
    let end = left.stderr[begin..].find(';').expect("its end");
    let sql = &left.stderr[begin..=begin + end];
    fixture.sql.batch_execute(sql).await.expect(sql);
    fixture.walrelay(&["setup"]).await.success();
    assert!(has_slot(&fixture).await);
}

#[tokio::test]
async fn setup_leaves_no_slot_where_nats_takes_no_record() {
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    fixture.without_tls_and_login_of_nats();
    let permissions = "accounts { A { jetstream: enabled, users: [
          { user: a, password: a, permissions: { publish: { deny: \"walrelay.lane.>\" } } }] } }
        no_auth_user: a";
    let nats = &mut fixture.own_servers().nats;
    nats.stop().await.unwrap();
    nats.reload(permissions.to_owned()).await.unwrap();
    nats.start_again().await.unwrap();
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(
        refused.stdout.contains("dropped again"),
        "{}",
        refused.stdout
    );
    assert!(!has_slot(&fixture).await);
}

#[tokio::test]
async fn setup_counts_no_rows_as_unpublished_that_the_stream_may_have() {
    let mut fixture = Fixture::new().await;
    let relay = fixture.run();
    fixture.insert(1, 5).await;
    fixture.holds(5).await;
    relay.stop().await;
    fixture.walrelay(&["teardown", "--yes"]).await.success();
    let made = fixture.walrelay(&["setup"]).await.success();
    assert!(
        !made.stdout.contains("will not be published"),
        "{}",
        made.stdout
    );
    assert!(made.stdout.contains("walrelay verify"), "{}", made.stdout);
}

/// Such a slot sends transactions at PREPARE, which are none yet. The way out is the one that is printed.
#[tokio::test]
async fn a_slot_made_with_two_phase_is_refused_and_replaced() {
    let mut fixture = Fixture::new().await;
    fixture.walrelay(&["teardown", "--yes"]).await.success();
    let publication = format!(
        "CREATE PUBLICATION {} FOR TABLE outbox_events WITH (publish = 'insert')",
        fixture.name
    );
    fixture.sql.batch_execute(&publication).await.unwrap();
    let create = "SELECT pg_create_logical_replication_slot($1, 'pgoutput', false, true)";
    fixture.sql.query(create, &[&fixture.name]).await.unwrap();
    fixture.insert(1, 5).await;
    for command in ["setup", "run"] {
        let refused = fixture.walrelay(&[command]).await;
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        assert!(refused.stderr.contains("two_phase"), "{}", refused.stderr);
    }
    fixture.begin_again().await;
    let relay = fixture.run();
    fixture.insert(6, 10).await;
    fixture.holds(10).await;
    relay.stop().await;
}

/// No session is left to a role or to a database: said with who has them and what gives more, typed as printed.
#[tokio::test]
async fn a_limit_of_sessions_is_told_with_what_raises_it() {
    let mut fixture = Fixture::new().await;
    as_relay(&mut fixture).await;
    let (name, role) = (fixture.name.clone(), format!("{}_relay", fixture.name));
    let other = fixture.connect().await;
    for (limit, mend) in [
        (
            format!("ALTER ROLE {role} CONNECTION LIMIT 0"),
            format!("ALTER ROLE {role} CONNECTION LIMIT -1;"),
        ),
        (
            format!("ALTER DATABASE {name} CONNECTION LIMIT 1"),
            format!("ALTER DATABASE {name} CONNECTION LIMIT -1;"),
        ),
    ] {
        fixture.sql.batch_execute(&limit).await.unwrap();
        let mut relay = fixture.run();
        relay.logs(&format!("run {mend}")).await;
        for command in [&["setup"][..], &["verify"], &["position"]] {
            let refused = fixture.walrelay(command).await;
            assert_ne!(refused.code, Some(0), "{refused:?}");
            assert!(refused.stderr.contains(&mend), "{command:?}: {refused:?}");
        }
        let told = relay.log();
        let begin = told.find("SELECT pid").expect("who has them");
        let end = told[begin..].find(';').expect("its end");
        let who = fixture.sql.simple_query(&told[begin..begin + end]).await;
        who.expect("it can be typed");
        fixture.sql.batch_execute(&mend).await.expect(&mend);
        relay.streams().await;
        relay.stop().await;
    }
    drop(other);

    let none = options(&[("max_wal_senders", "0")]);
    let fixture = Fixture::bare_on(Servers::with(none).await).await;
    let refused = fixture.walrelay(&["setup"]).await;
    let mend = "raise max_wal_senders (SHOW max_wal_senders; tells it)";
    assert!(refused.stderr.contains(mend), "{refused:?}");
}
