//! Columns and types of the table, and what mends them.

use chrono::{DateTime, TimeDelta, Utc};
use walrelay::postgres::catalog::inspect;
use walrelay::postgres::client::Client;
use walrelay::postgres::findings::{Kind, Severity, findings};
use walrelay::postgres::occurred_at::OccurredAt;
use walrelay::postgres::settings::PostgresSettings;

use crate::database::{found, fresh, make};

/// The advice is what a person pastes: it has to work.
#[tokio::test]
async fn a_column_of_another_type_is_mended_by_what_the_finding_says() {
    let (_server, settings, client) = fresh().await;
    let table = "CREATE TABLE outbox_events (id numeric PRIMARY KEY, aggregate_id boolean NOT NULL,
        event_type int NOT NULL, event_version text NOT NULL, payload_json int NOT NULL)";
    client.batch_execute(table).await.unwrap();
    let mends = column_mends(&client, &settings).await;
    assert_eq!(mends.len(), 6, "{mends:?}");
    for mend in mends {
        let sql = mend.strip_prefix("run ").unwrap();
        client.batch_execute(sql).await.expect(sql);
    }
    // A column that was retyped may be null, which is said, and mended in the same way.
    for mend in column_mends(&client, &settings).await {
        let sql = mend.strip_prefix("run ").unwrap();
        client.batch_execute(sql).await.expect(sql);
    }
    assert_eq!(column_mends(&client, &settings).await, Vec::<String>::new());
}

async fn column_mends(client: &Client, settings: &PostgresSettings) -> Vec<String> {
    let inspection = inspect(client, settings).await.unwrap();
    let columns = findings(&inspection, settings).into_iter();
    let columns = columns.filter(|found| found.kind == Kind::Column);
    columns.map(|found| found.mend).collect()
}

/// Nobody alters a table that works: the configuration follows it.
#[tokio::test]
async fn a_table_with_rows_is_mapped() {
    let (_server, mut settings, client) = fresh().await;
    for (table, expected) in [
        (
            "CREATE TABLE events (id bigserial PRIMARY KEY, topic text NOT NULL, key text NOT NULL,
                body jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT now());
             INSERT INTO events (topic, key, body) VALUES ('a', 'b', '{}')",
            "put this into the configuration, in place of [columns] where it is there, as far as it is right:\n\
             [columns]\n\
             id = \"id\"  # bigint\n\
             aggregate_id = \"key\"  # text\n\
             event_type = \"topic\"  # text\n\
             event_version = \"\"\n\
             occurred_at = \"created_at\"  # timestamp with time zone\n\
             payload = \"body\"  # jsonb",
        ),
        (
            "CREATE TABLE events (id uuid PRIMARY KEY, what json NOT NULL);
             INSERT INTO events VALUES (gen_random_uuid(), '{}')",
            "put this into the configuration, in place of [columns] where it is there, as far as it is right:\n\
             [columns]\n\
             id = \"id\"  # uuid\n\
             aggregate_id = \"\"\n\
             event_type = \"\"\n\
             event_version = \"\"\n\
             occurred_at = \"\"  # the time of the commit\n\
             payload = \"what\"  # json, a guess: the only JSON\n\
             [nats]  # where this section is there already, put the next line into it, in place of its subject\n\
             subject = \"outbox.events\"",
        ),
        (
            "CREATE TABLE events (id uuid PRIMARY KEY, aggregatetype text NOT NULL, aggregateid text NOT NULL,
                type text NOT NULL, payload jsonb NOT NULL);
             INSERT INTO events VALUES (gen_random_uuid(), 'order', '1', 'made', '{}')",
            "this is the table of Debezium's outbox event router: begin the configuration with preset = \"debezium\"",
        ),
        (
            "CREATE TABLE events (at timestamptz, size real); INSERT INTO events VALUES (now(), 1)",
            "nothing can be proposed, since no column can be id, and no column can be payload; \
             name the columns that hold id (uuid, text, an integer or bytea), aggregate_id (uuid, text, an integer or \
             bytea), event_type (text or an enum), event_version (an integer, with values from 0 to 255), occurred_at (timestamptz, timestamp, date \
             or bigint (milliseconds)), payload (jsonb, json, text or bytea) in [columns] (\"\" where the table has none: aggregate_id, \
             event_type, event_version, occurred_at), or set postgres.table to a table of walrelay's own; this table has \
             at timestamp with time zone, size real",
        ),
        (
            "CREATE TABLE events (seq int PRIMARY KEY, event_name char(20), at bigint, data text)",
            "put this into the configuration, in place of [columns] where it is there, as far as it is right:\n\
             [columns]\n\
             id = \"seq\"  # integer\n\
             aggregate_id = \"\"\n\
             event_type = \"event_name\"  # character(20), may be null, and a row with a null becomes a dead letter\n\
             event_version = \"\"\n\
             occurred_at = \"at\"  # bigint, may be null, and a row with a null becomes a dead letter\n\
             payload = \"data\"  # text, may be null, and a row with a null becomes a dead letter",
        ),
        (
            "CREATE TABLE events (pk uuid PRIMARY KEY, event_id uuid, key text, ts timestamptz, \"When\" timestamptz NOT NULL,
                topic text NOT NULL, body jsonb NOT NULL);
             INSERT INTO events VALUES (gen_random_uuid(), NULL, NULL, NULL, now(), 'a', '{}')",
            "put this into the configuration, in place of [columns] where it is there, as far as it is right:\n\
             [columns]\n\
             id = \"pk\"  # uuid, a guess: it is the primary key\n\
             aggregate_id = \"\"  # not \"key\", which may be null, and a row with a null becomes a dead letter\n\
             event_type = \"topic\"  # text\n\
             event_version = \"\"\n\
             occurred_at = \"When\"  # timestamp with time zone, a guess: the only time\n\
             payload = \"body\"  # jsonb",
        ),
    ] {
        client
            .batch_execute(&format!("DROP TABLE IF EXISTS events; {table}"))
            .await
            .unwrap();
        settings.table = "public.events".parse().unwrap();
        assert_eq!(column_mends(&client, &settings).await, [expected], "{table}");
    }
}

