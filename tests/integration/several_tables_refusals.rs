//! What a lane of several tables refuses, and the remedies that it prints, typed as they are printed.

use crate::several_tables::{FURTHER, audit, bare, each, order, told};
use crate::support::{Fixture, Output, insert_sql};

fn assert_says(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code, Some(code), "{output:?}");
    let said = format!("{}{}", output.stdout, output.stderr);
    for word in words {
        assert!(said.contains(word), "{word}: {output:?}");
    }
}

/// The statements behind `begin` in what was printed, up to the end of `end`.
fn printed(output: &Output, begin: &str, end: &str) -> String {
    let said = format!("{}{}", output.stdout, output.stderr);
    let from = said
        .find(begin)
        .unwrap_or_else(|| panic!("{begin}: {said}"));
    let length = said[from..].find(end).expect(end) + end.len();
    said[from..from + length].to_owned()
}

/// The publication's tables with their filters.
async fn published(fixture: &Fixture) -> Vec<String> {
    let sql = "SELECT tablename || coalesce(' ' || rowfilter, '') FROM pg_publication_tables WHERE pubname = $1 ORDER BY 1";
    let rows = fixture.sql.query(sql, &[&fixture.name]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn what_is_for_one_table_is_refused() {
    let mut fixture = bare().await;
    fixture.setup().await;
    let refused = fixture
        .walrelay(&["replay", "--yes", "--from", "0/1", "--source", "table"])
        .await;
    assert_says(
        &refused,
        2,
        &["--source table", "several tables (source.tables)"],
    );
    let refused = fixture.walrelay(&["adopt", "--debezium", "--yes"]).await;
    assert_says(&refused, 2, &["--debezium", "adopt without source.tables"]);
    let twice = "[[source.tables]]\nname = \"public.outbox_events\"\n";
    fixture.configure(twice);
    assert_says(
        &fixture.walrelay(&["run"]).await,
        2,
        &["without public.outbox_events twice"],
    );
}

#[tokio::test]
async fn a_partition_beside_its_whole_is_refused_and_both_remedies_cure() {
    let mut fixture = Fixture::bare().await;
    let tables = "CREATE TABLE whole (id uuid, aggregate_id uuid NOT NULL, event_type text NOT NULL,
            event_version smallint NOT NULL, occurred_at timestamptz NOT NULL, payload_json jsonb NOT NULL) PARTITION BY HASH (id);
        CREATE TABLE part PARTITION OF whole FOR VALUES WITH (MODULUS 1, REMAINDER 0)";
    fixture.sql.batch_execute(tables).await.unwrap();
    fixture.set("WALRELAY_POSTGRES_TABLE", "public.whole");
    fixture.configure("[[source.tables]]\nname = \"public.part\"\n");
    let refused = fixture.walrelay(&["setup"]).await;
    let words = [
        "table public.part is a partition of public.whole",
        "remove the entry of public.part from [[source.tables]]",
    ];
    assert_says(&refused, 1, &words);
    fixture.set("WALRELAY_POSTGRES_TABLE", "public.part");
    fixture.configure("[[source.tables]]\nname = \"public.whole\"\n");
    let refused = fixture.walrelay(&["setup"]).await;
    assert_says(
        &refused,
        1,
        &["set postgres.table to public.whole, and remove its entry from [[source.tables]]"],
    );
    fixture.set("WALRELAY_POSTGRES_TABLE", "public.whole");
    fixture.configure("");
    fixture.setup().await;
}

#[tokio::test]
async fn a_mapped_column_that_the_second_table_lacks_is_named_with_its_entry() {
    let mut fixture = bare().await;
    let without = FURTHER.replace("NAME", &fixture.name);
    fixture.configure(&without.replace("\"body\"", "\"text\""));
    let refused = fixture.walrelay(&["setup"]).await;
    assert_says(&refused, 1, &["public.audit has no column text"]);
    let subject = without.replace(
        "subject = \"",
        "message = { headers = { t = \"trace\" } }\nsubject = \"",
    );
    fixture.configure(&subject);
    let refused = fixture.walrelay(&["setup"]).await;
    let words = [
        "public.orders has no column trace",
        "message.headers or message.fields of the entry of public.orders in [[source.tables]]",
    ];
    assert_says(&refused, 1, &words);
}

/// The proposal takes the place of the entry's columns alone, and no ALTER is proposed.
#[tokio::test]
async fn the_entry_that_setup_proposes_for_a_further_table_fits() {
    let mut fixture = Fixture::bare().await;
    let tables = "CREATE TABLE ledger (event_id bigserial PRIMARY KEY, topic text NOT NULL, key text NOT NULL, body jsonb NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now());
        CREATE TABLE orders (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype text NOT NULL, aggregateid text NOT NULL,
            type text NOT NULL, payload jsonb NOT NULL);
        INSERT INTO ledger (topic, key, body) VALUES ('paid', 'k', '{}');
        INSERT INTO orders (aggregatetype, aggregateid, type, payload) VALUES ('Book', 'b', 'made', '{}')";
    fixture.sql.batch_execute(tables).await.unwrap();
    let orders = "[[source.tables]]\nname = \"public.orders\"\n";
    let ledger = format!(
        "[[source.tables]]\nname = \"public.ledger\"\nsubject = \"{}.ledger.{{topic}}\"\n\
         message = {{ format = \"payload\", headers = {{ Key = \"key\" }} }}\n",
        fixture.name
    );
    let both = format!("{orders}{ledger}");
    fixture.configure(&both);
    let refused = fixture.walrelay(&["setup"]).await;
    let debezium = "put preset = \"debezium\" into the entry of public.orders in [[source.tables]]";
    assert_says(
        &refused,
        1,
        &[
            debezium,
            "put these lines into the entry of public.ledger in [[source.tables]], in place of its columns",
        ],
    );
    assert!(!refused.stderr.contains("ALTER TABLE"), "{refused:?}");
    let columns = printed(&refused, "columns.id = ", "# jsonb");
    let subject = format!("subject = \"{}.order.{{aggregatetype}}\"", fixture.name);
    fixture.configure(&format!(
        "{orders}preset = \"debezium\"\n{subject}\n{ledger}{columns}\n"
    ));
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let row = "INSERT INTO ledger (topic, key, body) VALUES ('paid', 'k2', '{}')";
    fixture.sql.batch_execute(row).await.unwrap();
    fixture.holds(1).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    assert_eq!(told(&stored[0]).0, Some("public.ledger"));
    assert_eq!(stored[0].subject, format!("{}.ledger.paid", fixture.name));
    assert_eq!(stored[0].headers["Key"], "k2");
    assert_eq!(stored[0].body, "{}");
}

#[tokio::test]
async fn no_remedy_takes_another_table_out_of_the_publication() {
    let fixture = bare().await;
    fixture.setup().await;
    let name = fixture.name.clone();
    let others = "other WHERE (id > 0), orders WHERE (id > 0), outbox_events";
    let narrow = format!(
        "CREATE TABLE other (id int PRIMARY KEY); ALTER PUBLICATION {name} SET TABLE {others}, audit (no, who) WHERE (no > 0)"
    );
    fixture.sql.batch_execute(&narrow).await.unwrap();
    let doctor = fixture.walrelay(&["doctor"]).await;
    assert_says(&doctor, 1, &["does not send column what"]);
    let mend = printed(&doctor, "BEGIN; ALTER PUBLICATION", "COMMIT;");
    fixture.sql.batch_execute(&mend).await.expect(&mend);
    let all = [
        "audit (no > 0)",
        "orders (id > 0)",
        "other (id > 0)",
        "outbox_events",
    ];
    assert_eq!(published(&fixture).await, all);
    let doctor = fixture.walrelay(&["doctor"]).await;
    assert!(!doctor.stdout.contains("does not send"), "{doctor:?}");

    let remainder =
        format!("ALTER PUBLICATION {name} SET TABLE {others}, audit WHERE (mod(no, 4) = 0)");
    fixture.sql.batch_execute(&remainder).await.unwrap();
    let doctor = fixture.walrelay(&["doctor"]).await;
    let mend = printed(&doctor, "BEGIN; ALTER PUBLICATION", "COMMIT;");
    fixture.sql.batch_execute(&mend).await.expect(&mend);
    let now = published(&fixture).await;
    assert_eq!(now[1..], all[1..]);
    assert!(
        now[0].starts_with("audit (") && !now[0].contains("mod"),
        "{now:?}"
    );
    let doctor = fixture.walrelay(&["doctor"]).await;
    assert!(!doctor.stdout.contains("takes a remainder"), "{doctor:?}");
}

/// Renamed, a table is the lane's as before; dropped, nothing is confirmed over what cannot be judged, and it can be made again.
#[tokio::test]
async fn a_further_table_that_is_renamed_or_dropped_while_the_relay_runs() {
    let mut fixture = bare().await;
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.sql.batch_execute(&each(1).join(";")).await.unwrap();
    fixture.holds(3).await;
    let renamed = format!(
        "ALTER TABLE audit RENAME TO away; {}",
        audit(2).replace("audit", "away")
    );
    fixture.sql.batch_execute(&renamed).await.unwrap();
    fixture.holds(4).await;
    let back = format!("ALTER TABLE away RENAME TO audit; {}", audit(3));
    fixture.sql.batch_execute(&back).await.unwrap();
    fixture.holds(5).await;
    let told_as: Vec<_> = fixture
        .stored()
        .await
        .iter()
        .map(|it| told(it).0.map(str::to_owned))
        .collect();
    assert_eq!(
        told_as[3..],
        [
            Some("public.audit".to_owned()),
            Some("public.audit".to_owned())
        ]
    );

    let dropped = format!(
        "{}; CREATE TABLE kept AS SELECT * FROM orders; DROP TABLE orders",
        order(4)
    );
    fixture.sql.batch_execute(&dropped).await.unwrap();
    relay.logs("there is no table public.orders").await;
    let doctor = fixture.walrelay(&["doctor"]).await;
    let mend = printed(&doctor, "make the table, then run ALTER PUBLICATION", ";");
    let mend = mend.strip_prefix("make the table, then run ").unwrap();
    assert_eq!(
        mend,
        format!(
            "ALTER PUBLICATION {} ADD TABLE public.orders;",
            fixture.name
        )
    );
    let again = "CREATE TABLE orders (id bigserial PRIMARY KEY, aggregatetype text NOT NULL, aggregateid text NOT NULL,
        type text NOT NULL, payload jsonb)";
    let setup = fixture.walrelay(&["setup"]).await;
    assert_says(&setup, 1, &[mend]);
    fixture.sql.batch_execute(again).await.unwrap();
    fixture.sql.batch_execute(mend).await.unwrap();
    fixture.sql.batch_execute(&order(5)).await.unwrap();
    fixture.holds(7).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    assert_eq!(
        stored
            .iter()
            .filter(|it| told(it).0 == Some("public.orders"))
            .count(),
        3
    );
}

