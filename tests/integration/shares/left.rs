//! What is told of rows that Postgres never sends around a change of their number, and of a change that was ended before its end.

use super::load::{
    SLOTS, are_owned, change_alone, count, own_streams, reshard, set_up, shares, stops,
};
use super::reports;
use super::verdict::{streams_of, verdict};
use crate::support::{Fixture, Relay, uuid};

const NEVER_SENT: &str = "Postgres never sends the rows";

/// Four shares with a hundred events published, and a hundred that nobody has published yet.
async fn behind() -> Fixture {
    let mut fixture = Fixture::bare().await;
    own_streams(&mut fixture, 4);
    let mut fixture = set_up(fixture).await;
    let relay = fixture.run();
    fixture.insert(1, 100).await;
    let committed: Vec<_> = (1..=100).map(uuid).collect();
    verdict(&fixture, &committed, &streams_of(&fixture, 4)).await;
    stops(relay).await;
    fixture.insert(101, 200).await;
    shares(&mut fixture, 2);
    fixture
}

/// Takes the table out of the publication of a share and puts it back as it was, with rows in between.
async fn is_out_for_a_moment(fixture: &Fixture, share: u32, rows: (u64, u64)) {
    let publication = format!("{}_{share}", fixture.name);
    let query = "SELECT rowfilter FROM pg_publication_tables WHERE pubname = $1";
    let filter = fixture.sql.query_one(query, &[&publication]).await.unwrap();
    let filter: String = filter.get(0);
    let alter = async |change: String| {
        let sql = format!("ALTER PUBLICATION {publication} {change}");
        fixture.sql.batch_execute(&sql).await.expect(&sql);
    };
    alter("DROP TABLE outbox_events".to_owned()).await;
    fixture.insert(rows.0, rows.1).await;
    alter(format!("ADD TABLE outbox_events WHERE ({filter})")).await;
}

/// The relay's log, once each of its two lanes streams and the outbox is verified.
async fn log(fixture: &Fixture, relay: &Relay, is_clean: bool) -> String {
    // Of a lane that nobody reads, nothing is waited for.
    are_owned(fixture, 2).await;
    let verified = fixture.walrelay(&["verify", "--wait", "2min"]).await;
    let code = if is_clean { 0 } else { 1 };
    assert_eq!(verified.code, Some(code), "{}", verified.stdout);
    relay.log()
}

#[tokio::test]
async fn no_rows_are_missing_where_nothing_but_the_number_of_shares_was_changed() {
    let mut fixture = behind().await;
    let resharded = reshard(&fixture, "2").await;
    assert!(!resharded.stderr.contains(NEVER_SENT), "{resharded:?}");
    assert!(!resharded.stdout.contains(NEVER_SENT), "{resharded:?}");
    let relay = fixture.run();
    let told = log(&fixture, &relay, true).await;
    assert!(!told.contains(NEVER_SENT), "{told}");
    let committed: Vec<_> = (1..=200).map(uuid).collect();
    verdict(&fixture, &committed, &streams_of(&fixture, 4)).await;
    stops(relay).await;
}

#[tokio::test]
async fn rows_that_are_missing_are_told_of_in_front_of_the_change_and_behind_it() {
    let mut fixture = behind().await;
    is_out_for_a_moment(&fixture, 2, (201, 240)).await;
    let resharded = reshard(&fixture, "2").await;
    let told = format!("warning: slot {}_2: ", fixture.name);
    assert!(resharded.stderr.contains(&told), "{}", resharded.stderr);
    assert!(
        resharded.stderr.contains(NEVER_SENT),
        "{}",
        resharded.stderr
    );
    // Whose lane has looked at nothing since.
    is_out_for_a_moment(&fixture, 1, (241, 280)).await;
    let relay = fixture.run();
    let told = log(&fixture, &relay, false).await;
    assert!(told.contains(NEVER_SENT), "{told}");
    fixture.walrelay(&["backfill"]).await.success();
    fixture.walrelay(&["verify"]).await.success();
    stops(relay).await;
}

#[tokio::test]
async fn doctor_and_setup_tell_of_a_change_that_was_ended_before_its_end() {
    let mut fixture = behind().await;
    change_alone(&fixture, &["reshard", "--shares", "2"]).await;
    let found = async || {
        let output = fixture.walrelay(&["doctor", "--json"]).await;
        let reports = reports(&output);
        assert_eq!(reports.len(), 2, "{}", output.stderr);
        let findings = reports[0]["findings"].as_array().expect("a list").clone();
        let mut findings = findings.into_iter();
        findings.find(|finding| finding["code"] == "reshard")
    };
    let finding = found().await.expect("it is found");
    let mend = finding["mend"].as_str().expect("a remedy");
    let (_, command) = mend.split_once("run walrelay ").expect("a command");
    let (command, _) = command.split_once(',').expect("its end");
    let setup = fixture.walrelay(&["setup"]).await.success();
    let told = format!("run walrelay {command},");
    assert!(setup.stderr.contains(&told), "{}", setup.stderr);
    let command: Vec<&str> = command.split(' ').collect();
    fixture.walrelay(&command).await.success();
    assert_eq!(found().await, None);
    assert_eq!(count(&fixture, SLOTS).await, 2);
    let relay = fixture.run();
    let committed: Vec<_> = (1..=200).map(uuid).collect();
    verdict(&fixture, &committed, &streams_of(&fixture, 4)).await;
    stops(relay).await;
}

/// They are other shares' already, and neither in their slots nor in any stream.
#[tokio::test]
async fn verify_says_where_rows_are_that_a_change_has_left() {
    let mut fixture = Fixture::bare().await;
    own_streams(&mut fixture, 4);
    let mut fixture = set_up(fixture).await;
    let relay = fixture.run();
    fixture.insert(1, 100).await;
    let committed: Vec<_> = (1..=100).map(uuid).collect();
    verdict(&fixture, &committed, &streams_of(&fixture, 4)).await;
    stops(relay).await;
    // The other lanes have published all of theirs.
    let only = "CREATE FUNCTION leaves_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TRIGGER leaves_out BEFORE INSERT ON outbox_events FOR EACH ROW WHEN ((uuid_hash(NEW.aggregate_id) & 3) < 2)
        EXECUTE FUNCTION leaves_out()";
    fixture.sql.batch_execute(only).await.unwrap();
    fixture.insert(101, 200).await;
    assert!(count(&fixture, "FROM outbox_events").await > 100);
    change_alone(&fixture, &["reshard", "--shares", "2"]).await;
    shares(&mut fixture, 2);
    let told = fixture.walrelay(&["verify", "--json"]).await;
    assert_eq!(told.code, Some(3), "{told:?}");
    let missing: Vec<_> = reports(&told)
        .into_iter()
        .filter(|it| it["missing"]["count"] != 0)
        .collect();
    assert!(!missing.is_empty(), "{told:?}");
    for report in missing {
        assert_eq!(report["verdict"], "unchecked", "{report}");
        let left = report["left"].as_str().expect("it is told");
        assert!(left.contains("run walrelay reshard --shares 2,"), "{left}");
    }
    let text = fixture.walrelay(&["verify"]).await.stdout;
    assert!(text.contains("may be in these slots still"), "{text}");
    // The remedy.
    reshard(&fixture, "2").await;
    fixture.walrelay(&["verify"]).await.success();
}
