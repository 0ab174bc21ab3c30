//! `source.tables`, as a file, a variable and `config show` have it.

use super::*;
use crate::pipeline::mapping::{Format, Value};

const FILE: &str = r#"
    [nats]
    subject = "shop.{event_type}"
    [columns]
    payload = "body"
    [message]
    headers = { traceparent = "trace" }
    [[source.tables]]
    name = "orders"
    preset = "debezium"
    subject = "orders.{aggregatetype}"
    message = { headers = { "x-tenant" = "tenant" }, tombstones = false }
    [[source.tables]]
    name = '"Audit".events'
    columns = { id = "no", event_version = { value = 2 }, occurred_at = "" }
"#;

#[test]
fn each_table_has_a_mapping_of_its_own() {
    let loaded = Case::new(FILE).load().unwrap();
    let lane = loaded.lane().unwrap();
    let [own, orders, audit] = &lane.tables()[..] else {
        panic!("three tables: {lane:?}");
    };
    assert_eq!(own.postgres.table, lane.postgres.table);
    assert_eq!(own.mapping(), lane.mapping());
    // With a preset: as that has it.
    let column = |name: &str| Value::Column(name.to_owned());
    assert_eq!(orders.postgres.table.to_string(), "public.orders");
    assert_eq!(orders.postgres.columns.payload, column("payload"));
    assert_eq!(orders.postgres.extra_columns, ["aggregatetype", "tenant"]);
    assert_eq!(orders.message.format, Format::Payload);
    assert!(!orders.message.tombstones);
    assert_eq!(orders.message.headers[0].name, "x-tenant");
    assert_eq!(orders.message.table.as_deref(), Some("public.orders"));
    // Without: as for postgres.table.
    assert_eq!(audit.postgres.table.to_string(), "\"Audit\".events");
    assert_eq!(audit.postgres.columns.id, column("no"));
    assert_eq!(audit.postgres.columns.payload, column("body"));
    assert_eq!(
        audit.postgres.columns.event_version,
        Value::Constant("2".to_owned())
    );
    assert_eq!(audit.nats.subject, own.nats.subject);
    assert_eq!(audit.message.headers, own.message.headers);
    assert_eq!(
        lane.nats.stream_settings("walrelay").subjects,
        ["shop.>", "orders.>", "walrelay.dead.walrelay"]
    );
    // What `config show` prints can be pasted as a variable, too.
    let shown = shown(&loaded, Key::SourceTables);
    let file = FILE.split("[[source.tables]]").next().unwrap();
    let again = Case::new(file).env("WALRELAY_SOURCE_TABLES", &shown.text);
    let again = again.load().unwrap();
    let again = again.lane().unwrap();
    assert_eq!(again.postgres.further, lane.postgres.further);
}

#[test]
fn a_table_that_was_renamed_keeps_the_name_that_messages_tell() {
    let file = "[[source.tables]]\nname = \"audit.events\"\ntable = \"audit.journal\"\n";
    let loaded = Case::new(file).load().unwrap();
    let lane = loaded.lane().unwrap();
    let [_, audit] = &lane.tables()[..] else {
        panic!("two tables: {lane:?}");
    };
    assert_eq!(audit.postgres.table.to_string(), "audit.journal");
    assert_eq!(audit.postgres.entry.as_deref(), Some("audit.events"));
    assert_eq!(audit.message.table.as_deref(), Some("audit.events"));
}

#[test]
fn what_does_not_fit_names_table_and_key() {
    for (tables, words) in [
        ("[{ preset = 'debezium' }]", &["each with a name"][..]),
        ("'orders'", &["a list of tables"]),
        (
            "[{ name = 'a' }, { name = 'public.a' }]",
            &["without public.a twice"],
        ),
        (
            "[{ name = 'outbox_events' }]",
            &["without public.outbox_events twice"],
        ),
        (
            "[{ name = 'a', table = 'b' }, { name = 'b' }]",
            &["without public.b twice"],
        ),
        (
            "[{ name = 'a', table = 'b' }, { name = 'a' }]",
            &["without public.a twice"],
        ),
        (
            "[{ name = 'a', table = 'b c' }]",
            &["source.tables, a", "a table as in SQL"],
        ),
        (
            "[{ name = 'a', presett = 'debezium' }]",
            &["walrelay.toml:2: unknown key `source.tables.presett`; did you mean `preset`?"],
        ),
        (
            "[{ name = 'a', columns = { idd = 'no' } }]",
            &[
                "walrelay.toml:2: unknown key `source.tables.columns.idd`; did you mean `columns.id`?",
            ],
        ),
        (
            "[{ name = 'a', preset = 'debezum' }]",
            &[
                "source.tables, a",
                "preset = \"debezum\"",
                "walrelay or debezium",
            ],
        ),
        (
            "[{ name = 'a', columns = { id = '' } }]",
            &["source.tables, a", "columns.id", "a column's name"],
        ),
        (
            "[{ name = 'a', subject = '{x}' }]",
            &["source.tables, a", "nats.subject"],
        ),
        (
            "[{ name = 'a', message = { source = '/a' } }]",
            &["source.tables, a", "message.source", "cloudevents"],
        ),
        (
            "[{ name = 'a b' }]",
            &["source.tables, a b", "a table as in SQL"],
        ),
    ] {
        let error = Case::new(&format!("[source]\ntables = {tables}")).load();
        let error = message(error.expect_err(tables));
        for word in words {
            assert!(error.contains(word), "{tables}: {error}");
        }
    }
}