/// Named before the publication holds it: each command says what puts it there, and what committed before is told as such.
#[tokio::test]
async fn a_table_that_is_named_before_the_publication_holds_it() {
    let mut fixture = Fixture::new().await;
    let relay = fixture.run();
    fixture.insert(1, 2).await;
    fixture.holds(2).await;
    relay.stop().await;
    let made = "CREATE TABLE refunds (LIKE outbox_events INCLUDING ALL)";
    fixture.sql.batch_execute(made).await.unwrap();
    fixture.configure("[[source.tables]]\nname = \"public.refunds\"\n");
    let add = format!(
        "ALTER PUBLICATION {} ADD TABLE public.refunds;",
        fixture.name
    );
    for command in [
        &["run"][..],
        &["setup"],
        &["doctor"],
        &["backfill"],
        &["prune", "--older-than", "1d"],
    ] {
        let said = fixture.walrelay(command).await;
        assert_says(&said, 1, &["does not hold table public.refunds", &add]);
    }
    fixture.sql.batch_execute(&add).await.unwrap();
    let refund = |number: u64| insert_sql(number, number).replace("outbox_events", "refunds");
    fixture.sql.batch_execute(&refund(11)).await.unwrap();
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.sql.batch_execute(&refund(12)).await.unwrap();
    fixture.holds(3).await;
    let early = "committed before the relay first began with it are passed over";
    relay.logs(early).await;
    let log = relay.log();
    assert!(!log.contains("in other parts of the WAL"), "{log}");
    // And what that says, typed.
    fixture.walrelay(&["backfill"]).await.success();
    fixture.holds(4).await;
    relay.stop().await;
    fixture.walrelay(&["verify"]).await.success();
}
