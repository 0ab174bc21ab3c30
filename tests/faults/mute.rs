//! A stream whose server could not write: silent until a restart, and healthy by all that it tells.

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::lane::stream_of;
use crate::support::{Fixture, assert_exactly_once, uuid};

const SAID: &str = "answers no message and looks healthy";

/// No file of the server grows beyond so many bytes, as on a disk that is full.
fn limit_files(fixture: &mut Fixture, bytes: u64) {
    let pid = fixture.own_servers().nats.pid().expect("it runs");
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let limit = Rlimit {
        current: Some(bytes),
        maximum: None,
    };
    prlimit(Some(pid.expect("a pid")), Resource::Fsize, limit).expect("it is our child");
}

#[tokio::test]
async fn a_stream_that_has_failed_to_write_is_named_and_a_restart_mends_it() {
    let mut fixture = Fixture::own().await;
    fixture.set("WALRELAY_RELAY_ACK_TIMEOUT", "500ms");
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 2_000).await;
    fixture.holds(2_000).await;
    assert!(!relay.log().contains(SAID));
    let bytes = stream_of(&fixture).await.cached_info().state.bytes;
    limit_files(&mut fixture, bytes);
    fixture.insert(2_001, 3_000).await;
    relay.logs(SAID).await;
    assert!(relay.log().contains("restart nats-server"));

    let nats = &mut fixture.own_servers().nats;
    nats.kill();
    nats.start_again().await.expect("it starts");
    fixture.holds(3_000).await;
    let said = relay.log().matches(SAID).count();
    assert_eq!(said, 1, "{}", relay.log());
    relay.stop().await;
    let expected: Vec<_> = (1..=3_000).map(uuid).collect();
    assert_exactly_once(&expected, &fixture.stored_ids().await);
}
