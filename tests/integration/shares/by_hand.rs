//! Publications that somebody has edited by hand so that rows are of no share, or of two.

use super::filters::mend;
use super::load::{CARRY_NOTHING, count, two_shares};
use super::{all_stream, divide, events};
use crate::support::{Fixture, eventually, uuid};

/// Postgres says nothing of rows that no filter takes, so nothing but the publications together tells that a share is missing.
#[tokio::test]
async fn a_share_that_was_emptied_is_refused_and_mended() {
    let mut fixture = Fixture::bare().await;
    divide(&mut fixture, false);
    fixture.setup().await;
    let mut relay = fixture.run();
    all_stream(&fixture).await;
    let name = fixture.name.clone();
    let edit = format!("ALTER PUBLICATION {name}_2 SET TABLE outbox_events WHERE (false)");
    fixture.sql.batch_execute(&edit).await.unwrap();
    let told = "has the row filter false, and share 2 of 4 is";
    relay.logs(told).await;
    let mut one = fixture.run_with(&["--share", "2"]);
    assert_eq!(one.ends().await, Some(1), "{}", one.log());
    assert!(one.log().contains(told), "{}", one.log());
    fixture.insert(1, 40).await;
    for (command, code) in [
        (&["setup"][..], 1),
        (&["backfill"], 1),
        (&["verify"], 3),
        (&["verify", "--share", "1"], 3),
        (&["reshard", "--shares", "8"], 1),
    ] {
        let refused = fixture.walrelay(command).await;
        assert_eq!(refused.code, Some(code), "{command:?}: {refused:?}");
        let is_told = refused.stderr.contains(told) || refused.stderr.contains("walrelay doctor");
        assert!(is_told, "{command:?}: {}", refused.stderr);
    }
    let ill = fixture.walrelay(&["doctor", "--json"]).await;
    assert_eq!(ill.code, Some(1), "{}", ill.stdout);
    // The query that it prints shows the rows between the shares.
    let what = ill.stdout.split("SELECT count(*)").nth(1).expect("a query");
    let query = format!("SELECT count(*){}", &what[..what.find(';').unwrap()]);
    let row = fixture.sql.query_one(&query, &[]).await.unwrap();
    let of_share = super::shares(&fixture).await;
    let between = of_share.values().filter(|share| **share == 2).count();
    assert_eq!(row.get::<_, i64>(0), between as i64);
    fixture
        .sql
        .batch_execute(&mend(&ill, "row-filter"))
        .await
        .unwrap();
    all_stream(&fixture).await;
    fixture.insert(41, 80).await;
    eventually("the shares go on", async || {
        let stored = events(&fixture).await;
        (41..=80)
            .map(uuid)
            .all(|id| stored.contains(&id))
            .then_some(())
    })
    .await;
    fixture.walrelay(&["backfill"]).await.success();
    fixture.walrelay(&["verify"]).await.success();
    assert_eq!(events(&fixture).await.len(), 80);
    relay.stop().await;
}

#[tokio::test]
async fn shares_that_were_all_emptied_are_refused_and_mended() {
    let fixture = two_shares(false).await;
    let name = &fixture.name;
    let edits = [0, 1].map(|share| {
        format!("ALTER PUBLICATION {name}_{share} SET TABLE outbox_events WHERE (false);")
    });
    fixture.sql.batch_execute(&edits.concat()).await.unwrap();
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    for left in [2, 1] {
        assert_eq!(count(&fixture, CARRY_NOTHING).await, left);
        let ill = fixture.walrelay(&["doctor", "--json"]).await;
        let mend = mend(&ill, "row-filter");
        fixture.sql.batch_execute(&mend).await.expect(&mend);
    }
    let well = fixture.walrelay(&["doctor", "--json"]).await;
    assert!(!well.stdout.contains("row-filter"), "{}", well.stdout);
    fixture.setup().await;
}

/// Where rows are of two shares, each stream is as its filter says, and no comparison of one lane sees it.
#[tokio::test]
async fn nothing_is_clean_and_nothing_divided_anew_where_shares_overlap_or_leave_rows_out() {
    let mut fixture = Fixture::bare().await;
    divide(&mut fixture, true);
    fixture.setup().await;
    fixture.walrelay(&["verify"]).await.success();
    let name = fixture.name.clone();
    let query = "SELECT rowfilter FROM pg_publication_tables WHERE pubname = $1";
    let publication = format!("{name}_2");
    let filter = fixture.sql.query_one(query, &[&publication]).await.unwrap();
    let filter: String = filter.get(0);
    let set = async |filter: &str| {
        let edit = format!("ALTER PUBLICATION {publication} SET TABLE outbox_events{filter}");
        fixture.sql.batch_execute(&edit).await.expect(&edit);
    };
    for edit in [
        "",
        " WHERE (false)",
        " WHERE ((uuid_hash(aggregate_id) & 3) = 2 AND event_version < 1)",
        " WHERE ((uuid_hash(aggregate_id) & 7) = 2)",
        " WHERE ((uuid_hash(aggregate_id) & 3) = 1)",
    ] {
        set(edit).await;
        for command in [
            &["verify"][..],
            &["verify", "--share", "2"],
            &["verify", "--share", "0"],
        ] {
            let told = fixture.walrelay(command).await;
            assert_eq!(told.code, Some(3), "{edit:?} {command:?}: {told:?}");
            let why = "of no share, or of two";
            assert!(told.stderr.contains(why), "{edit:?}: {}", told.stderr);
        }
        // It would put the filters right, and nobody would look for the rows between.
        let reshard = ["reshard", "--shares", "8", "--dry-run"];
        let refused = fixture.walrelay(&reshard).await;
        assert_eq!(refused.code, Some(1), "{edit:?}: {refused:?}");
    }
    set(&format!(" WHERE {filter}")).await;
    fixture.walrelay(&["verify"]).await.success();
}
