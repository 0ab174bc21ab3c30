//! What a relay would halt at is told before anybody starts one, by `status`, `position` and `doctor`.

use serde_json::Value;

use crate::lane::{holds_events, judge_events, slot_is_free};
use crate::support::{Fixture, binaries, options, start_postgres, uuid};

async fn json(fixture: &Fixture, command: &str) -> Value {
    let output = fixture.walrelay(&[command, "--json"]).await;
    assert_eq!(output.code, Some(expected(command)), "{output:?}");
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn expected(command: &str) -> i32 {
    // The positions are there.
    i32::from(command != "position")
}

/// All three tell a halt with these words; returns its remedy.
async fn all_tell(fixture: &Fixture, words: &str) -> String {
    let status = json(fixture, "status").await["positions"]["lane"].clone();
    let position = json(fixture, "position").await["lane"].clone();
    for key in ["state", "reason", "remedy", "halted_at"] {
        assert_eq!(position[key], status[key], "{key}");
    }
    assert_eq!(status["state"], "halted", "{status}");
    let text = |key: &str| status[key].as_str().expect("text").to_owned();
    let (reason, remedy) = (text("reason"), text("remedy"));
    assert!(reason.contains(words), "{reason}");
    let report = json(fixture, "doctor").await;
    let findings = report["findings"].as_array().expect("a list").iter();
    let halted: Vec<&Value> = findings.filter(|it| it["code"] == "halted").collect();
    let [halted] = halted[..] else {
        panic!("one halt: {report}");
    };
    assert!(
        halted["what"].as_str().unwrap().ends_with(&reason),
        "{halted}"
    );
    assert_eq!(halted["mend"], remedy.as_str());
    let told = fixture.walrelay(&["status"]).await.stdout;
    assert!(told.contains(&reason) && told.contains(&remedy), "{told}");
    remedy
}

/// As before any start, so behind one that has halted.
async fn halts_as_told(fixture: &mut Fixture, words: &str) {
    let before = all_tell(fixture, words).await;
    let mut relay = fixture.run();
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    assert!(relay.log().contains(words), "{}", relay.log());
    slot_is_free(fixture).await;
    assert_eq!(all_tell(fixture, words).await, before);
}

async fn tells_none(fixture: &Fixture) {
    let lane = json(fixture, "status").await["positions"]["lane"].clone();
    assert_eq!(
        (&lane["state"], &lane["reason"]),
        (&"stopped".into(), &Value::Null)
    );
    let report = fixture.walrelay(&["doctor", "--json"]).await;
    assert!(!report.stdout.contains("\"halted\""), "{report:?}");
}

/// What the remedies say, one after the other.
async fn adopts_and_fills(fixture: &Fixture, remedy: &str) {
    for command in ["adopt", "backfill"] {
        assert!(
            remedy.contains(&format!("`walrelay {command}`")),
            "{remedy}"
        );
    }
    fixture.walrelay(&["adopt", "--yes"]).await.success();
    fixture.walrelay(&["backfill"]).await.success();
}

async fn has_published(fixture: &mut Fixture, last: u64) {
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, last).await;
    holds_events(fixture, last).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_slot_that_was_moved_or_made_again() {
    let mut fixture = Fixture::new().await;
    has_published(&mut fixture, 5).await;
    tells_none(&fixture).await;

    fixture.insert(6, 7).await;
    let slot = fixture.name.clone();
    let advance = format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())");
    fixture.sql.batch_execute(&advance).await.unwrap();
    halts_as_told(&mut fixture, "Somebody advanced").await;
    let remedy = all_tell(&fixture, "Somebody advanced").await;
    adopts_and_fills(&fixture, &remedy).await;
    tells_none(&fixture).await;

    let drop = format!("SELECT pg_drop_replication_slot('{slot}')");
    fixture.sql.batch_execute(&drop).await.unwrap();
    fixture.setup().await;
    halts_as_told(&mut fixture, "made it anew").await;
    let remedy = all_tell(&fixture, "made it anew").await;
    adopts_and_fills(&fixture, &remedy).await;
    tells_none(&fixture).await;
    let relay = fixture.run();
    fixture.insert(8, 9).await;
    holds_events(&fixture, 9).await;
    relay.stop().await;
    fixture.walrelay(&["verify"]).await.success();
}

#[tokio::test]
async fn another_database_behind_the_names() {
    let mut fixture = Fixture::new().await;
    has_published(&mut fixture, 3).await;
    let other = start_postgres(&binaries(), options(&[])).await;
    let admin = other.connect("postgres").await.unwrap();
    // Clusters of one template have one identifier.
    let restored = format!("{}_restored", fixture.name);
    let create = format!("CREATE DATABASE {restored}");
    admin.batch_execute(&create).await.unwrap();
    let own = fixture.servers().postgres.url(&fixture.name);
    fixture.set("WALRELAY_POSTGRES_URL", other.url(&restored));
    fixture.walrelay(&["setup"]).await;
    halts_as_told(&mut fixture, "Another database stands").await;

    fixture.set("WALRELAY_POSTGRES_URL", own.clone());
    tells_none(&fixture).await;
    let relay = fixture.run();
    fixture.insert(4, 5).await;
    judge_events(&fixture, &(1..=5).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;

    // The remedy for one that continues it.
    fixture.set("WALRELAY_POSTGRES_URL", other.url(&restored));
    let remedy = all_tell(&fixture, "Another database stands").await;
    assert!(remedy.contains("walrelay adopt"), "{remedy}");
    fixture.walrelay(&["adopt", "--yes"]).await.success();
    tells_none(&fixture).await;
}

/// What the configuration says of the lane is looked at as well.
#[tokio::test]
async fn another_column_of_ids() {
    let mut fixture = Fixture::new().await;
    let add = "ALTER TABLE outbox_events ADD COLUMN key uuid NOT NULL DEFAULT gen_random_uuid()";
    fixture.sql.batch_execute(add).await.unwrap();
    has_published(&mut fixture, 3).await;
    fixture.set("WALRELAY_COLUMNS_ID", "key");
    halts_as_told(&mut fixture, "as their ids").await;
    fixture.set("WALRELAY_COLUMNS_ID", "id");
    let mut relay = fixture.run();
    relay.streams().await;
    relay.stop().await;
    tells_none(&fixture).await;
}
