//! What is asked for, by settings and by the server's version.

use super::*;

#[test]
fn names_the_subjects_of_a_lane() {
    assert_eq!(
        lane_record_subject("OUTBOX", "walrelay"),
        "walrelay.lane.OUTBOX.walrelay"
    );
    assert_eq!(dead_letter_subject("walrelay"), "walrelay.dead.walrelay");
}

#[test]
fn asks_only_for_what_the_server_knows() {
    let settings = StreamSettings {
        name: "OUTBOX".into(),
        events: "outbox.>".into(),
        slot: "s".into(),
        shared: false,
        num_replicas: 3,
    };
    let subjects = settings.subjects();
    assert_eq!(subjects, ["outbox.>", "walrelay.dead.s"]);
    let flags = |major, minor| {
        let version = ServerVersion {
            major,
            minor,
            patch: 0,
        };
        let config = events_config(&settings, subjects.clone(), version);
        (config.allow_atomic_publish, config.allow_batch_publish)
    };
    assert_eq!(flags(2, 11), (false, false));
    assert_eq!(flags(2, 12), (true, false));
    assert_eq!(flags(2, 14), (true, true));
}
