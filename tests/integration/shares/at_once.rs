//! `walrelay doctor` of several shares: they are looked at beside each other, so many as the servers have room for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{SHARES, divide, reports};
use crate::support::{Fixture, Output, eventually};

/// What one look at a lane has: the catalog's session, that of the dead letters, and that of what a start would halt at.
const SESSIONS_A_LANE: usize = 3;
/// So many lanes are looked at beside each other.
const LANES: usize = 8;

#[tokio::test]
async fn doctor_tells_of_the_shares_in_their_order() {
    let mut fixture = Fixture::bare().await;
    divide(&mut fixture, true);
    fixture.setup().await;
    let told = fixture.walrelay(&["doctor", "--json"]).await;
    let reports = reports(&told);
    assert_eq!(reports.len(), SHARES, "{told:?}");
    for (share, report) in reports.iter().enumerate() {
        let publication = format!("publication {}_{share}:", fixture.name);
        let looked_at = report["looked_at"].to_string();
        assert!(looked_at.contains(&publication), "{share}: {looked_at}");
    }
    let names: Vec<&str> = told.stderr.lines().collect();
    let expected = [0, 1, 2, 3].map(|share| format!("share {share} of 4:"));
    assert_eq!(names, expected);
}

/// One after the other, those behind a Postgres that accepts and says nothing would take minutes; all at once, more sessions than it has.
#[tokio::test]
async fn doctor_waits_for_a_silent_server_beside_each_other() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (leave, left) = watch::channel(false);
    let silent = {
        let (open, most) = (Arc::clone(&open), Arc::clone(&most));
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let now = open.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                let (open, mut left) = (Arc::clone(&open), left.clone());
                tokio::spawn(async move {
                    let mut said = [0; 1024];
                    let hears =
                        async { while client.read(&mut said).await.is_ok_and(|len| len > 0) {} };
                    tokio::select! {
                        () = hears => {}
                        _ = left.wait_for(|left| *left) => {}
                    }
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        })
    };
    let mut fixture = Fixture::bare().await;
    divide(&mut fixture, false);
    fixture.set("WALRELAY_RELAY_SHARES", (2 * LANES).to_string());
    let url = format!("postgres://postgres@127.0.0.1:{port}/nobody?sslmode=disable");
    fixture.set("WALRELAY_POSTGRES_URL", url);
    let mut command = fixture.command(&["doctor", "--json"]);
    let doctor = tokio::spawn(async move { Output::of(&mut command).await });
    eventually("several lanes wait beside each other", async || {
        (open.load(Ordering::SeqCst) == SESSIONS_A_LANE * LANES).then_some(())
    })
    .await;
    leave.send_replace(true);
    let told = doctor.await.unwrap();
    silent.abort();
    assert_eq!(told.code, Some(3), "{told:?}");
    let reports = reports(&told);
    assert_eq!(reports.len(), 2 * LANES, "{told:?}");
    for report in reports {
        let not_seen = report["not_seen"].to_string();
        assert!(not_seen.contains("Postgres"), "{report}");
    }
    assert_eq!(most.load(Ordering::SeqCst), SESSIONS_A_LANE * LANES);
}
