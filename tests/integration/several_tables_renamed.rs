//! A further table that is renamed, or taken away: its messages stay its own, and every command finds them.

use serde_json::json;

use crate::several_tables::{FURTHER, audit, bare, each, reports, told};
use crate::support::Output;

fn assert_says(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code, Some(code), "{output:?}");
    let said = format!("{}{}", output.stdout, output.stderr);
    for word in words {
        assert!(said.contains(word), "{word}: {output:?}");
    }
}

/// The entry of `journal` with what the remedy says in place of its name.
fn mended(config: &str, refused: &Output) -> String {
    let remedy = "set name = \"public.audit\" and table = \"public.journal\"";
    assert!(refused.stderr.contains(remedy), "{refused:?}");
    let lines = remedy.strip_prefix("set ").unwrap().replace(" and ", "\n");
    config.replace("name = \"public.journal\"", &lines)
}

#[tokio::test]
async fn a_further_table_that_was_renamed_keeps_its_messages() {
    let mut fixture = bare().await;
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let dead = "INSERT INTO audit (who, what, body) VALUES ('w9', NULL, '{}')".to_owned();
    let all = [&each(1)[..], &each(2), &[dead]].concat().join(";");
    fixture.sql.batch_execute(&all).await.unwrap();
    fixture.holds(7).await;
    relay.stop().await;

    // A row comes before the relay knows the new name.
    let renamed = format!(
        "ALTER TABLE audit RENAME TO journal; {}",
        audit(3).replace("audit", "journal")
    );
    fixture.sql.batch_execute(&renamed).await.unwrap();
    let missing = fixture.walrelay(&["run"]).await;
    let key = "set table in the entry of public.audit in [[source.tables]] to that";
    assert_says(&missing, 1, &["there is no table public.audit", key]);

    // As another outbox, its messages would be nobody's: told, and nothing is done.
    let all = FURTHER.replace("NAME", &fixture.name);
    let as_another = all.replace("public.audit", "public.journal");
    fixture.configure(&as_another);
    let halted = fixture.walrelay(&["run"]).await;
    assert_says(&halted, 4, &["the lane knows table public.journal"]);
    for command in [
        &["verify"][..],
        &["verify", "--repair"],
        &["backfill"],
        &["erase", "--aggregate-id", "w1", "--yes"],
        &["dead-letters", "retry", "--all"],
        &["prune", "--older-than", "7d"],
    ] {
        let refused = fixture.walrelay(command).await;
        assert_says(&refused, 1, &["the lane knows table public.journal"]);
        mended(&as_another, &refused);
    }
    assert_eq!(fixture.message_count().await, 7);

    fixture.configure(&mended(&as_another, &halted));
    let mut relay = fixture.run();
    relay.streams().await;
    let more = audit(4).replace("audit", "journal");
    fixture.sql.batch_execute(&more).await.unwrap();
    fixture.holds(9).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    assert!(
        stored[7..]
            .iter()
            .all(|it| told(it).0 == Some("public.audit"))
    );
    let mend = "UPDATE journal SET what = 'read.v1'";
    fixture.sql.batch_execute(mend).await.unwrap();
    let retried = fixture
        .walrelay(&["dead-letters", "retry", "--all"])
        .await
        .success();
    assert!(retried.stdout.contains("published"), "{retried:?}");
    fixture.walrelay(&["verify"]).await.success();
    fixture.walrelay(&["verify", "--repair"]).await.success();
    let erase = ["erase", "--aggregate-id", "w1", "--yes", "--json"];
    let erased = fixture.walrelay(&erase).await.success();
    let audit = reports(&erased).pop().unwrap();
    assert_eq!(audit["rows"], json!(1), "{audit}");
    assert_eq!(audit["streams"][0]["events"], json!([1]));
    fixture.walrelay(&["verify"]).await.success();
}
