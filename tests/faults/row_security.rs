//! Row security on the outbox table: what compares, counts or publishes rows says that it cannot see them.

use crate::support::Fixture;

const ROLE: &str = "sees_nothing";

#[tokio::test]
async fn hidden_rows_are_neither_clean_nor_missing() {
    let mut fixture = Fixture::own().await;
    let relay = fixture.run();
    fixture.insert(1, 4).await;
    let bad = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
               VALUES (gen_random_uuid(), gen_random_uuid(), 'a b', '{}')";
    fixture.sql.batch_execute(bad).await.unwrap();
    fixture.holds(5).await;
    relay.stop().await;
    let hide = format!(
        "CREATE ROLE {ROLE} LOGIN REPLICATION; GRANT SELECT ON outbox_events TO {ROLE};
         GRANT CREATE ON DATABASE {} TO {ROLE};
         ALTER TABLE outbox_events ENABLE ROW LEVEL SECURITY;
         CREATE POLICY half ON outbox_events FOR SELECT TO {ROLE} USING (payload_json->>'n' IN ('1', '2'))",
        fixture.name
    );
    fixture.sql.batch_execute(&hide).await.unwrap();
    let url = fixture.servers().postgres.url(&fixture.name);
    let (_, place) = url.split_once('@').unwrap();
    fixture.set(
        "WALRELAY_POSTGRES_URL",
        format!("postgres://{ROLE}@{place}"),
    );

    let remedy = format!("ALTER ROLE {ROLE} BYPASSRLS;");
    for command in [
        &["verify"][..],
        &["backfill"],
        &["backfill", "--unjudged"],
        &["dead-letters", "retry", "--all"],
    ] {
        let refused = fixture.walrelay(command).await;
        assert_eq!(refused.code, Some(3), "{command:?}: {}", refused.stdout);
        assert!(
            refused.stderr.contains(&remedy),
            "{command:?}: {}",
            refused.stderr
        );
    }
    let privilege = async |fixture: &Fixture| {
        let doctor = fixture.walrelay(&["doctor", "--json"]).await;
        let report: serde_json::Value = serde_json::from_str(&doctor.stdout).unwrap();
        let findings = report["findings"].as_array().unwrap().clone();
        let of_rows = |finding: &serde_json::Value| finding.to_string().contains(&remedy);
        findings.into_iter().find(of_rows)
    };
    let found = privilege(&fixture).await.unwrap();
    assert!(found.to_string().contains("\"privilege\""), "{found}");
    assert_eq!(fixture.message_count().await, 5);
    // The relay reads the log, which has no policies.
    let drop = format!("SELECT pg_drop_replication_slot('{}')", fixture.name);
    fixture.sql.batch_execute(&drop).await.unwrap();
    let made = fixture.walrelay(&["setup"]).await;
    // Of a publication that is not the role's own, it cannot write the beginning down.
    assert_eq!(made.code, Some(1), "{}", made.stderr);
    assert!(made.stderr.contains("COMMENT ON PUBLICATION"), "{made:?}");
    assert!(made.stdout.contains("are not counted"), "{}", made.stdout);
    let told = made.stdout + &made.stderr;
    assert_eq!(told.matches(&remedy).count(), 1, "{told}");

    fixture.sql.batch_execute(&remedy).await.unwrap();
    assert_eq!(privilege(&fixture).await, None);
    let verified = fixture.walrelay(&["verify", "--json"]).await;
    let report: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!(report["rows"], 5, "{report}");
    assert_eq!(report["dead_lettered"]["count"], 1, "{report}");
}
