//! What is asked for, by settings and by the server's version.

use super::*;

#[test]
fn the_root_holds_every_subject_of_a_template() {
    assert_eq!(
        events_root("outbox.{event_type}").as_deref(),
        Some("outbox.>")
    );
    assert_eq!(
        events_root("edupulse.{event_type}").as_deref(),
        Some("edupulse.>")
    );
    assert_eq!(events_root("a.b.{x}.c.{y}").as_deref(), Some("a.b.>"));
    assert_eq!(events_root("a.b-{x}").as_deref(), Some("a.>"));
    assert_eq!(events_root("a.b").as_deref(), Some("a.b"));
    assert_eq!(events_root("{x}.a"), None);
    assert_eq!(events_root("a-{x}"), None);
}

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
        subject_template: "outbox.{event_type}".into(),
        slot: "s".into(),
        shared: false,
        num_replicas: 3,
    };
    let subjects = settings.subjects().expect("a fixed token");
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