/// A domain over a domain is what stands at its end.
#[tokio::test]
async fn domains_over_domains_are_followed_to_their_end() {
    let (server, settings, client) = fresh().await;
    let mut table = Vec::new();
    for (column, base) in [
        ("id", "uuid"),
        ("aggregate_id", "uuid"),
        ("event_type", "varchar(80)"),
        ("event_version", "int2"),
        ("occurred_at", "timestamptz"),
        ("payload_json", "jsonb"),
    ] {
        let domains = format!(
            "CREATE DOMAIN inner_{column} AS {base} NOT NULL; CREATE DOMAIN outer_{column} AS inner_{column}"
        );
        client.batch_execute(&domains).await.unwrap();
        table.push(format!("{column} outer_{column}"));
    }
    let table = format!("CREATE TABLE outbox_events ({})", table.join(", "));
    client.batch_execute(&table).await.unwrap();
    make(&client, &server, &settings).await;
    assert_eq!(found(&client, &settings).await, []);
}

#[tokio::test]
async fn a_partition_key_that_is_there_to_be_changed_is_told() {
    for key in ["dispatched", "(NOT dispatched)"] {
        let (server, settings, client) = fresh().await;
        let table = format!(
            "CREATE TABLE outbox_events (id uuid NOT NULL, aggregate_id uuid NOT NULL, event_type text NOT NULL,
                event_version int2 NOT NULL, occurred_at timestamptz NOT NULL, payload_json jsonb NOT NULL,
                dispatched bool NOT NULL DEFAULT false) PARTITION BY LIST ({key});
            CREATE TABLE open PARTITION OF outbox_events FOR VALUES IN (false) PARTITION BY RANGE (occurred_at);
            CREATE TABLE open_all PARTITION OF open DEFAULT;
            CREATE TABLE closed PARTITION OF outbox_events DEFAULT"
        );
        client.batch_execute(&table).await.unwrap();
        make(&client, &server, &settings).await;
        let warned = findings(&inspect(&client, &settings).await.unwrap(), &settings);
        assert_eq!(warned.len(), 1, "{warned:?}");
        assert_eq!(
            (warned[0].severity, warned[0].kind),
            (Severity::Warn, Kind::TableMismatch)
        );
        assert!(warned[0].what.contains("by dispatched"), "{}", warned[0]);
    }
}

