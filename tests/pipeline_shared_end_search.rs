//! The search for the lane's last message in a stream that others write to: what it asks for, and what it makes of it.

mod lane_record;

use walrelay::pipeline::end_search::{FoundEnd, Lookup, StoredMessage};
use walrelay::pipeline::lane_end::LaneEnd;
use walrelay::pipeline::position::Position;
use walrelay::pipeline::record::LaneRecord;
use walrelay::pipeline::shared_end_search::{SharedEndSearch, SharedSubjects, StreamEnd};

const FENCE: &str = "walrelay.fence.S.s";
const FENCES: &str = "walrelay.fence.*.s";
const EVENTS: &str = "outbox.>";
const DEAD: &str = "walrelay.dead.s";
const LAST_SEQUENCE: u64 = 50;

fn search(messages: u64, record: Option<&LaneRecord>) -> SharedEndSearch<'static> {
    let subjects = SharedSubjects::new("S", "s", EVENTS.into());
    let stream = StreamEnd {
        created: "then",
        last_sequence: LAST_SEQUENCE,
        messages,
    };
    SharedEndSearch::new("s", subjects, stream, record, None)
}

/// The record of a relay that may have gone on behind message `sequence`.
fn record(sequence: u64) -> LaneRecord {
    LaneRecord {
        sequence,
        position: Some("0/A:1".parse().expect("a position")),
        event_id: Some("e".into()),
        active: true,
        ..lane_record::fresh("then")
    }
}

fn foreign(sequence: u64) -> StoredMessage<'static> {
    StoredMessage {
        sequence,
        position: None,
        tail: None,
        expected_sequence: None,
        is_fence: false,
        in_batch: false,
        id: [None; 2],
        kind: None,
        table: None,
        body: b"{}",
    }
}

fn fence(sequence: u64, tail: &'static str) -> StoredMessage<'static> {
    StoredMessage {
        tail: Some(tail),
        is_fence: true,
        ..foreign(sequence)
    }
}

/// A copy of an event of the lane, as a consumer's redrive leaves it.
fn copy(sequence: u64, position: &'static str) -> StoredMessage<'static> {
    StoredMessage {
        position: Some(position),
        body: br#"{"id":"e"}"#,
        ..foreign(sequence)
    }
}

fn event(sequence: u64, position: &'static str) -> StoredMessage<'static> {
    StoredMessage {
        in_batch: true,
        id: [None; 2],
        kind: None,
        ..copy(sequence, position)
    }
}

fn found(sequence: u64, position: &str) -> FoundEnd {
    let position: Position = position.parse().expect("a position");
    FoundEnd::Found(LaneEnd {
        sequence,
        position,
        event_id: Some("e".into()),
        table: None,
    })
}

/// The same, told by an event of the lane's own table.
fn found_event(sequence: u64, position: &str) -> FoundEnd {
    match found(sequence, position) {
        FoundEnd::Found(lane_end) => FoundEnd::Found(LaneEnd {
            table: Some(String::new()),
            ..lane_end
        }),
        other => other,
    }
}

/// Answers as given, each to the question that it belongs to.
fn ask<'a>(
    mut search: SharedEndSearch<'_>,
    answers: &[(Lookup<'_>, Option<StoredMessage<'a>>)],
) -> FoundEnd {
    for (lookup, message) in answers {
        assert_eq!(search.wanted(), Some(*lookup));
        if let Some(lane_end) = search.take(*message) {
            return lane_end;
        }
    }
    assert_eq!(search.wanted(), None);
    search.end()
}

fn events_from(from: u64) -> Lookup<'static> {
    Lookup::Next {
        from,
        filter: EVENTS,
    }
}

fn dead_from(from: u64) -> Lookup<'static> {
    Lookup::Next { from, filter: DEAD }
}

