//! The rights of docs/postgres.md, taken away one by one: each is told in a line with what mends it.

use crate::support::{Fixture, Output};

/// A lane whose table and publication are another role's, and whose relay has exactly the rights of the document.
struct Lane {
    fixture: Fixture,
    role: String,
}

impl Lane {
    async fn new() -> Lane {
        let mut fixture = Fixture::new().await;
        let (name, role) = (fixture.name.clone(), format!("{}_relay", fixture.name));
        let sql = format!(
            "CREATE ROLE {name}_owner;
             CREATE SCHEMA events AUTHORIZATION {name}_owner;
             ALTER TABLE outbox_events OWNER TO {name}_owner;
             ALTER TABLE outbox_events SET SCHEMA events;
             REVOKE CONNECT ON DATABASE {name} FROM PUBLIC;
             CREATE ROLE {role} LOGIN REPLICATION;
             GRANT CONNECT ON DATABASE {name} TO {role};
             GRANT USAGE ON SCHEMA events TO {role};
             GRANT SELECT ON events.outbox_events TO {role};"
        );
        fixture.sql.batch_execute(&sql).await.unwrap();
        let url = fixture.servers().postgres.url(&name);
        fixture.set(
            "WALRELAY_POSTGRES_URL",
            url.replace("postgres@", &format!("{role}@")),
        );
        fixture.set("WALRELAY_POSTGRES_TABLE", "events.outbox_events");
        Lane { fixture, role }
    }

    /// Takes a right away, runs the command, and gives the right back by what it says.
    async fn without(&self, take: &str, command: &[&str], mend: &str) -> Output {
        let sql = &self.fixture.sql;
        sql.batch_execute(take).await.expect(take);
        let refused = self.fixture.walrelay(command).await;
        assert_ne!(refused.code, Some(0), "{take}: {}", refused.stdout);
        let lines: Vec<&str> = refused.stderr.lines().collect();
        let telling = lines.iter().filter(|line| line.contains(mend));
        assert_eq!(telling.count(), 1, "{take}: {mend}: {}", refused.stderr);
        sql.batch_execute(mend).await.expect(mend);
        refused
    }
}

#[tokio::test]
async fn each_right_of_run_is_told_where_it_is_missing() {
    let mut lane = Lane::new().await;
    let (name, role) = (lane.fixture.name.clone(), lane.role.clone());
    for (take, mend) in [
        (
            format!("ALTER ROLE {role} NOREPLICATION"),
            format!("ALTER ROLE {role} REPLICATION;"),
        ),
        (
            format!("REVOKE CONNECT ON DATABASE {name} FROM {role}"),
            format!("GRANT CONNECT ON DATABASE {name} TO {role};"),
        ),
        (
            format!("ALTER ROLE {role} NOLOGIN"),
            format!("ALTER ROLE {role} LOGIN REPLICATION;"),
        ),
    ] {
        lane.without(&take, &["run"], &mend).await;
    }
    let mut relay = lane.fixture.run();
    relay.streams().await;
    relay.stop().await;
}

#[tokio::test]
async fn each_right_of_verify_and_backfill_is_told_where_it_is_missing() {
    let lane = Lane::new().await;
    let role = lane.role.clone();
    for (take, mend) in [
        (
            format!("REVOKE SELECT ON events.outbox_events FROM {role}"),
            format!("GRANT SELECT ON events.outbox_events TO {role};"),
        ),
        (
            format!("REVOKE USAGE ON SCHEMA events FROM {role}"),
            format!("GRANT USAGE ON SCHEMA events TO {role};"),
        ),
    ] {
        for command in [&["verify"][..], &["backfill"]] {
            lane.without(&take, command, &mend).await;
        }
    }
    lane.fixture.walrelay(&["verify"]).await.success();
    lane.fixture.walrelay(&["backfill"]).await.success();
}
