//! The command, and rows that are old enough for it.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

use crate::platform::{Platform, insert};

pub const LIMIT: Duration = Duration::from_secs(180);
pub const PRUNE: &[&str] = &["prune", "--older-than", "7d"];

/// Commits so many events that say that they are ten days old.
pub async fn insert_old(platform: &Platform, count: u32) {
    insert(&platform.sql, count).await;
    age(platform).await;
}

/// Makes every young row ten days old. The publication carries inserts alone, so that the stream sees nothing of it.
pub async fn age(platform: &Platform) {
    let text = "UPDATE outbox_events SET occurred_at = now() - interval '10 days' WHERE occurred_at > now() - interval '1 day'";
    platform.sql.batch_execute(text).await.expect("updated");
}

/// The one JSON object of a run that ends with this code.
pub async fn pruned(platform: &Platform, more: &[&str], code: i32) -> Value {
    platform.json(&[PRUNE, more].concat(), code).await
}

/// It deletes nothing and says why.
pub async fn refused(platform: &Platform, more: &[&str], why: &str) {
    let before = platform.rows().await;
    let said = platform.expect(&[PRUNE, more].concat(), 1).await;
    assert!(said.contains(why), "{said}");
    assert_eq!(platform.rows().await, before);
}

/// One that waits until every slot is confirmed.
pub async fn waiting(platform: &Platform) -> Child {
    let mut prune = platform.spawn(PRUNE);
    let mut lines = BufReader::new(prune.stderr.take().expect("piped")).lines();
    let line = tokio::time::timeout(LIMIT, lines.next_line()).await;
    let line = line
        .expect("it says something in time")
        .expect("it is read");
    let line = line.expect("a line");
    let waits = "waiting until every slot is confirmed";
    assert!(line.starts_with(waits), "{line}");
    // It says more, and would be ended if nobody could read that.
    prune.stderr = Some(lines.into_inner().into_inner());
    prune
}