#[test]
fn the_fence_tells_and_what_is_left_of_a_later_batch_counts() {
    let at_40 = (Lookup::Last(FENCE), Some(fence(40, "s 0/A:1 e")));
    let nothing = [(events_from(41), None), (dead_from(41), None)];
    let lane_end = ask(search(20, None), &[&[at_40], &nothing[..]].concat());
    assert_eq!(lane_end, found(40, "0/A:1"));

    let survived = [
        at_40,
        (events_from(41), Some(event(41, "s 0/B:1"))),
        // A redrive of it.
        (events_from(42), Some(copy(44, "s 0/B:1"))),
        (events_from(45), None),
        (dead_from(41), Some(event(43, "s 0/B:2"))),
        (dead_from(44), None),
    ];
    assert_eq!(ask(search(20, None), &survived), found_event(43, "0/B:2"));
}

#[test]
fn nothing_is_asked_for_beyond_the_streams_end() {
    // A relay that publishes meanwhile is not followed.
    let moving = [
        (Lookup::Last(FENCE), Some(fence(40, "s 0/A:1 e"))),
        (events_from(41), Some(event(LAST_SEQUENCE, "s 0/B:1"))),
        (dead_from(41), Some(event(LAST_SEQUENCE + 1, "s 0/C:1"))),
    ];
    assert_eq!(
        ask(search(20, None), &moving),
        found_event(LAST_SEQUENCE, "0/B:1")
    );
    let newer = (
        Lookup::Last(FENCE),
        Some(fence(LAST_SEQUENCE + 9, "s 0/C:1 e")),
    );
    assert_eq!(
        ask(search(20, None), &[newer]),
        found(LAST_SEQUENCE + 9, "0/C:1")
    );
}

#[test]
fn a_known_later_message_tells_lost_from_removed() {
    let record = record(45);
    let older = (Lookup::Last(FENCE), Some(fence(40, "s 0/9:1 e")));
    let missing = (Lookup::Last(FENCE), None);
    let known = |message| (Lookup::Message(45), message);
    let nothing = |from| [(events_from(from), None), (dead_from(from), None)];

    let removed = ask(search(20, Some(&record)), &[older, known(None)]);
    assert_eq!(removed, FoundEnd::FenceRemoved);
    let lost = [&[older, known(Some(foreign(45)))], &nothing(41)[..]].concat();
    assert_eq!(ask(search(20, Some(&record)), &lost), found(40, "0/9:1"));
    // An older answer had hidden it.
    let there = [
        &[older, known(Some(fence(45, "s 0/A:1 e")))],
        &nothing(46)[..],
    ]
    .concat();
    assert_eq!(ask(search(20, Some(&record)), &there), found(45, "0/A:1"));

    let lost = [missing, known(Some(foreign(45)))];
    let halt = ask(search(20, Some(&record)), &lost);
    assert_eq!(halt, FoundEnd::Replaced { sequence: 45 });
    // Nothing was ever removed, so there was no other fence.
    let lost = [&lost[..], &nothing(1)[..]].concat();
    assert_eq!(ask(search(50, Some(&record)), &lost), FoundEnd::Nothing);
}

#[test]
fn a_stream_that_was_the_lanes_own_has_no_fence_yet() {
    let record = record(45);
    let own = StoredMessage {
        expected_sequence: Some("44"),
        ..copy(45, "s 0/A:1")
    };
    for messages in [20, 50] {
        let answers = [
            (Lookup::Last(FENCE), None),
            (Lookup::Message(45), Some(own)),
        ];
        let lane_end = ask(search(messages, Some(&record)), &answers);
        assert_eq!(lane_end, FoundEnd::FenceRemoved, "the record tells");
    }
    // The same without a record that names it.
    let answers = [
        (Lookup::Last(FENCE), None),
        (Lookup::Last(FENCES), None),
        (events_from(1), Some(foreign(7))),
        (events_from(8), Some(own)),
    ];
    assert_eq!(ask(search(50, None), &answers), FoundEnd::FenceRemoved);
}