/// What lies before, between and at moments, by the column's type: as Postgres compares them, and not a row more or less.
#[tokio::test]
async fn moments_are_compared_in_the_type_of_the_column() {
    let (_server, settings, client) = fresh().await;
    let moment = |text: &str| text.parse::<DateTime<Utc>>().expect(text);
    // Each value as the column has it, and as a moment.
    let fractions = |zone: &'static str| {
        [
            ("1969-12-31T23:59:59.999999", "'1969-12-31 23:59:59.999999"),
            ("1970-01-01T00:00:00", "'1970-01-01 00:00:00"),
            ("2026-11-29T12:00:00.000001", "'2026-11-29 12:00:00.000001"),
            ("0000-12-31T00:00:00", "'0001-12-31 00:00:00"),
        ]
        .map(|(moment, sql)| {
            let era = if moment.starts_with("0000") {
                " BC"
            } else {
                ""
            };
            (format!("{moment}Z"), format!("{sql}{zone}{era}'"))
        })
        .to_vec()
    };
    let own = |values: &[(&str, &str)]| -> Vec<(String, String)> {
        let values = values.iter();
        values
            .map(|(moment, sql)| ((*moment).to_owned(), (*sql).to_owned()))
            .collect()
    };
    let days = own(&[
        ("1969-12-31T00:00:00Z", "'1969-12-31'"),
        ("2026-11-29T00:00:00Z", "'2026-11-29'"),
    ]);
    let milliseconds = own(&[
        ("1969-12-31T23:59:59.999Z", "-1"),
        ("1970-01-01T00:00:00Z", "0"),
        ("2026-11-29T12:00:00.001Z", "1795953600001"),
    ]);
    for (column_type, values) in [
        ("timestamptz", fractions("+00")),
        ("timestamp", fractions("")),
        ("date", days),
        ("bigint", milliseconds),
    ] {
        let rows: Vec<String> = values.iter().map(|(_, sql)| format!("({sql})")).collect();
        let table = format!(
            "DROP TABLE IF EXISTS outbox_events; CREATE TABLE outbox_events (occurred_at {column_type});
             INSERT INTO outbox_events VALUES {}",
            rows.join(", ")
        );
        client.batch_execute(&table).await.unwrap();
        let inspection = inspect(&client, &settings).await.unwrap();
        let column = OccurredAt::of(&inspection.table.unwrap(), &settings).unwrap();
        let moments: Vec<DateTime<Utc>> = values.iter().map(|(at, _)| moment(at)).collect();
        let far = ["-9000-01-01T00:00:00Z", "+99999-12-31T23:59:59Z"].map(moment);
        let steps =
            [-1_000_000, -1_000, -1, 0, 1, 999, 1_000, 1_000_000].map(TimeDelta::nanoseconds);
        let near = moments.iter().flat_map(|at| steps.map(|step| *at + step));
        let bounds: Vec<DateTime<Utc>> = near.chain(far).collect();
        let count = async |condition: String| -> usize {
            let query = format!("SELECT count(*) FROM outbox_events WHERE {condition}");
            let row = client.query_one(&query, &[]).await;
            let count: i64 = row
                .unwrap_or_else(|error| panic!("{query}: {error}"))
                .get(0);
            usize::try_from(count).unwrap()
        };
        for at in &bounds {
            let before = moments.iter().filter(|moment| *moment < at).count();
            assert_eq!(
                count(column.is_before(*at)).await,
                before,
                "{column_type} before {at:?}"
            );
            let behind = moments.iter().filter(|moment| *moment >= at).count();
            let found = count(column.is_between(*at, far[1])).await;
            assert_eq!(found, behind, "{column_type} from {at:?}");
            let through = moments.iter().filter(|moment| *moment <= at).count();
            let found = count(column.is_between(far[0], *at)).await;
            assert_eq!(found, through, "{column_type} through {at:?}");
        }
    }
}
