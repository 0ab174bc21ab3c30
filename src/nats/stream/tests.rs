//! What is asked for, by settings and by the server's version.

use super::*;

#[test]
fn names_the_subject_of_a_lane_record() {
    assert_eq!(
        lane_record_subject("OUTBOX", "walrelay"),
        "walrelay.lane.OUTBOX.walrelay"
    );
}

#[test]
fn asks_only_for_what_the_server_knows() {
    let settings = StreamSettings {
        name: "OUTBOX".into(),
        subjects: vec!["outbox.>".into()],
        subjects_to_create: vec!["outbox.>".into()],
        slot: "s".into(),
        shared: false,
        num_replicas: 3,
    };
    let flags = |major, minor| {
        let version = ServerVersion {
            major,
            minor,
            patch: 0,
        };
        let config = events_config(&settings, version);
        (config.allow_atomic_publish, config.allow_batch_publish)
    };
    assert_eq!(flags(2, 11), (false, false));
    assert_eq!(flags(2, 12), (true, false));
    assert_eq!(flags(2, 14), (true, true));
}