#[test]
fn a_lane_that_was_never_here_has_nothing() {
    let new = [
        (Lookup::Last(FENCE), None),
        (Lookup::Last(FENCES), None),
        (events_from(1), Some(foreign(7))),
        (events_from(8), None),
        (dead_from(1), None),
    ];
    assert_eq!(ask(search(20, None), &new), FoundEnd::Nothing);
    let adopted = LaneRecord {
        adopted_sequence: 45,
        ..record(45)
    };
    let old = (Lookup::Last(FENCE), Some(fence(40, "s 0/A:1 e")));
    assert_eq!(ask(search(20, Some(&adopted)), &[old]), FoundEnd::Nothing);
}

#[test]
fn a_stream_that_was_made_from_another_one_tells_nothing_by_itself() {
    let at_40 = (Lookup::Last(FENCE), Some(fence(40, "s 0/A:1 e")));
    let none = (Lookup::Last(FENCE), None);
    // The middle of a batch, as a mirror takes it; the fence behind it did not come.
    let cut = [at_40, (events_from(41), Some(copy(41, "s 0/B:1")))];
    assert_eq!(
        ask(search(20, None), &cut),
        FoundEnd::Copied { sequence: 41 }
    );
    // Under another name, the fences tell the old one.
    let renamed = [none, (Lookup::Last(FENCES), Some(fence(40, "s 0/A:1 e")))];
    assert_eq!(
        ask(search(20, None), &renamed),
        FoundEnd::Copied { sequence: 40 }
    );
    // Events alone.
    let filtered = [
        none,
        (Lookup::Last(FENCES), None),
        (events_from(1), Some(foreign(3))),
        (events_from(4), Some(copy(9, "s 0/A:1"))),
    ];
    assert_eq!(
        ask(search(20, None), &filtered),
        FoundEnd::Copied { sequence: 9 }
    );
}

/// A share that is one again, or a lane that was adopted, before its first event: a consumer copies what was published before that.
#[test]
fn a_copy_from_before_the_lane_began_anew_tells_nothing() {
    let anew = LaneRecord {
        sequence: 30,
        active: true,
        adopted_sequence: 30,
        ..lane_record::fresh("then")
    };
    let at_40 = (Lookup::Last(FENCE), Some(fence(40, "-")));
    let copied = (events_from(41), Some(copy(41, "s 0/A:1")));
    let nothing = [(events_from(42), None), (dead_from(41), None)];
    let answers = [&[at_40, copied], &nothing[..]].concat();
    assert_eq!(ask(search(50, Some(&anew)), &answers), FoundEnd::Nothing);
    // It has published: where it has lost that, a person has to look.
    let published = LaneRecord {
        sequence: 40,
        adopted_sequence: 30,
        ..record(40)
    };
    let copied = ask(search(50, Some(&published)), &[at_40, copied]);
    assert_eq!(copied, FoundEnd::Copied { sequence: 41 });
}

#[test]
fn a_lane_whose_fences_were_removed_and_that_no_record_knows_was_there() {
    let removed = [
        (Lookup::Last(FENCE), None),
        (Lookup::Last(FENCES), None),
        (events_from(1), Some(event(9, "s 0/A:1"))),
    ];
    assert_eq!(ask(search(20, None), &removed), FoundEnd::FenceRemoved);
}

/// A new lane among many messages of others on its own subjects. What has no fence has published nothing, so that the look
/// at them is bounded.
#[test]
fn a_lane_without_a_fence_is_told_by_a_bounded_number_of_answers() {
    const OTHERS: u64 = 100_000;
    let subjects = SharedSubjects::new("S", "s", EVENTS.into());
    let stream = StreamEnd {
        created: "then",
        last_sequence: OTHERS,
        messages: OTHERS,
    };
    let mut search = SharedEndSearch::new("s", subjects, stream, None, None);
    let mut asked = 0;
    while let Some(lookup) = search.wanted() {
        asked += 1;
        let answer = match lookup {
            Lookup::Next {
                from,
                filter: EVENTS,
            } => Some(foreign(from)),
            _ => None,
        };
        assert_eq!(search.take(answer), None);
    }
    assert!((200..210).contains(&asked), "{asked}");
    assert_eq!(search.end(), FoundEnd::Nothing);
}
