//! Where a test's outbox is, as the configuration would have it.

use walrelay::environment::Environment;
use walrelay::local::LocalPostgres;
use walrelay::pipeline::mapping::default_columns;
use walrelay::postgres::conninfo::Conninfo;
use walrelay::postgres::settings::PostgresSettings;

/// All defaults, on this server.
pub fn postgres_settings(server: &LocalPostgres) -> PostgresSettings {
    PostgresSettings {
        conninfo: Conninfo::resolve(Some(&server.url("postgres")), None, &Environment::default())
            .unwrap()
            .0,
        slot: "walrelay".to_owned(),
        publication: "walrelay".to_owned(),
        table: "public.outbox_events".parse().unwrap(),
        columns: default_columns(),
        subject: "outbox.{event_type}".parse().unwrap(),
        extra_columns: Vec::new(),
        may_be_null: Vec::new(),
        further: Vec::new(),
        entry: None,
        messages: None,
        share: None,
        undivided: None,
    }
}