#[test]
fn each_unknown_key_of_an_entry_is_told_with_its_line() {
    let file = "[[source.tables]]\nname = 'a'\npayload = 'p'\n\n[[source.tables]]\nname = 'b'\nSubject = 'x'\n\
                message = { formt = 'payload' }\ncolumns.messages = 'm'\n";
    let error = message(Case::new(file).load().expect_err(file));
    for words in [
        ":3: unknown key `source.tables.payload`; did you mean `columns.payload`?",
        ":7: unknown key `source.tables.Subject`; did you mean `subject`?",
        ":8: unknown key `source.tables.message.formt`; did you mean `message.format`?",
        ":9: unknown key `source.tables.columns.messages`",
    ] {
        assert!(error.contains(words), "{words}: {error}");
    }
    assert_eq!(error.lines().count(), 4, "{error}");
    let entry = "[{ name = 'a', columns = { idd = 'no' } }]";
    let error = Case::new("").env("WALRELAY_SOURCE_TABLES", entry).load();
    let error = message(error.expect_err(entry));
    assert!(
        error.contains("source.tables, a: unknown key `columns.idd`; did you mean `columns.id`?"),
        "{error}"
    );
}

#[test]
fn what_is_for_one_table_is_refused_beside_several() {
    let tables = "[source]\ntables = [{ name = 'a', subject = 'other.{id}' }]\n";
    for (more, words) in [("[nats]\nshared = true", ["source.tables", "nats.shared"])] {
        let error = Case::new(&format!("{tables}{more}")).load();
        let error = message(error.expect_err(more));
        for word in words {
            assert!(error.contains(word), "{more}: {error}");
        }
    }
    // Shares in one stream share it with each other.
    let shares = format!("{tables}[relay]\nshares = 2");
    let error = message(Case::new(&shares).load().expect_err("another root"));
    assert!(error.contains("nats.shared"), "{error}");
    let alike = tables.replace("other.", "outbox.") + "[nats]\nshared = true";
    Case::new(&alike).load().unwrap();
}

#[test]
fn shares_divide_each_table_by_its_own_column_and_subject() {
    let streams = "[relay]\nshares = 2\n[nats]\nstream = 'S_{share}'\nsubject = 'outbox.{share}.{event_type}'\n";
    let of = |entry: &str| format!("{streams}[source]\ntables = [{entry}]");
    for (entry, words) in [
        (
            "{ name = 'a', columns = { aggregate_id = '' } }",
            ["aggregate_id", "relay.shares"],
        ),
        (
            "{ name = 'a', subject = 'other.{id}' }",
            ["{share}", "a subject is in one stream only"],
        ),
        (
            "{ name = 'a', preset = 'debezium' }",
            ["{share}", "a subject is in one stream only"],
        ),
    ] {
        let error = message(Case::new(&of(entry)).load().expect_err(entry));
        for word in words {
            assert!(error.contains(word), "{entry}: {error}");
        }
    }
    let entry = "{ name = 'a', subject = 'other.{share}.{id}' }, { name = 'b' }";
    let lanes = Case::new(&of(entry)).load().unwrap().lanes;
    let subjects: Vec<_> = lanes
        .iter()
        .map(|lane| lane.nats.event_subjects())
        .collect();
    let of = |share: u32| vec![format!("outbox.{share}.>"), format!("other.{share}.>")];
    assert_eq!(subjects, [of(0), of(1)]);
}

fn message(error: ConfigError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}
